"""Correction for the engine and the trainer computing different probabilities for the same tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from videorl.algorithms.kl import compute_kl


@torch.no_grad()
def compute_importance_weights(
    old_log_probs: Tensor,  # [B, T]
    rollout_log_probs: Tensor,  # [B, T]
    response_mask: Tensor,  # [B, T]
    cap: float,
) -> tuple[Tensor, dict[str, float]]:
    """Truncated importance weights min(exp(old - rollout), cap), without gradient, zero where masked.

    The tokens were sampled by the engine, while the loss takes them for samples of the trainer's policy. Per token, as
    in "Your efficient RL framework secretly brings you off-policy RL training" (Yao et al. 2025,
    https://fengyao.notion.site/off-policy-rl); truncation as in IMPALA's V-trace (arXiv 1802.01561, section 4.1).

    Metrics, over the response tokens given: `weight_mean`, `capped_fraction`, `log_prob_gap_max` (the largest
    absolute difference) and `kl`, the k3 estimate of KL(engine || trainer).
    """
    mask = response_mask.bool()
    log_ratio = torch.where(mask, old_log_probs - rollout_log_probs, 0.0)  # [B, T]
    ratio = torch.where(mask, log_ratio.exp(), 0.0)
    weights = ratio.clamp(max=cap)
    num_tokens = mask.sum()
    engine_kl = compute_kl(torch.zeros_like(log_ratio), log_ratio, "k3")
    return weights, {
        "weight_mean": (weights.sum() / num_tokens).item(),
        "capped_fraction": ((ratio > cap).sum() / num_tokens).item(),
        "log_prob_gap_max": log_ratio.abs().max().item(),
        "kl": (engine_kl.sum() / num_tokens).item(),
    }
