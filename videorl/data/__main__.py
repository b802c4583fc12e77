"""Look at a data set before a run does: every row against the schema, every clip by its header.

    python -m videorl.data check --path data/train.jsonl --media-root data

Exits with 1 where anything is bad. Needs no model: visual tokens are those of Qwen2.5-VL.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from videorl.data.prompts import check_spans, make_clips
from videorl.data.schema import load_rows
from videorl.types import DataError, Sampling
from videorl.video.reader import VideoReader

PATCH, MERGE = 14, 2  # pixels of a patch, patches of a token; both sides
MIN_FRAMES, MIN_PIXELS, TOTAL_PIXELS = 4, 128 * 28 * 28, 115_200 * 28 * 28  # the defaults of qwen_vl_utils
EXAMPLES = 3  # bad rows shown for each reason


@dataclass(frozen=True)
class Finding:
    """What the headers of a row's clips say: `problem` is None or (reason, message). Durations are in seconds."""

    id: str
    task: str
    durations: tuple[float, ...] = ()
    visual_tokens: int = 0
    problem: tuple[str, str] | None = None


def inspect_row(row: dict[str, Any], *, media_root: str, sampling: Sampling, reader: VideoReader) -> Finding:
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


def show(findings: Sequence[Finding], console: Console) -> None:
    tasks = Table("task", "rows", "bad", title="rows", title_justify="left")
    bad = Counter(finding.task for finding in findings if finding.problem)
    for task, count in Counter(finding.task for finding in findings).most_common():
        tasks.add_row(task, str(count), str(bad[task]))
    console.print(tasks)

    sizes = Table("of usable rows", "least", "median", "most", "sum", title="sizes", title_justify="left")
    usable = [finding for finding in findings if finding.durations]
    seconds = [duration for finding in usable for duration in finding.durations]
    tokens = [finding.visual_tokens for finding in usable]
    if usable:
        for name, values, form in (("seconds of a clip", seconds, ".1f"), ("visual tokens of a row", tokens, ".0f")):
            numbers = (min(values), statistics.median(values), max(values), sum(values))
            sizes.add_row(name, *(format(number, form) for number in numbers))
        console.print(sizes)

    reasons: dict[str, list[str]] = {}
    for finding in findings:
        if finding.problem:
            reason, message = finding.problem
            reasons.setdefault(reason, []).append(f"{finding.id}: {message}")
    for reason, lines in sorted(reasons.items(), key=lambda item: -len(item[1])):
        console.print(f"{reason}: {len(lines)} bad rows, for example", style="bold red", markup=False)
        for line in lines[:EXAMPLES]:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m videorl.data", description="Look at a data set before a run does.")
    check = parser.add_subparsers(dest="command", required=True).add_parser("check", help="check every row and clip")
    check.add_argument("--path", required=True, help="as data.path: .jsonl, .parquet, a folder or hf:NAME:SPLIT")
    check.add_argument("--media-root", required=True, help="as data.media_root")
    check.add_argument("--fps", type=float, default=2.0, help="frames shown of a second (default: %(default)s)")
    check.add_argument("--max-frames", type=int, default=768, help="most frames of a clip (default: %(default)s)")
    check.add_argument("--max-pixels", type=int, default=768 * 28 * 28, help="of one frame (default: %(default)s)")
    check.add_argument("--workers", type=int, default=4, help="processes that read headers (default: %(default)s)")
    args = parser.parse_args(argv)
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
        rows = load_rows(args.path)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    except ValueError as error:
        check.error(str(error))
    with VideoReader(workers=args.workers) as reader, ThreadPoolExecutor(args.workers) as threads:
        inspect = partial(inspect_row, media_root=args.media_root, sampling=sampling, reader=reader)
        progress = track(threads.map(inspect, rows), "headers", len(rows), console=Console(stderr=True))
        findings = list(progress)
    show(findings, Console())
    return 1 if any(finding.problem for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
