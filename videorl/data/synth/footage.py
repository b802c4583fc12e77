"""Real videos as material: parts of files decoded once, and takes drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from videorl.types import Clip, DataError, Sampling, VideoError
from videorl.video.paths import resolve_media
from videorl.video.reader import VideoReader

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".ogv", ".gif"})
GAP = 0.05  # of the used part of a video, left out between its training part and its held-out part
TAIL = 0.1  # of the videos are held out where none is named
MIN_PIXELS = 16
ROUNDING = 1e-3  # seconds by which a container may misstate the time between two frames


@dataclass(frozen=True)
class Part:
    """What a split may use of a file: `path` under the folder, [start, end] in seconds from the file's first frame."""

    path: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Footage:
    """A part, decoded. `times` [N] are seconds on the clock of the file, whose bytes hash to `sha256`."""

    part: Part
    sha256: str
    frames: np.ndarray  # [N, H, W, 3] uint8, RGB
    times: np.ndarray  # [N] float64, strictly increasing


@dataclass(frozen=True, kw_only=True, eq=False)
class Take:
    """Frames of one clip to be made, and when each appears: seconds from the clip's own start. It ends at `end`."""

    frames: np.ndarray  # [T, H, W, 3] uint8, RGB
    times: np.ndarray  # [T] float64, strictly increasing, times[0] = 0
    end: float

    def cut(self, first: int, last: int) -> Take:
        """Frames first..last-1, on a clock of their own: where they were cut cannot be read from their times."""
        return Take(
            frames=self.frames[first:last],
            times=self.times[first:last] - self.times[first],
            end=self.at(last) - float(self.times[first]),
        )

    def at(self, index: int) -> float:
        """When frame `index` appears; the end of the take for the frame after the last."""
        return float(self.times[index]) if index < len(self.times) else self.end


def find_videos(folder: Path) -> list[str]:
    """Video files under a folder by suffix, as sorted paths relative to it. Raises ValueError if there are none."""
    if not folder.is_dir():
        raise ValueError(f"videos={str(folder)!r} is not a folder; name one that holds video files")
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not found:
        raise ValueError(f"{folder} holds no video file ({', '.join(sorted(SUFFIXES))}); name another folder")
    return found


def choose_held_out(paths: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """The sources never trained on: those that match a pattern, or without any pattern the last tenth by name.

    A single video cannot be held out and trained on, so then none is. Raises ValueError for a pattern without a match
    and where nothing would be left.
    """
    if not patterns:
        return set(paths[-max(1, round(TAIL * len(paths))) :]) if len(paths) > 1 else set()
    for pattern in patterns:
        if not any(fnmatch(path, pattern) for path in paths):
            raise ValueError(f"held_out={pattern!r} matches none of the videos, such as {paths[0]!r}; correct it")
    chosen = {path for path in paths if any(fnmatch(path, pattern) for pattern in patterns)}
    if len(chosen) == len(paths):
        raise ValueError(f"held_out={list(patterns)} leaves no video to train on; hold out fewer")
    return chosen


def split_in_time(path: str, duration: float, keep: float, share: float) -> tuple[Part, Part | None]:
    """The training part of a video and its held-out part, the last `share` of its middle `keep`; None where share is 0.

    Between the two, `GAP` of the middle is used by neither: neighbouring frames are near copies.
    """
    start, length = (1 - keep) / 2 * duration, keep * duration
    if not share:
        return Part(path, start, start + length), None
    cut = start + (1 - share) * length
    return Part(path, start, cut - GAP * length), Part(path, cut, start + length)


def duration_of(reader: VideoReader, folder: Path, path: str) -> float:
    """Seconds of a file. Raises VideoError."""
    return reader.plan(Clip(path=str(folder / path), sampling=_sampling(1, MIN_PIXELS))).duration


def check_part(reader: VideoReader, folder: Path, part: Part, source_frames: int, rule: TakeRule) -> None:
    """Raise VideoError where, by its header, a part is not enough for one take."""
    plan = reader.plan(_clip(folder, part, source_frames, MIN_PIXELS))
    _check_times(np.asarray(plan.pts), part, rule)


def load_footage(reader: VideoReader, folder: Path, part: Part, *, num_frames: int, max_pixels: int) -> Footage:
    """At most `num_frames` frames spread evenly over a part, each of at most `max_pixels`. Raises VideoError."""
    clip = _clip(folder, part, num_frames, max_pixels)
    plan, frames = reader.plan(clip), reader.load(clip)
    times = np.asarray(frames.pts) - plan.origin + part.start
    return Footage(part=part, sha256=plan.media_sha256, frames=frames.pixels, times=times)


def _clip(folder: Path, part: Part, num_frames: int, max_pixels: int) -> Clip:
    sampling = _sampling(num_frames, max_pixels)
    return Clip(path=str(folder / part.path), sampling=sampling, start=part.start, end=part.end)


def _sampling(num_frames: int, max_pixels: int) -> Sampling:
    """Sides need only be even, as H.264 wants them."""
    return Sampling(
        fps=None,
        num_frames=num_frames,
        min_frames=1,
        max_frames=num_frames,
        min_pixels=MIN_PIXELS,
        max_pixels=max_pixels,
        total_pixels=max_pixels * num_frames,
        spatial_factor=2,
        temporal_factor=1,
    )


@dataclass(frozen=True, kw_only=True)
class TakeRule:
    """How takes are drawn: `num_frames`, `step` seconds apart (a range; None: evenly over the whole part).

    `fps` is the rate at which they are shown; None shows each at its true time. With `side` a random square of `crop`
    (a range) times the shorter side is cut out, mirrored half of the time and scaled to `side` pixels; without it the
    whole frame is shown.
    """

    num_frames: int
    step: tuple[float, float] | None
    fps: float | None
    side: int | None
    crop: tuple[float, float]


def draw_take(footage: Footage, rule: TakeRule, rng: np.random.Generator) -> tuple[Take, dict[str, Any]]:
    """Draw a take, and say how: its span in seconds of the file, and the view.

    Raises:
        VideoError: `bad_span`, as `check_part`.
    """
    _check_times(footage.times, footage.part, rule)
    chosen = _choose(footage.times, rule, rng)
    times = footage.times[chosen]
    step = float(times[-1] - times[0]) / (len(times) - 1)
    how: dict[str, Any] = {"span": [round(float(times[0]), 6), round(float(times[-1]) + step, 6)]}
    if rule.fps is None:
        times, end = times - times[0], float(times[-1] - times[0]) + step
    else:
        times, end = np.arange(len(chosen)) / rule.fps, len(chosen) / rule.fps
    if rule.side is None:
        return Take(frames=footage.frames[chosen], times=times, end=end), how
    frames, how["view"] = _view(footage.frames, chosen, rule.side, rule.crop, rng)
    return Take(frames=frames, times=times, end=end), how


def _check_times(have: np.ndarray, part: Part, rule: TakeRule) -> None:
    """`have` [N] are the times of the frames that there are, in seconds, from any origin."""
    where = f"{part.path}, {part.start:.2f} to {part.end:.2f} s"
    if len(have) < rule.num_frames:
        raise VideoError(
            "bad_span",
            f"{where}: {len(have)} frames, fewer than num_frames={rule.num_frames}; use a longer video or fewer frames",
        )
    if rule.step is None:
        return
    low, high = rule.step
    if _longest_step(have, rule) < low:
        raise VideoError(
            "bad_span",
            f"{where}: too short for num_frames={rule.num_frames} that are {low} s apart; use a longer video, fewer "
            "frames or a smaller step",
        )
    if (coarse := float(np.diff(have).max())) > low + ROUNDING:
        raise VideoError(
            "bad_span",
            f"{where}: frames up to {coarse:.3f} s apart, coarser than the step of {low} to {high} s; raise step or "
            "source_frames",
        )


def _longest_step(have: np.ndarray, rule: TakeRule) -> float:
    return float(have[-1] - have[0]) / (rule.num_frames - 1)


def _choose(have: np.ndarray, rule: TakeRule, rng: np.random.Generator) -> np.ndarray:
    """Positions among the times of a usable part, int [T], strictly increasing."""
    steps = np.arange(rule.num_frames)
    if rule.step is None:
        return np.rint(steps * (len(have) - 1) / steps[-1]).astype(int)
    step = rng.uniform(rule.step[0], min(rule.step[1], _longest_step(have, rule)))
    wanted = rng.uniform(have[0], max(have[0], have[-1] - step * steps[-1])) + step * steps
    after = np.clip(np.searchsorted(have, wanted), 1, len(have) - 1)
    nearest = np.where(wanted - have[after - 1] <= have[after] - wanted, after - 1, after)
    # At a step no longer than the time between two frames, rounding may choose one of them twice.
    increasing = np.maximum.accumulate(nearest - steps) + steps
    return np.minimum(increasing, len(have) - rule.num_frames + steps)


def _view(
    frames: np.ndarray, chosen: np.ndarray, side: int, crop: tuple[float, float], rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Any]]:
    """The same random square of each chosen frame."""
    height, width = frames.shape[1:3]
    size = max(1, round(min(height, width) * rng.uniform(*crop)))
    x, y = int(rng.integers(width - size + 1)), int(rng.integers(height - size + 1))
    mirrored = bool(rng.random() < 0.5)
    square = frames[chosen, y : y + size, x : x + size]
    view = resize(square[:, :, ::-1] if mirrored else square, side, side)
    return view, {"x": x, "y": y, "size": size, "of": [width, height], "mirrored": mirrored}


def resize(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    """Frames [T, H, W, 3] at another size, antialiased."""
    images = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames)
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) for image in images])


def digest_video(reader: VideoReader, media_root: Path, path: str, last: float) -> str:
    """The SHA-256 of a file's bytes.

    Raises DataError where it cannot be read, leaves `media_root`, or is over at `last`, the start in seconds of what is
    known of it: `bad_span`.
    """
    sampling = Sampling(
        fps=None, num_frames=1, min_frames=1, max_frames=1, min_pixels=1, max_pixels=10**9, total_pixels=10**9
    )
    plan = reader.plan(Clip(path=resolve_media(media_root, path), sampling=sampling))
    if last >= plan.duration:
        raise DataError(
            "bad_span",
            f"{path}: something starts at {last:g} s, but the file ends at {plan.duration:.3f} s; correct the times "
            "(they are seconds), or give the right file",
        )
    return plan.media_sha256
