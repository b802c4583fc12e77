"""Questions about how something changes, both ways round, from tracks (Video-UTR, arXiv 2502.12081).

From an attribute at one time to a trajectory: "At 2 s there is something whose colour is red. How does its place change
over the video?" And from a trajectory back: "The place of something is top left from 0 s, bottom left from 4 s. What is
its colour?" One frame answers neither. Rows have a `response`, for `videorl.sft`; the second kind is multiple choice.

Tracks are lines of JSON, an object for a video:

    {"video": "a.mp4", "subjects": [{"points": [
        {"time": 0.5, "attributes": {"action": "walks"}, "box": [0, 0, 0.2, 0.5]},
        {"time": 2.0, "attributes": {"action": "sits"}}]}]}

`time` is in seconds from the file's first frame; what an attribute was said to be last, it still is. A box, in shares
of the frame's sides, stands for the attribute `place`. With --drawn N, clips of moving squares are made instead, with
their tracks.

    python -m videorl.data synth trajectories --tracks tracks.jsonl --media-root my_videos --out data/tracks --seed 0
    python -m videorl.data synth trajectories --drawn 200 --out data/drawn --seed 0
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich.console import Console
from rich.progress import track

from videorl.data.records import parse_lines
from videorl.data.synth.folder import print_rows, provenance, write_rows, written_once
from videorl.data.synth.footage import Take, digest_video
from videorl.data.synth.mp4 import write_mp4
from videorl.data.synthetic import COLOURS, FPS, SECONDS, draw_square, render_frames
from videorl.video.reader import VideoReader

VERSION = 1  # raise when the same seed would give other clips or rows
OPTIONS = 4
PLACE = "place"
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
STAY = 2  # seconds a drawn square stays where it is

Text = Annotated[str, Field(pattern=r"\S")]
Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Point(_Record):
    """What is known of a subject from `time` on."""

    time: Annotated[float, Field(ge=0)]
    attributes: dict[Text, Text] = {}
    box: Annotated[list[Share], Field(min_length=4, max_length=4)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Point:
        if self.box is not None:
            left, top, right, bottom = self.box
            if left >= right or top >= bottom:
                raise ValueError(f"box={self.box} must be [left, top, right, bottom] in shares of the frame's sides")
            if PLACE in self.attributes:
                raise ValueError(f"box={self.box} and {PLACE}={self.attributes[PLACE]!r} say the same; give one")
        if not self.known:
            raise ValueError("a point says nothing; give attributes or a box")
        return self

    @property
    def known(self) -> dict[str, str]:
        return self.attributes if self.box is None else {**self.attributes, PLACE: _place(self.box)}


class Subject(_Record):
    points: Annotated[list[Point], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_order(self) -> Subject:
        for one, other in pairwise(self.points):
            if other.time <= one.time:
                raise ValueError(f"time={other.time:g} comes after {one.time:g}; points are in order of time")
        return self

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for point in self.points for name in point.known))

    def changes(self, name: str) -> list[tuple[float, str]]:
        """(time, value) wherever the attribute becomes another."""
        found: list[tuple[float, str]] = []
        for point in self.points:
            value = point.known.get(name)
            if value is not None and (not found or found[-1][1] != value):
                found.append((point.time, value))
        return found

    def at(self, name: str, time: float) -> str | None:
        """None before anything is known of it."""
        before = [value for start, value in self.changes(name) if start <= time]
        return before[-1] if before else None


class Tracks(_Record):
    """The subjects of a video."""

    video: Text
    subjects: Annotated[list[Subject], Field(min_length=1)]

    @property
    def last_time(self) -> float:
        return max(subject.points[-1].time for subject in self.subjects)


def load_tracks(path: Path) -> list[Tracks]:
    """Raises DataError as `parse_lines`, `bad_records` too where two lines are about one video."""
    seen: set[str] = set()

    def parse(raw: Any) -> Tracks:
        tracks = Tracks.model_validate(raw)
        if tracks.video in seen:
            raise ValueError(f"video={tracks.video!r} has a line already; put its subjects into one")
        seen.add(tracks.video)
        return tracks

    return parse_lines(path, parse)


# --- questions -------------------------------------------------------------------------------------------------------

Fields = dict[str, Any]


def ask(tracks: Tracks, values: dict[str, list[str]], rng: random.Random) -> list[Fields]:
    """All questions with one answer about a video, in a fixed order. `values` are what each attribute is anywhere."""
    return [
        question
        for subject in tracks.subjects
        for name in subject.names
        if len(subject.changes(name)) > 1
        for other in subject.names
        if other != name
        for time in [point.time for point in subject.points]
        if subject.at(other, time) is not None
        for question in (
            *_forward(tracks, subject, name, other, time),
            *_backward(tracks, subject, name, other, time, values[other], rng),
        )
    ]


def _forward(tracks: Tracks, subject: Subject, name: str, cue: str, time: float) -> Iterator[Fields]:
    """An attribute at one time -> how another changes."""
    value = subject.at(cue, time)
    if [each.at(cue, time) for each in tracks.subjects].count(value) == 1:
        answer = describe(subject.changes(name))
        yield {
            "task": "open",
            "prompt": f"At {time:g} s there is something whose {cue} is {value}. How does its {name} change over the "
            "video?",
            "answer": answer,
            "response": answer,
            "data_source": "trajectories-forward",
        }


def _backward(
    tracks: Tracks, subject: Subject, name: str, asked: str, time: float, values: Sequence[str], rng: random.Random
) -> Iterator[Fields]:
    """How an attribute changes -> another at one time."""
    changes, right = subject.changes(name), subject.at(asked, time)
    others = [value for value in values if value != right]
    if [each.changes(name) for each in tracks.subjects].count(changes) == 1 and others:
        choices = [right, *rng.sample(others, min(len(others), OPTIONS - 1))]
        rng.shuffle(choices)
        letter = ascii_uppercase[choices.index(right)]
        yield {
            "task": "mc",
            "prompt": f"The {name} of something in this video is {describe(changes)}. What is its {asked} at "
            f"{time:g} s?",
            "choices": choices,
            "answer": letter,
            "response": letter,
            "data_source": "trajectories-backward",
        }


def describe(changes: Sequence[tuple[float, str]]) -> str:
    """`top left from 0 s, bottom left from 2.5 s`."""
    return ", ".join(f"{value} from {time:g} s" for time, value in changes)


def make_rows(
    records: Sequence[Tracks], *, seed: int, per_video: int, sha256: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Of each video up to `per_video` of its questions, drawn at random; each video has a generator of its own."""
    found: dict[str, dict[str, None]] = {}
    for subject in (subject for tracks in records for subject in tracks.subjects):
        for name in subject.names:
            found.setdefault(name, {}).update(dict.fromkeys(value for _, value in subject.changes(name)))
    values = {name: sorted(each) for name, each in found.items()}
    for tracks in records:
        rng = random.Random(f"{seed}/{tracks.video}")
        questions = ask(tracks, values, rng)
        for number, question in enumerate(rng.sample(questions, min(per_video, len(questions)))):
            source = {"path": tracks.video, "sha256": sha256[tracks.video]}
            yield {
                "id": f"{tracks.video}#{number}",
                "videos": [source],
                **question,
                "meta": {"provenance": [provenance("trajectories", VERSION, seed, sources=[source])]},
            }


def _place(box: Sequence[float]) -> str:
    """Where the middle of a box is, in thirds of the frame: `top left`, `left`, `middle`, ..."""
    left, top, right, bottom = box
    row = ("top", "", "bottom")[min(2, int(3 * (top + bottom) / 2))]
    column = ("left", "", "right")[min(2, int(3 * (left + right) / 2))]
    return f"{row} {column}".strip() or "middle"


# --- drawn clips -----------------------------------------------------------------------------------------------------


def draw_tracks(number: int, seed: int) -> tuple[Tracks, np.ndarray]:
    """Two squares of different colours, each in another quarter every two seconds or still there, never in the same:
    their tracks, and the frames [T, H, W, 3]."""
    rng = random.Random(f"{seed}/{number}")
    colours = rng.sample(sorted(COLOURS), 2)
    squares, points = [], {colour: [] for colour in colours}
    for start in range(0, SECONDS, STAY):
        for colour, cell in zip(colours, rng.sample(range(4), 2), strict=True):
            squares.append(draw_square(colour, cell, start, start + STAY, rng))
            points[colour].append(Point(time=start, attributes={"colour": colour, PLACE: QUARTERS[cell]}))
    subjects = [Subject(points=each) for each in points.values()]
    return Tracks(video=f"videos/{number:04d}.mp4", subjects=subjects), render_frames(squares)


def write_drawn(out: Path, count: int, seed: int, progress: Callable[[Iterable[int]], Iterable[int]]) -> list[Tracks]:
    """Write `videos/` and `tracks.jsonl`."""
    (out / "videos").mkdir(parents=True, exist_ok=True)
    times = np.arange(SECONDS * FPS) / FPS
    drawn = []
    for number in progress(range(count)):
        tracks, frames = draw_tracks(number, seed)
        write_mp4(out / tracks.video, Take(frames=frames, times=times, end=SECONDS))
        drawn.append(tracks)
    write_rows(out / "tracks.jsonl", (tracks.model_dump(exclude_defaults=True) for tracks in drawn))
    return drawn


def generate(
    tracks: Path | int,
    media_root: Path,
    out: Path,
    *,
    seed: int,
    per_video: int = 4,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> None:
    """Write `rows.jsonl` from a file of tracks whose videos are under `media_root`; or from as many drawn clips, which
    are written under `out` too.

    Raises:
        DataError: as `load_tracks`; a video cannot be read, or ends before its tracks do.
        ValueError: a number is below 1, no video gives a question, or as `written_once`.
    """
    records: list[Tracks] = []
    source: dict[str, Any]
    if isinstance(tracks, int):
        source = {"drawn": tracks}
        if tracks < 1:
            raise ValueError(f"drawn={tracks} must be at least 1")
    else:
        records = load_tracks(tracks)
        source = {"tracks_sha256": hashlib.sha256(tracks.read_bytes()).hexdigest()}
    if per_video < 1:
        raise ValueError(f"per_video={per_video} must be at least 1")
    parameters = {"generator": "trajectories", "version": VERSION, "seed": seed, "per_video": per_video, **source}
    with written_once(out, parameters) as writing:
        if not writing:
            return
        if isinstance(tracks, int):
            media_root, records = out, write_drawn(out, tracks, seed, progress)
        with VideoReader() as reader:
            sha256 = {
                record.video: digest_video(reader, media_root, record.video, record.last_time)
                for record in progress(records)
            }
        rows = list(make_rows(records, seed=seed, per_video=per_video, sha256=sha256))
        if not rows:
            raise ValueError(
                f"{tracks}: nothing changes that another attribute could tell from the rest; give subjects with two "
                "attributes or more, one of which changes"
            )
        write_rows(out / "rows.jsonl", rows)


# --- command line ----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tracks", type=Path, help="JSONL, a line for each video")
    source.add_argument("--drawn", type=int, metavar="N", help="make as many clips of moving squares")
    parser.add_argument("--media-root", type=Path, default=Path("."), help="what videos of --tracks are relative to")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--per-video", type=int, default=4, help="most questions of a video (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    generate(
        args.drawn if args.tracks is None else args.tracks,
        args.media_root,
        args.out,
        seed=args.seed,
        per_video=args.per_video,
        progress=partial(track, description="videos", console=Console(stderr=True)),
    )
    print_rows(args.out)
