"""What travels between the caller and the decoder processes. Numpy only: a decoder process starts in a blink.

VideoIndex (what the file holds) -> FramePlan (what a clip shows of it) -> Frames (the pixels)
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_right
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from videorl.types import Clip


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on an untrusted file. All but `deadline` and `memory_gb` are checked before anything is decoded.

    `duration` in seconds, `frames` stored in the file, `frame_pixels` = width x height as stored, `deadline` in seconds
    for one request, `memory_gb` of address space a decoder process may map beyond its libraries.
    """

    duration: float = 4 * 3600
    frames: int = 1_000_000
    frame_pixels: int = 7680 * 4320
    deadline: float = 120
    memory_gb: float = 8

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"Limits: {name}={value} must be positive")


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoIndex:
    """What the header and the packets of a file say, without decoding.

    `ticks` are the presentation times of all frames in presentation order, in units of `time_base` seconds;
    `keyframes` are the times where decoding can begin (some may lie on frames that an edit list hides);
    `end` is when the last frame leaves the screen; `rate` is in frames per second, None where it varies.
    `height` and `width` are those of a frame as it is displayed, rotation applied.
    """

    ticks: np.ndarray  # [N] int64, strictly increasing
    keyframes: np.ndarray  # [K] int64, strictly increasing
    end: int
    time_base: Fraction
    rate: Fraction | None
    height: int
    width: int

    def seconds(self, tick: int) -> float:
        return float(int(tick) * self.time_base)


@dataclass(frozen=True, kw_only=True)
class FramePlan:
    """Which frames of a file a clip shows and how large, known without decoding. `load_frames` returns exactly these.

    `indices` are positions among the file's frames in presentation order; `pts` are their container times in seconds;
    `height` and `width` are those after resizing, `crop` is what is resized, in pixels of a displayed frame: left, top,
    right, bottom; `origin` is the container time of the clip's own 0 s;
    `duration` is the length of the clip in seconds; `media_sha256` is the hash of the file's bytes.
    """

    clip: Clip
    media_sha256: str
    indices: tuple[int, ...]
    pts: tuple[float, ...]
    height: int
    width: int
    crop: tuple[int, int, int, int]
    origin: float
    duration: float

    def grid(self, patch_size: int, temporal_patch: int) -> tuple[int, int, int]:
        """(t, h, w) in patches before spatial merging; the clip costs t*h*w / merge² tokens.

        A processor repeats the last frame where `temporal_patch` does not divide the number of frames.
        """
        if self.height % patch_size or self.width % patch_size:
            raise ValueError(
                f"{self.clip.path}: frames of {self.width}x{self.height} are not whole patches of {patch_size}; "
                "sampling.spatial_factor must be a multiple of the model's patch size"
            )
        return math.ceil(len(self.pts) / temporal_patch), self.height // patch_size, self.width // patch_size

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Which frame is shown at each time: its own, or as `clip.hold` says, or with `clip.shuffle` those in a random
        order, never their own."""
        own = list(range(len(self.pts)))
        if hold := self.clip.hold:
            return tuple(hold[max(0, bisect_right(hold, place) - 1)] for place in own)
        order = own.copy()
        if self.clip.shuffle is not None and len(own) > 1:
            rng = random.Random(self.clip.shuffle)
            while order == own:
                rng.shuffle(order)
        return tuple(order)

    @property
    def in_order(self) -> bool:
        """Whether each frame is shown at its own time."""
        return self.clip.shuffle is None and self.clip.hold is None

    @property
    def shown_pts(self) -> tuple[float, ...]:
        """The container times of the frames in the order in which they are shown."""
        return tuple(self.pts[index] for index in self.order)

    @property
    def seconds_per_grid(self) -> float:
        """Mean time between two temporal grid steps. A single frame stands for the whole clip, so: its duration."""
        if len(self.pts) == 1:
            return self.duration
        return (self.pts[-1] - self.pts[0]) / (len(self.pts) - 1) * self.clip.sampling.temporal_factor


@dataclass(frozen=True, kw_only=True, eq=False)
class Frames:
    """Decoded and resized frames of a clip. Treat `pixels` as read-only: `digest` is computed once."""

    pixels: np.ndarray  # [T, H, W, 3] uint8, RGB
    pts: tuple[float, ...]  # [T] container presentation times, seconds

    def __post_init__(self):
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or self.pixels.shape[3] != 3:
            raise ValueError(f"Frames: pixels are {self.pixels.dtype} {self.pixels.shape}, must be uint8 [T, H, W, 3]")
        if len(self.pts) != len(self.pixels) or not self.pts:
            raise ValueError(f"Frames: {len(self.pixels)} frames but {len(self.pts)} times; need as many, and one")
        if any(later <= earlier for earlier, later in zip(self.pts, self.pts[1:], strict=False)):
            raise ValueError(f"Frames: times must strictly increase, got {self.pts}")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the shape, the times and the pixels."""
        content = hashlib.sha256(repr(self.pixels.shape).encode())
        content.update(np.asarray(self.pts, "<f8").tobytes())
        content.update(np.ascontiguousarray(self.pixels).data)
        return content.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodeJob:
    """One request to a decoder: the frames of `path` at positions `indices`, each cut to `crop` and resized to `size`.

    `seeks[i]` is the keyframe time to jump to before frame i, None = go on decoding from where the decoder is.
    """

    path: str
    ticks: np.ndarray  # [N] int64, all frames of the file
    time_base: Fraction
    indices: tuple[int, ...]
    seeks: tuple[int | None, ...]
    source_size: tuple[int, int]  # (height, width) as displayed
    crop: tuple[int, int, int, int]  # left, top, right, bottom in a displayed frame
    size: tuple[int, int]  # (height, width) after resizing
    max_frame_pixels: int

    def seconds(self, position: int) -> float:
        return float(int(self.ticks[position]) * self.time_base)
