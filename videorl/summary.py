"""What came out of a run: the table of before and after, and `curves.png`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from videorl.live import History

_NOT_PHASES = ("time/step", "time/eval", "time/save")
_SMALLEST_PARITY = 1e-9  # below float32's resolution of a log-prob; keeps exact zeros on a logarithmic axis


def compute_summary(history: History, baselines: Mapping[str, float]) -> dict[str, Any]:
    """First and last value of each `eval/*`, of `reward/mean` and of a supervised loss, their steps, and the time.

    `baselines` are the scores of the best constant answer, named like the evaluation's metrics, e.g. "accuracy".
    """
    names = [name for metrics in history for name in metrics if name.startswith("eval/")]
    rows: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys([*names, "reward/mean", "policy/loss"]):
        steps, values = _points(history, name)
        if values:
            rows[name] = {"before": values[0], "after": values[-1], "before_step": steps[0], "after_step": steps[-1]}
            if (baseline := baselines.get(name.removeprefix("eval/"))) is not None:
                rows[name]["baseline"] = baseline
    seconds = sum(metrics["time/step"] + metrics.get("time/save", 0.0) for metrics in history)
    return {"step": int(history[-1]["step"]) if history else 0, "seconds": seconds, "metrics": rows}


def make_table(summary: Mapping[str, Any]) -> Table:
    """The summary's metrics, a line each: before, after, change and, where known, the best constant answer.

    Where nothing happened in between, as in an evaluation, the values stand alone.
    """
    rows: Mapping[str, Mapping[str, float]] = summary["metrics"]
    trained = any(row["before_step"] < row["after_step"] for row in rows.values())
    minutes = f"({summary['seconds'] / 60:.1f} min)"
    table = Table(title=f"Before and after {summary['step']} steps {minutes}" if trained else f"Result {minutes}")
    table.add_column("metric", overflow="fold")
    for heading in (*(("steps", "before", "after", "change") if trained else ("value",)), "best constant"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows.items():
        cells = [f"{row['after']:.3f}"]
        if trained:
            steps = f"{row['before_step']:.0f}, {row['after_step']:.0f}"
            cells = [steps, f"{row['before']:.3f}", *cells, f"{row['after'] - row['before']:+.3f}"]
        table.add_row(name, *cells, f"{row['baseline']:.3f}" if "baseline" in row else "-")
    return table


def draw_curves(history: History, baselines: Mapping[str, float], title: str, path: Path) -> None:
    """Reward, held-out accuracy, parity and time per phase over the steps, as one PNG."""
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    figure.suptitle(title)
    (reward, accuracy), (parity, phases) = figure.subplots(2, 2)
    _draw_reward(reward, history)
    _draw_accuracy(accuracy, history, baselines.get("accuracy"))
    _draw_parity(parity, history)
    _draw_phases(phases, history)
    last = max(1, history[-1]["step"]) if history else 1
    for axes in (reward, accuracy, parity, phases):
        axes.set_xlabel("step")
        axes.set_xlim(-0.02 * last, 1.02 * last)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, ncols=3)
        else:
            axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", color="gray")
    figure.savefig(path, dpi=120)


def _points(history: History, key: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of one metric."""
    kept = [metrics for metrics in history if key in metrics and math.isfinite(metrics[key])]
    return [metrics["step"] for metrics in kept], [metrics[key] for metrics in kept]


def _draw_reward(axes: Axes, history: History) -> None:
    axes.set_title("mean reward of the rollouts")
    steps, values = _points(history, "reward/mean")
    if not values:
        return
    reach = len(values) // 30
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    if reach:
        axes.plot(steps, values, color="tab:green", alpha=0.3, label="each step")
    label = f"mean of {2 * reach + 1} steps" if reach else "each step"
    axes.plot(steps, list(map(fmean, windows)), color="tab:green", label=label)


def _draw_accuracy(axes: Axes, history: History, baseline: float | None) -> None:
    axes.set_title("held-out accuracy")
    for key, label, style in (("accuracy", "sampled (avg@k)", "o-"), ("accuracy_greedy", "greedy", "s--")):
        steps, values = _points(history, f"eval/{key}")
        if values:
            axes.plot(steps, values, style, color="tab:purple" if style == "o-" else "tab:orange", ms=4, label=label)
    if baseline is not None:
        axes.axhline(baseline, color="gray", linestyle=":", label="best constant answer")
    axes.set_ylim(-0.02, 1.02)


def _draw_parity(axes: Axes, history: History) -> None:
    axes.set_title("parity: |engine - trainer| log-prob of the sampled tokens")
    shown: list[float] = []
    for key, color in (("max", "tab:red"), ("mean", "tab:blue")):
        steps, values = _points(history, f"parity/{key}_log_prob_diff")
        if values:
            values = [max(value, _SMALLEST_PARITY) for value in values]
            axes.plot(steps, values, color=color, label=key)
            shown += values
    if shown:
        axes.set_yscale("log")
        axes.set_ylim(10 ** math.floor(math.log10(min(shown))), 10 ** (math.floor(math.log10(max(shown))) + 1))


def _draw_phases(axes: Axes, history: History) -> None:
    axes.set_title("seconds per step, evaluation and checkpoints left out")
    lines = [metrics for metrics in history if metrics["step"] > 0]
    names = dict.fromkeys(
        name for line in lines for name in line if name.startswith("time/") and name not in _NOT_PHASES
    )
    phases = {name.removeprefix("time/"): [line.get(name, 0.0) for line in lines] for name in names}
    if lines:
        known = [sum(line.get(name, 0.0) for name in (*names, "time/eval")) for line in lines]
        phases["other"] = [max(0.0, line["time/step"] - seconds) for line, seconds in zip(lines, known, strict=True)]
        axes.stackplot([line["step"] for line in lines], list(phases.values()), labels=list(phases), alpha=0.85)
        axes.set_ylim(0, 1.3 * max(map(sum, zip(*phases.values(), strict=True))))  # room for the legend
