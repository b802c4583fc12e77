"""Questions about what happens next, from videos whose events are timed (next-event prediction, V1, 2505.22457).

A video is cut where one event has ended and the next has not begun; the question asks, with four options, for the
event one or more places further on. The cut is declared as the clip's `end`, so that nothing decodes what comes after.
A cut lies `margin` before the boundary, since a frame that begins exactly at `end` still is shown, and annotated
boundaries are not exact.

Records are lines of JSON, {"video": path, "events": [{"start": s, "end": s, "description": text}, ...]} (V1's
`video_path` is read too), or canonical grounding rows: each span is an event and the prompt its description.

The published data set asks one question made of two: a comma missing between its first two templates joins them.
These templates are others.

    python -m videorl.data synth next_event --records events.jsonl --media-root my_videos --out data/next --seed 0
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator
from rich.console import Console
from rich.progress import track

from videorl.data.records import parse_lines
from videorl.data.schema import PLACEHOLDER, CanonicalRow
from videorl.data.synth.folder import print_rows, provenance, write_rows, written_once
from videorl.data.synth.footage import digest_video
from videorl.types import DataError
from videorl.video.reader import VideoReader

VERSION = 1  # raise when the same seed would give other rows
OPTIONS = 4
TRIES = 1000  # draws from other videos before there are too few different events

NEXT = (
    "What happens next?",
    "What will be seen right after this clip ends?",
    "Which event follows what this clip shows?",
    "How does the video go on?",
    "What is most likely to come next?",
)
LATER = (
    "Counting the events that follow this clip, which one is number {hop}?",
    "What happens as event number {hop} after this clip?",
    "Further on, {hop} events after the end of this clip, what takes place?",
)


class Event(BaseModel):
    """Something that happens from `start` to `end`, in seconds from the first frame of the file."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    start: Annotated[float, Field(ge=0)]
    end: float
    description: Annotated[str, Field(pattern=r"\S")]

    @model_validator(mode="after")
    def _check_order(self) -> Event:
        if self.end <= self.start:
            raise ValueError(f"end={self.end} must be greater than start={self.start}")
        return self


class Record(BaseModel):
    """A video and its events."""

    model_config = ConfigDict(extra="ignore")

    video: Annotated[str, Field(min_length=1, validation_alias=AliasChoices("video", "video_path"))]
    events: Annotated[list[Event], Field(min_length=1)]


@dataclass(frozen=True)
class Cut:
    """A place where a video can end: `seen` events are over at `end`, and none of the others has begun."""

    seen: int
    end: float


def load_records(path: Path) -> list[Record]:
    """The videos of a file with their events in order of time; lines about the same video are merged.

    Raises DataError as `parse_lines`.
    """
    events: dict[str, list[Event]] = {}
    for record in parse_lines(path, lambda raw: Record.model_validate(_as_record(raw))):
        events.setdefault(record.video, []).extend(record.events)
    return [Record(video=video, events=sorted(each, key=_by_time)) for video, each in events.items()]


def find_cuts(events: Sequence[Event], margin: float) -> list[Cut]:
    """Where no event is under way: after the last end of those before, not after the first start of those behind.

    The cut is `margin` seconds before that end. Cuts that would show nothing are left out. `events` are in order of
    their starts.
    """
    cuts = []
    over = 0.0
    for seen, (event, following) in enumerate(pairwise(events), 1):
        over = max(over, event.end)
        if over <= following.start and over - margin > 0:
            cuts.append(Cut(seen=seen, end=round(over - margin, 6)))
    return cuts


def make_rows(
    records: Sequence[Record],
    *,
    seed: int,
    hops: Sequence[int],
    per_video: int,
    same_video: int,
    margin: float,
    sha256: dict[str, str],
) -> Iterator[dict[str, Any]]:
    """Rows of task `next_event`: of each video up to `per_video` of its (cut, hop) pairs, drawn at random.

    Hop 1 is the first event after the cut. Of the three other options up to `same_video` are events of the same video,
    the rest are of other videos; no two options read the same. Each video has a generator of its own.

    Raises:
        DataError: `too_few_events`, there are not four different descriptions to choose from.
    """
    pool = [(record.video, event.description.strip()) for record in records for event in record.events]
    for record in records:
        rng = random.Random(f"{seed}/{record.video}")
        pairs = [
            (cut, hop)
            for cut in find_cuts(record.events, margin)
            for hop in hops
            if cut.seen + hop <= len(record.events)
        ]
        for cut, hop in sorted(rng.sample(pairs, min(per_video, len(pairs))), key=lambda pair: (pair[0].end, pair[1])):
            answer = record.events[cut.seen + hop - 1].description.strip()
            own = [event.description.strip() for event in record.events]
            options = _draw_options(answer, own, record.video, pool, same_video, rng)
            details = {
                "sources": [{"path": record.video, "sha256": sha256[record.video], "span": [0.0, cut.end]}],
                "seen": cut.seen,
                "hop": hop,
                "parameters": {"margin": margin, "same_video": same_video},
            }
            yield {
                "id": f"{record.video}@{cut.end:g}+{hop}",
                "task": "next_event",
                "prompt": rng.choice(NEXT) if hop == 1 else rng.choice(LATER).format(hop=hop),
                "videos": [{"path": record.video, "end": cut.end, "sha256": sha256[record.video]}],
                "choices": options,
                "answer": "ABCD"[options.index(answer)],
                "data_source": f"next_event-hop{hop}",
                "meta": {"hop": hop, "provenance": [provenance("next_event", VERSION, seed, **details)]},
            }


def generate(
    records: Path,
    media_root: Path,
    out: Path,
    *,
    seed: int,
    hops: Sequence[int] = (1,),
    per_video: int = 1,
    same_video: int = 2,
    margin: float = 0.1,
    progress: Callable[[Sequence[Record]], Iterable[Record]] = iter,
) -> None:
    """Write `rows.jsonl`; videos stay where they are, relative to `media_root`. `skipped.jsonl` lists those that no
    question could be made of.

    Raises:
        DataError: as `load_records` and `make_rows`; a video cannot be read or ends before its events do.
        ValueError: a parameter is out of range, no video can be cut, or as `written_once`.
    """
    rules = (
        ("hops", hops, bool(hops) and min(hops) >= 1 and len(set(hops)) == len(hops), "are different and at least 1"),
        ("per_video", per_video, per_video >= 1, "is at least 1"),
        ("same_video", same_video, 0 <= same_video < OPTIONS, f"is within 0..{OPTIONS - 1}"),
        ("margin", margin, 0 <= margin < float("inf"), "is in seconds and at least 0"),
    )
    for name, value, holds, rule in rules:
        if not holds:
            raise ValueError(f"{name}={value!r} does not hold: {name} {rule}")
    loaded = load_records(records)
    choices = {"hops": list(hops), "per_video": per_video, "same_video": same_video, "margin": margin}
    digest = hashlib.sha256(records.read_bytes()).hexdigest()
    parameters = {"generator": "next_event", "version": VERSION, "seed": seed, **choices, "records_sha256": digest}
    with written_once(out, parameters) as writing:
        if not writing:
            return
        with VideoReader() as reader:
            sha256 = {
                record.video: digest_video(reader, media_root, record.video, record.events[-1].start)
                for record in progress(loaded)
            }
        rows = list(make_rows(loaded, seed=seed, sha256=sha256, **choices))
        if not rows:
            raise ValueError(
                f"{records}: in no video is there a moment between events with hops={list(hops)} more to come; give "
                "videos with more events that do not overlap, or smaller hops"
            )
        write_rows(out / "rows.jsonl", rows)
        used = {row["videos"][0]["path"] for row in rows}
        skipped = [{"path": record.video, "reason": "no_cut"} for record in loaded if record.video not in used]
        if skipped:
            write_rows(out / "skipped.jsonl", skipped)


def _as_record(raw: Any) -> Any:
    """A line as a record; a canonical grounding row has its events in `spans`, on the clock of its clip."""
    if not isinstance(raw, dict) or "events" in raw or raw.get("task") != "grounding":
        return raw
    row = CanonicalRow.model_validate(raw)
    origin = row.videos[0].start or 0.0
    description = row.messages[-1].text.replace(PLACEHOLDER, "").strip()
    return {
        "video": row.videos[0].path,
        "events": [{"start": origin + s, "end": origin + e, "description": description} for s, e in row.spans or ()],
    }


def _by_time(event: Event) -> tuple[float, float]:
    return event.start, event.end


def _draw_options(
    answer: str, own: Iterable[str], video: str, pool: Sequence[tuple[str, str]], same_video: int, rng: random.Random
) -> list[str]:
    taken = {_key(answer): answer}
    different = {_key(text): text for text in own if _key(text) not in taken}
    for key in rng.sample(sorted(different), min(same_video, len(different), OPTIONS - 1)):
        taken[key] = different[key]
    for _ in range(TRIES):
        if len(taken) == OPTIONS:
            break
        other, text = rng.choice(pool)
        if other != video:
            taken.setdefault(_key(text), text)
    for key, text in sorted(different.items()):  # too few in other videos: more of this one
        if len(taken) < OPTIONS:
            taken.setdefault(key, text)
    if len(taken) < OPTIONS:
        raise DataError(
            "too_few_events",
            f"{video}: {len(taken)} different descriptions for {OPTIONS} options; give more videos, or more events",
        )
    options = list(taken.values())
    rng.shuffle(options)
    return options


def _key(text: str) -> str:
    """What two options must differ in: their letters and digits."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


# --- command line ----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=Path, required=True, help="JSONL of {video, events}, or of grounding rows")
    parser.add_argument("--media-root", type=Path, required=True, help="the folder video paths are relative to")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument(
        "--hops", type=int, nargs="+", default=[1], help="which event after the cut is asked for (default: 1, the next)"
    )
    parser.add_argument("--per-video", type=int, default=1, help="most questions of a video (default: %(default)s)")
    parser.add_argument(
        "--same-video", type=int, default=2, help="wrong options from the same video (default: %(default)s)"
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.1,
        help="seconds by which the cut precedes the boundary (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    generate(
        args.records,
        args.media_root,
        args.out,
        seed=args.seed,
        hops=args.hops,
        per_video=args.per_video,
        same_video=args.same_video,
        margin=args.margin,
        progress=partial(track, description="videos", console=Console(stderr=True)),
    )
    print_rows(args.out)
