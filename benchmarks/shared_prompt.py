"""Forward and backward of a group: one row in which the prompt stands once, against a row for each response.

python -m benchmarks.shared_prompt

The plain side is the faster of rows one by one and all rows in one padded batch. All run in one process at one thread,
in turns; the memory of each is the high-water mark of a process of its own. Where a plain side would take minutes, two
rows are timed and scaled, since rows cost the same.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.report import RESULTS, write_table
from videorl.config import ModelConfig
from videorl.data.batch import Batch, Row
from videorl.models.base import open_model
from videorl.models.tiny import TinySize, build_tiny_model
from videorl.types import Clip, Media, Sampling
from videorl.workers.modules import PolicyModule, make_inputs

SHAPES = ((256, 64, 8), (1024, 64, 4), (1024, 64, 8), (1024, 64, 16), (2048, 128, 8), (4096, 256, 8), (8192, 128, 8))
VOCABULARY = 8192
MEMORY = (1024, 64, 8)
BATCHED_TOKENS = 20_000  # of a padded batch: a larger one does not fit and is left out
ROWS_TOKENS = 40_000  # of all rows one by one: beyond, two rows are timed and scaled
TEXT = 32  # tokens of the prompt that are no video


class FakeSource:
    """Random features, as long as the handle says."""

    def __init__(self, hidden: int):
        self.hidden = hidden

    def features(self, media: Sequence[Media]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(item.num_tokens, self.hidden, generator=generator) for item in media]


def make_module(folder: Path) -> PolicyModule:
    """12 million parameters: 8 layers of width 256, 8 query and 4 key heads, 8192 token ids."""
    build_tiny_model(folder, ["a question"], seed=0, size=TinySize(hidden=256, layers=8))
    config = ModelConfig(
        family="qwen2_5_vl", path=str(folder), revision=None, build=None, dtype="float32", train_vision=False,
        trust_remote_code=False, lora=None,
    )  # fmt: skip
    model = open_model(config)
    hf: Any = model.load()
    hf.resize_token_embeddings(VOCABULARY)
    with torch.no_grad():
        for layer in model.layers(hf):  # so that a wrong position would show
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight *= 4
    model.vision(hf).requires_grad_(False)
    return PolicyModule(model, hf)


def make_group(module: PolicyModule, prompt: int, response: int, size: int) -> Batch:
    """A prompt of `prompt` tokens, all but 32 of them visual, and `size` random responses."""
    generator = torch.Generator().manual_seed(1)
    grid = ((prompt - TEXT) // 16, 8, 8)  # 16 visual tokens a time step
    sampling = Sampling(
        fps=2.0, num_frames=None, min_frames=2, max_frames=768, min_pixels=1, max_pixels=1, total_pixels=1
    )
    media = Media(
        clip=Clip(path="none", sampling=sampling), key="none", grid=grid, num_tokens=16 * grid[0], seconds_per_grid=1.0,
        tower="none",
    )  # fmt: skip
    words = torch.randint(0, 250, (prompt - media.num_tokens,), generator=generator).tolist()
    ids = (*words[:2], module.model.placeholder_id, *words[2:])
    row = Row(id="row", group="group", token_ids=ids, media=(media,), seen="")
    return Batch(
        rows=(row,) * size,
        response_ids=torch.randint(0, 250, (size, response), generator=generator),
        response_mask=torch.ones(size, response, dtype=torch.bool),
        lengths=torch.full((size,), response),
    )


def run(module: PolicyModule, batch: Batch, weights: torch.Tensor, shared: bool) -> torch.Tensor:
    """Log-probs `[B * T]`; gradients of their weighted sum are added to the parameters'."""
    source: Any = FakeSource(module.model.hidden_size)
    log_probs, _ = module(make_inputs(module.model, source, batch, torch.device("cpu"), shared), 1.0)
    (log_probs * weights.flatten()).sum().backward()
    return log_probs.detach()


def one_by_one(module: PolicyModule, batch: Batch, weights: torch.Tensor) -> torch.Tensor:
    return torch.cat([run(module, batch.select([i]), weights[i], shared=False) for i in range(len(batch))])


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def timed(work: Callable[[], Any]) -> float:
    gc.collect()
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(module: PolicyModule, shape: tuple[int, int, int], repeats: int) -> list[object]:
    prompt, response, size = shape
    batch = make_group(module, *shape)
    weights = torch.randn(size, response, generator=torch.Generator().manual_seed(2))  # of both signs
    tokens = size * (prompt + response)
    few = 2 if tokens > ROWS_TOKENS else size
    part = batch.select(range(few))

    # exactness, on the rows that are timed
    shared_part = run(module, part, weights[:few], shared=True)
    ours = gradients(module)
    plain = one_by_one(module, part, weights[:few])
    theirs = gradients(module)
    gap = float((shared_part - plain).abs().max())
    worst = max(float((ours[name] - grad).norm() / grad.norm()) for name, grad in theirs.items())

    sides: dict[str, Callable[[], Any]] = {
        "shared": lambda: run(module, batch, weights, shared=True),
        "rows": lambda: one_by_one(module, part, weights[:few]),
    }
    if tokens <= BATCHED_TOKENS:
        sides["batched"] = lambda: run(module, batch, weights, shared=False)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            seconds[name].append(timed(work))
            module.zero_grad()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    median["rows"] *= size / few
    fastest = min(value for name, value in median.items() if name != "shared")
    batched = f"{median['batched']:.2f}" if "batched" in median else "-"
    ratio = fastest / median["shared"]
    packed = prompt + size * response
    return [
        f"{prompt}, {response}, {size}",
        f"{tokens / packed:.2f}",
        f"{median['shared']:.2f}",
        f"{median['rows']:.2f}{' (2 rows)' if few < size else ''}",
        batched,
        f"**{ratio:.1f}**",
        f"{gap:.1e}",
        f"{worst:.1e}",
    ]


def peak_megabytes(side: str) -> float:
    """High-water mark over the loaded model, of one pass in a process of its own."""
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.shared_prompt", "--peak", side], check=True, capture_output=True, text=True
    )
    return float(out.stdout.split()[-1])


def measure_peak(side: str, folder: Path) -> float:
    module = make_module(folder / "model")
    batch = make_group(module, *MEMORY)
    weights = torch.ones(MEMORY[2], MEMORY[1])
    run(module, make_group(module, 64, 8, 2), torch.ones(2, 8), shared=True)  # gradients and kernels are there
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts anew
    before = _status("VmHWM")
    if side == "rows":
        one_by_one(module, batch, weights)
    else:
        run(module, batch, weights, shared=side == "shared")
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def plot(rows: Sequence[Sequence[object]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.5))
    names = [str(row[0]) for row in rows]
    axes.bar(names, [float(str(row[5]).strip("*")) for row in rows], label="measured")
    axes.plot(names, [float(str(row[1])) for row in rows], "k_", markersize=24, label="token ratio")
    axes.set_xlabel("prompt, response, group")
    axes.set_ylabel("times faster")
    axes.tick_params(axis="x", labelsize=7)
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "shared_prompt.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", choices=["shared", "rows", "batched"], help="print one pass's peak memory and exit")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.peak:
            print(measure_peak(arguments.peak, Path(folder)))
            return
        module = make_module(Path(folder) / "model")
        rows = [compare(module, shape, arguments.repeats) for shape in SHAPES]
    peaks = {side: peak_megabytes(side) for side in ("shared", "rows", "batched")}
    notes = (
        "Forward and backward of a group, CPU seconds, median. The ratio is against the faster plain side. Gaps are "
        "against rows one by one: the largest of a log-prob, and of a tensor's gradient relative to its norm.\n\n"
        f"Peak memory above the model at {MEMORY}: shared {peaks['shared']:.0f} MB, one by one {peaks['rows']:.0f} MB, "
        f"batched {peaks['batched']:.0f} MB ({peaks['batched'] / peaks['shared']:.1f} times the shared row)."
    )
    head = ["P, R, G", "token ratio", "shared", "one by one", "batched", "times faster", "log-prob gap", "gradient gap"]
    write_table("shared_prompt", "Shared prompt", head, rows, notes)
    plot(rows)


if __name__ == "__main__":
    main()
