"""Best constant answers and duplicates by hand, and what `python -m videorl.data stats` prints."""

from __future__ import annotations

import json

import pytest
from clips import write_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.data.__main__ import main
from videorl.data.report import BINS, WIDTH, histogram
from videorl.data.schema import CanonicalRow
from videorl.data.stats import best_constants, repeated
from videorl.rewards.terms.times import iou

fixed = settings(derandomize=True, deadline=None, max_examples=50)


def make_row(id, task="mc", **fields):
    extra = {"choices": ["red", "blue", "green"]} if task == "mc" else {}
    videos = [{"path": "a.mp4"}] if task == "grounding" else []
    row = {"id": id, "task": task, "prompt": "Which?", "videos": videos} | extra | fields
    return CanonicalRow.model_validate(row).model_dump()


def ground(*rows, source="g"):
    return [make_row(f"g{i}", "grounding", spans=spans, data_source=source) for i, spans in enumerate(rows)]


# --- the best constant answer ----------------------------------------------------------------------------------------


def test_the_most_frequent_letter_and_number():
    rows = [make_row(f"m{i}", answer=answer, data_source="s") for i, answer in enumerate(["A", "blue", "b", "C"])]
    rows += [make_row(f"n{i}", "numeric", answer=answer, data_source="s") for i, answer in enumerate(["2", 2.001, "7"])]
    rows += [make_row("o", "open", data_source="s")]
    letters, numbers = best_constants(rows)
    # "blue" and "b" are both B: 2 of 4. 2 and 2.001 are equal to two decimals: 2 of 3
    assert (letters.task, letters.answer, letters.score, letters.rows) == ("mc", "B", 0.5, 4)
    assert dict(letters.answers) == {"A": 1, "B": 2, "C": 1}
    assert (numbers.answer, numbers.score, numbers.answers) == ("2", pytest.approx(2 / 3), (("2", 2), ("7", 1)))


def test_the_best_interval():
    # "0 to 3" has 2 of 3 seconds in common with each of [0, 2] and [1, 3]: 2/3. "0 to 2": 1 and 1/3, the same mean,
    # and it comes first
    (constant,) = best_constants(ground([[0, 2]], [[1, 3]]))
    assert (constant.answer, constant.score, constant.answers) == ("0 to 2", pytest.approx(2 / 3), ())
    # the better of two spans counts: "0 to 1" fits the first of [0, 1], [5, 9] exactly
    (constant,) = best_constants(ground([[0, 1], [5, 9]], [[0, 1]]))
    assert (constant.answer, constant.score) == ("0 to 1", 1.0)


def test_long_clips_have_a_coarser_grid():
    (constant,) = best_constants(ground([[100, 500]], [[100, 600]]))  # 60 steps of 10 s
    assert (constant.answer, constant.score) == ("100 to 500", pytest.approx((1 + 0.8) / 2))


@fixed
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 4)), min_size=1, max_size=4))
def test_no_interval_of_whole_seconds_is_better(pairs):
    spans = [[float(start), float(start + length)] for start, length in pairs]
    (constant,) = best_constants(ground(*([span] for span in spans)))
    intervals = [(float(start), float(end)) for start in range(13) for end in range(start + 1, 13)]
    scores = [sum(iou(interval, (start, end)) for start, end in spans) / len(spans) for interval in intervals]
    assert constant.score == pytest.approx(max(scores))


def test_sources_and_tasks_are_apart_and_the_largest_comes_first():
    rows = ground([[0, 1]], source="small") + [make_row(f"m{i}", answer="A", data_source="large") for i in range(2)]
    assert [(each.source, each.task, each.rows) for each in best_constants(rows)] == [
        ("large", "mc", 2),
        ("small", "grounding", 1),
    ]


# --- duplicates and histograms ---------------------------------------------------------------------------------------


def count_of(line):
    return int(line.rstrip("█ ").split()[-1])


def test_repeated_by_hand():
    assert repeated("abcabb") == [("b", 3), ("a", 2)]


@fixed
@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=50))
def test_a_histogram_counts_every_value_once(values):
    lines = histogram(values)
    assert len(lines) in (1, BINS) and max(line.count("█") for line in lines) == WIDTH
    assert sum(map(count_of, lines)) == len(values)


def test_a_histogram_by_hand():
    lines = histogram([0.0, 0.05, 0.5, 1.0])  # bins of 0.1: two, one in [0.5, 0.6), one in the last
    assert [count_of(line) for line in lines] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert [line.count("█") for line in lines] == [40, 0, 0, 0, 0, 20, 0, 0, 0, 20]


# --- the command -----------------------------------------------------------------------------------------------------


def run(folder, rows, *options):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return main(["stats", "--path", str(folder / "rows.jsonl"), *options])


def cells_of(text):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


def test_stats_without_videos(tmp_path, capsys):
    rows = [make_row(f"m{i}", answer=answer, data_source="s") for i, answer in enumerate("AAB")]
    rows += [make_row("g", "grounding", spans=[[0, 2]], data_source="[s]", response="0 to 2")]
    assert run(tmp_path, rows) == 0
    out = capsys.readouterr().out
    assert ["s", "mc", "3", "0"] in cells_of(out) and ["[s]", "grounding", "1", "1"] in cells_of(out)
    assert ["s", "mc", "A", "0.667", "A 67%, B 33%"] in cells_of(out)
    assert ["[s]", "grounding", "0 to 2", "1.000", ""] in cells_of(out)
    assert "2 rows differ from another only in id or meta, for example 'm0'" in out
    assert "1 videos, shown 1 times" in out and " x a.mp4" not in out and "sizes" not in out


def test_stats_with_videos(tmp_path, capsys):
    write_clip(tmp_path / "a.mp4", num_frames=50, fps=25)
    rows = [
        make_row("a", "open", videos=[{"path": "a.mp4"}]),
        make_row("b", "open", videos=[{"path": "a.mp4", "end": 1}]),
    ]
    options = ["--media-root", str(tmp_path), "--workers", "1", "--max-pixels", "3136"]
    assert run(tmp_path, rows, *options) == 0
    out = capsys.readouterr().out
    assert ["seconds of a clip", "1.0", "1.5", "2.0", "3.0"] in cells_of(out)
    assert "differ from another" not in out and "2 x a.mp4" in out
    assert run(tmp_path, [*rows, make_row("gone", "open", videos=[{"path": "b.mp4"}])], *options) == 1
    assert "missing: 1 bad rows" in (out := capsys.readouterr().out) and "gone: 'b.mp4'" in out
