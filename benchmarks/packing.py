"""Rows of different prompts: packed into one row without padding, against a padded batch of the same token budget."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.groups import gradient_gap, gradients, make_batch, make_module, make_row, run
from benchmarks.report import median_seconds, write_table
from videorl.data.batch import forward_tokens, micro_batches

PROMPTS = (64, 2048, 128, 512, 96, 1024, 192, 256, 80, 1536, 320, 160, 640, 112, 416, 224)
RESPONSE = 64
BUDGET = 4096


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        module = make_module(Path(folder) / "model")
        placeholder = module.model.placeholder_id
        batch = make_batch([make_row(size, placeholder, f"clip-{size}") for size in PROMPTS], RESPONSE)
        weights = torch.randn(len(batch), RESPONSE, generator=torch.Generator().manual_seed(2))

        def train(shared: bool) -> torch.Tensor:
            log_probs = torch.zeros(len(batch), RESPONSE)
            module.zero_grad()
            for part in micro_batches(batch, BUDGET, shared):
                log_probs[part] = run(module, batch.select(part), weights[part], shared).view(len(part), RESPONSE)
            return log_probs

        packed = train(True), gradients(module)
        padded = train(False), gradients(module)
        seconds = median_seconds({"packed": lambda: train(True), "padded": lambda: train(False)}, 3)
        useful = sum(batch.row_tokens)
        rows = []
        for name, shared in (("packed", True), ("padded", False)):
            computed = forward_tokens(batch, BUDGET, shared)
            parts = len(micro_batches(batch, BUDGET, shared))
            rows.append([name, parts, computed, f"{1 - useful / computed:.0%}", f"{seconds[name]:.2f}"])
    write_table(
        "packing",
        "Packing",
        ["micro-batches", "forwards", "tokens", "padding", "seconds"],
        rows,
        f"Forward and backward of {len(PROMPTS)} prompts of {min(PROMPTS)} to {max(PROMPTS)} tokens, one response of "
        f"{RESPONSE} each, at most {BUDGET} tokens a forward; CPU seconds, median of 3. "
        f"Packed is **{seconds['padded'] / seconds['packed']:.1f} times** faster. "
        f"Largest log-prob gap {float((packed[0] - padded[0]).abs().max()):.1e}, gradient gap "
        f"{gradient_gap(packed[1], padded[1]):.1e}.",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
