"""Cost curves of a training forward and backward: against frames, group size and turns, beside the cost model's.

The model has one free number, operations per second, which is fitted over all points of the shared rows. What is left
is how well its shapes are.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cost_model import Group, Text, forward_flops, head_flops, segment_flops
from benchmarks.groups import VOCABULARY, make_batch, make_module, make_row, run
from benchmarks.report import median_seconds, plot, write_table
from videorl.data.batch import Batch, Row
from videorl.workers.modules import PolicyModule

FRAMES = (32, 64, 128, 256, 512)
GROUPS = (2, 4, 8, 16, 32)
TURNS = (1, 2, 4, 8)
RESPONSE, TURN_TOKENS = 64, 256
TEXT = Text(hidden=256, layers=8, heads=8, kv_heads=4, intermediate=512, vocabulary=VOCABULARY)


def group_of(frames: int, responses: int) -> Group:
    return Group(frames=frames, tokens_per_frame=8, text=32, responses=responses, response_tokens=RESPONSE)


def conversation(module: PolicyModule, turns: int, siblings: int = 4) -> Batch:
    """Rows of an episode that forks at every turn: the k-th shares k segments of 256 tokens with its siblings."""
    generator = torch.Generator().manual_seed(3)
    segments = [torch.randint(0, 250, (TURN_TOKENS,), generator=generator).tolist() for _ in range(turns)]
    rows = []
    for turn in range(turns):
        ids = [token for segment in segments[: turn + 1] for token in segment]
        rows += [Row(id=f"{turn}", group="one", token_ids=tuple(ids), media=(), seen="")] * siblings
    return make_batch(rows, RESPONSE)


def conversation_flops(turns: int, siblings: int = 4) -> float:
    """Each segment once, and each response behind the segments that it has seen."""
    total = 0.0
    for turn in range(turns):
        total += segment_flops(TEXT, TURN_TOKENS, turn * TURN_TOKENS)
        total += siblings * segment_flops(TEXT, RESPONSE, (turn + 1) * TURN_TOKENS)
    return total + head_flops(TEXT, turns * siblings * RESPONSE)


def main() -> None:
    points: list[tuple[str, int, float, float, float]] = []  # curve, x, operations, shared, plain seconds
    with tempfile.TemporaryDirectory() as folder:
        module = make_module(Path(folder) / "model")

        def measure(batch: Batch) -> tuple[float, float]:
            """CPU seconds of the shared row, and of rows one by one by one of them."""
            weights = torch.ones(len(batch), RESPONSE)

            def cleared(work: Callable[[], Any]) -> Callable[[], Any]:
                return lambda: (work(), module.zero_grad())

            def plain() -> None:
                run(module, batch.select([len(batch) - 1]), weights[:1], shared=False)

            seconds = median_seconds({
                "shared": cleared(lambda: run(module, batch, weights, shared=True)), "plain": cleared(plain),
            }, 2)  # fmt: skip
            return seconds["shared"], seconds["plain"]

        placeholder = module.model.placeholder_id
        measure(make_batch([make_row(256, placeholder)], RESPONSE))  # warms up
        for frames in FRAMES:
            group = group_of(frames, 8)
            shared, plain = measure(make_batch([make_row(group.prompt, placeholder)] * 8, RESPONSE))
            points.append(("frames", frames, forward_flops(TEXT, group), shared, 8 * plain))
        for size in GROUPS:
            group = group_of(128, size)
            shared, plain = measure(make_batch([make_row(group.prompt, placeholder)] * size, RESPONSE))
            points.append(("responses", size, forward_flops(TEXT, group), shared, size * plain))
        for turns in TURNS:
            shared, _ = measure(conversation(module, turns))
            points.append(("turns", turns, conversation_flops(turns), shared, math.nan))
    logs = [math.log(3 * operations / shared) for _, _, operations, shared, _ in points]
    rate = math.exp(sum(logs) / len(logs))
    rows = [
        [curve, x, f"{shared:.2f}", f"{3 * operations / rate:.2f}", f"{shared * rate / (3 * operations) - 1:+.0%}",
         "" if math.isnan(plain) else f"{plain:.2f}"]
        for curve, x, operations, shared, plain in points
    ]  # fmt: skip
    worst = max(abs(shared * rate / (3 * operations) - 1) for _, _, operations, shared, _ in points)
    write_table(
        "scaling",
        "Cost curves",
        ["against", "", "shared row", "cost model", "off by", "rows one by one"],
        rows,
        "Forward and backward, CPU seconds. Frames: 8 tokens each, 8 responses of 64 tokens. Responses: of 128 frames. "
        "Turns: an episode that gets 256 more tokens a turn and forks into 4 rows at each. Rows one by one are one "
        f"row, scaled. The cost model is fitted with one number, {rate / 1e9:.0f} billion operations a second, and is "
        f"off by {worst:.0%} at most.",
    )
    for curve in ("frames", "responses", "turns"):
        own = [point for point in points if point[0] == curve]
        x = [point[1] for point in own]
        lines = {"shared row": (x, [point[3] for point in own]),
                 "cost model": (x, [3 * point[2] / rate for point in own])}  # fmt: skip
        if curve != "turns":
            lines["rows one by one"] = (x, [point[4] for point in own])
        plot(f"scaling_{curve}", curve, "seconds", lines, log=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
