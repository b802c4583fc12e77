"""Forward and backward of a group: one row in which the prompt stands once, against a row for each response.

The plain side is the faster of rows one by one and all rows in one padded batch. All run in one process at one thread,
in turns; the memory of each is the high-water mark of a process of its own. Where a plain side would take minutes, two
rows are timed and scaled, since rows cost the same.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.groups import gradient_gap, gradients, make_batch, make_module, make_row, one_by_one, run
from benchmarks.report import high_water_mark, median_seconds, plot, write_table
from videorl.data.batch import Batch
from videorl.workers.modules import PolicyModule

SHAPES = ((256, 64, 8), (1024, 64, 4), (1024, 64, 8), (1024, 64, 16), (4096, 256, 8), (8192, 128, 8))
MEMORY = (1024, 64, 8)
ROWS_TOKENS = 20_000  # of all rows: beyond, two plain rows are run, once, and their time is scaled


def make_group(module: PolicyModule, prompt: int, response: int, size: int) -> Batch:
    return make_batch([make_row(prompt, module.model.placeholder_id)] * size, response)


def compare(module: PolicyModule, prompt: int, response: int, size: int) -> list[Any]:
    batch = make_group(module, prompt, response, size)
    tokens = size * (prompt + response)
    few = 2 if tokens > ROWS_TOKENS else size
    weights = torch.randn(size, response, generator=torch.Generator().manual_seed(2))  # of both signs
    weights[few:] = 0  # so that the gradients are those of the rows that the plain sides run
    part = batch.select(range(few))
    works: dict[str, Callable[[], torch.Tensor]] = {
        "shared": lambda: run(module, batch, weights, shared=True),
        "rows": lambda: one_by_one(module, part, weights[:few]),
    }
    if few == size:  # else a padded batch of all rows would not fit
        works["batched"] = lambda: run(module, batch, weights, shared=False)
    log_probs, slopes = {}, {}

    def kept(name: str) -> Callable[[], None]:
        def work() -> None:
            module.zero_grad()
            log_probs[name] = works[name]()[: few * response]
            slopes[name] = gradients(module)

        return work

    median = median_seconds({name: kept(name) for name in works}, 1 if tokens > ROWS_TOKENS else 3)
    median["rows"] *= size / few
    plain = [name for name in works if name != "shared"]  # two plain ways differ too, by rounding
    gaps = {name: float((log_probs[name] - log_probs["rows"]).abs().max()) for name in works}
    gaps |= {f"{name} gradient": gradient_gap(found, slopes["rows"]) for name, found in slopes.items()}
    fastest = min(median[name] for name in plain)
    return [
        f"{prompt}, {response}, {size}",
        f"{tokens / (prompt + size * response):.2f}",
        f"{median['shared']:.2f}",
        f"{median['rows']:.2f}{' (2 rows)' if few < size else ''}",
        f"{median['batched']:.2f}" if "batched" in plain else "-",
        f"**{fastest / median['shared']:.1f}**",
        *(
            f"{gaps[f'shared{what}']:.1e}" + (f" ({gaps[f'batched{what}']:.1e})" if few == size else "")
            for what in ("", " gradient")
        ),
    ]  # fmt: skip


def peak_megabytes(side: str) -> float:
    """High-water mark over the loaded model, of one pass in a process of its own."""
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.shared_prompt", side], check=True, capture_output=True, text=True
    )
    return float(out.stdout.split()[-1])


def measure_peak(side: str, folder: Path) -> float:
    module = make_module(folder / "model")
    batch = make_group(module, *MEMORY)
    weights = torch.ones(MEMORY[2], MEMORY[1])
    run(module, make_group(module, 64, 8, 2), torch.ones(2, 8), shared=True)  # gradients and kernels are there
    grown = high_water_mark()
    if side == "rows":
        one_by_one(module, batch, weights)
    else:
        run(module, batch, weights, shared=side == "shared")
    return grown()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        module = make_module(Path(folder) / "model")
        rows = [compare(module, *shape) for shape in SHAPES]
    peaks = {side: peak_megabytes(side) for side in ("shared", "rows", "batched")}
    write_table(
        "shared_prompt",
        "Shared prompt",
        ["P, R, G", "token ratio", "shared", "one by one", "batched", "times faster", "log-prob gap", "gradient gap"],
        rows,
        "Forward and backward of a group, CPU seconds, median. The ratio is against the faster plain side. Gaps are "
        "against rows one by one: the largest of a log-prob, and of a tensor's gradient relative to its norm; in "
        "brackets those of the padded batch, which is rounding alone.\n\n"
        f"Peak memory above the model at {MEMORY}: shared {peaks['shared']:.0f} MB, one by one {peaks['rows']:.0f} MB, "
        f"batched {peaks['batched']:.0f} MB ({peaks['batched'] / peaks['shared']:.1f} times the shared row).",
    )
    names = [row[0] for row in rows]
    plot(
        "shared_prompt", "prompt, response, group", "times faster",
        {
            "measured": (names, [float(row[5].strip("*")) for row in rows]),
            "token ratio": (names, [float(row[1]) for row in rows]),
        },
        kind="bar",
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as place:
            print(measure_peak(sys.argv[1], Path(place)))
    else:
        main()
