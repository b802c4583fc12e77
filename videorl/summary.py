"""What came out of a run: the table of before and after, `summary.json` and `curves.png`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from videorl.live import History

_PHASES = ("rollout", "log_probs", "update", "weight_sync", "save")


def compute_summary(history: History, baselines: Mapping[str, float]) -> dict[str, Any]:
    """First and last held-out evaluation, mean reward of the first and last step, and what it took.

    `baselines` are scores of the best constant answer, under the names of the evaluation's metrics, e.g. "accuracy".
    """
    evaluations = [metrics for metrics in history if any(name.startswith("eval/") for name in metrics)]
    rewards = [metrics for metrics in history if "reward/mean" in metrics]
    return {
        "step": int(history[-1]["step"]) if history else 0,
        "evaluation": _ends(evaluations, "eval/"),
        "reward": _ends(rewards, "reward/"),
        "baselines": dict(baselines),
        "seconds": sum(metrics.get("time/step", 0.0) + metrics.get("time/save", 0.0) for metrics in history),
    }


def _ends(lines: History, area: str) -> list[dict[str, float]]:
    """The area's metrics in the first and in the last of `lines`, with their step; empty where there are none."""
    return [
        {"step": line["step"]} | {name.removeprefix(area): value for name, value in line.items() if name.startswith(area)}
        for line in (lines[:1] + lines[-1:] if lines else [])
    ]
