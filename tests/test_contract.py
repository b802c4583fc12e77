"""The fingerprint of what a model was shown changes with all of it, and with nothing else."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from makers import make_clip, make_media

from videorl.contract import AlignmentError, check_log_probs, fingerprint, verify
from videorl.types import Media

fixed = settings(derandomize=True, deadline=None, max_examples=100)

keys = st.text("0123456789abcdef", min_size=1, max_size=4)
grids = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
seconds = st.floats(0.01, 10)
medias = st.lists(st.builds(make_media, keys, grids, seconds), max_size=4)


@st.composite
def shown(draw, media=medias) -> tuple[list[int], np.ndarray, list[Media]]:
    """(ids, positions, media) of a row."""
    ids = draw(st.lists(st.integers(0, 200_000), max_size=12))
    columns = [draw(st.lists(st.integers(0, 50), min_size=len(ids), max_size=len(ids))) for _ in range(3)]
    return ids, np.array(columns, dtype=np.int64).reshape(3, len(ids)), draw(media)


def content(ids, positions, media):
    return list(ids), positions.tolist(), [(item.key, item.grid, item.seconds_per_grid) for item in media]


@fixed
@given(a=shown(), b=shown())
def test_different_inputs_have_different_fingerprints(a, b):
    assume(content(*a) != content(*b))
    assert fingerprint(*a) != fingerprint(*b)


@fixed
@given(row=shown(medias.filter(len)), data=st.data())
def test_any_one_change_shows(row, data):
    ids, positions, media = row
    before = fingerprint(ids, positions, media)
    place = data.draw(st.integers(0, len(ids)))
    longer = np.insert(positions, place, 3, axis=1)
    assert fingerprint([*ids[:place], 7, *ids[place:]], longer, media) != before
    if ids:
        place = data.draw(st.integers(0, len(ids) - 1))
        for axis in range(3):
            moved = positions.copy()
            moved[axis, place] += 1
            assert fingerprint(ids, moved, media) != before
    place = data.draw(st.integers(0, len(media) - 1))
    item = media[place]
    t, h, w = item.grid
    for change in (
        {"key": item.key + "0"},
        {"grid": (t + 1, h, w)},
        {"grid": (t, h + 1, w)},
        {"grid": (t, h, w + 1)},
        {"seconds_per_grid": item.seconds_per_grid * (1 + 2**-52)},
    ):
        changed = [*media[:place], dataclasses.replace(item, **change), *media[place + 1 :]]
        assert fingerprint(ids, positions, changed) != before, change


@fixed
@given(row=shown(medias.filter(lambda media: len(media) > 1)))
def test_the_order_of_videos_shows(row):
    ids, positions, media = row
    assume(media != media[::-1])
    assert fingerprint(ids, positions, media) != fingerprint(ids, positions, media[::-1])


TWO = np.zeros((3, 2))


def test_the_order_of_tokens_shows():
    assert fingerprint([1, 2], TWO, []) != fingerprint([2, 1], TWO, [])
    assert fingerprint([1, 23], TWO, []) != fingerprint([12, 3], TWO, [])


def test_nothing_else_shows():
    media = make_media("a")
    renamed = dataclasses.replace(media, clip=make_clip("elsewhere.mp4"))
    assert fingerprint([1, 2], TWO, [media]) == fingerprint(np.array([1, 2], np.int32), TWO, (renamed,))


def test_verify_names_the_sample():
    media = [make_media("0123456789abcdef")]
    verify("bikes#3", fingerprint([1, 2], TWO, media), [1, 2], TWO, media)
    with pytest.raises(AlignmentError) as caught:
        verify("bikes#3", fingerprint([1, 3], TWO, media), [1, 2], TWO, media)
    message = str(caught.value)
    assert message.startswith("sample bikes#3: ") and "(2 tokens, media ['0123456789ab'])" in message
    assert "nothing was trained on this batch" in message


# --- log-probs -------------------------------------------------------------------------------------------------------

IDS = ["a#0", "b#0"]
MASK = torch.tensor([[True, True, False], [True, False, False]])
OURS = torch.tensor([[-1.0, -2.0, math.nan], [-0.5, 9.0, math.inf]])
ENGINE = torch.tensor([[-1.5, -2.0, 0.0], [-0.25, -9.0, 0.0]])  # off by 0.5, 0 and 0.25; the rest is hidden


def test_the_difference_ignores_what_the_mask_hides():
    assert check_log_probs(IDS, ENGINE, OURS, MASK, 0.25) == {"max_log_prob_diff": 0.5, "mean_log_prob_diff": 0.25}


def test_a_difference_over_the_tolerance_names_the_samples_that_are_farthest_apart():
    with pytest.raises(
        AlignmentError, match=r"by 0\.25 .*parity_tolerance=0\.2; farthest apart: a#0 \(0\.25\), b#0 \(0\.25\)"
    ):
        check_log_probs(IDS, ENGINE, OURS, MASK, 0.2)
    lost = OURS.clone()
    lost[1, 0] = math.nan
    with pytest.raises(AlignmentError, match=r"farthest apart: b#0 \(inf\), a#0"):
        check_log_probs(IDS, ENGINE, lost, MASK, 1e9)


def test_blank_videos_must_change_more_than_rounding_does():
    blank = OURS + 0.3
    found = check_log_probs(IDS, ENGINE, OURS, MASK, 0.25, blank)
    assert found["blank_video_diff"] == pytest.approx(0.3)
    # a row without a video is no evidence, however far the sides are apart on it
    far, videos = ENGINE - torch.tensor([[2.0], [0.0]]), torch.tensor([False, True])
    assert check_log_probs(IDS, far, OURS, MASK, 9.0, blank, videos)["blank_video_diff"] == pytest.approx(0.3)
    for same in (OURS, OURS - 0.2):
        with pytest.raises(AlignmentError, match="the trainer does not look at the videos"):
            check_log_probs(IDS, ENGINE, OURS, MASK, 0.25, same)
