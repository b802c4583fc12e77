"""The built-in reward terms, and saved rollouts scored again. Needs no GPU and no model.

python -m videorl.rewards list
python -m videorl.rewards score --reward number --param tolerance=0.5 --data val.jsonl runs/mine/rollouts.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from videorl.answers.answer import REASONS
from videorl.data.schema import load_rows
from videorl.rewards.hooks import HOOKS
from videorl.rewards.registry import SCORERS, TERMS, load
from videorl.rewards.result import Abstained
from videorl.rewards.term import Reward
from videorl.types import DataError

NAMES_A_ROLLOUT = ("step", "prompt_id", "index")


def table() -> str:
    """One line per term: name, range, the row fields it reads, the source of its formula; hooks and scorers last."""
    rows = [("name", "range", "row fields", "source")]
    rows += [(name, f"[{t.low:g}, {t.high:g}]", ", ".join(t.fields) or "-", t.source) for name, t in TERMS.items()]
    rows += [(name, "a group hook", "-", hook.source) for name, hook in HOOKS.items()]
    rows += [(name, "a scorer", "-", f"its parameters: {target}") for name, target in SCORERS.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def score_file(path: str, rows: Mapping[str, dict[str, Any]], reward: Reward) -> Iterator[dict[str, Any]]:
    """What `reward` gives each line of a rollouts.jsonl: `value`, `parts`, `failure`, or why it `abstained`.

    Leaves second passes out, whose prompts may differ from their rows (shuffled options, hints). Raises DataError,
    naming the line, where a line is no rollout of these rows or the reward fails on it.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                rollout = json.loads(line)
                if rollout.get("pass") is None:
                    yield _score_rollout(rollout, rows, reward)
            except Exception as error:
                message = f"{path}, line {number}: {type(error).__name__}: {error}"
                raise DataError("unscored", message) from error


def _score_rollout(rollout: dict[str, Any], rows: Mapping[str, dict[str, Any]], reward: Reward) -> dict[str, Any]:
    if rollout["prompt_id"] not in rows:
        raise DataError("no_row", f"prompt_id {rollout['prompt_id']!r} is no id of --data; give the rows it came from")
    scored = {name: rollout[name] for name in NAMES_A_ROLLOUT if name in rollout}
    try:
        result = reward(rollout["response"], rows[rollout["prompt_id"]])
    except Abstained as abstained:
        return scored | {"abstained": str(abstained)}
    failure = result.failure and str(result.failure)
    return scored | {"value": float(result.value), "parts": result.parts, "failure": failure}


def show(scored: Sequence[Mapping[str, Any]], console: Console) -> None:
    values = [line["value"] for line in scored if "value" in line]
    failures = Counter(line["failure"].partition(":")[0] for line in scored if line.get("failure"))
    summary = Table("responses", "mean", "std", "least", "most", "unreadable", "abstained")
    statistic = (statistics.fmean, statistics.pstdev, min, max)
    summary.add_row(
        str(len(scored)),
        *(f"{compute(values):.4f}" if values else "-" for compute in statistic),
        str(failures.total()),
        str(len(scored) - len(values)),
    )
    console.print(summary)
    for reason, count in failures.most_common():
        console.print(f"{count} x {REASONS.get(reason, reason)} ({reason})", markup=False, highlight=False)


def _parameter(text: str) -> tuple[str, Any]:
    """`tolerance=0.5`: the value is JSON, or else a text as it is."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m videorl.rewards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("list", help="print the built-in reward terms")
    score = commands.add_parser("score", help="score the responses of a rollouts.jsonl again")
    score.add_argument("file", help="rollouts.jsonl of a run")
    score.add_argument("--reward", required=True, help="a built-in name, or 'my_pkg.rewards:function'")
    score.add_argument("--param", action="append", default=[], type=_parameter, help="name=value, JSON; repeatable")
    score.add_argument(
        "--data", required=True, help="the rows, as data.path: .jsonl, .parquet, a folder, hf:NAME:SPLIT"
    )
    score.add_argument("--out", help="write a line of JSON for each response here")
    args = parser.parse_args(argv)
    if args.command == "list":
        print(table())
        return 0
    try:
        reward = load(args.reward, **dict(args.param))
        rows = {row["id"]: row for row in load_rows(args.data)}
        scored = list(score_file(args.file, rows, reward))
        if not scored:
            raise DataError("empty", f"{args.file} holds no rollouts; give the rollouts.jsonl of a run that made some")
    except (DataError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    show(scored, Console())
    if args.out:
        Path(args.out).write_text("".join(json.dumps(line) + "\n" for line in scored), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
