"""Recorded episodes: their rewards scored again, and one of them on the terminal.

python -m videorl.episodes replay runs/mine
python -m videorl.episodes replay runs/mine --params '{"variant": "release"}' --out rescored.jsonl
python -m videorl.episodes show runs/mine 'row-7#2' --step 3
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from videorl.data.report import say
from videorl.episodes.records import FILE, EpisodeLine, read_episodes, select
from videorl.episodes.replay import NAMED, Tally, replay
from videorl.episodes.show import show_episode
from videorl.live import printable
from videorl.types import DataError


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, OSError) as error:  # a DataError is a ValueError
        _warn(str(error))
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m videorl.episodes", description="Recorded episodes: scored again, or shown."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    again = commands.add_parser(
        "replay",
        help="score episodes again",
        description="Score episodes again. Exits with 1 where their own environment does not give the recorded scores.",
    )
    one = commands.add_parser("show", help="show one episode turn by turn", description="Show one episode.")
    for command, run in ((again, _replay), (one, _show)):
        command.add_argument("file", metavar="FILE_OR_RUN_DIR", help=f"an {FILE}, or the folder of a run")
        command.add_argument("--step", type=int, metavar="N", help="episodes of this step alone")
        command.set_defaults(run=run)
    again.add_argument("--id", help="episodes of this task alone")
    again.add_argument("--env", metavar="NAME", help="score with this environment instead: a name, or 'my_pkg:MyEnv'")
    again.add_argument(
        "--params",
        type=_parameters,
        default={},
        metavar="JSON",
        help="parameters that replace the recorded ones; all there are where --env names another environment",
    )
    again.add_argument("--out", metavar="FILE", help="write the episodes with their new scores here")
    again.add_argument("--limit", type=_positive, metavar="N", help="the first N episodes alone")
    one.add_argument("name", metavar="ID[#INDEX]", help="a task, or one of its episodes: row-7#2")
    return parser


def _parameters(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object; write it as \'{{"variant": "release"}}\'')
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return int(text)


def _warn(text: str) -> None:
    print(printable(text), file=sys.stderr)


def _replay(args: argparse.Namespace) -> int:
    lines = islice(select(read_episodes(args.file, _warn), args.step, args.id), args.limit)
    tally = Tally()
    with _publish(args.out) as write:
        for replayed in replay(lines, args.env, args.params):
            tally.add(replayed)
            write(replayed.line.model_copy(update={"env": replayed.env, "score": replayed.score}))
        if not tally.statuses:
            raise DataError("empty", f"{args.file}: no such episode; give another --step or --id, or another file")
    tally.show(Console())
    return 1 if tally.changed else 0


@contextmanager
def _publish(path: str | None) -> Iterator[Callable[[EpisodeLine], None]]:
    """Lines to a file that is there once the block ends without exception; to nowhere without one."""
    if path is None:
        yield lambda line: None
        return
    target = Path(path)
    if target.exists():
        raise DataError("exists", f"{path} exists; choose another name for --out")
    building = target.with_name(f"{target.name}.{os.getpid()}.building")
    try:
        with building.open("w", encoding="utf-8") as file:
            yield lambda line: print(line.model_dump_json(), file=file)
        building.replace(target)
    finally:
        building.unlink(missing_ok=True)


def _show(args: argparse.Namespace) -> int:
    found: EpisodeLine | None = None
    others: list[str] = []
    known: dict[str, None] = {}
    for _, line in select(read_episodes(args.file, _warn), args.step):
        known[line.name] = None
        if args.name not in (line.id, line.name):
            continue
        if found is None:
            found = line
        else:
            others.append(f"step {line.step}, {line.name}")
    if found is None:
        near = difflib.get_close_matches(args.name, known) or [*islice(known, 3)] or ["nothing"]
        step = "" if args.step is None else f" of step {args.step}"
        raise DataError("no_episode", f"{args.file}: no episode {args.name!r}{step}; it holds {', '.join(near)}, ...")
    console = Console()
    show_episode(found, console)
    if others:
        more = f"{', '.join(others[:NAMED])}{', ...' if len(others) > NAMED else ''}"
        say(console, f"{len(others)} more: {printable(more)}; choose with #INDEX and --step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
