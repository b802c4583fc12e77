"""A small language model of the Qwen2.5-VL architecture and groups of rows to train it on, in this process."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from videorl.config import ModelConfig
from videorl.data.batch import Batch, Row
from videorl.models.base import open_model
from videorl.models.tiny import TinySize, build_tiny_model
from videorl.types import Clip, Media, Sampling
from videorl.workers.modules import PolicyModule, make_inputs

VOCABULARY = 8192
TEXT = 32  # tokens of a prompt that are no video
CPU = torch.device("cpu")


class FakeSource:
    """Random features, as long as the handle says; the same for the same key."""

    pixels = False

    def __init__(self, hidden: int):
        self.hidden = hidden

    def features(self, media: Sequence[Media]) -> list[torch.Tensor]:
        seeds = [torch.Generator().manual_seed(zlib.crc32(item.key.encode())) for item in media]
        return [torch.randn(i.num_tokens, self.hidden, generator=seed) for i, seed in zip(media, seeds, strict=True)]


def model_config(path: Path) -> ModelConfig:
    return ModelConfig(
        family="qwen2_5_vl", path=str(path), revision=None, build=None, dtype="float32", train_vision=False,
        trust_remote_code=False, lora=None,
    )  # fmt: skip


def make_module(folder: Path, layers: int = 8, sharpness: float = 2.0) -> PolicyModule:
    """12 million parameters at 8 layers: width 256, 8 query and 4 key heads, 8192 token ids.

    Queries and keys are `sharpness` times as large as at random, so that a wrong position would show. Four times, as in
    the tests of two layers, amplify rounding through eight.
    """
    build_tiny_model(folder, ["a question"], seed=0, size=TinySize(hidden=256, layers=layers))
    model = open_model(model_config(folder))
    hf: Any = model.load()
    hf.resize_token_embeddings(VOCABULARY)
    with torch.no_grad():
        for layer in model.layers(hf):
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight *= sharpness
    model.vision(hf).requires_grad_(False)
    return PolicyModule(model, hf)


def make_row(prompt: int, placeholder: int, name: str = "none", tower: str = "none") -> Row:
    """A prompt of `prompt` tokens, all but 32 of them visual, 16 to a temporal step."""
    generator = torch.Generator().manual_seed(1)
    grid = ((prompt - TEXT) // 16, 8, 8)
    sampling = Sampling(
        fps=2.0, num_frames=None, min_frames=2, max_frames=768, min_pixels=1, max_pixels=1, total_pixels=1
    )
    media = Media(
        clip=Clip(path=name, sampling=sampling), key=name, grid=grid, num_tokens=16 * grid[0], seconds_per_grid=1.0,
        tower=tower,
    )  # fmt: skip
    words = torch.randint(0, 250, (prompt - media.num_tokens,), generator=generator).tolist()
    return Row(id=name, group=name, token_ids=(*words[:2], placeholder, *words[2:]), media=(media,), seen="")


def make_batch(rows: Sequence[Row], response: int) -> Batch:
    """Rows with random responses of `response` tokens."""
    generator = torch.Generator().manual_seed(1)
    return Batch(
        rows=tuple(rows),
        response_ids=torch.randint(0, 250, (len(rows), response), generator=generator),
        response_mask=torch.ones(len(rows), response, dtype=torch.bool),
        lengths=torch.full((len(rows),), response),
    )


def run(module: PolicyModule, batch: Batch, weights: torch.Tensor, shared: bool) -> torch.Tensor:
    """Log-probs `[B * T]`; gradients of their weighted sum are added to the parameters'."""
    source: Any = FakeSource(module.model.hidden_size)
    log_probs, _ = module(make_inputs(module.model, source, batch, CPU, shared), 1.0)
    (log_probs * weights.flatten()).sum().backward()
    return log_probs.detach()


def one_by_one(module: PolicyModule, batch: Batch, weights: torch.Tensor) -> torch.Tensor:
    return torch.cat([run(module, batch.select([i]), weights[i], shared=False) for i in range(len(batch))])


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def gradient_gap(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference of a tensor's gradient, relative to its norm."""
    return max(float((ours[name] - grad).norm() / grad.norm()) for name, grad in theirs.items())
