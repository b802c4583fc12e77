"""The live view: charts, time left, and untrusted text on a terminal."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_run import make_group

from videorl.live import PlainView, RichView, chart, format_eta, format_line, printable, shorten


def test_chart_by_hand():
    assert chart([0.0, 1.0, 2.0, 3.0], width=4, height=1) == ["▁▃▆█"]  # 1 + 7 x (0, 1/3, 2/3, 1) = 1, 3.3, 5.7, 8
    assert chart([0.0, 1.0], width=2, height=2) == [" █", "▁█"]
    assert chart([0.0, 2.0, 4.0, 6.0], width=2, height=1) == ["▁█"]  # means 1 and 5
    assert chart([0.3, 0.3], width=5, height=1) == ["▅▅"]  # half-way
    assert chart([], width=5, height=2) == ["", ""]


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50),
    width=st.integers(1, 30),
    height=st.integers(1, 5),
)
def test_chart_fits_its_frame(values: list[float], width: int, height: int):
    rows = chart(values, width, height)
    assert len(rows) == height and {len(row) for row in rows} == {min(width, len(values))}
    assert " " not in rows[-1]  # the lowest value can be seen


def test_eta_is_the_pace_of_the_last_steps():
    history = [{"step": 0, "time/step": 500.0}]
    assert format_eta(history, 10) == "-"
    history += [{"step": 1, "time/step": 10.0}, {"step": 2, "time/step": 14.0, "time/save": 6.0}]
    assert format_eta(history, 10) == "0:02:00"  # (10 + 20) / 2 x 8 steps
    assert format_eta([{"step": step, "time/step": 1.0} for step in range(1, 30)], 29) == "0:00:00"
    assert format_eta([{"step": 1, "time/step": 99.0}, {"step": 2, "time/step": 1.0}], 102, window=1) == "0:01:40"


def test_one_plain_line_a_step(capsys: pytest.CaptureFixture[str]):
    history = [{"step": 7, "reward/mean": 0.51234, "eval/accuracy": 0.25, "time/rollout": 2.0, "time/step": 3.0}]
    view = PlainView(100, history)
    view.start()
    view.published([])
    view.stop()
    assert capsys.readouterr().out == "step   7/100  reward 0.5123  eval 0.25  3.0 s (rollout 2.0)  ETA 0:04:39\n"
    assert format_line([{"step": 0, "eval/accuracy": 0.5, "time/step": 3.0}], 5) == "step 0/5  eval 0.5  3.0 s  ETA -"


def test_printable_leaves_no_control_characters():
    assert printable("a\n b\t\x1b[2Jc\u202ed\x9b") == "a b \ufffd[2Jc\ufffdd\ufffd"
    assert printable("三个球 é") == "三个球 é"


@given(st.text())
def test_printable_is_one_printable_line(text: str):
    assert printable(text).isprintable()


def test_shorten_keeps_both_ends():
    assert shorten("a" * 50 + "b" * 50, 13) == "aaaaa … bbbbb"
    assert shorten("short", 5) == "short"


def render(view: RichView) -> str:
    with view.console.capture() as capture:
        view.console.print(view.render())
    return capture.get()


def test_the_view_shows_progress_curves_and_rollouts():
    history: list[dict[str, float]] = []
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    view = RichView(20, history, console, "quickstart")
    view.show("starting engines")
    assert "starting engines" in render(view) and "no value yet" in render(view)

    history += [
        {"step": 0, "eval/accuracy": 0.25, "time/step": 1.0},
        {"step": 1, "reward/mean": 0.125, "reward/std": 0.5, "time/step": 10.0},
    ]
    hostile = "[red]bold[/red] \x1b]0;title\x07 [/]"
    group = make_group("a", [0.0, 0.5, 1.0], text=hostile, terms={"format": 0.75}, failures={"accuracy": "no_answer"})
    view.published(group.rollouts)
    view.show("step 2 · rollout 3")
    screen = render(view)
    for text in ("quickstart  1/20", "step 2 · rollout 3", "ETA 0:03:10", "reward 0.125", "held-out accuracy 0.250"):
        assert text in screen
    for text in ("best: reward 1", "median: reward 0.5", "worst: reward 0", "<video>How many balls?"):
        assert text in screen
    assert "reward/std 0.5" in screen and "accuracy: no_answer format 0.75" in screen
    assert "[red]bold[/red]" in screen and "\x1b" not in screen and "\x07" not in screen


def test_the_live_view_starts_and_stops_on_a_terminal():
    screen = io.StringIO()
    view = RichView(20, [], Console(file=screen, width=120, force_terminal=True), "quickstart")
    view.start()
    view.stop()
    view.stop()
    assert "quickstart" in screen.getvalue()
