"""Losses of policy and critic.

Every loss and every metric is a share of its mini-batch: the sum over any division of the mini-batch's rows into
micro-batches and ranks is the value (and the gradient) of the whole, because all of them are divided by counts of the
whole mini-batch. `merge_metrics` adds them up. (A worker whose gradients are averaged over ranks multiplies its
loss by the number of ranks.) `names.SPLIT_DEPENDENT_LOSSES` are the exceptions, by their definition.

A policy loss is a function (inputs, algorithm) -> per-token losses [B, T] and metrics, each a [B, T] tensor
that is reported as a mean over tokens. `vanilla`, `gspo` and `cispo` are here, every other name of verl's registry
goes to verl, `my_pkg.losses:my_loss` to the user's own function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from videorl.algorithms import verl
from videorl.algorithms.kl import MAX_LOG_RATIO, compute_kl
from videorl.algorithms.names import LOSSES, unknown_name
from videorl.config import AlgorithmConfig
from videorl.imports import load_object

LossAgg = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """One micro-batch, and the counts of the mini-batch that it is part of.

    The constructor sets masked entries of every tensor to zero, so that no loss has to look at the mask to be safe
    from what padding holds, and refuses tensors of unequal shape and counts below one.
    A row whose mask is all zero adds nothing and is not counted in `num_sequences`.
    """

    log_probs: Tensor  # [B, T], with gradient
    old_log_probs: Tensor  # [B, T]
    advantages: Tensor  # [B, T]
    response_mask: Tensor  # [B, T]
    num_tokens: int  # response tokens in the mini-batch, over all ranks and micro-batches
    num_sequences: int  # rows with a response token in the mini-batch, over all ranks and micro-batches
    max_response_tokens: int  # divisor of seq-mean-token-sum-norm, the same in every step: the response budget
    importance_weights: Tensor | None = None  # [B, T]
    rollout_log_probs: Tensor | None = None  # [B, T], for bypass_mode
    ref_log_probs: Tensor | None = None  # [B, T], for KL in the loss
    entropy: Tensor | None = None  # [B, T], with gradient

    def __post_init__(self):
        for name in ("num_tokens", "num_sequences", "max_response_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"LossInputs: {name}={getattr(self, name)}: a mini-batch has at least one")
        mask = self.response_mask.bool()
        for name, tensor in vars(self).items():
            if not isinstance(tensor, Tensor):
                continue
            if tensor.shape != mask.shape:
                raise ValueError(
                    f"LossInputs: {name} has shape {tuple(tensor.shape)}, response_mask {tuple(mask.shape)}: "
                    "they must be equal"
                )
            object.__setattr__(self, name, torch.where(mask, tensor, 0.0))
        object.__setattr__(self, "response_mask", mask.to(self.log_probs.dtype))


@dataclass(frozen=True)
class LossOutput:
    """A micro-batch's share of the loss `[]`, with gradient, and of the metrics `[]`, without; see `merge_metrics`."""

    loss: Tensor
    metrics: dict[str, Tensor]


TokenLoss = Callable[[LossInputs, AlgorithmConfig], tuple[Tensor, dict[str, Tensor]]]


def compute_policy_loss(inputs: LossInputs, algorithm: AlgorithmConfig) -> LossOutput:
    """The policy loss `algorithm.loss`, plus KL to the reference and minus the entropy bonus where configured.

    Loss = policy loss + kl.coef * KL - entropy_coef * entropy, the three aggregated alike by `algorithm.loss_agg`.
    Importance weights multiply the policy loss alone.

    Metrics: `policy_loss`; `clip_fraction` (tokens that a bound cut off from the gradient) and, for `vanilla`, its
    parts `_low`, `_high`, `_dual`; `approx_kl` (k3 estimate of KL(old || new)); `ratio_mean`, `ratio_max` of
    the token ratio new / old; `kl` and `entropy` where given. All but `policy_loss` and `ratio_max` are token means.

    Raises ValueError where the loss is unknown or an input that the configuration asks for is missing.
    """
    name = algorithm.loss
    if ":" in name or name in _TOKEN_LOSSES:
        loss, metrics = _compute_token_loss(name, inputs, algorithm)
    elif name in LOSSES:
        loss, metrics = verl.policy_loss(name, inputs, algorithm)
    else:
        raise unknown_name("algorithm.loss", name, LOSSES)
    metrics["policy_loss"] = loss

    log_ratio = _log_ratio(inputs)  # [B, T]
    metrics["approx_kl"] = _token_mean(compute_kl(inputs.old_log_probs, inputs.log_probs, "k3"), inputs)
    metrics["ratio_mean"] = _token_mean(log_ratio.exp(), inputs)
    metrics["ratio_max"] = (log_ratio.exp() * inputs.response_mask).max()

    if algorithm.kl is not None and algorithm.kl.where == "loss":
        if inputs.ref_log_probs is None:
            raise ValueError("algorithm.kl.where=loss needs ref_log_probs, the log-probs of the reference")
        kl = compute_kl(inputs.log_probs, inputs.ref_log_probs, algorithm.kl.estimator)  # [B, T]
        loss = loss + algorithm.kl.coef * _aggregate(kl, inputs, algorithm)
        metrics["kl"] = _token_mean(kl, inputs)
    if inputs.entropy is not None:
        metrics["entropy"] = _token_mean(inputs.entropy, inputs)
    if algorithm.entropy_coef > 0:
        if inputs.entropy is None:
            raise ValueError(f"algorithm.entropy_coef={algorithm.entropy_coef} needs entropy, per token")
        loss = loss - algorithm.entropy_coef * _aggregate(inputs.entropy, inputs, algorithm)
    return LossOutput(loss, {key: value.detach() for key, value in metrics.items()})


def compute_value_loss(
    *,
    values: Tensor,  # [B, T], with gradient
    old_values: Tensor,  # [B, T]
    returns: Tensor,  # [B, T]
    response_mask: Tensor,  # [B, T]
    num_tokens: int,
    clip_value: float,
) -> LossOutput:
    """PPO's clipped value loss, a mean over the mini-batch's `num_tokens` response tokens.

    max((V - R)², (clip(V, V_old - c, V_old + c) - R)²) / 2, as in the code of OpenAI's baselines (described in
    arXiv 2005.12729). Metrics, token means: `value_loss`, `value_clip_fraction`, `value_mean`.
    """
    mask = response_mask.bool()
    values, old_values, returns = (torch.where(mask, tensor, 0.0) for tensor in (values, old_values, returns))
    clipped = torch.clamp(values, old_values - clip_value, old_values + clip_value)
    error, clipped_error = (values - returns).square(), (clipped - returns).square()
    loss = 0.5 * torch.maximum(error, clipped_error).sum() / num_tokens
    metrics = {
        "value_loss": loss,
        "value_clip_fraction": (clipped_error > error).sum() / num_tokens,
        "value_mean": values.sum() / num_tokens,
    }
    return LossOutput(loss, {key: value.detach() for key, value in metrics.items()})


def merge_metrics(parts: Iterable[Mapping[str, Tensor | float]]) -> dict[str, float]:
    """Metrics of micro-batches or ranks -> of the mini-batch: sums, and the largest of names ending in `_max`."""
    merged: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            if name.endswith("_max"):
                merged[name] = max(merged.get(name, -math.inf), float(value))
            else:
                merged[name] = merged.get(name, 0.0) + float(value)
    return merged


def aggregate_loss(
    token_losses: Tensor,  # [B, T]
    response_mask: Tensor,  # [B, T]
    mode: LossAgg,
    *,
    num_tokens: int,
    num_sequences: int,
    max_response_tokens: int,
) -> Tensor:
    """Per-token losses of a micro-batch -> its share `[]` of the mini-batch's loss.

    token-mean (DAPO, arXiv 2503.14476, eq. 12): every token of the mini-batch weighs the same.
    seq-mean-token-mean (GRPO, arXiv 2402.03300, eq. 3): every row weighs the same, whatever its length.
    seq-mean-token-sum: rows summed over tokens, then averaged over rows.
    seq-mean-token-sum-norm (Dr. GRPO, arXiv 2503.20783): the same divided by `max_response_tokens`.
    """
    mask = response_mask.bool()
    token_losses = torch.where(mask, token_losses, 0.0)
    if mode == "token-mean":
        return token_losses.sum() / num_tokens
    row_losses = token_losses.sum(-1)  # [B]
    if mode == "seq-mean-token-mean":
        row_losses = row_losses / mask.sum(-1).clamp(min=1)
    elif mode == "seq-mean-token-sum-norm":
        row_losses = row_losses / max_response_tokens
    return row_losses.sum() / num_sequences


def vanilla(inputs: LossInputs, algorithm: AlgorithmConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7) with separate bounds (DAPO, arXiv 2503.14476, eq. 10) and
    dual clip (arXiv 1912.09729, section 4).

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), and for A < 0 at most -clip_dual A.
    """
    ratio, advantages = _log_ratio(inputs).exp(), inputs.advantages
    low, high, dual = 1 - algorithm.clip_low, 1 + algorithm.clip_high, algorithm.clip_dual
    objective = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    objective = torch.where(advantages < 0, torch.maximum(objective, dual * advantages), objective)
    cut_low = (advantages < 0) & (ratio < low)
    cut_high = (advantages > 0) & (ratio > high)
    cut_dual = (advantages < 0) & (ratio > dual)
    return -objective, {
        "clip_fraction": cut_low | cut_high | cut_dual,
        "clip_fraction_low": cut_low,
        "clip_fraction_high": cut_high,
        "clip_fraction_dual": cut_dual,
    }


def gspo(inputs: LossInputs, algorithm: AlgorithmConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """GSPO (arXiv 2507.18071, eq. 5 and 7), in the token form of its eq. 14.

    -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A) with the sequence ratio s = exp(mean of the row's token
    log-ratios). Each token carries s in value and its own log-prob in gradient, so that advantages may differ within a
    row. The paper aggregates by seq-mean-token-mean and clips at 3e-4 and 4e-4.
    """
    mask = inputs.response_mask
    row_log_ratio = ((inputs.log_probs - inputs.old_log_probs) * mask).sum(-1) / mask.sum(-1).clamp(min=1)  # [B]
    log_ratio = row_log_ratio.detach()[:, None] + inputs.log_probs - inputs.log_probs.detach()  # [B, T]
    ratio = log_ratio.clamp(max=10.0).exp()  # e^10: a bound against overflow, as in verl
    low, high = 1 - algorithm.clip_low, 1 + algorithm.clip_high
    surrogate, clipped = ratio * inputs.advantages, ratio.clamp(low, high) * inputs.advantages
    return -torch.minimum(surrogate, clipped), {"clip_fraction": clipped < surrogate}


def cispo(inputs: LossInputs, algorithm: AlgorithmConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """CISPO (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5): -sg(clip(r, 1 - clip_low, 1 + clip_high)) A log p.

    The bound limits the weight of a token and never removes its gradient; `clip_fraction` counts bounded weights.
    """
    ratio = _log_ratio(inputs).exp().detach()
    weight = ratio.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high)
    return -weight * inputs.advantages * inputs.log_probs, {"clip_fraction": weight != ratio}


_TOKEN_LOSSES: dict[str, TokenLoss] = {"vanilla": vanilla, "gspo": gspo, "cispo": cispo}


def _compute_token_loss(name: str, inputs: LossInputs, algorithm: AlgorithmConfig) -> tuple[Tensor, dict[str, Tensor]]:
    if name in _TOKEN_LOSSES and algorithm.loss_options:
        raise ValueError(f"algorithm.loss_options={algorithm.loss_options}: {name} has none; set it to {{}}")
    token_loss = load_object(name) if ":" in name else _TOKEN_LOSSES[name]
    token_losses, token_metrics = token_loss(inputs, algorithm)
    if inputs.importance_weights is not None:
        token_losses = token_losses * inputs.importance_weights
    loss = _aggregate(token_losses, inputs, algorithm)
    return loss, {key: _token_mean(value, inputs) for key, value in token_metrics.items()}


def _aggregate(token_losses: Tensor, inputs: LossInputs, algorithm: AlgorithmConfig) -> Tensor:
    return aggregate_loss(
        token_losses,
        inputs.response_mask,
        algorithm.loss_agg,
        num_tokens=inputs.num_tokens,
        num_sequences=inputs.num_sequences,
        max_response_tokens=inputs.max_response_tokens,
    )


def _token_mean(values: Tensor, inputs: LossInputs) -> Tensor:
    return (values * inputs.response_mask).sum() / inputs.num_tokens


def _log_ratio(inputs: LossInputs) -> Tensor:
    return (inputs.log_probs - inputs.old_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
