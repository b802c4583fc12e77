"""Reward code that hangs, throws or dies costs the sample it worked on, and nothing else."""

from __future__ import annotations

import asyncio

import pytest
import ray
from ray.exceptions import RayActorError

from videorl.rewards.result import Abstained, Sample
from videorl.rewards.rubric import Rubric
from videorl.rewards.workers import RewardWorkers

FATES = {  # response -> how its abstention begins
    "hang": "timeout: bad_rewards:careless took longer than rewards.deadline=3 s",
    "hang and ignore": "timeout: ",
    "throw": "raised: bad_rewards:careless: KeyError: 'score'",
    "exit": "crashed: ",
    "nan": "raised: bad_rewards:careless: ValueError: value is nan",
    "text": "raised: ",
}


@pytest.fixture(scope="module")
def careless(stack):
    config = stack.workspace.config(
        "+rewards.terms.careless={target: 'bad_rewards:careless', weight: 1}", "rewards.deadline=3"
    )
    workers = RewardWorkers(stack.cluster, config)
    return Rubric(config.rewards, workers), workers


def sample(id: str, response: str) -> Sample:
    return Sample(id=id, response=response, row={"id": id, "task": "mc", "choices": ["a", "b"], "answer": "A"})


def test_each_failure_costs_one_sample_and_names_it(careless):
    rubric, _ = careless
    samples = [sample(f"good-{n}", "x" * n) for n in range(1, 9)]
    samples[2:2] = [sample(f"bad-{response}", response) for response in FATES]

    async def score_all():
        return await asyncio.gather(*(rubric.score(each) for each in samples))

    for each, score in zip(samples, asyncio.run(score_all()), strict=True):
        if each.id.startswith("good"):
            assert score.terms["careless"] == len(each.response) and score.abstained == {}
        else:
            said = score.abstained["careless"]
            assert said.startswith(FATES[each.response]) and f"(sample {each.id})" in said
            assert "careless" not in score.terms  # no 0


def test_the_next_collection_finds_workers_that_work(careless):
    rubric, _ = careless
    score = asyncio.run(rubric.score(sample("later", "four")))
    assert score.terms["careless"] == 4.0


def test_a_term_without_an_answer_raises_abstained(careless):
    _, workers = careless
    with pytest.raises(Abstained, match="raised: "):
        asyncio.run(workers.score("careless", {}, sample("p", "throw")))


def test_a_scorer_that_is_gone_is_reported_and_replaced(stack):
    judge = "{target: judge, weight: 1, params: {kind: next_event, base_url: 'http://127.0.0.1:9/v1', model: m}}"
    workers = RewardWorkers(stack.cluster, stack.workspace.config(f"+rewards.terms.judge={judge}"))
    ray.get(workers.ready())
    for _ in range(3):  # a canary that one report asks for shows in the next
        assert workers.report(check=False)["judge/calls"] == 0
    actor = workers._scorers["judge"].actor
    ray.kill(actor)
    with pytest.raises(RayActorError):  # what is asked of it at once it may still answer
        while True:
            ray.get(actor.take_counts.remote(), timeout=60)
    assert workers.report(check=False) == {"judge/unreachable": 1.0}
    assert workers.report(check=False)["judge/calls"] == 0
