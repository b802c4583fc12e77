"""Questions made from what is there already: real videos, records of events, rows with options.

Every kind is seeded, writes canonical rows that say in `meta.provenance` how they came about, and leaves a finished
folder alone. `python -m videorl.data synth KIND --help` lists the settings of a kind.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Synth:
    """One kind of synthesis. Its module is imported when its arguments are asked for."""

    name: str
    help: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        import_module(f"{__name__}.{self.name}").add_arguments(parser)

    def run(self, args: argparse.Namespace) -> None:
        """Write the data set and print what was written. Raises ValueError (DataError included) for bad input."""
        import_module(f"{__name__}.{self.name}").run(args)


KINDS = {
    kind.name: kind
    for kind in (
        Synth("videossr", "anomaly grounding, counting and temporal jigsaw from any folder of real videos"),
        Synth("next_event", "four-option questions about what happens after a cut, from videos with timed events"),
        Synth("long_video", "long videos drawn for the purpose, whose evidence is on screen for a few seconds"),
        Synth("shuffle_options", "the same questions with their answer options in another order"),
        Synth("trajectories", "how something changes over a video, asked both ways round, from tracks or drawn clips"),
        Synth("examples", "eight rows for each recipe over clips of coloured squares, to rehearse it with"),
    )
}
