"""Data sets of other tools as canonical rows.

    python -m videorl.data convert --path Video-R1-260k.json --out rows.jsonl

The layout is told from the first records and printed. A record that cannot become a row is counted and named with its
place and reason; above `--allow-bad` nothing is written.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from videorl.data.adapters.layouts import AUTO, LAYOUTS, Layout, convert_record, detect_layout, find_layout
from videorl.data.output import publish_rows
from videorl.data.records import RecordError, parse_record, read_records
from videorl.data.report import Problems, say
from videorl.types import DataError

SAMPLED = 100  # first records that tell the layout


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot become a row: where it is and why."""

    place: str
    reason: str
    message: str


@dataclass(frozen=True)
class Source:
    """A data set of a known layout. `evidence` says in words what the layout was told from. Iterable once."""

    layout: Layout
    evidence: str
    rows: Iterator[dict[str, Any] | BadRecord]


def open_source(
    path: str, name: str = AUTO, *, media_root: str | None = None, suffix_duplicates: bool = False
) -> Source:
    """The records of a data set as canonical rows, read as they are asked for.

    `name` is a layout, or "auto". Absolute paths of videos become relative to `media_root`, where that is given.
    An id that an earlier record has makes a record bad, or with `suffix_duplicates` becomes "id#2".

    Raises:
        DataError: `format`, `unreadable`, `empty`, or `layout` where none or several fit.
    """
    records = read_records(path)
    first = list(islice(records, SAMPLED))
    if not first:
        raise DataError("empty", f"{path} holds no records; a data set has at least one")
    layout, evidence = (find_layout(name), "as named") if name != AUTO else detect_layout(_readable(first))
    ids: set[str] = set()

    def convert(place: str, raw: Any) -> dict[str, Any] | BadRecord:
        default_id = f"{Path(path).stem}-{place.rpartition(' ')[2]}"
        try:
            row = convert_record(layout, parse_record(raw), default_id=default_id)
            _make_relative(row, media_root)
            row["id"] = _unique(row["id"], ids, suffix_duplicates)
        except RecordError as error:
            return BadRecord(place, error.reason, str(error))
        ids.add(row["id"])
        return row

    return Source(layout, evidence, (convert(place, raw) for place, raw in chain(first, records)))


def _readable(records: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    readable = []
    for _, raw in records:
        try:
            readable.append(parse_record(raw))
        except RecordError:  # reported with its place when it is converted
            continue
    return readable


def _make_relative(row: dict[str, Any], media_root: str | None) -> None:
    for video in row["videos"] if media_root is not None else ():
        if os.path.isabs(video["path"]):
            relative = os.path.relpath(video["path"], os.path.abspath(media_root or ""))
            if relative.split(os.sep)[0] == os.pardir:
                raise RecordError("not_local", f"{video['path']!r} is not under {media_root!r}; move or link the root")
            video["path"] = relative


def _unique(id: str, taken: set[str], suffix: bool) -> str:
    if id in taken and not suffix:
        raise RecordError(
            "duplicate_id", f"id {id!r} is that of an earlier record; --suffix-duplicates makes it unique"
        )
    number, unique = 2, id
    while unique in taken:
        unique, number = f"{id}#{number}", number + 1
    return unique


# --- the command -----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", required=True, help="what data.path takes, a .json array, or lines of a .txt")
    parser.add_argument("--out", required=True, help=".jsonl or .parquet")
    add_layout_argument(parser, AUTO)
    parser.add_argument("--media-root", help="make absolute video paths relative to this folder")
    parser.add_argument("--allow-bad", type=share, default=0.0, help="greatest share of bad records (default: 0)")
    parser.add_argument("--suffix-duplicates", action="store_true", help="make repeated ids unique: a, a#2, a#3")
    parser.add_argument("--force", action="store_true", help="overwrite --out")


def add_layout_argument(parser: argparse.ArgumentParser, default: str) -> None:
    names = (AUTO, *LAYOUTS)
    parser.add_argument(
        "--from", dest="layout", choices=names, default=default, help="layout of the records (default: %(default)s)"
    )


def share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be between 0 and 1")
    return value


def run(args: argparse.Namespace) -> int:
    console = Console()
    source = open_source(args.path, args.layout, media_root=args.media_root, suffix_duplicates=args.suffix_duplicates)
    say(console, f"layout {source.layout.name}: {source.evidence}")
    problems, tasks = Problems(), Counter[str]()
    with publish_rows(args.out, force=args.force) as write:
        for row in track(source.rows, "records", console=Console(stderr=True)):
            if isinstance(row, BadRecord):
                problems.add(row.reason, row.place, row.message)
            else:
                tasks[row["task"]] += 1
                write(row)
        problems.show(console)
        total = tasks.total() + len(problems)
        if not tasks or len(problems) > args.allow_bad * total:
            allowed = "none can be used" if not tasks else f"more than --allow-bad {args.allow_bad:g}"
            raise DataError(
                "too_many_bad", f"{len(problems)} of {total} records are bad, {allowed}: nothing was written"
            )
    counts = ", ".join(f"{count} {task}" for task, count in tasks.most_common())
    say(console, f"{args.out}: {tasks.total()} rows ({counts}); {len(problems)} bad records left out")
    return 0
