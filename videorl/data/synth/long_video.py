"""Long videos whose evidence is on screen for a few seconds, to learn where to look; drawn, so that all times are true.

A video is grey, but for one segment that is dark and one that is bright. In each of the two a square of some value can
be seen for a while: in kind `colour` it has one of four colours, in kind `flashes` it flashes one to four times. The
question is about one of them, the other is a decoy:

    Which colour is the square while it is dark?        red, green, blue, yellow
    How often does it flash while it is bright?         1, 2, 3, 4

Segments are centred on as many frames spread evenly from the first frame to the last, so that these show which segment
is dark and which is bright, and never a square: it keeps away from the centres. Who does not look again can only guess.

    python -m videorl.data synth long_video --out data/long --seed 0
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from videorl.data.processes import map_on_all_cores
from videorl.data.synth.folder import print_rows, provenance, write_rows, written_once
from videorl.data.synth.mp4 import write_frames
from videorl.data.synthetic import COLOURS, NUMBERS

VERSION = 1  # raise when the same seed would give other videos or rows
FPS = {"colour": 1.0, "flashes": 3.0}  # in the file, unless another is asked for; a flash has to be short
KINDS = tuple(FPS)
VALUES = {"colour": tuple(COLOURS), "flashes": NUMBERS}  # the choices, in their order
PROMPTS = {
    "colour": "Which colour is the square while it is {light}?",
    "flashes": "How often does it flash while it is {light}?",
}

GREY, LEVELS = (95, 150), {"dark": (15, 35), "bright": (215, 240)}  # inclusive ranges, of 0 to 255
FLASH = {"dark": (255, 255, 255), "bright": (0, 0, 0)}
FLASH_FRAMES = 2  # at least, for a flash and for the pause after it
GUARD = 2  # frames; that nearest to a time is half a frame away, and one more where it is chosen among fewer
# Of 600 s: 0.9 MB, and half the CPU time of the usual preset. A keyframe every 16 frames makes seeking cheap.
X264 = {"preset": "ultrafast", "crf": "26", "g": "16"}
CHUNK = 200_000  # pixels drawn at a time: 1.2 MB
VIDEOS_PER_TASK = 4


@dataclass(frozen=True, kw_only=True)
class LongVideoRule:
    """What makes the videos hard. Raises ValueError for what cannot be drawn.

    `seconds` is the range of a video's length; `fps` is frames per second of the file; `size` is the side of a frame
    in pixels, `square` the square's side as a share of it; `noise` is the standard deviation added to each pixel, of
    0 to 255. `visible` is the share of a segment during which its evidence is on screen, or may flash. It is never
    on screen within `margin`, a share of a segment, of the segment's centre, and never within two frames of it: frames
    for a first look may be chosen among candidates that are up to twice the margin apart.
    The first and the last segment are half as long as the others, which shares refer to.
    """

    kind: str = "colour"
    seconds: tuple[float, float] = (120, 600)
    fps: float = 1.0
    size: int = 56
    segments: int = 8
    visible: float = 0.3
    margin: float = 0.1
    square: float = 26 / 56
    noise: float = 5.0

    def __post_init__(self):
        low, high = self.seconds
        rules = (
            ("kind", self.kind in KINDS, f"is one of {', '.join(KINDS)}"),
            ("seconds", 0 < low <= high < math.inf, "is LOW HIGH with 0 < LOW <= HIGH"),
            ("fps", 0 < self.fps < math.inf, "is positive"),
            ("size", self.size >= 16 and self.size % 2 == 0, "is even and at least 16 pixels"),
            ("segments", self.segments >= 3, "is at least 3: one dark, one bright and one that is neither"),
            ("visible", 0 < self.visible < 0.5, "is a share of a segment below its half"),
            ("margin", 0 <= self.margin < 0.5, "is a share of a segment below its half"),
            ("square", 0 < self.square <= 1 and self.side >= 4, "is a share of size and at least 4 pixels"),
            ("noise", 0 <= self.noise <= 128, "is within 0..128"),
        )
        broken = [
            f"{name}={getattr(self, name)!r} does not hold: {name} {rule}" for name, holds, rule in rules if not holds
        ]
        if broken:
            raise ValueError("; ".join(broken))
        # Longer videos have more room, so that all can be drawn where the shortest can.
        length = self.segment_frames(round(low * self.fps))
        shortest = f"seconds={self.seconds} at fps={self.fps:g} with segments={self.segments}: {length:.1f} frames each"
        least = FLASH_FRAMES * (2 * len(NUMBERS) - 1) if self.kind == "flashes" else FLASH_FRAMES
        if self.visible * length < least:
            raise ValueError(
                f"{shortest}, of which visible={self.visible:g} is fewer than the {least} frames that kind "
                f"{self.kind!r} needs; raise seconds, fps or visible, or lower segments"
            )
        # One frame to spare, wherever the frames lie between the centre and the border.
        if (0.5 - self.visible) * length - self.guard_frames(length) < 1:
            raise ValueError(
                f"{shortest}, half of which is too short for visible={self.visible:g} beside margin={self.margin:g} "
                f"(at least {GUARD} frames); lower visible or margin, or raise seconds or fps"
            )

    @property
    def side(self) -> int:
        """Of the square, in pixels."""
        return round(self.square * self.size)

    def segment_frames(self, num_frames: int) -> float:
        """The length of a segment that is neither the first nor the last, in frames: from one centre to the next."""
        return (num_frames - 1) / (self.segments - 1)

    def guard_frames(self, segment_frames: float) -> float:
        """Frames nearer than this to a centre show no evidence."""
        return max(self.margin * segment_frames, GUARD)


# --- one video -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A square with its top left pixel at (x, y), seen in frames first <= index < last of each of `shown`."""

    light: str  # dark, bright
    segment: int
    value: str
    shown: tuple[tuple[int, int], ...]
    x: int
    y: int
    colour: tuple[int, int, int]

    @property
    def frames(self) -> tuple[int, int]:
        """The first frame that shows it, and the first after the last that does."""
        return self.shown[0][0], self.shown[-1][1]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A video: its length in frames, the grey level of each segment, and what is asked for."""

    rule: LongVideoRule
    num_frames: int
    levels: tuple[int, ...]
    asked: Evidence
    decoy: Evidence

    def span(self, evidence: Evidence) -> list[float]:
        """[start, end] in seconds: from when it is first seen to when it has gone for good."""
        return [round(index / self.rule.fps, 6) for index in evidence.frames]


def draw_scene(rule: LongVideoRule, index: int, rng: np.random.Generator) -> Scene:
    """Draw the video of a question. Answer and light follow from its `index` in the data set: eight questions in a row
    have each pair of them once, so that no constant answer is right more often than a quarter of the time.
    """
    values = VALUES[rule.kind]
    turn, bright = divmod(index, 2)
    value = values[turn % len(values)]
    other = str(rng.choice([each for each in values if each != value]))
    shortest, longest = (round(seconds * rule.fps) for seconds in rule.seconds)
    num_frames = int(rng.integers(shortest, longest, endpoint=True))
    levels = rng.integers(*GREY, rule.segments, endpoint=True)
    evidence = []
    lights = ("bright", "dark") if bright else ("dark", "bright")
    segments = rng.choice(rule.segments, 2, replace=False).tolist()
    for light, segment, shown in zip(lights, segments, (value, other), strict=True):
        levels[segment] = rng.integers(*LEVELS[light], endpoint=True)
        evidence.append(_draw_evidence(rule, num_frames, segment, light, shown, rng))
    asked, decoy = evidence
    return Scene(rule=rule, num_frames=num_frames, levels=tuple(levels.tolist()), asked=asked, decoy=decoy)


def _draw_evidence(
    rule: LongVideoRule, num_frames: int, segment: int, light: str, value: str, rng: np.random.Generator
) -> Evidence:
    length = math.floor(rule.visible * rule.segment_frames(num_frames))
    first = int(rng.choice(_find_starts(rule, num_frames, segment, length)))
    if rule.kind == "colour":
        shown, colour = ((first, first + length),), COLOURS[value]
    else:
        shown, colour = _draw_flashes(first, length, int(value), rng), FLASH[light]
    x, y = rng.integers(rule.size - rule.side, size=2, endpoint=True).tolist()
    return Evidence(light=light, segment=segment, value=value, shown=shown, x=x, y=y, colour=colour)


def _find_starts(rule: LongVideoRule, num_frames: int, segment: int, length: int) -> np.ndarray:
    """Frames at which evidence of `length` frames can begin: all of it in the segment, none of it near its centre."""
    step = rule.segment_frames(num_frames)
    distance = np.abs(np.arange(num_frames) - segment * step)
    free = (distance >= rule.guard_frames(step)) & (distance < step / 2)
    return np.flatnonzero(np.lib.stride_tricks.sliding_window_view(free, length).all(1))


def _draw_flashes(first: int, length: int, number: int, rng: np.random.Generator) -> tuple[tuple[int, int], ...]:
    """Flashes at random times among `length` frames, of one duration whatever their number; pauses are no shorter."""
    duration = length // (2 * len(NUMBERS) - 1)
    spare = length - (2 * number - 1) * duration
    starts = first + np.sort(rng.integers(spare, size=number, endpoint=True)) + 2 * duration * np.arange(number)
    return tuple((start, start + duration) for start in starts.tolist())


def render_frames(scene: Scene, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The frames of a video in order, uint8 [size, size, 3], RGB; a few MB are held at a time, whatever its length."""
    rule = scene.rule
    levels = np.array(scene.levels, np.int16)
    chunk = max(1, CHUNK // rule.size**2)
    for first in range(0, scene.num_frames, chunk):
        indices = np.arange(first, min(first + chunk, scene.num_frames))
        nearest = np.floor(indices / rule.segment_frames(scene.num_frames) + 0.5).astype(int)
        frames = np.empty((len(indices), rule.size, rule.size, 3), np.int16)
        frames[:] = levels[nearest, None, None, None]
        for square in (scene.asked, scene.decoy):
            seen = np.any([(start <= indices) & (indices < end) for start, end in square.shown], axis=0)
            frames[seen, square.y : square.y + rule.side, square.x : square.x + rule.side] = square.colour
        # The same in each channel: the encoder has nothing to do in chroma.
        noise = rule.noise * rng.standard_normal(frames.shape[:3], np.float32)
        frames += np.rint(noise).astype(np.int16)[..., None]
        yield from np.clip(frames, 0, 255, out=frames).astype(np.uint8)


# --- a data set ------------------------------------------------------------------------------------------------------


def generate(
    out: Path,
    *,
    seed: int,
    rule: LongVideoRule,
    num_train: int = 600,
    num_eval: int = 100,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> None:
    """Write `videos/`, `train.jsonl` and `eval.jsonl`: canonical rows of task `mc`, one for each video.

    `spans` are the seconds of the evidence that is asked for; `meta` has its segment, counted from 0, and the segment,
    span and value of the decoy. `progress` wraps the list of ids while videos are written.

    Raises:
        ValueError: a number is out of range, or as `written_once`.
    """
    for name, value, least in (("num_train", num_train, 1), ("num_eval", num_eval, 0)):
        if value < least:
            raise ValueError(f"{name}={value} does not hold: {name} is at least {least}")
    sizes = {"train": num_train, "eval": num_eval}
    numbers = {"num_train": num_train, "num_eval": num_eval}
    parameters = {"generator": "long_video", "version": VERSION, "seed": seed, **numbers, **asdict(rule)}
    with written_once(out, parameters) as writing:
        if not writing:
            return
        (out / "videos").mkdir(exist_ok=True)
        scenes = {
            split: {
                f"{split}-{rule.kind}-{index:04d}": draw_scene(rule, index, _generator(seed, split, index, "scene"))
                for index in range(number)
            }
            for split, number in sizes.items()
        }
        videos = [
            (out / _video_path(id), scene, [seed, split, index])
            for split, drawn in scenes.items()
            for index, (id, scene) in enumerate(drawn.items())
        ]
        ids = [id for drawn in scenes.values() for id in drawn]
        for _ in zip(progress(ids), map_on_all_cores(_write_video, videos, VIDEOS_PER_TASK), strict=True):
            pass
        for split, drawn in scenes.items():
            write_rows(out / f"{split}.jsonl", (make_row(id, scene, seed) for id, scene in drawn.items()))


def make_row(id: str, scene: Scene, seed: int) -> dict[str, Any]:
    """The canonical row of a video; its path is relative to the folder of the data set."""
    kind, asked, decoy = scene.rule.kind, scene.asked, scene.decoy
    choices = VALUES[kind]
    drawn = {
        "frames": scene.num_frames,
        "levels": scene.levels,
        "asked": asdict(asked),
        "decoy": asdict(decoy),
    }
    return {
        "id": id,
        "task": "mc",
        "prompt": PROMPTS[kind].format(light=asked.light),
        "videos": [{"path": _video_path(id)}],
        "choices": choices,
        "answer": ascii_uppercase[choices.index(asked.value)],
        "spans": [scene.span(asked)],
        "data_source": f"long_{kind}",
        "meta": {
            "segment": asked.segment,
            "segments": scene.rule.segments,
            "decoy": {"segment": decoy.segment, "span": scene.span(decoy), "value": decoy.value},
            "provenance": [provenance("long_video", VERSION, seed, parameters=drawn)],
        },
    }


def _generator(*name: Any) -> np.random.Generator:
    """Each video has generators of its own, so that it does not depend on how many there are."""
    return np.random.default_rng(list("/".join(map(str, name)).encode()))


def _video_path(id: str) -> str:
    return f"videos/{id}.mp4"


def _write_video(video: tuple[Path, Scene, list[Any]]) -> None:
    path, scene, name = video
    times = [index / scene.rule.fps for index in range(scene.num_frames + 1)]
    write_frames(path, render_frames(scene, _generator(*name, "noise")), times, X264)


# --- command line ----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    low, high = LongVideoRule.seconds
    rates = ", ".join(f"{fps:g} for {kind}" for kind, fps in FPS.items())
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--train", type=int, default=600, help="training videos (default: %(default)s)")
    parser.add_argument("--eval", type=int, default=100, help="held-out videos (default: %(default)s)")
    parser.add_argument("--kind", choices=KINDS, default="colour", help="of evidence (default: %(default)s)")
    parser.add_argument("--min-seconds", type=float, default=low, help="of a video (default: %(default)s)")
    parser.add_argument("--max-seconds", type=float, default=high, help="of a video (default: %(default)s)")
    parser.add_argument("--size", type=int, default=56, help="side of a frame in pixels (default: %(default)s)")
    parser.add_argument("--fps", type=float, help=f"frames per second in the file (default: {rates})")


def run(args: argparse.Namespace) -> None:
    rule = LongVideoRule(
        kind=args.kind,
        seconds=(args.min_seconds, args.max_seconds),
        fps=FPS[args.kind] if args.fps is None else args.fps,
        size=args.size,
    )
    progress = partial(track, description="videos", console=Console(stderr=True))
    generate(args.out, seed=args.seed, rule=rule, num_train=args.train, num_eval=args.eval, progress=progress)
    print_rows(args.out)
