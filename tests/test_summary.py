"""The table of before and after, and the curves."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from videorl import summary
from videorl.summary import compute_summary, draw_curves, make_table

HISTORY = [
    {"step": 0, "eval/accuracy": 0.25, "eval/accuracy/count": 0.5, "time/step": 20.0},
    {"step": 1, "reward/mean": 0.1, "time/step": 10.0, "time/rollout": 4.0, "parity/max_log_prob_diff": 3e-6},
    {"step": 2, "reward/mean": math.nan, "time/step": 10.0, "time/rollout": 5.0, "parity/max_log_prob_diff": 0.0},
    {
        "step": 3,
        "reward/mean": 0.4,
        "eval/accuracy": 0.75,
        "eval/accuracy/count": 0.25,
        "time/step": 30.0,
        "time/rollout": 6.0,
        "time/eval": 20.0,
        "time/save": 2.0,
    },
]


def test_summary_by_hand():
    assert compute_summary(HISTORY, {"accuracy": 0.375}) == {
        "step": 3,
        "seconds": 72.0,
        "metrics": {
            "eval/accuracy": {"before": 0.25, "after": 0.75, "before_step": 0, "after_step": 3, "baseline": 0.375},
            "eval/accuracy/count": {"before": 0.5, "after": 0.25, "before_step": 0, "after_step": 3},
            "reward/mean": {"before": 0.1, "after": 0.4, "before_step": 1, "after_step": 3},
        },
    }


def test_summary_of_nothing():
    assert compute_summary([], {}) == {"step": 0, "seconds": 0, "metrics": {}}


def cells(history: list) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as capture:
        console.print(make_table(compute_summary(history, {"accuracy": 0.375})))
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│" in line]


def test_table_has_a_line_for_each_metric():
    assert cells(HISTORY) == [
        ["eval/accuracy", "0, 3", "0.250", "0.750", "+0.500", "0.375"],
        ["eval/accuracy/count", "0, 3", "0.500", "0.250", "-0.250", "-"],
        ["reward/mean", "1, 3", "0.100", "0.400", "+0.300", "-"],
    ]


def test_table_of_an_evaluation_has_no_before():
    assert cells(HISTORY[:1]) == [["eval/accuracy", "0.250", "0.375"], ["eval/accuracy/count", "0.500", "-"]]


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Draw, and give the four axes: reward, accuracy, parity, phases."""

    def draw(history: list) -> list:
        figures: list[Figure] = []

        def keep(*args, **options) -> Figure:
            figures.append(Figure(*args, **options))
            return figures[0]

        monkeypatch.setattr(summary, "Figure", keep)
        draw_curves(history, {"accuracy": 0.375}, "a run", tmp_path / "curves.png")
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
        return figures[0].axes

    return draw


def points(line) -> list[tuple[float, float]]:
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_curves_show_the_metrics(drawn):
    reward, accuracy, parity, phases = drawn(HISTORY)
    assert points(reward.lines[0]) == [(1, 0.1), (3, 0.4)]  # NaN left out
    assert points(accuracy.lines[0]) == [(0, 0.25), (3, 0.75)]
    assert accuracy.lines[1].get_ydata()[0] == 0.375 and accuracy.lines[1].get_label() == "best constant answer"
    assert points(parity.lines[0]) == [(1, 3e-6), (2, 1e-9)] and parity.get_ylim() == pytest.approx((1e-9, 1e-5))
    handles, labels = phases.get_legend_handles_labels()
    assert labels == ["rollout", "other"] and len(handles) == 2
    # 10 s on top at each step: 4 + 6, 5 + 5, and 6 + 30 - 6 - 20 where an evaluation took 20 of them
    assert phases.get_ylim()[1] == pytest.approx(13.0)


def test_a_run_without_any_step_still_gets_its_picture(drawn):
    for axes in drawn([])[2:]:
        assert [text.get_text() for text in axes.texts] == ["no value"]
