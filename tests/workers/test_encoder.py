"""How clips are dealt to encoders. That parts give the features of the whole is shown in tests/e2e/test_workers.py."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from makers import make_media

from videorl.workers.encoder import MIN_STEPS, Part, deal


def clip(name: str, steps: int, area: tuple[int, int] = (4, 4)):
    return make_media(name, grid=(steps, *area))


def bounds(dealt: list[list[Part]]) -> list[list[tuple[str, int, int]]]:
    return [[(part.media.key, part.start, part.stop) for part in parts] for parts in dealt]


def test_short_clips_stay_whole_and_go_where_least_is():
    dealt = deal([clip("a", 8), clip("b", 6), clip("c", 3), clip("d", 2)], 2)
    assert bounds(dealt) == [[("a", 0, 8), ("d", 0, 2)], [("b", 0, 6), ("c", 0, 3)]]


def test_a_long_clip_is_cut_for_all_encoders():
    assert bounds(deal([clip("a", 101)], 3)) == [[("a", 33, 67)], [("a", 67, 101)], [("a", 0, 33)]]


def test_a_clip_is_cut_no_finer_than_a_part_is_worth():
    assert bounds(deal([clip("a", 2 * MIN_STEPS + 1)], 8))[:3] == [[("a", 16, 33)], [("a", 0, 16)], []]


def test_a_clip_stays_whole_where_it_is_no_more_than_a_share():
    assert bounds(deal([clip("a", 100), clip("b", 100)], 2)) == [[("a", 0, 100)], [("b", 0, 100)]]


def test_frames_out_of_order_and_pixels_are_not_cut():
    item = clip("a", 100)
    shuffled = dataclasses.replace(item, clip=dataclasses.replace(item.clip, shuffle=1))
    assert bounds(deal([shuffled], 2)) == [[("a", 0, 100)], []]
    assert bounds(deal([item], 2, cut=False)) == [[("a", 0, 100)], []]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(1, 6))
def test_every_step_is_dealt_once(steps, workers):
    dealt = deal([clip(f"v{index}", count) for index, count in enumerate(steps)], workers)
    found: dict[str, list[int]] = {}
    for part in (part for parts in dealt for part in parts):
        found.setdefault(part.media.key, []).extend(range(part.start, part.stop))
        assert part.whole == (part.key == part.media.key)
    assert {key: sorted(value) for key, value in found.items()} == {
        f"v{index}": list(range(count)) for index, count in enumerate(steps)
    }
    keys = [part.key for parts in dealt for part in parts]
    assert len(set(keys)) == len(keys)
