"""Data sets on the command line: `python -m videorl.data COMMAND --help`. Exits with 1 where the data is bad."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from videorl.data.synth import KINDS
from videorl.types import DataError

COMMANDS = ("check", "convert", "pairs", "select", "stats")
"""Each a module beside this one with `HELP`, `add_arguments(parser)` and `run(args) -> exit code`."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m videorl.data", description="Data sets on the command line.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        command = importlib.import_module(f"videorl.data.{name}")
        _add_parser(commands, name, command.HELP, command, chosen=arguments[:1], refusals=DataError)
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
    """Only the chosen command has arguments, for a kind of synthesis is imported to learn them."""
    parser = parsers.add_parser(name, help=help, description=help)
    if name in chosen:
        command.add_arguments(parser)
        parser.set_defaults(run=command.run, refusals=refusals)


if __name__ == "__main__":
    sys.exit(main())
