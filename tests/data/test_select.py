"""Rules read from text, statistics by hand, and what `python -m videorl.data select` keeps."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import make_rendered, make_rollout

from videorl.data.__main__ import main
from videorl.data.schema import CanonicalRow, load_rows
from videorl.data.select import PRESETS, Rule, judge_row, parse_rule, read_rollouts
from videorl.run import make_line
from videorl.types import DataError


def make_row(id, task="mc", **fields):
    extra = {"mc": {"choices": ["red", "blue"], "answer": "A"}, "grounding": {"spans": [[0, 1]]}}.get(task, {})
    videos = [{"path": "a.mp4"}] if task == "grounding" else []
    row = {"id": id, "task": task, "prompt": "Which?", "videos": videos} | extra | fields
    return CanonicalRow.model_validate(row).model_dump()


def rollout(id, accuracy, reward=0.0, **terms):
    return {"prompt_id": id, "reward": reward, "terms": {"accuracy": accuracy, **terms}}


def write_rollouts(folder, lines):
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "rollouts.jsonl")


def select(folder, rows, rollouts, *options):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--path", str(folder / "rows.jsonl"), "--rollouts", write_rollouts(folder, rollouts)]
    return main(["select", *arguments, "--out", str(folder / "kept.jsonl"), *options])


def kept(folder):
    return {row["id"]: row["meta"].get("selection") for row in load_rows(folder / "kept.jsonl")}


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("0 < mean(accuracy) < 1", ("mean", "accuracy", 0.0, 1.0, True, True)),
        ("0.1<=std(temporal_iou)", ("std", "temporal_iou", 0.1, math.inf, False, True)),
        ("spread(judge/score) >= -.5", ("spread", "judge/score", -0.5, math.inf, False, True)),
        ("min(reward) > 2", ("min", "reward", 2.0, math.inf, True, True)),
        ("column(critic_score) <= 5", ("column", "critic_score", -math.inf, 5.0, True, False)),
    ],
)
def test_rules_from_text(text, rule):
    found = parse_rule(text)
    assert (found.statistic, found.name, found.low, found.high, found.low_open, found.high_open) == rule
    assert len(found.tasks) == 6


def test_a_rule_may_name_its_tasks():
    assert parse_rule("mc, next_event: mean(accuracy) > 0").tasks == {"mc", "next_event"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mean(accuracy)", "is no rule"),
        ("mean > 3", "is no rule"),
        ("__import__('os') > 3", "is no rule"),
        ("0 > mean(accuracy)", "is no rule"),
        ("median(accuracy) > 3", "'median' must be one of mean, std, min, max, spread, column, ratio"),
        ("ratio(tokens) < 3", "'tokens' must be one of words, characters"),
        ("mcq: mean(accuracy) > 3", "'mcq' is no task; choose from mc, open"),
        ("0 < mean(accuracy) > 1", "two lower bounds"),
    ],
)
def test_other_texts_are_refused(text, complaint):
    with pytest.raises(DataError) as error:
        parse_rule(text)
    assert error.value.reason == "rule" and complaint in str(error.value)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_rules_with_a_source(name):
    assert all(isinstance(parse_rule(text), Rule) for text in PRESETS[name].rules) and PRESETS[name].source


@pytest.mark.parametrize(
    ("text", "outcomes"),
    [
        ("0 < mean(x) < 1", ["too low", "kept", "too high"]),
        ("0 <= mean(x) <= 1", ["kept", "kept", "kept"]),
        ("mean(x) >= 1", ["too low", "too low", "kept"]),
    ],
)
def test_bounds_are_open_or_closed(text, outcomes):
    assert [parse_rule(text).judge(value) for value in (0.0, 0.5, 1.0)] == outcomes


def test_a_ratio_compares_the_two_of_a_pair():
    rows = [
        make_row("p", chosen="a big red car", rejected="a car"),
        make_row("q", chosen="car", rejected=" "),
        make_row("r"),
    ]
    verdicts = [judge_row(row, [parse_rule("ratio(words) <= 1.5")], {}, 2) for row in rows]
    assert [(each.outcome, each.value) for each in verdicts] == [("too high", 2.0), ("kept", 1.0), ("no pair", None)]
    assert judge_row(rows[0], [parse_rule("ratio(characters) < 3")], {}, 2).value == 13 / 5


# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statistic", "value"),
    # 1, 0, 0.5, 0.5: mean 2/4; squared deviations 0.25, 0.25, 0, 0, whose mean 0.125 has the root 0.3536
    [("mean", 0.5), ("std", math.sqrt(0.125)), ("min", 0.0), ("max", 1.0), ("spread", 1.0)],
)
def test_statistics_by_hand(statistic, value):
    rule = parse_rule(f"{statistic}(x) >= 0")
    verdict = judge_row(make_row("a"), [rule], {"a": {"x": [1.0, 0.0, 0.5, 0.5]}}, 2)
    assert verdict.outcome == "kept" and verdict.value == pytest.approx(value)
    assert verdict.provenance() == {
        "rule": f"{statistic}(x) >= 0",
        "value": verdict.value,
        "k": 4,
        "mean": 0.5,
        "std": pytest.approx(math.sqrt(0.125)),
    }


@settings(derandomize=True, deadline=None, max_examples=100)
@given(values=st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=8))
def test_keye_keeps_exactly_what_a_group_can_learn_from(values):
    rules = [parse_rule(text) for text in PRESETS["keye"].rules]
    verdict = judge_row(make_row("a"), rules, {"a": {"accuracy": values}}, 2)
    assert (verdict.outcome == "kept") == (len(set(values)) == 2)


# --- rollouts --------------------------------------------------------------------------------------------------------


def test_rollouts_are_read_as_runs_write_them(tmp_path):
    """A null is a term, or a reward, without a value; here the judge's."""
    rollout = make_rollout(make_rendered("a"), reward=1.5)
    first = make_line(0, replace(rollout, terms={"accuracy": 1.0, "judge": math.nan}))
    second = make_line(0, replace(rollout, terms={"accuracy": 0.5, "judge": 0.25})) | {"reward": None}
    path = write_rollouts(tmp_path, [first, second])
    assert read_rollouts(path, ["accuracy", "judge"]) == {
        "a": {"reward": [1.5], "accuracy": [1.0, 0.5], "judge": [0.25]}
    }
    with pytest.raises(DataError, match="no sampled rollout has the term 'iou'; there are accuracy, judge, reward"):
        read_rollouts(path, ["iou"])


def test_greedy_rollouts_and_second_passes_do_not_count(tmp_path):
    other = [rollout("a", 0.0) | {"temperature": 0.0}, rollout("a", 0.0) | {"pass": "shuffled"}]
    path = write_rollouts(tmp_path, [rollout("a", 1.0) | {"temperature": 1.0}, *other])
    assert read_rollouts(path, ["accuracy"]) == {"a": {"reward": [0.0], "accuracy": [1.0]}}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"prompt_id": "a", "reward": 1}',
        '{"prompt_id": "a", "reward": "1", "terms": {}}',
        '{"prompt_id": "a", "reward": NaN, "terms": {}}',
        '{"prompt_id": "a", "reward": 1, "terms": {"x": "1"}}',
        '{"prompt_id": "a", "reward": 1, "terms": {"x": true}}',
        '{"prompt_id": ["a"], "reward": 1, "terms": {}}',
        '{"prompt_id": "a", "reward": 1, "terms": [1]}',
    ],
)
def test_other_lines_are_refused(tmp_path, line):
    good = json.dumps(rollout("a", 1.0))
    (tmp_path / "rollouts.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(DataError, match="line 2") as error:
        read_rollouts(str(tmp_path / "rollouts.jsonl"), ["accuracy"])
    assert error.value.reason == "bad_rollouts"


# --- the command -----------------------------------------------------------------------------------------------------


def test_temporal_rlt_keeps_mixed_choices_and_varied_intervals(tmp_path, capsys):
    rows = [make_row(id) for id in ("mixed", "right", "wrong", "once")]
    rows += [make_row(id, "grounding") for id in ("varied", "steady")] + [make_row("open", "open")]
    # IoU 0.2 and 0.6: mean 0.4, std 0.2, kept; 0.50 and 0.52: std 0.01, below the default 0.1
    values = {
        "mixed": (1, 0),
        "right": (1, 1),
        "wrong": (0, 0),
        "once": (1,),
        "varied": (0.2, 0.6),
        "steady": (0.5, 0.52),
    }
    rollouts = [rollout(id, value) for id, each in values.items() for value in each] + [rollout("gone", 1.0)]
    assert select(tmp_path, rows, rollouts, "--preset", "temporal-rlt") == 0
    selection = kept(tmp_path)
    assert selection.keys() == {"mixed", "varied"}
    assert selection["varied"] == [
        {
            "rule": "grounding: std(accuracy) >= 0.1",
            "value": pytest.approx(0.2),
            "k": 2,
            "mean": pytest.approx(0.4),
            "std": pytest.approx(0.2),
        }
    ]
    out = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    assert ["mc,next_event: 0 < mean(accuracy) < 1", "too high", "1"] in cells
    assert ["mc,next_event: 0 < mean(accuracy) < 1", "too few rollouts", "1"] in cells
    assert ["grounding: std(accuracy) >= 0.1", "too low", "1"] in cells
    assert ["-", "no rule for its task", "1"] in cells
    assert "0.1 is ours" in out and "1 ids of the rollouts are no rows of the data, for example 'gone'" in out
    assert "mean(accuracy) of 3 rows" in out and "kept.jsonl: 2 of 7 rows" in out


def test_a_critics_score_in_a_column_needs_no_rollouts(tmp_path):
    scores = {"low": 4.9, "five": 5, "none": None, "text": "3", "true": True}
    rows = [make_row(id, meta={} if score is None else {"critic_score": score}) for id, score in scores.items()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["select", "--path", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "kept.jsonl")]
    assert main([*arguments, "--preset", "reagent-v-grpo"]) == 0
    assert kept(tmp_path) == {"low": [{"rule": "column(critic_score) < 5", "value": 4.9}]}


def test_a_second_selection_adds_to_the_first(tmp_path):
    rollouts = [rollout("a", 1.0, reward=2.0), rollout("a", 0.0, reward=1.0)]
    assert select(tmp_path, [make_row("a")], rollouts, "--preset", "keye") == 0
    rows = load_rows(tmp_path / "kept.jsonl")
    assert select(tmp_path, rows, rollouts, "--keep", "spread(reward) >= 1", "--force") == 0
    assert [entry["rule"] for entry in kept(tmp_path)["a"]] == ["0 < mean(accuracy) < 1", "spread(reward) >= 1"]


def test_a_preset_may_use_another_term(tmp_path):
    rollouts = [rollout("a", 1.0, grade=value) for value in (0.25, 0.75)]
    assert select(tmp_path, [make_row("a")], rollouts, "--preset", "longvila", "--term", "grade") == 0
    assert kept(tmp_path)["a"][0] == {"rule": "0 < mean(grade) < 1", "value": 0.5, "k": 2, "mean": 0.5, "std": 0.25}


def test_refusals(tmp_path, capsys):
    rows, rollouts = [make_row("a", meta={"selection": "mine"}), make_row("b")], [rollout("b", 1.0)] * 2
    assert select(tmp_path, rows, rollouts, "--preset", "keye") == 1
    assert "none of 2 rows is kept: nothing was written" in capsys.readouterr().err
    assert select(tmp_path, rows, [rollout("a", value) for value in (0, 1)], "--preset", "keye") == 1
    assert "row 'a': meta.selection='mine' is not from here" in capsys.readouterr().err
    assert main(["select", "--path", str(tmp_path / "rows.jsonl"), "--out", "x.jsonl", "--preset", "keye"]) == 1
    assert "accuracy must come from rollouts; give --rollouts" in capsys.readouterr().err
    assert select(tmp_path, rows, rollouts, "--keep", "mean(iou) > 0") == 1
    assert "no sampled rollout has the term 'iou'; there are accuracy, reward" in capsys.readouterr().err
    assert not (tmp_path / "kept.jsonl").exists()
