"""Tables and plots under `benchmarks/results/`, and what timings have in common."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def write_table(name: str, title: str, head: Sequence[str], rows: Sequence[Sequence[object]], notes: str) -> None:
    """`results/<name>.md`, and the same on the screen."""
    lines = [f"# {title}", "", notes, ""]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    lines += ["", f"torch {torch.__version__}, {device()}."]
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    print(text, flush=True)


def device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{torch.get_num_threads()} thread of {os.cpu_count()} cores, {platform.machine()}"


def cpu_seconds(work: Callable[[], Any]) -> float:
    """What the process spends: unlike the wall time it does not grow when another job runs beside."""
    gc.collect()
    started = time.process_time()
    work()
    return time.process_time() - started


def median_seconds(
    sides: Mapping[str, Callable[[], Any]], repeats: int, measure: Callable[[Callable[[], Any]], float] = cpu_seconds
) -> dict[str, float]:
    """Medians of what each side takes, in turns, so that all of them meet the same weather."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            seconds[name].append(measure(work))
    return {name: statistics.median(values) for name, values in seconds.items()}


def plot(
    name: str, xlabel: str, ylabel: str, lines: Mapping[str, tuple[Sequence[Any], Sequence[float]]], **options: Any
):
    """`results/<name>.png`: lines by their label; `kind="bar"` draws the first as bars; `log=True` for both axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 3.5))
    for number, (label, (x, y)) in enumerate(lines.items()):
        if options.get("kind") == "bar" and number == 0:
            axes.bar([str(value) for value in x], y, label=label)
        elif options.get("kind") == "bar":
            axes.plot([str(value) for value in x], y, "k_", markersize=24, label=label)
        else:
            axes.plot(x, y, marker="o", label=label)
    if options.get("log"):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.tick_params(axis="x", labelsize=7)
    axes.legend()
    figure.tight_layout()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{name}.png", dpi=120)
    pyplot.close(figure)


def high_water_mark() -> Callable[[], float]:
    """Starts the process's peak memory anew; the result says by how many MB it has grown since."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmHWM")
    return lambda: (_kilobytes("VmHWM") - before) / 1024


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
