"""Tables and plots under `benchmarks/results/`."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def write_table(name: str, title: str, head: Sequence[str], rows: Sequence[Sequence[object]], notes: str) -> None:
    """`results/<name>.md`, and the same on the screen."""
    lines = [f"# {title}", "", notes, ""]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    lines += [
        "",
        f"torch {torch.__version__}, {torch.get_num_threads()} thread of {os.cpu_count()}, {platform.machine()}.",
    ]
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
