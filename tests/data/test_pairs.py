"""Pairs from rollouts, on the command line and by their rule."""

import json

import pytest

from videorl.data.__main__ import main
from videorl.data.pairs import draw_pairs
from videorl.data.schema import load_rows


def test_the_widest_gaps_are_taken_and_no_response_twice():
    values = {"a": 1.0, "b": 0.9, "c": 0.5, "d": 0.0, " ": -1.0}
    assert draw_pairs(values, 1, 0.1) == [("a", "d", 1.0)]
    assert draw_pairs(values, 5, 0.1) == [("a", "d", 1.0), ("b", "c", 0.4)]
    assert draw_pairs(values, 5, 2.0) == []


def test_equal_gaps_do_not_depend_on_the_order_of_sampling():
    values = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}
    assert draw_pairs(values, 2, 0.1) == draw_pairs(dict(reversed(values.items())), 2, 0.1)


@pytest.fixture
def files(tmp_path):
    rows = [{"id": id, "task": "open", "prompt": "?", "answer": "x"} for id in ("p", "q", "r")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def rollouts(*lines):
        records = [
            {"prompt_id": id, "response": text, "reward": reward, "terms": {}, "temperature": 1.0} | dict(more)
            for id, text, reward, *more in lines
        ]
        (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return [
            "pairs", "--path", str(tmp_path / "rows.jsonl"), "--rollouts", str(tmp_path / "rollouts.jsonl"),
            "--out", str(tmp_path / "pairs.jsonl"),
        ]  # fmt: skip

    return rollouts


def test_the_command(files, tmp_path, capsys):
    greedy, cut = ("temperature", 0), ("finish_reason", "length")
    arguments = files(
        ("p", "a red car", 1.0), ("p", "a blue car", 0.0), ("p", "best of all", 2.0, greedy),
        ("p", "worst of all", -1.0, cut), ("q", "same", 1.0),
    )  # fmt: skip
    assert main(arguments) == 0
    (row,) = load_rows(tmp_path / "pairs.jsonl")
    assert (row["id"], row["chosen"], row["rejected"]) == ("p", "a red car", "a blue car")
    assert row["phrases"] == [{"chosen": [2, 5], "rejected": [2, 6]}]
    out = capsys.readouterr().out
    assert "1 pairs; rows 1 with pairs, 1 alike, 1 without rollouts" in out


@pytest.mark.parametrize(
    "lines, more, problem",
    [
        ([("p", "a", 1.0), ("p", "b", 1.0)], [], "no row has responses 0.1 apart"),
        ([("s", "a", 1.0)], [], "has no rollout of a row of"),
        ([("p", "a", 1.0)], ["--term", "tiou"], "no sampled rollout has the term 'tiou'; there are reward"),
        ([("p", None, 1.0)], [], "a rollout of 'p' has no response"),
    ],
)
def test_what_gives_no_pairs_is_said(files, tmp_path, capsys, lines, more, problem):
    assert main([*files(*lines), *more]) == 1
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize("option, problem", [("--per-row=0", "0 must be at least 1"), ("--min-gap=0", "above 0")])
def test_a_number_out_of_range_is_refused(files, capsys, option, problem):
    with pytest.raises(SystemExit):
        main([*files(("p", "a", 1.0)), option])
    assert problem in capsys.readouterr().err
