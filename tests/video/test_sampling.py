"""Sampling rules by hand and by property; `test_qwen_parity.py` holds them against Qwen's own code."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from clips import make_sampling
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.types import Clip, VideoError
from videorl.video.frames import Frames, VideoIndex
from videorl.video.sampling import choose_frames, frame_size, num_frames, plan_clip, plan_seeks

fixed = settings(derandomize=True, deadline=None)


def make_index(ticks, *, time_base=Fraction(1, 1000), rate=None, end=None, keyframes=None, size=(64, 96)) -> VideoIndex:
    ticks = np.asarray(ticks, np.int64)
    return VideoIndex(
        ticks=ticks,
        keyframes=ticks[:1] if keyframes is None else np.asarray(keyframes, np.int64),
        end=int(ticks[-1]) + 40 if end is None else end,
        time_base=time_base,
        rate=rate,
        height=size[0],
        width=size[1],
    )


def plan(index, start=None, end=None, **sampling):
    return plan_clip(Clip(path="a.mp4", sampling=make_sampling(**sampling), start=start, end=end), index, "0" * 64)


AT_25 = make_index(np.arange(100) * 40 + 7_000, rate=Fraction(25))  # 4 s that begin at 7 s


def test_whole_clip_by_hand():
    """4 s * 2 fps = 8 frames; linspace(0, 99, 8) = 0, 14.14, 28.29, 42.43, 56.57, 70.71, 84.86, 99."""
    shown = plan(AT_25, fps=2.0)
    assert shown.indices == (0, 14, 28, 42, 57, 71, 85, 99)
    assert shown.pts == pytest.approx((7.0, 7.56, 8.12, 8.68, 9.28, 9.84, 10.4, 10.96), abs=1e-12)
    assert (shown.origin, shown.duration) == (7.0, 4.0)
    assert shown.seconds_per_grid == pytest.approx(3.96 / 7 * 2, abs=1e-12)
    assert (shown.height, shown.width) == (56, 84)  # 64 and 96 to the nearest multiples of 28: round(3.43) = 3
    assert shown.grid(patch_size=14, temporal_patch=2) == (4, 4, 6)


def test_span_by_hand():
    shown = plan(AT_25, start=1.0, end=2.0, fps=None, num_frames=6)  # frames 25..50
    assert shown.indices == (25, 30, 35, 40, 45, 50)
    assert (shown.origin, shown.duration) == (8.0, 1.0)
    assert shown.pts[0] - shown.origin == 0.0


def test_picked_frames_are_those_of_the_rule():
    whole = plan(AT_25, fps=2.0)
    picked = plan_clip(replace(whole.clip, pick=(1, 2, 6)), AT_25, "0" * 64)
    assert picked.indices == (14, 28, 85)
    assert picked.pts == tuple(whole.pts[place] for place in (1, 2, 6))
    assert picked.grid(patch_size=14, temporal_patch=2) == (2, 4, 6)
    assert (picked.origin, picked.duration) == (whole.origin, whole.duration)
    with pytest.raises(VideoError, match="there are 8 frames"):
        plan_clip(replace(whole.clip, pick=(1, 8)), AT_25, "0" * 64)


def test_held_frames_stay_on_until_the_next():
    whole = plan(AT_25, fps=2.0)
    held = plan_clip(replace(whole.clip, hold=(2, 5)), AT_25, "0" * 64)
    assert held.order == (2, 2, 2, 2, 2, 5, 5, 5) and not held.in_order
    assert (held.indices, held.pts) == (whole.indices, whole.pts)
    assert held.shown_pts == tuple(whole.pts[place] for place in held.order)
    assert whole.in_order and whole.order == tuple(range(8))
    with pytest.raises(VideoError, match=r"hold=\(1, 8\), there are 8 frames"):
        plan_clip(replace(whole.clip, hold=(1, 8)), AT_25, "0" * 64)
    with pytest.raises(VideoError, match="shuffle and hold both say which frame is shown when"):
        replace(whole.clip, hold=(1,), shuffle=0)


@pytest.mark.parametrize("hold", [(), (2, 1), (-1, 2)])
def test_held_places_increase(hold):
    with pytest.raises(VideoError, match=r"hold=.* must be places that increase"):
        Clip(path="a.mp4", sampling=make_sampling(), hold=hold)


@pytest.mark.parametrize("pick", [(), (2, 1), (1, 1), (-1, 2)])
def test_picks_are_places_that_increase(pick):
    with pytest.raises(VideoError, match="places that increase"):
        Clip(path="a.mp4", sampling=make_sampling(), pick=pick)


def test_a_box_is_cut_before_it_is_resized():
    """Of 96 x 64 pixels the right half's upper three quarters: 48 x 48, to the nearest multiples of 28."""
    shown = plan_clip(Clip(path="a.mp4", sampling=make_sampling(min_pixels=1), box=(0.5, 0, 1, 0.75)), AT_25, "0" * 64)
    assert shown.crop == (48, 0, 96, 48)
    assert (shown.height, shown.width) == (56, 56)
    thin = plan_clip(
        Clip(path="a.mp4", sampling=make_sampling(min_pixels=1), box=(0.999, 0.5, 1, 0.5001)), AT_25, "0" * 64
    )
    assert thin.crop == (95, 32, 96, 33)
    assert plan(AT_25).crop == (0, 0, 96, 64)


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 1), (0.5, 0, 0.4, 1), (0, 0, 1.1, 1), (-0.1, 0, 1, 1), (float("nan"), 0, 1, 1)]
)
def test_a_box_has_an_area_inside_the_frame(box):
    with pytest.raises(VideoError, match="left < right"):
        Clip(path="a.mp4", sampling=make_sampling(), box=box)


def test_span_bounds_are_those_of_the_clock_not_of_rounding():
    assert plan(AT_25, start=0.28, end=0.56, fps=None, num_frames=2).indices == (7, 14)  # 0.28 * 25 = 7.000000000000001
    coarse = make_index(range(9), time_base=Fraction(1, 30), rate=Fraction(30), end=9)
    assert plan(coarse, end=0.25, fps=None, num_frames=2).indices == (0, 7)  # frame 8 comes at 0.267 s


def test_span_is_cut_at_the_end_of_the_file():
    shown = plan(AT_25, start=3.0, end=60.0, fps=2.0)
    assert shown.indices == (75, 99) and shown.duration == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("start", "end"), [(4.0, None), (100.0, 101.0), (0.01, 0.03), (3.97, None)])
def test_a_span_without_frames_is_refused(start, end):
    with pytest.raises(VideoError, match=f"start={start} and end={end}.*4.000 s") as caught:
        plan(AT_25, start=start, end=end)
    assert caught.value.reason == "bad_span"


def test_variable_rate_is_sampled_by_time():
    index = make_index([0, 100, 200, 300, 400, 5_000, 10_000], end=10_100)
    shown = plan(index, fps=None, num_frames=4)  # targets 0, 3.33, 6.67 and 10 s; 5 s is nearest to two of them
    assert shown.indices == (0, 6)  # three different frames, cut to a multiple of two: first and last


def test_a_freeze_gives_fewer_frames_not_repeats():
    moving = list(range(0, 2_000, 40))  # 2 s at 25 fps, then a picture that stays for 8 s, then 2 s more
    index = make_index([*moving, *(10_000 + t for t in moving)], end=12_000)
    shown = plan(index, fps=2.0)  # 12 s * 2 fps = 24 targets every 0.52 s
    times = np.array(shown.pts)
    assert len(times) % 2 == 0 and len(set(times)) == len(times)
    assert 8 <= len(times) <= 12  # about four targets in each moving part, two frames for the freeze
    assert (times < 2.5).sum() in (4, 5, 6) and times[0] == 0.0 and times[-1] == 11.96


@pytest.mark.parametrize(
    ("available", "seconds", "rule", "expected"),
    [
        (250, 10.0, {"fps": 2.0}, 20),
        (250, 10.9, {"fps": 1.0}, 10),  # 10.9 floored to a multiple of 2
        (250, 10.0, {"fps": 0.01, "min_frames": 4}, 4),
        (250, 10.0, {"fps": 0.01, "min_frames": 5}, 6),  # the minimum is rounded up ...
        (250, 10.0, {"fps": 20.0, "max_frames": 63}, 62),  # ... and the maximum down
        (5, 0.2, {"fps": 2.0, "min_frames": 16}, 4),  # fewer frames than the minimum: what is there
        (1, 0.04, {"fps": 2.0, "min_frames": 16}, 1),
        (250, 10.0, {"fps": None, "num_frames": 8}, 8),
        (250, 10.0, {"fps": None, "num_frames": 3}, 4),  # to the nearest multiple, halves to even
        (250, 10.0, {"fps": None, "num_frames": 5}, 4),
        (250, 10.0, {"fps": None, "num_frames": 1}, 1),
        (7, 10.0, {"fps": None, "num_frames": 16}, 6),
    ],
)
def test_number_of_frames(available, seconds, rule, expected):
    assert num_frames(make_sampling(**rule), available, seconds) == expected


ROOMY = {"max_pixels": 602_112, "total_pixels": 10**9}


@pytest.mark.parametrize(
    ("frames", "height", "width", "rule", "expected"),
    [
        (8, 360, 640, {**ROOMY}, (364, 644)),  # 12.86 and 22.86 patches, rounded
        (8, 1080, 1920, {**ROOMY}, (560, 1008)),  # shrunk by 1.856: 20.78 and 36.95, floored
        (64, 1080, 1920, {**ROOMY, "total_pixels": 64 * 50_176}, (224, 420)),  # 100,352 each, by 4.546: 8.49, 15.09
        (2, 30, 30, {"min_pixels": 4 * 784}, (56, 56)),  # grown to the minimum
        (2, 10, 2000, {"max_pixels": 4 * 784, "min_pixels": 784}, (28, 784)),  # never thinner than one patch
        (2, 64, 64, {"spatial_factor": 32}, (64, 64)),
    ],
)
def test_frame_size(frames, height, width, rule, expected):
    assert frame_size(make_sampling(**rule), frames, height, width) == expected


def test_extreme_shapes_are_refused():
    with pytest.raises(VideoError, match=r"a\.mp4: frames of 2010x10.*200") as caught:
        plan(make_index([0], size=(10, 2010)))
    assert caught.value.reason == "too_large"


@fixed
@given(
    gaps=st.lists(st.integers(1, 5_000), min_size=1, max_size=80),
    count=st.integers(1, 80),
    factor=st.sampled_from([1, 2, 4]),
)
def test_chosen_frames_are_the_nearest_ones(gaps, count, factor):
    ticks = np.cumsum([0, *gaps])
    count = min(count, len(ticks))
    chosen = choose_frames(ticks, count, factor)
    assert (np.diff(chosen) > 0).all() and 1 <= len(chosen) <= count
    assert len(chosen) % factor == 0 or len(chosen) < factor
    assert chosen[0] == 0 and (len(chosen) == 1 or chosen[-1] == len(ticks) - 1)
    targets = np.linspace(ticks[0], ticks[-1], count)
    for position in chosen[:-1]:  # each is, to the two ticks of rounding, nearest to some target
        distance = np.abs(ticks[:, None] - targets)  # [N, count]
        assert (distance[position] <= distance.min(axis=0) + 2 + 1e-6).any()


@fixed
@given(
    frames=st.integers(1, 768),
    height=st.integers(16, 2_500),
    width=st.integers(16, 2_500),
    factor=st.sampled_from([28, 32]),
    budget=st.tuples(st.integers(1, 40), st.integers(1, 900), st.integers(1, 20_000)),
)
def test_frame_size_keeps_its_budget(frames, height, width, factor, budget):
    low, high, total = (value * factor * factor for value in sorted(budget))
    sampling = make_sampling(min_pixels=low, max_pixels=high, total_pixels=total, spatial_factor=factor)
    size = frame_size(sampling, frames, height, width)
    assert size[0] % factor == size[1] % factor == 0 and min(size) >= factor
    share = max(total / frames * sampling.temporal_factor, 1.05 * low)
    if factor not in size:  # a side of one patch is kept whatever the budget
        assert size[0] * size[1] <= max(min(high, share), low * 2.25)  # growing rounds each side up by at most half


@fixed
@given(
    count=st.integers(20, 200),
    keys=st.sets(st.integers(1, 199)),
    wanted=st.sets(st.integers(0, 199), min_size=1, max_size=12),
)
def test_seeks_go_forward_to_a_keyframe_at_or_before_the_frame(count, keys, wanted):
    ticks = np.arange(count) * 40
    keyframes = sorted({0, *(key * 40 for key in keys if key < count)})
    indices = tuple(sorted(position for position in wanted if position < count)) or (0,)
    at = 0
    for position, key in zip(indices, plan_seeks(make_index(ticks, keyframes=keyframes), indices), strict=True):
        latest = max(k for k in keyframes if k <= position * 40) // 40
        assert key == (latest * 40 if latest - at > 8 else None)
        at = position + 1


def test_one_frame_stands_for_its_clip():
    shown = plan(make_index([0], end=40))
    assert shown.indices == (0,) and shown.seconds_per_grid == shown.duration == 0.04
    assert shown.grid(14, 2) == (1, 4, 6)  # the processor repeats it


def test_grid_refuses_a_patch_that_does_not_fit():
    with pytest.raises(ValueError, match=r"84x56.*spatial_factor"):
        plan(AT_25).grid(patch_size=16, temporal_patch=2)


def test_frames_refuse_bad_data():
    pixels = np.zeros((2, 28, 28, 3), np.uint8)
    good = Frames(pixels=pixels, pts=(0.0, 0.5))
    with pytest.raises(ValueError, match="float64"):
        replace(good, pixels=pixels.astype(float))
    with pytest.raises(ValueError, match=r"\(2, 28, 28\)"):
        replace(good, pixels=pixels[..., 0])
    with pytest.raises(ValueError, match="2 frames but 1 times"):
        replace(good, pts=(0.0,))
    with pytest.raises(ValueError, match="strictly increase"):
        replace(good, pts=(0.5, 0.5))
