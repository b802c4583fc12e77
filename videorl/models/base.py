"""What the rest of the project knows about a model family. One file per family implements it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from videorl.imports import load_object
from videorl.models.families import FAMILIES
from videorl.types import Media, RenderedPrompt

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from videorl.config import ModelConfig
    from videorl.models.prefix_tree import PrefixTree
    from videorl.types import Clip, Prompt
    from videorl.video.frames import FramePlan


Grid = tuple[int, int, int]


class VideoModel(Protocol):
    """A family's tokenizer, geometry and forward; it holds no weights. Weights are the module that `load` returns."""

    config: ModelConfig
    path: Path
    dtype: torch.dtype  # of the engine, the tower and the embeddings
    hidden_size: int
    num_heads: int  # of attention queries
    tokenizer: Any
    tower: str  # what makes the features of a video, see Media
    placeholder_id: int
    banned_ids: tuple[int, ...]  # never sampled: a sampled placeholder would ask for features that do not exist
    stop_ids: tuple[int, ...]
    spatial_factor: int
    temporal_factor: int

    # -- before the model ------------------------------------------------------------------------------------------
    def media(self, clip: Clip, plan: FramePlan) -> Media: ...
    def render(self, prompt: Prompt, media: Sequence[Media], plans: Sequence[FramePlan]) -> RenderedPrompt: ...
    def user_turn(self, parts: Sequence[dict[str, str]]) -> list[int]: ...
    def response_end(self, ended: bool) -> list[int]: ...
    def position_ids(self, expanded_ids: Sequence[int], media: Sequence[Media], num_response: int) -> torch.Tensor: ...
    def patches(self, frames: Sequence[torch.Tensor]) -> list[torch.Tensor]: ...
    def engine_inputs(self, media: Sequence[Media], features: Sequence[torch.Tensor]) -> dict[str, Any]: ...

    # -- the model -------------------------------------------------------------------------------------------------
    def load(self) -> nn.Module: ...
    def load_vision(self) -> nn.Module: ...
    def encode(
        self, vision: nn.Module, patches: Sequence[torch.Tensor], grids: Sequence[Grid]
    ) -> list[torch.Tensor]: ...
    def blank_patches(self) -> tuple[torch.Tensor, Grid]: ...
    def vision(self, module: nn.Module) -> nn.Module: ...
    def language_model(self, module: nn.Module) -> nn.Module: ...
    def shell(self) -> nn.Module: ...
    def layers(self, module: nn.Module) -> Sequence[nn.Module]: ...
    def embed(self, module: nn.Module, token_ids: torch.Tensor) -> torch.Tensor: ...
    def hidden_states(
        self,
        module: nn.Module,
        embeds: torch.Tensor,
        position_ids: torch.Tensor,
        tree: PrefixTree | None,
        ranks: DeviceMesh | None,
    ) -> torch.Tensor: ...
    def logits(self, module: nn.Module, hidden: torch.Tensor) -> torch.Tensor: ...


def open_model(config: ModelConfig) -> VideoModel:
    """The family named in the configuration. Reads tokenizer and configuration, no weights."""
    return load_object(FAMILIES[config.family].target)(config)


def build_model(config: ModelConfig, texts: Iterable[str], seed: int) -> None:
    """Make the checkpoint that `model.build` asks for, unless there is one. Its tokenizer knows `texts`."""
    if config.build == "tiny" and not Path(config.path).exists():
        from videorl.models.tiny import build_tiny_model

        build_tiny_model(config.path, texts, seed=seed)


def weights_digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights, file by file."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
