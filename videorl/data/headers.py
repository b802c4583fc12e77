"""What the headers of a data set's videos say, row by row, without decoding and without a model."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from videorl.data.prompts import check_spans, make_clips
from videorl.types import DataError, Sampling
from videorl.video.reader import VideoReader

PATCH, MERGE = 14, 2  # pixels of a patch, patches of a token; both sides
MIN_FRAMES, MIN_PIXELS, TOTAL_PIXELS = 4, 128 * 28 * 28, 115_200 * 28 * 28  # the defaults of qwen_vl_utils


@dataclass(frozen=True)
class Finding:
    """What the headers of a row's clips say: `problem` is None or (reason, message). Durations are in seconds."""

    id: str
    task: str
    durations: tuple[float, ...] = ()
    visual_tokens: int = 0
    problem: tuple[str, str] | None = None


def add_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """The options that say where the videos are and how many of their frames are shown."""
    parser.add_argument("--media-root", required=required, help="as data.media_root")
    parser.add_argument("--fps", type=float, default=2.0, help="frames shown of a second (default: %(default)s)")
    parser.add_argument("--max-frames", type=int, default=768, help="most frames of a clip (default: %(default)s)")
    parser.add_argument("--max-pixels", type=int, default=768 * 28 * 28, help="of one frame (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="processes that read headers (default: %(default)s)")


def inspect_rows(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> list[Finding]:
    """A finding for each row. Raises DataError `options` where the options make no sampling rule."""
    try:
        sampling = Sampling(
            fps=args.fps,
            num_frames=None,
            min_frames=min(MIN_FRAMES, args.max_frames),
            max_frames=args.max_frames,
            min_pixels=min(MIN_PIXELS, args.max_pixels),
            max_pixels=args.max_pixels,
            total_pixels=max(TOTAL_PIXELS, args.max_pixels),
        )
    except ValueError as error:
        raise DataError("options", str(error)) from error
    with VideoReader(workers=args.workers) as reader, ThreadPoolExecutor(args.workers) as threads:
        inspect = partial(_inspect, media_root=args.media_root, sampling=sampling, reader=reader)
        return list(track(threads.map(inspect, rows), "headers", len(rows), console=Console(stderr=True)))


def _inspect(row: dict[str, Any], *, media_root: str, sampling: Sampling, reader: VideoReader) -> Finding:
    try:
        plans = [reader.plan(clip) for clip in make_clips(row, media_root, sampling)]
        check_spans(row, plans)
    except DataError as error:
        return Finding(row["id"], row["task"], problem=(error.reason, str(error)))
    grids = [plan.grid(PATCH, sampling.temporal_factor) for plan in plans]
    return Finding(
        row["id"],
        row["task"],
        durations=tuple(plan.duration for plan in plans),
        visual_tokens=sum(math.prod(grid) // MERGE**2 for grid in grids),
    )


def show_sizes(findings: Sequence[Finding], console: Console) -> None:
    """Durations and visual tokens of the rows that have videos; nothing without any."""
    usable = [finding for finding in findings if finding.durations]
    if not usable:
        return
    table = Table("of usable rows", "least", "median", "most", "sum", title="sizes", title_justify="left")
    seconds = [duration for finding in usable for duration in finding.durations]
    tokens = [finding.visual_tokens for finding in usable]
    for name, values, form in (("seconds of a clip", seconds, ".1f"), ("visual tokens of a row", tokens, ".0f")):
        numbers = (min(values), statistics.median(values), max(values), sum(values))
        table.add_row(name, *(format(number, form) for number in numbers))
    console.print(table)
