"""The fingerprint of what a model was shown changes with all of it, and with nothing else."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from makers import make_clip, make_media

from videorl.contract import AlignmentError, fingerprint, verify

fixed = settings(derandomize=True, deadline=None, max_examples=100)

ids = st.lists(st.integers(0, 200_000), max_size=12)
keys = st.text("0123456789abcdef", min_size=1, max_size=4)
grids = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
seconds = st.floats(0.01, 10)
medias = st.lists(st.builds(make_media, keys, grids, seconds), max_size=4)


@fixed
@given(a=st.tuples(ids, medias), b=st.tuples(ids, medias))
def test_different_inputs_have_different_fingerprints(a, b):
    shown = [(ids, [(item.key, item.grid, item.seconds_per_grid) for item in media]) for ids, media in (a, b)]
    assume(shown[0] != shown[1])
    assert fingerprint(*a) != fingerprint(*b)


@fixed
@given(ids=ids, media=medias.filter(len), data=st.data())
def test_any_one_change_shows(ids, media, data):
    before = fingerprint(ids, media)
    place = data.draw(st.integers(0, len(ids)))
    assert fingerprint([*ids[:place], 7, *ids[place:]], media) != before
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
        assert fingerprint(ids, changed) != before, change


@fixed
@given(ids=ids, media=medias.filter(lambda media: len(media) > 1))
def test_the_order_of_videos_shows(ids, media):
    assume(media != media[::-1])
    assert fingerprint(ids, media) != fingerprint(ids, media[::-1])


def test_the_order_of_tokens_shows():
    assert fingerprint([1, 2], []) != fingerprint([2, 1], [])
    assert fingerprint([1, 23], []) != fingerprint([12, 3], [])


def test_nothing_else_shows():
    media = make_media("a")
    renamed = dataclasses.replace(media, clip=make_clip("elsewhere.mp4"))
    assert fingerprint([1, 2], [media]) == fingerprint((1, 2), (renamed,))


def test_verify_names_the_sample():
    media = [make_media("0123456789abcdef")]
    verify("bikes#3", fingerprint([1, 2], media), [1, 2], media)
    with pytest.raises(AlignmentError) as caught:
        verify("bikes#3", fingerprint([1, 2, 3], media), [1, 2], media)
    message = str(caught.value)
    assert message.startswith("sample bikes#3: ") and "(2 prompt tokens, media ['0123456789ab'])" in message
    assert "nothing was trained on this batch" in message
