"""Look at a data set before a run does: rows against the schema, answers by their parsers, clips by their headers.

    python -m videorl.data check --path data/train.jsonl --media-root data

Exits with 1 where anything is bad. Needs no model: visual tokens are those of Qwen2.5-VL.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from videorl.answers.gold import gold_letter, gold_number, gold_spans
from videorl.data import headers
from videorl.data.adapters.layouts import CANONICAL
from videorl.data.convert import BadRecord, add_layout_argument, open_source
from videorl.data.headers import Finding
from videorl.data.report import Problems, say
from videorl.data.schema import load_rows
from videorl.types import DataError

GOLDS = {"mc": gold_letter, "next_event": gold_letter, "numeric": gold_number, "grounding": gold_spans}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", required=True, help="as data.path: .jsonl, .parquet, a folder or hf:NAME:SPLIT")
    add_layout_argument(parser, CANONICAL.name)
    headers.add_arguments(parser, required=True)


def run(args: argparse.Namespace) -> int:
    console, problems = Console(), Problems()
    rows = _load(args, problems, console)
    unreadable = [finding for row in rows if (finding := _check_gold(row))]
    bad_ids = {finding.id for finding in unreadable}
    findings = unreadable + headers.inspect_rows([row for row in rows if row["id"] not in bad_ids], args)
    for finding in findings:
        if finding.problem:
            problems.add(finding.problem[0], finding.id, finding.problem[1])
    _show_tasks(findings, console)
    headers.show_sizes(findings, console)
    _show_pairs(rows, console)
    problems.show(console)
    return 1 if len(problems) else 0


def _load(args: argparse.Namespace, problems: Problems, console: Console) -> list[dict[str, Any]]:
    """The rows; of another layout, those records that can become rows."""
    if args.layout == CANONICAL.name:
        return load_rows(args.path)
    source = open_source(args.path, args.layout, media_root=args.media_root)
    say(console, f"layout {source.layout.name}: {source.evidence}")
    rows = []
    for row in source.rows:
        if isinstance(row, BadRecord):
            problems.add(row.reason, row.place, row.message)
        else:
            rows.append(row)
    return rows


def _check_gold(row: dict[str, Any]) -> Finding | None:
    """What is wrong with the right answer, for the parser that rewards will read it with."""
    try:
        if row["task"] in GOLDS:
            GOLDS[row["task"]](row)
    except DataError as error:
        return Finding(row["id"], row["task"], problem=(error.reason, str(error)))
    return None


def _show_tasks(findings: Sequence[Finding], console: Console) -> None:
    table = Table("task", "rows", "bad", title="rows", title_justify="left")
    bad = Counter(finding.task for finding in findings if finding.problem)
    for task, count in Counter(finding.task for finding in findings).most_common():
        table.add_row(task, str(count), str(bad[task]))
    console.print(table)


def _show_pairs(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """How many rows are pairs, and whether a model could learn length from them."""
    pairs = [row for row in rows if row["chosen"] is not None]
    if not pairs:
        return
    longer = [len(row["chosen"].split()) > len(row["rejected"].split()) for row in pairs]
    with_phrases = sum(row["phrases"] is not None for row in pairs)
    say(console, f"{len(pairs)} pairs, {with_phrases} with phrases; chosen has more words in {fmean(longer):.0%}")
