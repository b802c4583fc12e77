"""What stands in the context of a turn, by token ids written out."""

from __future__ import annotations

import pytest

from videorl.config import TargetConfig
from videorl.rollout.contexts import Concat, Observed, Past, Piece, VisualWindow, Window, load_context


def observed(k: int) -> Observed:
    return Observed(Piece((k, 900), (f"clip {k}",)), Piece((k,)))  # type: ignore[arg-type]


HEAD = Piece((1, 2))
PAST = [Past(observed(k), Piece((k + 100,))) for k in (10, 20, 30)]
NOW = observed(40)


def test_concat_keeps_everything():
    view = Concat().view(HEAD, PAST, NOW)
    assert view.token_ids == (1, 2, 10, 900, 110, 20, 900, 120, 30, 900, 130, 40, 900)
    assert view.media == ("clip 10", "clip 20", "clip 30", "clip 40")


def test_window_keeps_the_last_turns_with_their_observations():
    view = Window(turns=2).view(HEAD, PAST, NOW)
    assert view.token_ids == (1, 2, 20, 900, 120, 30, 900, 130, 40, 900)
    assert view.media == ("clip 20", "clip 30", "clip 40")


@pytest.mark.parametrize(("rounds", "live"), [(1, []), (2, [30]), (3, [20, 30])])
def test_visual_window_forgets_frames_and_keeps_text_and_the_first_ones(rounds, live):
    view = VisualWindow(rounds=rounds).view(HEAD, PAST, NOW)
    expected = [1, 2]
    for k in (10, 20, 30):
        expected += [k, *([900] if k in (10, *live) else []), k + 100]
    assert view.token_ids == (*expected, 40, 900)
    assert view.media == tuple(f"clip {k}" for k in (10, *live, 40))


@pytest.mark.parametrize("context", [Concat(), Window(3), VisualWindow(3)])
def test_a_context_that_forgets_nothing_continues_itself(context):
    first = context.view(HEAD, PAST[:1], PAST[1].observed)
    second = context.view(HEAD, PAST[:2], PAST[2].observed)
    whole = first + PAST[1].said
    assert second.token_ids[: len(whole.token_ids)] == whole.token_ids


@pytest.mark.parametrize(
    ("target", "params", "said"),
    [
        ("windw", {}, "choose one of concat, window, visual_window"),
        ("window", {}, "turns"),
        ("window", {"turns": 0}, "params.turns: 0, must be at least 1"),
        ("visual_window", {"rounds": 0}, "params.rounds: 0, must be at least 1"),
        ("concat", {"turns": 3}, "turns"),
    ],
)
def test_a_context_that_cannot_be_made_says_why(target, params, said):
    with pytest.raises(ValueError, match=said):
        load_context(TargetConfig(target=target, params=params))
