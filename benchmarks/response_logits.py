"""Log-probabilities of a long prompt's response: logits for the response alone, against logits for every token."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.groups import CPU, FakeSource, make_batch, make_module, make_row
from benchmarks.report import high_water_mark, median_seconds, write_table
from videorl.workers.modules import Inputs, PolicyModule, make_inputs

PROMPT, RESPONSE = 4096, 128
SIDES = ("response", "all")


def open_side(folder: Path) -> tuple[PolicyModule, Inputs]:
    module = make_module(folder / "model")
    batch = make_batch([make_row(PROMPT, module.model.placeholder_id)], RESPONSE)
    source: Any = FakeSource(module.model.hidden_size)
    return module, make_inputs(module.model, source, batch, CPU, shared=True)


@torch.no_grad()
def log_probs(module: PolicyModule, inputs: Inputs, side: str) -> torch.Tensor:  # [R]
    if side == "response":
        return module(inputs, 1.0)[0]
    embeds = module.model.embed(module.hf, inputs.token_ids).flatten(0, 1)
    embeds[inputs.visual_slots] = torch.cat(inputs.features)[inputs.visual_rows]
    hidden = module.model.hidden_states(module.hf, embeds[None], inputs.position_ids, inputs.tree, None)
    logits = module.model.logits(module.hf, hidden[0]).float()  # [P + R, vocab]
    logits[:, list(module.model.banned_ids)] = torch.finfo(torch.float32).min
    return logits.log_softmax(-1)[inputs.predictors].gather(-1, inputs.targets[:, None])[:, 0]


def peak_megabytes(side: str) -> float:
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.response_logits", side], check=True, capture_output=True, text=True
    )
    return float(out.stdout.split()[-1])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        module, inputs = open_side(Path(folder))
        ours, theirs = (log_probs(module, inputs, side) for side in SIDES)
        seconds = median_seconds({side: lambda side=side: log_probs(module, inputs, side) for side in SIDES}, 3)
    peaks = {side: peak_megabytes(side) for side in SIDES}
    write_table(
        "response_logits",
        "Logits of the response alone",
        ["logits of", "rows of logits", "peak MB", "seconds"],
        [
            ["the response", RESPONSE, f"{peaks['response']:.0f}", f"{seconds['response']:.2f}"],
            ["every token", PROMPT + RESPONSE, f"{peaks['all']:.0f}", f"{seconds['all']:.2f}"],
        ],
        f"Log-probabilities of a response of {RESPONSE} tokens after a prompt of {PROMPT}, vocabulary 8192 (that of "
        "Qwen2.5-VL is 19 times as large, and so is the difference); memory above the model, in a process each; CPU "
        f"seconds, median of 3. Largest gap {float((ours - theirs).abs().max()):.1e}.",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as place:
            module, inputs = open_side(Path(place))
            grown = high_water_mark()
            log_probs(module, inputs, sys.argv[1])
            print(grown())
    else:
        main()
