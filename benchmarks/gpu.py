"""One GPU: time and memory of each phase for the shape of Qwen2.5-VL-3B with random weights: `make bench-gpu`.

Tower, log-probs and update run in this process without sharding, in bfloat16 with gradient checkpointing, shared and
plain; the engine in a process of its own, so that its memory is given back. Model FLOP utilisation counts the
operations of `cost_model.py`, none of the recomputation, against the data sheet's dense bfloat16 rate.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cost_model import Group, Text, Tower, encode_flops, forward_flops
from benchmarks.groups import FakeSource, make_batch, make_row, model_config
from benchmarks.report import device, write_table
from videorl.models.base import open_model
from videorl.models.tiny import build_tiny_model
from videorl.workers.modules import PolicyModule, make_inputs

TEXT_3B = Text(hidden=2048, layers=36, heads=16, kv_heads=2, intermediate=11008, vocabulary=151936)
TOWER = Tower()
DENSE = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bfloat16, data sheets
PROMPT, RESPONSE, GROUP = 8192, 256, 8
FRAMES = (PROMPT - 32) // 8  # of make_row: 16 tokens to a step of two frames


def build_checkpoint(folder: Path) -> None:
    """The tiny model's tokenizer and processor around random weights of the shape of Qwen2.5-VL-3B."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    build_tiny_model(folder, ["a question"], seed=0)
    config: Any = AutoConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 2048, 11008, 36
    text.num_attention_heads, text.num_key_value_heads, text.vocab_size = 16, 2, TEXT_3B.vocabulary
    text.layer_types = ["full_attention"] * text.num_hidden_layers
    text.rope_parameters["mrope_section"] = [16, 24, 24]
    vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads = 32, 1280, 3420, 16
    vision.out_hidden_size, vision.window_size, vision.fullatt_block_indexes = 2048, 112, [7, 15, 23, 31]
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def timed(work: Callable[[], Any], repeats: int = 3) -> tuple[float, float]:
    """(seconds, peak GB above what was allocated before): the best of `repeats` after one that warms up."""
    work()
    before, best = torch.cuda.memory_allocated(), float("inf")
    torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best, (torch.cuda.max_memory_allocated() - before) / 1e9


def trainer_rows(folder: Path, peak: float) -> list[list[object]]:
    cuda = torch.device("cuda")
    config = model_config(folder).model_copy(update={"dtype": "bfloat16"})
    model = open_model(config)
    hf: Any = model.load().to(cuda)
    model.vision(hf).requires_grad_(False)
    hf.gradient_checkpointing_enable({"use_reentrant": False})
    module = PolicyModule(model, hf).train()
    batch = make_batch([make_row(PROMPT, model.placeholder_id)] * GROUP, RESPONSE)
    source: Any = FakeSource(model.hidden_size)
    group = Group(frames=FRAMES, tokens_per_frame=8, text=32, responses=GROUP, response_tokens=RESPONSE)
    grid = batch.rows[0].media[0].grid
    patches = torch.randn(grid[0] * grid[1] * grid[2], 3 * 2 * 14 * 14, device=cuda, dtype=torch.bfloat16)

    def encode() -> None:
        with torch.no_grad():
            model.encode(model.vision(hf), [patches], [grid])

    def log_probs(shared: bool) -> None:
        with torch.no_grad():
            for part in [range(GROUP)] if shared else [[i] for i in range(GROUP)]:
                module(make_inputs(model, source, batch.select(part), cuda, shared), 1.0)

    def update(shared: bool) -> None:
        module.zero_grad()
        for part in [range(GROUP)] if shared else [[i] for i in range(GROUP)]:
            module(make_inputs(model, source, batch.select(part), cuda, shared), 1.0)[0].sum().backward()

    forward, plain = forward_flops(TEXT_3B, group), forward_flops(TEXT_3B, group, shared=False)
    works: list[tuple[str, Callable[[], None], float, int]] = [
        ("encode", encode, encode_flops(TOWER, group), group.prompt),
        ("log-probs, shared", lambda: log_probs(True), forward, group.packed),
        ("log-probs, plain", lambda: log_probs(False), plain, GROUP * (PROMPT + RESPONSE)),
        ("update, shared", lambda: update(True), 3 * forward, group.packed),
        ("update, plain", lambda: update(False), 3 * plain, GROUP * (PROMPT + RESPONSE)),
    ]
    rows = []
    for name, work, operations, tokens in works:
        seconds, gigabytes = timed(work)
        rows.append([name, f"{seconds:.3f}", f"{tokens / seconds:.0f}", f"{gigabytes:.1f}",
                     f"{operations / seconds / peak:.0%}"])  # fmt: skip
    return rows


def generate(folder: Path) -> None:
    """In a process of its own: seconds for a group, after one that warms up."""
    from videorl.config import load_config
    from videorl.rollout.vllm_engine import VLLMEngine
    from videorl.types import Request, SamplingParams

    config = load_config("train", [
        "recipe=real_clips", f"data.path={folder}", f"data.media_root={folder}", f"model.path={folder}/model",
        "model.dtype=bfloat16", f"rollout.max_model_len={PROMPT + RESPONSE}", 
        "rollout.engine_kwargs.gpu_memory_utilization=0.5", "rollout.engine_kwargs.kv_cache_memory_bytes=null",
    ])  # fmt: skip
    os.environ.update(VLLMEngine.environment(config))
    engine = VLLMEngine(config, 0)
    features = FakeSource(engine.model.hidden_size)
    engine._features = lambda media: features.features([media])[0].bfloat16()  # type: ignore[method-assign]

    async def group(name: str) -> None:
        row = make_row(PROMPT, engine.model.placeholder_id, name)
        sampling = SamplingParams(max_tokens=RESPONSE, temperature=1.0)
        requests = [Request(token_ids=row.token_ids, media=row.media, sampling=sampling)] * GROUP
        await asyncio.gather(*map(engine.generate, requests))

    async def both() -> float:
        await group("first")
        started = time.perf_counter()
        await group("second")
        return time.perf_counter() - started

    print(asyncio.run(both()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    if folder := parser.parse_args().generate:
        generate(folder)
        return
    if not torch.cuda.is_available():
        sys.exit("make bench-gpu: torch sees no GPU; install with `make DEVICE=gpu install` on a machine that has one")
    name = torch.cuda.get_device_name()
    peak = next((rate for chip, rate in DENSE.items() if chip in name), None)
    if peak is None:
        sys.exit(
            f"make bench-gpu: the dense bfloat16 rate of {name} is not known; add it to DENSE in benchmarks/gpu.py"
        )
    with tempfile.TemporaryDirectory() as place:
        build_checkpoint(Path(place) / "model")
        torch.cuda.empty_cache()
        out = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu", "--generate", place], check=True, capture_output=True, text=True
        )
        seconds = float(out.stdout.split()[-1])
        rows = [["generate", f"{seconds:.3f}", f"{GROUP * RESPONSE / seconds:.0f}", "", ""]]
        rows += trainer_rows(Path(place) / "model", peak)
    write_table(
        "gpu",
        "One GPU",
        ["phase", "seconds", "tokens/s", "peak GB above the model", "model FLOP utilisation"],
        rows,
        f"The shape of Qwen2.5-VL-3B, random weights, bfloat16, gradient checkpointing; one group: a prompt of "
        f"{PROMPT} tokens, {GROUP} responses of {RESPONSE}. {device()}.",
    )


if __name__ == "__main__":
    main()
