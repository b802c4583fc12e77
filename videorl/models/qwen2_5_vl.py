"""Qwen2.5-VL: rendering, M-RoPE, and the pieces of the forward that workers put together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from videorl.config import ModelConfig
from videorl.imports import fix_imports
from videorl.models import tree_attention
from videorl.models.base import Grid
from videorl.models.prefix_tree import PrefixTree
from videorl.types import Clip, DataError, Media, Prompt, RenderedPrompt
from videorl.video.frames import FramePlan

fix_imports()

import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, AutoVideoProcessor  # noqa: E402
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (  # noqa: E402
    Qwen2_5_VisionTransformerPretrainedModel,
)

_VISION_PREFIXES = ("visual.", "model.visual.")  # the tensor names of old and of new checkpoints
_EMBEDDING_FORMAT = 1  # raise when the meaning of a stored embedding changes


class Qwen25VL:
    def __init__(self, config: ModelConfig):
        self.config = config
        self.path = _local_checkpoint(config)
        code = {"trust_remote_code": config.trust_remote_code}
        self.hf_config = cast(Any, AutoConfig.from_pretrained(self.path, **code))
        self.tokenizer = cast(Any, AutoTokenizer.from_pretrained(self.path, **code))
        self._processor = cast(Any, AutoVideoProcessor.from_pretrained(self.path, **code))
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        text = self.hf_config.get_text_config()
        self.hidden_size: int = text.hidden_size
        self.num_heads: int = text.num_attention_heads
        vision = self.hf_config.vision_config
        self.merge_size: int = vision.spatial_merge_size
        self.temporal_factor: int = vision.temporal_patch_size
        self.patch_size: int = vision.patch_size
        self.spatial_factor = self.patch_size * self.merge_size
        self.tokens_per_second: float = vision.tokens_per_second
        self.placeholder_id: int = self.hf_config.video_token_id
        self.banned_ids = tuple(
            sorted(
                {
                    self.hf_config.image_token_id,
                    self.hf_config.video_token_id,
                    self.hf_config.vision_start_token_id,
                    self.hf_config.vision_end_token_id,
                    *self.tokenizer.convert_tokens_to_ids(["<|vision_pad|>"]),
                }
            )
        )
        self.stop_ids = (self.tokenizer.convert_tokens_to_ids("<|im_end|>"),)

    # -- before the model ------------------------------------------------------------------------------------------

    def media(self, clip: Clip, plan: FramePlan) -> Media:
        """The handle of a clip: its grid, its M-RoPE time step and the key its features are stored under."""
        grid = plan.grid(self.patch_size, self.temporal_factor)
        identity = [
            plan.media_sha256,
            [time.hex() for time in plan.pts],
            plan.height,
            plan.width,
            plan.crop,
            self._processor_digest,
            self.config.dtype,
            self.tower,
            _EMBEDDING_FORMAT,
            *([] if plan.in_order else [plan.order]),
        ]
        return Media(
            clip=clip,
            key=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
            grid=grid,
            num_tokens=grid[0] * grid[1] * grid[2] // self.merge_size**2,
            # vLLM keeps this number in float32; a float64 here could truncate to another position
            seconds_per_grid=float(np.float32(plan.seconds_per_grid)),
            tower=self.tower,
        )

    def render(self, prompt: Prompt, media: Sequence[Media], plans: Sequence[FramePlan]) -> RenderedPrompt:
        """Apply the chat template. Refuses text that spells a special token: it would forge a turn or a video."""
        for message in prompt.messages:
            self._refuse_forged(_text(message["content"]), f"sample {prompt.id}")
        token_ids = self.tokenizer.apply_chat_template(
            list(prompt.messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        found = token_ids.count(self.placeholder_id)
        if found != len(media):
            raise DataError(
                "placeholder_count",
                f"sample {prompt.id}: {found} video placeholders in its messages, {len(media)} videos",
            )
        return RenderedPrompt(
            prompt=prompt,
            token_ids=tuple(token_ids),
            media=tuple(media),
            frame_times=tuple(plan.shown_pts for plan in plans),
            origins=tuple(plan.origin for plan in plans),
            durations=tuple(plan.duration for plan in plans),
        )

    def user_turn(self, parts: Sequence[dict[str, str]]) -> list[int]:
        """A message of the user's with these text and video parts, and the head of the response to it.

        It is appended to the ids that there are, which are never encoded again. Raises DataError for a special token.
        """
        self._refuse_forged(_text(list(parts)), "an observation")
        after = [*_DIALOGUE, {"role": "user", "content": list(parts)}]
        whole = self.tokenizer.apply_chat_template(after, tokenize=False, add_generation_prompt=True)
        if not whole.startswith(self._dialogue):
            raise ValueError(f"{self.path}: its chat template rewrites earlier turns, so that no turn can be appended")
        return self.tokenizer.encode(whole.removeprefix(self._dialogue), add_special_tokens=False)

    @cached_property
    def _dialogue(self) -> str:
        return self.tokenizer.apply_chat_template(_DIALOGUE, tokenize=False)

    @cached_property
    def _message_end(self) -> list[int]:
        return self.tokenizer.encode(self._dialogue[self._dialogue.rindex("!") + 1 :], add_special_tokens=False)

    def response_end(self, ended: bool) -> list[int]:
        """What closes the message of a response, which may have `ended` itself with the stop token."""
        end = self._message_end
        return end[1:] if ended and end[:1] == [self.stop_ids[0]] else end

    def _refuse_forged(self, text: str, whose: str) -> None:
        if forged := [token for token in self.tokenizer.all_special_tokens if token in text]:
            raise DataError(
                "special_token",
                f"{whose}: its text contains {forged[0]!r}, which only the template may write; remove it from the row",
            )

    def position_ids(self, expanded_ids: Sequence[int], media: Sequence[Media], num_response: int) -> torch.Tensor:
        """M-RoPE ids `[3, P + R]` (time, height, width) of a prompt and `num_response` text tokens after it.

        Text after a video resumes at the largest position so far + 1, and temporal steps are
        `floor(step * seconds_per_grid * tokens_per_second)`, as in vLLM and in the Qwen2.5-VL paper. transformers 5.10
        does both otherwise (it resumes at start + max(h, w) and truncates the seconds), so its positions are not used.
        """
        parts: list[np.ndarray] = []
        start = cursor = 0  # next free position; next prompt index not placed yet
        ids = np.asarray(expanded_ids)
        is_video = ids == self.placeholder_id
        for item in media:
            offset = cursor + int(np.argmax(is_video[cursor:]))
            text = np.arange(offset - cursor) + start
            t, h, w = item.grid[0], item.grid[1] // self.merge_size, item.grid[2] // self.merge_size
            grid = np.indices((t, h, w)).reshape(3, -1)
            factor = item.seconds_per_grid * self.tokens_per_second
            grid[0] = (grid[0] * factor).astype(np.int64)
            parts += [np.broadcast_to(text, (3, len(text))), grid + start + len(text)]
            start = int(parts[-1].max()) + 1
            cursor = offset + item.num_tokens
        tail = np.arange(len(ids) - cursor + num_response) + start
        parts.append(np.broadcast_to(tail, (3, len(tail))))
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def patches(self, frames: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Frames `[T, H, W, 3]` uint8 of their final size -> normalised patches `[t*h*w, d]`, of each video.

        d = channels * temporal patch * patch². The last frame is repeated where the temporal patch does not divide T.
        """
        videos = [video.permute(0, 3, 1, 2) for video in frames]
        out = self._processor(videos=videos, do_resize=False, do_sample_frames=False, return_tensors="pt")
        return list(out["pixel_values_videos"].split(out["video_grid_thw"].prod(-1).tolist()))

    def engine_inputs(self, media: Sequence[Media], features: Sequence[torch.Tensor]) -> dict[str, Any]:
        """vLLM's `multi_modal_data` (and processor arguments) for embeddings `[n, hidden]` or frames `[T, H, W, 3]`.

        The time step is always passed: without it vLLM assumes 1 s for embeddings and collapses the times of frames.
        """
        if features[0].dtype == torch.uint8:
            metadata = [
                {
                    "fps": self.temporal_factor / item.seconds_per_grid,
                    "total_num_frames": len(frames),
                    "frames_indices": list(range(len(frames))),
                }
                for item, frames in zip(media, features, strict=True)
            ]
            videos = [(frames.numpy(), meta) for frames, meta in zip(features, metadata, strict=True)]
            return {
                "multi_modal_data": {"video": videos},
                "mm_processor_kwargs": {"video_metadata": metadata, "do_resize": False, "do_sample_frames": False},
            }
        video = {
            "video_embeds": torch.cat(list(features)),
            "video_grid_thw": torch.tensor([item.grid for item in media]),
            "second_per_grid_ts": torch.tensor([item.seconds_per_grid for item in media], dtype=torch.float32),
        }
        return {"multi_modal_data": {"video": video}}

    # -- the model -------------------------------------------------------------------------------------------------

    def load(self) -> nn.Module:
        return AutoModelForImageTextToText.from_pretrained(
            self.path,
            dtype=self.dtype,
            attn_implementation={"text_config": tree_attention.register(), "vision_config": "sdpa"},
            trust_remote_code=self.config.trust_remote_code,
        )

    def shell(self) -> nn.Module:
        """The model without memory for its weights: what `save_pretrained` needs beside a state dict."""
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(
                self.hf_config, trust_remote_code=self.config.trust_remote_code
            )

    def load_vision(self) -> nn.Module:
        """The vision tower and merger alone; no other tensor of the checkpoint is read."""
        vision = Qwen2_5_VisionTransformerPretrainedModel._from_config(
            self.hf_config.vision_config, attn_implementation="sdpa"
        )
        vision.load_state_dict(dict(self._vision_tensors()))
        vision.eval().requires_grad_(False)
        return cast(nn.Module, vision).to(self.dtype)

    def encode(self, vision: nn.Module, patches: Sequence[torch.Tensor], grids: Sequence[Grid]) -> list[torch.Tensor]:
        """Visual features `[t*h*w / merge², hidden]` of each video, in one pass of the tower."""
        parameter = next(vision.parameters())
        features = vision(torch.cat(list(patches)).to(parameter), grid_thw=torch.tensor(grids, device=parameter.device))
        return list(features.pooler_output.split([t * h * w // self.merge_size**2 for t, h, w in grids]))

    def blank_patches(self) -> tuple[torch.Tensor, Grid]:
        """The smallest input of the tower: one visual token of zeros."""
        grid = (1, self.merge_size, self.merge_size)
        return torch.zeros(self.merge_size**2, 3 * self.temporal_factor * self.patch_size**2), grid

    def vision(self, module: nn.Module) -> nn.Module:
        return cast(Any, module).model.visual

    def language_model(self, module: nn.Module) -> nn.Module:
        return cast(Any, module).model.language_model

    def layers(self, module: nn.Module) -> Sequence[nn.Module]:
        """The decoder layers: the units of sharding and of gradient checkpointing."""
        return cast(Any, self.language_model(module)).layers

    def embed(self, module: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
        return cast(Any, self.language_model(module)).embed_tokens(token_ids)

    def hidden_states(
        self,
        module: nn.Module,
        embeds: torch.Tensor,
        position_ids: torch.Tensor,
        tree: PrefixTree | None,
        ranks: DeviceMesh | None,
    ) -> torch.Tensor:
        """Last hidden states `[B, L, hidden]` of `embeds` `[B, L, hidden]` at `position_ids` `[3, B, L]`.

        Along the paths of `tree`, or causal: rows are padded on the right, where a causal query never looks. With
        `ranks` the tensors are this rank's stretch of the row that the tree describes.
        """
        return self.language_model(module)(
            inputs_embeds=embeds, position_ids=position_ids, use_cache=False, tree=tree, ranks=ranks
        ).last_hidden_state

    def logits(self, module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        return cast(Any, module).lm_head(hidden)

    # -- identity --------------------------------------------------------------------------------------------------

    @property
    def tower(self) -> str:
        """What makes the features of a video: weights by their digest, or weights that are being trained."""
        return "pixels" if self.config.train_vision else self._vision_digest

    @cached_property
    def _vision_digest(self) -> str:
        """Identity of the tower's and the merger's weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._vision_tensors()):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _processor_digest(self) -> str:
        described = json.dumps([transformers.__version__, self._processor.to_dict()], sort_keys=True, default=str)
        return hashlib.sha256(described.encode()).hexdigest()

    def _vision_tensors(self) -> list[tuple[str, torch.Tensor]]:
        tensors = []
        for file in sorted(self.path.glob("*.safetensors")):
            with safe_open(str(file), framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118  (a safe_open handle is not a dict)
                    prefix = next((p for p in _VISION_PREFIXES if name.startswith(p)), None)
                    if prefix:
                        tensors.append((name.removeprefix(prefix), reader.get_tensor(name)))
        if not tensors:
            raise ValueError(f"{self.path}: no vision tower in its *.safetensors files; is it a Qwen2.5-VL checkpoint?")
        return tensors


_DIALOGUE = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]


def _text(content: str | list[dict[str, Any]]) -> str:
    """All text of a message, joined as the template joins it: two parts could spell a token between them."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _local_checkpoint(config: ModelConfig) -> Path:
    path = Path(config.path)
    if path.is_dir():
        return path.resolve()
    looks_local = config.path.startswith((".", "/", "~")) or config.path.count("/") != 1
    if not looks_local:
        from huggingface_hub import snapshot_download

        try:
            wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
            return Path(snapshot_download(config.path, revision=config.revision, allow_patterns=wanted))
        except Exception as error:  # of many kinds: offline, no such name, gated, bad revision
            raise DataError(
                "no_model", f"model.path: {config.path}: no such folder, and the hub answers: {error}"
            ) from error
    raise DataError("no_model", f"model.path: {config.path}: no such folder; give a checkpoint folder or a hub name")
