"""Data sets on the command line: `python -m videorl.data COMMAND --help`. Exits with 1 where the data is bad."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from videorl.data.synth import KINDS
from videorl.types import DataError

COMMANDS = {
    "check": ("videorl.data.check", "check every row, answer and clip"),
    "convert": ("videorl.data.convert", "write a data set of another tool as canonical rows"),
    "pairs": ("videorl.data.pairs", "make pairs for preference training from repeated rollouts"),
    "select": ("videorl.data.select", "keep the rows that repeated rollouts or a critic's score pick"),
    "stats": ("videorl.data.stats", "sizes, answers, best constant answers and duplicates"),
    # asks a model, and so stands above the data
    "tpl": ("videorl.tpl", "how much less a model expects each response when it sees few frames"),
}
"""Each a module with `add_arguments(parser)` and `run(args) -> exit code`, imported only where it is asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m videorl.data", description="Data sets on the command line.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, help) in COMMANDS.items():
        command = importlib.import_module(module) if name in arguments[:1] else None
        _add_parser(commands, name, help, command, chosen=arguments[:1], refusals=DataError)
    synth = commands.add_parser("synth", help="make questions from videos, events or rows")
    kinds = synth.add_subparsers(dest="kind", required=True)
    for kind in KINDS.values():
        _add_parser(kinds, kind.name, kind.help, kind, chosen=arguments[1:2], refusals=ValueError)
    args = parser.parse_args(arguments)
    try:
        return args.run(args) or 0
    except args.refusals as error:
        print(error, file=sys.stderr)
        return 1


def _add_parser(
    parsers: Any, name: str, help: str, command: Any, *, chosen: Sequence[str], refusals: type[Exception]
) -> None:
    """Only the chosen command has arguments, for it is imported to learn them."""
    parser = parsers.add_parser(name, help=help, description=help)
    if name in chosen:
        command.add_arguments(parser)
        parser.set_defaults(run=command.run, refusals=refusals)


if __name__ == "__main__":
    sys.exit(main())
