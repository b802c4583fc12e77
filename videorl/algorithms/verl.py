"""The one place that touches verl's algorithms. verl is imported on first use, since that costs seconds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from videorl.algorithms.names import FIXED_LOSS_AGG, unknown_name
from videorl.config import AlgorithmConfig
from videorl.imports import fix_imports

if TYPE_CHECKING:
    from torch import Tensor

    from videorl.algorithms.losses import LossInputs

_ACTOR_OPTIONS = frozenset({"tau_pos", "tau_neg"})


@functools.cache
def core_algos() -> Any:
    fix_imports()
    from verl.trainer.ppo import core_algos

    return core_algos


def balanced_partitions(loads: Sequence[int], parts: int) -> list[list[int]]:
    """Indices of `loads` in `parts` sets of about equal sums (Karmarkar and Karp's differencing), some of them empty
    where there are fewer loads than parts."""
    if len(loads) <= parts:
        return [[index] if index < len(loads) else [] for index in range(parts)]
    if parts == 1:
        return [list(range(len(loads)))]
    fix_imports()
    from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

    return cast(list[list[int]], get_seqlen_balanced_partitions(list(loads), parts, equal_size=False))


def advantage_estimator(name: str, algorithm: AlgorithmConfig) -> Callable[..., tuple[Tensor, Tensor]]:
    """verl's estimator of this name, with the configuration object that it reads already bound."""
    core = core_algos()
    config = core.AlgoConfig(gamma=algorithm.gamma, lam=algorithm.lam, norm_adv_by_std_in_grpo=algorithm.norm_by_std)
    return functools.partial(core.get_adv_estimator_fn(name), config=config)


def policy_loss(name: str, inputs: LossInputs, algorithm: AlgorithmConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """verl's policy loss of this name, normalised by the counts of the whole mini-batch.

    `algorithm.loss_options` are fields of verl's `PolicyLossConfig` (`dro_beta`, `kl_cov_ratio`, ...) or
    `tau_pos` / `tau_neg`. The clip bounds are passed as verl's `clip_ratio_low/high/c`; the dppo losses read them as
    bounds on a divergence. `bypass_mode` takes the engine's log-probs for the old ones and corrects for
    importance by itself.

    Returns the loss `[]` and `clip_fraction` where verl reports it, as a share of the mini-batch's tokens.
    """
    fixed = FIXED_LOSS_AGG.get(name)
    if fixed and algorithm.loss_agg != fixed:
        raise ValueError(
            f"algorithm.loss_agg={algorithm.loss_agg}: {name} is defined on per-sequence means; "
            f"set algorithm.loss_agg={fixed}"
        )
    old_log_probs = inputs.old_log_probs
    if name == "bypass_mode":
        if inputs.rollout_log_probs is None:
            raise ValueError("algorithm.loss=bypass_mode needs rollout_log_probs, the log-probs of the engine")
        old_log_probs = inputs.rollout_log_probs
    num_tokens = inputs.response_mask.sum()
    if num_tokens == 0:  # verl's statistics are undefined on padding alone
        return inputs.log_probs.sum() * 0, {}
    core = core_algos()
    try:
        loss, metrics = core.get_policy_loss_fn(name)(
            old_log_prob=old_log_probs,
            log_prob=inputs.log_probs,
            advantages=inputs.advantages,
            response_mask=inputs.response_mask,
            loss_agg_mode=algorithm.loss_agg,
            config=_actor_config(name, inputs, algorithm),
            rollout_is_weights=inputs.importance_weights,
        )
    except ValueError as error:
        raise ValueError(
            f"algorithm.loss={name}: {error}; its settings go into algorithm.loss_options={algorithm.loss_options}"
        ) from error
    if name == "geo_mean":  # a mean over the rows at hand, whatever the counts of the mini-batch
        loss = loss * len(inputs.log_probs) / inputs.num_sequences
    if "actor/pg_clipfrac" not in metrics:
        return loss, {}
    return loss, {"clip_fraction": metrics["actor/pg_clipfrac"] * num_tokens / inputs.num_tokens}


def _actor_config(name: str, inputs: LossInputs, algorithm: AlgorithmConfig) -> Any:
    from verl.workers.config import ActorConfig, PolicyLossConfig

    known = {field.name for field in dataclasses.fields(PolicyLossConfig)} | _ACTOR_OPTIONS
    known -= {"loss_mode", "_target_"}
    for option in algorithm.loss_options:
        if option not in known:
            raise unknown_name("algorithm.loss_options", option, known)
    actor_options = {key: value for key, value in algorithm.loss_options.items() if key in _ACTOR_OPTIONS}
    loss_options = {key: value for key, value in algorithm.loss_options.items() if key not in _ACTOR_OPTIONS}
    return ActorConfig(
        strategy="fsdp2",  # this and the next two are required by verl and read by none of its losses
        rollout_n=1,
        use_dynamic_bsz=True,
        clip_ratio_low=algorithm.clip_low,
        clip_ratio_high=algorithm.clip_high,
        clip_ratio_c=algorithm.clip_dual,
        loss_agg_mode=algorithm.loss_agg,
        policy_loss=PolicyLossConfig(loss_mode=name, **loss_options),
        global_batch_info={
            "dp_size": 1,  # our workers undo FSDP's averaging themselves
            "batch_num_tokens": inputs.num_tokens,
            "global_batch_size": inputs.num_sequences,
            "loss_scale_factor": inputs.max_response_tokens,
        },
        **actor_options,
    )
