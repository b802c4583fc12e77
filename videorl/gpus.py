"""How many GPUs a run takes, and which part of one each worker asks Ray for."""

from __future__ import annotations

import math

from videorl.config import Config

ENCODER_GPUS = 0.1


def engine_gpus(config: Config) -> float:
    """Of one engine: whole ones where it is spread over several, else what an encoder beside it leaves of one."""
    parallel = config.rollout.tensor_parallel
    return float(parallel) if parallel > 1 else 1 - ENCODER_GPUS


def trainer_ranks(config: Config) -> list[int]:
    """Ranks of each worker group of a training run: policy, reference and critic, where there are any."""
    reference = config.algorithm.kl is not None and config.model.lora is None
    return [config.policy.ranks] * (1 + reference) + ([config.critic.ranks] if config.critic else [])


def num_gpus(config: Config) -> int:
    """Of a training run. Groups with as many ranks share theirs with `cluster.placement=colocate`."""
    ranks = trainer_ranks(config)
    trainers = sum(set(ranks) if config.cluster.placement == "colocate" else ranks)
    beside = config.rollout.num_engines if config.rollout.tensor_parallel == 1 else 0  # encoders with an engine's GPU
    further = max(0, config.encoder.workers - beside)
    return trainers + config.rollout.num_engines * config.rollout.tensor_parallel + math.ceil(further * ENCODER_GPUS)
