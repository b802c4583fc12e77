"""Which configuration a program runs with: those that learn from rows as they stand have a section of their own."""

from __future__ import annotations

from typing import Any

from videorl.algorithms.names import PAIR_LOSSES, PREFERENCE_LOSSES, REWARD_MODEL_LOSSES
from videorl.config import Config, ConfigError

PAIR_STAGES = {"prefer": PREFERENCE_LOSSES, "reward_model": REWARD_MODEL_LOSSES}
"""Those that learn from pairs, and the losses that each has."""


def of_stage(config: Config, stage: str) -> Config:
    """The configuration as the program `stage` uses it: that of `sft`, `prefer` and `reward_model` has their section in
    the place of what reinforcement learning uses.

    Raises ConfigError where there is no such section, and where `algorithm.loss` is not one for this program.
    """
    loss, losses = config.algorithm.loss, PAIR_STAGES.get(stage)
    if stage == "train" and loss in PAIR_LOSSES:
        raise ConfigError([f"algorithm.loss: {loss}, learns from pairs; run videorl.prefer, or set algorithm=grpo"])
    if stage not in ("sft", *PAIR_STAGES):
        return config
    section = getattr(config, stage)
    if section is None:
        raise ConfigError([f"{stage}: null, recipe {config.name} has no such stage; give it a section `{stage}`"])
    if losses is not None and loss not in losses and ":" not in loss:
        names = ", ".join(losses)
        raise ConfigError([f"algorithm.loss: {loss}, videorl.{stage} learns from pairs; choose algorithm= {names}"])
    model: dict[str, Any] = {"path": section.model_path}
    policy: dict[str, Any] = {"epochs": 1, "optim": section.optim}
    if stage == "sft":
        model["train_vision"] = section.train_vision
        policy["mini_batches"] = 1
        if section.model_path == "tiny":
            model |= {"path": f"{config.run.dir}/start", "build": "tiny"}
    return config.model_copy(
        update={
            "total_steps": section.steps,
            "model": config.model.model_copy(update=model),
            "policy": config.policy.model_copy(update=policy),
            "data": config.data.model_copy(update={"path": section.path}),
            "rollout": config.rollout.model_copy(update={"prompts_per_step": section.batch_size, "passes": {}}),
            "algorithm": config.algorithm.model_copy(update={"kl": None}),  # what the reference says is kept
            "critic": None,
        }
    )
