"""What the commands print: what is bad, by reason and with examples, and how numbers are spread."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console

EXAMPLES = 3  # bad rows shown for each reason
BINS, WIDTH = 10, 40  # of a histogram; width in characters


def say(console: Console, text: str) -> None:
    """Print a text that may come from data as it is, on one line however long."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class Problems:
    """Bad rows, counted by reason; a few of each are kept as examples."""

    def __init__(self):
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return sum(self._counts.values())

    def add(self, reason: str, place: str, message: str) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{place}: {message}")

    def show(self, console: Console) -> None:
        for reason, count in sorted(self._counts.items(), key=lambda item: -item[1]):
            console.print(f"{reason}: {count} bad rows, for example", style="bold red", markup=False)
            for line in self._examples[reason]:
                say(console, f"  {line}")


def histogram(values: Sequence[float]) -> list[str]:
    """Lines `low .. high  count  bar` of equally wide bins; one line where all values are equal."""
    low, high = min(values), max(values)
    width = (high - low) / BINS
    if not width > 0:
        return [f"{low:8.3g}             {len(values):6d}  {'█' * WIDTH}"]
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / width))] += 1
    edges = [low + index * width for index in range(BINS + 1)]
    return [
        f"{start:8.3g} ..{end:8.3g}  {count:6d}  {'█' * math.ceil(count / max(counts) * WIDTH)}".rstrip()
        for start, end, count in zip(edges, edges[1:], counts, strict=False)
    ]
