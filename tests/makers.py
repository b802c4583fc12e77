"""Small valid objects for tests; each takes what a test wants to be different."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clips import make_sampling

from videorl.config import ModelConfig, OptimConfig
from videorl.types import Clip, Media, Prompt, RenderedPrompt, Rollout, RolloutGroup


def make_clip(path: str = "a.mp4", **fields) -> Clip:
    return Clip(**{"path": path, "sampling": make_sampling(), **fields})


def make_media(key: str = "a", grid: tuple[int, int, int] = (1, 2, 2), seconds_per_grid: float = 1.0) -> Media:
    """A handle of the Qwen2.5-VL geometry: one token for 2 x 2 patches."""
    t, h, w = grid
    return Media(
        clip=make_clip(f"{key}.mp4"),
        key=key,
        grid=grid,
        num_tokens=t * h * w // 4,
        seconds_per_grid=seconds_per_grid,
        tower="tower",
    )


def make_rendered(id: str = "p", token_ids: Sequence[int] = (1, 2), media: Sequence[Media] = ()) -> RenderedPrompt:
    row = {"id": id, "task": "open", "prompt": "?"}
    messages = ({"role": "user", "content": [{"type": "text", "text": "?"}]},)
    return RenderedPrompt(
        prompt=Prompt(id=id, task="open", messages=messages, clips=tuple(item.clip for item in media), row=row),
        token_ids=tuple(token_ids),
        media=tuple(media),
        frame_times=tuple((0.0, 0.5) for _ in media),
        origins=(0.0,) * len(media),
        durations=(1.0,) * len(media),
    )


def make_rollout(
    prompt: RenderedPrompt | None = None,
    response: Sequence[int] = (5, 6),
    *,
    mask: Sequence[int] | None = None,
    log_probs: Sequence[float] | None = None,
    reward: float = 0.0,
    seen: str = "",
) -> Rollout:
    return Rollout(
        prompt=prompt or make_rendered(),
        response_ids=tuple(response),
        response_mask=tuple(mask if mask is not None else (1,) * len(response)),
        rollout_log_probs=tuple(log_probs if log_probs is not None else (-0.5,) * len(response)),
        text="",
        finish_reason="stop",
        weight_version=0,
        seen=seen,
        reward=reward,
    )


def make_group(id: str, rewards: Sequence[float], length: int = 2) -> RolloutGroup:
    """One rollout of `length` tokens for each reward."""
    prompt = make_rendered(id)
    return RolloutGroup(
        prompt=prompt, rollouts=tuple(make_rollout(prompt, (5,) * length, reward=reward) for reward in rewards)
    )


def make_model_config(path: str | Path, **changes) -> ModelConfig:
    values = {
        "family": "qwen2_5_vl",
        "path": str(path),
        "revision": None,
        "build": None,
        "dtype": "float32",
        "train_vision": False,
        "trust_remote_code": False,
        "lora": None,
    }
    return ModelConfig.model_validate(values | changes)


def make_optim_config(**changes) -> OptimConfig:
    """Plain SGD at a constant rate of 0.1, hardly clipped."""
    values = {
        "name": "sgd",
        "lr": 0.1,
        "betas": (0.9, 0.95),
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 1e6,
    }
    return OptimConfig.model_validate(values | changes)
