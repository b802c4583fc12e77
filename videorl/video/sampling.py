"""Which frames of a video are shown, and how large: Qwen-VL's rules over presentation times. Pure functions.

On constant-rate files the result is that of `qwen_vl_utils` 0.0.14 (`smart_nframes`, `smart_resize`, `fetch_video`);
on variable-rate files, where index / average rate is wrong, frames are chosen by time.
"""

from __future__ import annotations

import math

import numpy as np

from videorl.types import Clip, Sampling, VideoError
from videorl.video.frames import FramePlan, VideoIndex

MAX_ASPECT = 200  # Qwen-VL refuses frames whose sides differ by more than this factor
SLACK = 1e-6  # seconds; spans are decimal fractions
SEEK_GAP = 8  # a seek costs about as much as decoding a few frames


def plan_clip(clip: Clip, index: VideoIndex, media_sha256: str) -> FramePlan:
    """Apply the clip's span and sampling rule to a file. Raises VideoError `bad_span` or `too_large`."""
    low, high, duration = _select_span(clip, index)
    count = num_frames(clip.sampling, high - low, (high - low) / float(index.rate) if index.rate else duration)
    indices = low + choose_frames(index.ticks[low:high], count, clip.sampling.temporal_factor)
    for name, places in (("pick", clip.pick), ("hold", clip.hold)):
        if places is not None and places[-1] >= len(indices):
            raise VideoError(
                "bad_span", f"{clip.path}: {name}={places}, there are {len(indices)} frames; choose among them"
            )
        if name == "pick" and places is not None:
            indices = indices[list(places)]
    left, top, right, bottom = crop = _crop(clip, index)
    try:
        height, width = frame_size(clip.sampling, len(indices), bottom - top, right - left)
    except ValueError as error:
        raise VideoError("too_large", f"{clip.path}: {error}") from error
    return FramePlan(
        clip=clip,
        media_sha256=media_sha256,
        indices=tuple(indices.tolist()),
        pts=tuple(index.seconds(tick) for tick in index.ticks[indices]),
        height=height,
        width=width,
        crop=crop,
        origin=index.seconds(index.ticks[0]) + (clip.start or 0.0),
        duration=duration,
    )


def _crop(clip: Clip, index: VideoIndex) -> tuple[int, int, int, int]:
    """The clip's box in pixels of a displayed frame: left, top, right, bottom, a pixel wide and high at least."""
    left, top, right, bottom = clip.box or (0.0, 0.0, 1.0, 1.0)
    left, top = min(int(left * index.width), index.width - 1), min(int(top * index.height), index.height - 1)
    right = max(left + 1, math.ceil(right * index.width - SLACK))
    return left, top, right, max(top + 1, math.ceil(bottom * index.height - SLACK))


def _select_span(clip: Clip, index: VideoIndex) -> tuple[int, int, float]:
    """Positions [low, high) of the frames whose time lies in [start, end], and the length of the span in seconds.

    Frame i of a constant-rate file begins at i / rate, whatever tick its container rounds that to.
    """
    start = clip.start or 0.0
    file_seconds = index.seconds(index.end - index.ticks[0])
    end = file_seconds if clip.end is None else min(clip.end, file_seconds)
    if index.rate:
        clock = np.arange(len(index.ticks)) / float(index.rate)  # [N] seconds
    else:
        clock = (index.ticks - index.ticks[0]) * float(index.time_base)
    low = int(np.searchsorted(clock, start - SLACK))
    high = int(np.searchsorted(clock, end + SLACK, side="right"))
    if start >= end or low >= high:
        raise VideoError(
            "bad_span",
            f"{clip.path}: no frame begins between start={clip.start} and end={clip.end}; the file has "
            f"{len(index.ticks)} frames in {file_seconds:.3f} s: choose a span inside it",
        )
    return low, high, end - start


def num_frames(sampling: Sampling, available: int, seconds: float) -> int:
    """How many of `available` frames to show of a span of `seconds` (`smart_nframes`).

    A multiple of `temporal_factor`, except that fewer frames than one multiple are kept as they are: the processor
    repeats them to fill a temporal patch.
    """
    factor = sampling.temporal_factor
    if sampling.num_frames is not None:
        wanted = round(sampling.num_frames / factor) * factor or sampling.num_frames
        highest = sampling.max_frames
    else:
        lowest = math.ceil(sampling.min_frames / factor) * factor
        highest = _floor_to(sampling.max_frames, factor)
        assert sampling.fps is not None  # Sampling has one of the two
        wanted = max(seconds * sampling.fps, lowest)
    return _floor_to(min(wanted, highest, available), factor)


def _floor_to(count: float, factor: int) -> int:
    return math.floor(count / factor) * factor or math.floor(count)


def choose_frames(ticks: np.ndarray, count: int, factor: int) -> np.ndarray:
    """Positions of the frames nearest to `count` times spread evenly from the first to the last of `ticks`.

    Equally near frames are told apart by rank, as `linspace(0, N - 1, count).round()` does; containers round times to
    a tick, which moves a distance by up to two. On constant-rate files the result therefore is that of linspace.
    A frame that is nearest to several times is shown once, so that a long freeze gives fewer frames, never repeats;
    what is then over a multiple of `factor` is left out evenly.

    Args: ticks [N] int64, strictly increasing; 1 <= count <= N. Returns [n] int64, strictly increasing, n <= count.
    """
    last = len(ticks) - 1
    if count == 1:
        return np.zeros(1, np.int64)
    steps = np.arange(count)
    times = ticks[0] + (ticks[-1] - ticks[0]) * steps / (count - 1)  # [count]
    after = np.clip(np.searchsorted(ticks, times), 1, last)
    before = after - 1
    nearest = np.where(times - ticks[before] <= ticks[after] - times, before, after)
    by_rank = np.rint(steps * last / (count - 1)).astype(np.int64)
    as_near = np.abs(ticks[by_rank] - times) <= np.abs(ticks[nearest] - times) + 2
    chosen = np.unique(np.where(as_near, by_rank, nearest))
    keep = _floor_to(len(chosen), factor)
    return chosen[np.rint(np.linspace(0, len(chosen) - 1, keep)).astype(np.int64)]


def frame_size(sampling: Sampling, frames: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) of each of `frames` resized frames (`smart_resize` under `fetch_video`'s budget).

    `total_pixels` is shared by the temporal patches of the video; it may not push a frame below 1.05 x `min_pixels`.
    Raises ValueError when one side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"frames of {width}x{height}: one side may be at most {MAX_ASPECT} times the other; crop them")
    factor = sampling.spatial_factor
    share = sampling.total_pixels / frames * sampling.temporal_factor
    max_pixels = min(sampling.max_pixels, max(share, int(sampling.min_pixels * 1.05)))
    resized = [max(factor, round(side / factor) * factor) for side in (height, width)]
    area = resized[0] * resized[1]
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        resized = [max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)]
    elif area < sampling.min_pixels:
        grow = math.sqrt(sampling.min_pixels / (height * width))
        resized = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return resized[0], resized[1]


def plan_seeks(index: VideoIndex, indices: tuple[int, ...]) -> tuple[int | None, ...]:
    """For each frame, the keyframe to jump to first, or None where decoding on is cheaper. `indices` increase."""
    keys = np.searchsorted(index.keyframes, index.ticks[list(indices)], side="right") - 1
    seeks: list[int | None] = []
    at = 0  # position of the next frame the decoder will give
    for position, key in zip(indices, index.keyframes[keys].tolist(), strict=True):
        far = int(np.searchsorted(index.ticks, key)) - at > SEEK_GAP
        seeks.append(key if far else None)
        at = position + 1
    return tuple(seeks)
