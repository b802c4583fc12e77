"""What a data set holds: tasks and sources, sizes, right answers and the best constant one, duplicates.

python -m videorl.data stats --path data/train.jsonl --media-root data
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from videorl.answers.gold import gold_letter, gold_number, gold_spans
from videorl.data import headers
from videorl.data.report import Problems, say
from videorl.data.schema import fingerprint, load_rows

STEPS = 60  # of the grid on which the best constant interval is looked for; whole seconds in clips that are shorter
RECALL_IOU = 0.5
SHOWN = 5  # most frequent answers, and most used videos


@dataclass(frozen=True)
class Constant:
    """The answer that scores best without looking at the video, in the rows of one task and source.

    `score` is the share of right answers, for grounding the mean IoU. `answers` are the right ones and how many rows
    have them, the most frequent first; none for grounding. `recall`, for grounding alone, is the largest share of rows
    in which one interval, perhaps another, has an IoU of at least 0.5.
    """

    source: str
    task: str
    rows: int
    answer: str
    score: float
    answers: tuple[tuple[str, int], ...] = ()
    recall: float | None = None


def best_constants(rows: Sequence[dict[str, Any]]) -> list[Constant]:
    """For each task and source with a right answer to be had; the most rows first.

    Raises:
        DataError: `bad_gold` where a right answer cannot be read.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["task"] in _READERS:
            groups[row["data_source"], row["task"]].append(row)
    found = [_READERS[task](source, task, group) for (source, task), group in groups.items()]
    return sorted(found, key=lambda constant: -constant.rows)


def _best_label(label: Callable[[dict[str, Any]], str]) -> Callable[..., Constant]:
    def best(source: str, task: str, rows: Sequence[dict[str, Any]]) -> Constant:
        counts = Counter(map(label, rows)).most_common()
        answer, count = counts[0]
        return Constant(source, task, len(rows), answer, count / len(rows), tuple(counts))

    return best


def _best_interval(source: str, task: str, rows: Sequence[dict[str, Any]]) -> Constant:
    """Of all intervals on a grid, the one with the greatest mean over rows of the IoU with the best fitting span."""
    spans = [gold_spans(row) for row in rows]
    last = max(end for row in spans for _, end in row)
    times = np.arange(math.ceil(last) + 1.0) if last <= STEPS else np.linspace(0.0, last, STEPS + 1)
    first, second = np.triu_indices(len(times), k=1)
    starts, ends = times[first], times[second]
    total, found = np.zeros(len(starts)), np.zeros(len(starts))
    for row in spans:
        best = np.zeros(len(starts))
        for start, end in row:
            overlap = np.minimum(ends, end) - np.maximum(starts, start)
            best = np.maximum(best, overlap / (np.maximum(ends, end) - np.minimum(starts, start)))
        total += best
        found += best >= RECALL_IOU
    winner = int(total.argmax())
    answer = f"{starts[winner]:g} to {ends[winner]:g}"
    score, recall = (float(values.max()) / len(rows) for values in (total, found))
    return Constant(source, task, len(rows), answer, score, recall=recall)


_READERS: dict[str, Callable[..., Constant]] = {
    "mc": _best_label(gold_letter),
    "next_event": _best_label(gold_letter),
    "numeric": _best_label(lambda row: format(round(gold_number(row), 2), "g")),
    "grounding": _best_interval,
}


def repeated(keys: Iterable[Any]) -> list[tuple[Any, int]]:
    """What occurs more than once, and how often; the most frequent first."""
    return [(key, count) for key, count in Counter(keys).most_common() if count > 1]


# --- the command -----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", required=True, help="the rows, as data.path")
    headers.add_arguments(parser, required=False)


def run(args: argparse.Namespace) -> int:
    console, problems = Console(), Problems()
    rows = load_rows(args.path)
    _show_tasks(rows, console)
    if args.media_root is not None:
        findings = headers.inspect_rows(rows, args)
        headers.show_sizes(findings, console)
        for finding in findings:
            if finding.problem:
                problems.add(finding.problem[0], finding.id, finding.problem[1])
    _show_answers(best_constants(rows), console)
    _show_duplicates(rows, console)
    problems.show(console)
    return 1 if len(problems) else 0


def _show_tasks(rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table("source", "task", "rows", "to fit", title=f"{len(rows)} rows", title_justify="left")
    fitted = Counter((row["data_source"], row["task"]) for row in rows if row["response"] is not None)
    for key, count in Counter((row["data_source"], row["task"]) for row in rows).most_common():
        table.add_row(*map(Text, key), str(count), str(fitted[key]))
    console.print(table)


def _show_answers(constants: Sequence[Constant], console: Console) -> None:
    if not constants:
        return
    table = Table("source", "task", "best constant answer", "scores", "answers", title="answers", title_justify="left")
    for constant in constants:
        shown = [f"{answer} {count / constant.rows:.0%}" for answer, count in constant.answers[:SHOWN]]
        more = [f"and {len(constant.answers) - SHOWN} more"] if len(constant.answers) > SHOWN else []
        score = format(constant.score, ".3f")
        cells = (constant.source, constant.task, constant.answer, score, ", ".join([*shown, *more]))
        table.add_row(*map(Text, cells))  # as it is: data may hold what would be markup
    console.print(table)


def _show_duplicates(rows: Sequence[dict[str, Any]], console: Console) -> None:
    questions = {row["id"]: fingerprint([row | {"id": "", "meta": {}}]) for row in rows}
    same_question = {key for key, _ in repeated(questions.values())}
    if ids := [id for id, key in questions.items() if key in same_question]:
        say(console, f"{len(ids)} rows differ from another only in id or meta, for example {ids[0]!r}")
    paths = [video["path"] for row in rows for video in row["videos"]]
    if paths:
        say(console, f"{len(set(paths))} videos, shown {len(paths)} times")
    for path, count in repeated(paths)[:SHOWN]:
        say(console, f"  {count} x {path}")
