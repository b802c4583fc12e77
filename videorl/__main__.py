"""`videorl COMMAND ...` is `python -m videorl.COMMAND ...`."""

from __future__ import annotations

import argparse
import difflib
import os
import runpy
import sys
from collections.abc import Sequence

import videorl

COMMANDS = {
    "train": "reinforcement learning",
    "train_async": "the same, rolling out the next batch while it trains on this one",
    "sft": "supervised cold start",
    "prefer": "training on pairs: DPO and its relatives",
    "reward_model": "a reward model fitted to pairs",
    "self_align": "pairs that a model makes of its own responses",
    "pipeline": "several stages from one file, finished ones skipped",
    "evaluate": "held-out accuracy of a model",
    "data": "data sets: check, convert, select, stats, synth",
    "rewards": "list the built-in reward terms, score saved rollouts again",
    "episodes": "score recorded episodes again, show one turn by turn",
    "recipes": "the table of published methods",
    "envs.serve": "environments for trainers on other machines",
    "models.tiny": "build the tiny model",
    "data.synthetic": "make the videos and rows of the quickstart",
}
"""Modules of this package; each is imported only where it is asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="videorl",
        usage="videorl [-h] [--version] COMMAND ...",
        description="Reinforcement learning for video multimodal LLMs.",
        epilog="commands:\n"
        + "".join(f"  {name:16} {what}\n" for name, what in COMMANDS.items())
        + "\n`videorl COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", help="one of those below; what follows it is its own")
    parser.add_argument("--version", action="version", version=videorl.__version__)
    command = parser.parse_args(arguments[:1]).command
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.5)
        rule = f"did you mean {near[0]!r}?" if near else "there are"
        parser.error(f"{command!r} is no command; {rule} ({', '.join(COMMANDS)})")
    if os.getcwd() not in sys.path and not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does: configurations name code of the user's there
    sys.argv[1:] = arguments[1:]
    runpy.run_module(f"videorl.{command}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
