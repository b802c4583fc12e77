from dataclasses import replace
from types import SimpleNamespace

import pytest
from makers import make_rendered, make_rollout

from videorl.evaluate import Evaluation, constant_baselines
from videorl.types import Failed, RolloutGroup

CHOICES = ["red", "green", "blue", "yellow"]


def row(id, task, source, **fields):
    return {"id": id, "task": task, "data_source": source, "choices": None, "answer": None, "spans": None, **fields}


FIRST = [row(f"f{i}", "mc", "first", choices=CHOICES, answer=answer) for i, answer in enumerate("AABC")]
GROUND = [row(f"g{i}", "grounding", "ground", spans=[span]) for i, span in enumerate([[0.0, 2.0], [1.0, 3.0]])]


def group(row, *texts):
    prompt = make_rendered(row["id"])
    prompt = replace(prompt, prompt=replace(prompt.prompt, row=row, task=row["task"]))
    rollouts = tuple(replace(make_rollout(prompt), text=f"<think></think><answer>{text}</answer>") for text in texts)
    return RolloutGroup(prompt=prompt, rollouts=rollouts)


def test_constant_baselines_by_hand():
    prompts = [SimpleNamespace(prompt=SimpleNamespace(row=row, task=row["task"])) for row in FIRST + GROUND]
    # "0 to 3" overlaps each of [0, 2] and [1, 3] by 2 of 3 seconds, "0 to 2" by 1 and by 1/3: means 2/3 and 2/3;
    # both rows pass 0.5 with the former, one with the latter
    assert constant_baselines(prompts) == pytest.approx(
        {
            "accuracy": (4 * 0.5 + 2 * 2 / 3) / 6,
            "accuracy/first": 0.5,
            "accuracy/ground": 2 / 3,
            "accuracy/ground/recall@0.5": 1.0,
        },
        abs=1e-9,
    )


def test_metrics_are_means_over_prompts_and_unparsed_answers_are_wrong():
    sampled = [group(FIRST[0], "A", "B"), group(FIRST[2], "no idea", "B"), group(GROUND[0], "0 to 4", "0 to 2")]
    greedy = [group(FIRST[0], "A"), group(FIRST[2], "A"), group(GROUND[0], "1 to 2")]
    metrics = Evaluation(sampled=sampled, greedy=greedy).metrics()
    assert metrics["accuracy"] == pytest.approx((0.5 + 0.5 + 0.75) / 3)
    assert metrics["accuracy_greedy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert metrics["parse_failure"] == pytest.approx(1 / 6)
    assert metrics["accuracy/first"] == 0.5
    assert metrics["accuracy/ground/recall@0.5"] == 1.0  # IoU 0.5 and 1
    assert metrics["accuracy_greedy/ground"] == 0.5


def test_the_configured_accuracy_goes_before_the_rule_of_the_task():
    found = group(FIRST[0], "A", "A")
    rollouts = tuple(
        replace(rollout, terms={"accuracy": value}, failures=failures)
        for rollout, value, failures in zip(found.rollouts, (0.25, 0.0), ({}, {"accuracy": "no_letter"}), strict=True)
    )
    found = replace(found, rollouts=rollouts)
    metrics = Evaluation(sampled=[found], greedy=[found]).metrics()
    assert (metrics["accuracy"], metrics["parse_failure"]) == (0.125, 0.5)


def test_an_episode_that_failed_is_wrong_and_lost():
    found = group(FIRST[0], "A")
    found = replace(found, failed=(Failed(index=1, why="its server is gone"),))
    metrics = Evaluation(sampled=[found], greedy=[found]).metrics()
    assert (metrics["accuracy"], metrics["lost"]) == (0.5, 0.5)


def test_a_rollout_that_nobody_could_score_is_wrong_and_reported():
    row = {**FIRST[0], "task": "open"}
    found = group(row, "x", "y")
    found = replace(found, rollouts=(replace(found.rollouts[0], reward=0.5),), lost=found.rollouts[1:])
    metrics = Evaluation(sampled=[found], greedy=[found]).metrics()
    assert (metrics["accuracy"], metrics["lost"]) == (0.25, 0.5)
