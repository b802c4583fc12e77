"""What the user sees while training: a live view on a terminal, one line a step elsewhere.

Model output is not trusted: it is shown as text only, without markup or control characters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from videorl.types import Rollout

History = Sequence[Mapping[str, float]]
"""The published steps, oldest first; each holds `step` and its metrics."""

_BARS = " ▁▂▃▄▅▆▇█"
_KEY_METRICS = (
    "reward/std",
    "rollout/parse_failure",
    "rollout/truncated",
    "rollout/zero_variance_groups",
    "rollout/response_tokens",
    "rollout/prefix_cached",
    "policy/loss",
    "policy/kl",
    "policy/entropy",
    "policy/grad_norm",
    "policy/clip_fraction",
    "parity/max_log_prob_diff",
    "time/rollout",
    "time/log_probs",
    "time/update",
    "time/weight_sync",
    "video/decodes",
    "driver/bytes",
    "run/save_failed",
)


class PlainView:
    """One line for each published step of `history`, a list that grows meanwhile."""

    def __init__(self, total_steps: int, history: History):
        self.total_steps, self.history = total_steps, history

    def start(self) -> None: ...

    def show(self, activity: str) -> None:
        """What is going on now."""

    def say(self, lines: Sequence[str]) -> None:
        """Lines that stay on the screen. They may quote model output."""
        for line in lines:
            print(printable(line), flush=True)

    def published(self, rollouts: Sequence[Rollout]) -> None:
        """A step is in `history`; `rollouts` are what there is to look at of it."""
        print(format_line(self.history, self.total_steps), flush=True)

    def stop(self) -> None:
        """May be called twice."""


class RichView(PlainView):
    """Progress, reward and held-out curves, key metrics and three rollouts, redrawn four times a second."""

    def __init__(self, total_steps: int, history: History, console: Console, title: str):
        super().__init__(total_steps, history)
        self.console, self.title = console, title
        self.activity = "starting"
        self.since = time.monotonic()  # the start, or the newest step
        self.samples: dict[str, Rollout] = {}
        self.live = Live(get_renderable=self.render, console=console)

    def start(self) -> None:
        self.live.start()

    def show(self, activity: str) -> None:
        self.activity = activity

    def published(self, rollouts: Sequence[Rollout]) -> None:
        self.since = time.monotonic()
        if ranked := sorted(rollouts, key=lambda rollout: -rollout.reward):
            self.samples = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}

    def stop(self) -> None:
        self.live.stop()

    def render(self) -> RenderableType:
        history = list(self.history)
        done = int(history[-1]["step"]) if history else 0
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        head.add_row(
            Text.assemble((self.title, "bold"), f"  {done}/{self.total_steps}  ", (self.activity, "cyan")),
            f"{time.monotonic() - self.since:.0f} s   ETA {format_eta(history, self.total_steps)}",
        )
        curves = Table.grid(expand=True, padding=(0, 1))
        curves.add_column(ratio=1)
        curves.add_column(ratio=1)
        width = max(10, self.console.width // 2 - 16)
        curves.add_row(
            _curve("reward", _series(history, "reward/mean"), width, "green"),
            _curve("held-out accuracy", _series(history, "eval/accuracy"), width, "magenta"),
        )
        bar = Padding(ProgressBar(total=self.total_steps, completed=done), 0)  # alone it does not end its line
        parts: list[RenderableType] = [head, bar, curves]
        if history:
            parts.append(_metrics_grid(history[-1], max(1, self.console.width // 32)))
        if self.samples:
            grid = Table.grid(expand=True)
            for _ in self.samples:
                grid.add_column(ratio=1)
            inner = max(10, self.console.width // len(self.samples) - 4)
            grid.add_row(*(_sample_panel(label, rollout, inner) for label, rollout in self.samples.items()))
            parts.append(grid)
        return Group(*parts)


def format_line(history: History, total_steps: int) -> str:
    """The newest step on one line."""
    last = history[-1]
    parts = [f"step {int(last['step']):>{len(str(total_steps))}}/{total_steps}"]
    for label, key in (
        ("loss", "policy/loss"),
        ("reward", "reward/mean"),
        ("eval", "eval/accuracy"),
        ("parity", "parity/max_log_prob_diff"),
    ):
        if key in last:
            parts.append(f"{label} {last[key]:.4g}")
    if "time/step" in last:
        phases = [f"{key[5:]} {last[key]:.1f}" for key in last if key.startswith("time/") and key != "time/step"]
        parts.append(f"{last['time/step']:.1f} s" + (f" ({', '.join(phases)})" if phases else ""))
    return "  ".join([*parts, f"ETA {format_eta(history, total_steps)}"])


def format_eta(history: History, total_steps: int, window: int = 10) -> str:
    """Time left at the pace of the last `window` training steps, checkpoints included; '-' before the first."""
    steps = [metrics for metrics in history[-window:] if metrics["step"] > 0]
    if not steps:
        return "-"
    pace = sum(metrics["time/step"] + metrics.get("time/save", 0.0) for metrics in steps) / len(steps)
    return str(timedelta(seconds=round(pace * max(0, total_steps - int(steps[-1]["step"])))))


def chart(values: Sequence[float], width: int, height: int) -> list[str]:
    """Finite numbers as `height` rows of block characters, top row first; more than `width` are averaged in buckets."""
    count = min(width, len(values))
    cuts = [index * len(values) // count for index in range(count + 1)] if count else []
    buckets = [values[a:b] for a, b in pairwise(cuts)]
    means = [sum(bucket) / len(bucket) for bucket in buckets]
    low, high = min(means, default=0.0), max(means, default=0.0)
    # 1 .. 8 * height eighths of a character, so that the lowest value can be seen; a flat line stands half-way
    top = 8 * height - 1
    levels = [1 + round(top * ((mean - low) / (high - low) if high > low else 0.5)) for mean in means]
    return ["".join(_BARS[min(8, max(0, level - 8 * row))] for level in levels) for row in reversed(range(height))]


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a chat message, with `<video>` where a video stands."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in content)


def printable(text: str) -> str:
    """`text` on one line, with every character that could act on a terminal replaced."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in " ".join(text.split())
    )


def shorten(text: str, limit: int) -> str:
    """The first and the last part of a text longer than `limit` characters: answers stand at the end."""
    half = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[:half]} … {text[-half:]}"


def _series(history: History, key: str) -> list[float]:
    return [metrics[key] for metrics in history if key in metrics and math.isfinite(metrics[key])]


def _curve(title: str, values: Sequence[float], width: int, style: str) -> RenderableType:
    if not values:
        return Panel(Text("no value yet", style="dim"), title=title, height=6)
    rows = chart(values, width, 4)
    scale = [f"{max(values):>8.3g} ", " " * 9, " " * 9, f"{min(values):>8.3g} "]
    body = Text("\n").join(Text.assemble((edge, "dim"), (row, style)) for edge, row in zip(scale, rows, strict=True))
    return Panel(body, title=f"{title} {values[-1]:.3f}", height=6)


def _metrics_grid(metrics: Mapping[str, float], columns: int) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 2))
    for _ in range(columns):
        grid.add_column(ratio=1)
    cells = [Text.assemble((f"{key} ", "dim"), f"{metrics[key]:.4g}") for key in _KEY_METRICS if key in metrics]
    for start in range(0, len(cells), columns):
        grid.add_row(*cells[start : start + columns])
    return grid


def _sample_panel(label: str, rollout: Rollout, width: int) -> RenderableType:
    """Question and terms on a line each, then about four lines of the response; `width` is that of a line."""
    terms = "  ".join(f"{name} {number:.3g}" for name, number in rollout.terms.items())
    failures = "  ".join(f"{name}: {reason}" for name, reason in rollout.failures.items())
    body = Text.assemble(
        (shorten(printable(message_text(rollout.prompt.prompt.messages[-1])), width), "dim"),
        "\n",
        (shorten(printable(f"{failures}  {terms}"), width), "red" if failures else "green"),
        "\n",
        shorten(printable(rollout.text), 7 * width // 2),  # lines break between words
        overflow="fold",
    )
    return Panel(body, title=f"{label}: reward {rollout.reward:.3g}", height=8)
