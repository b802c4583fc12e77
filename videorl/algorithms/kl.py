"""KL divergence of the policy from a reference, estimated on tokens that the policy sampled.

Schulman, "Approximating KL divergence" (http://joschu.net/blog/kl-approx.html). With x sampled from p and
d = log p(x) - log q(x), estimators of KL(p || q):

    k1 = d               unbiased, high variance, of either sign
    k2 = d² / 2          biased, low variance, >= 0
    k3 = exp(-d) - 1 + d unbiased, low variance, >= 0

In the reward the value counts: k1 and k3 are right. In the loss the gradient counts, and there the roles change
(arXiv 2506.09477): the gradient of k1 is zero in expectation, so k1 in the loss does not regularise at all; that of
k2 is the gradient of KL(p || q); that of k3, GRPO's choice, is the gradient of the reverse KL(q || p), which agrees
with the former while p is close to q.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from videorl.config import KLConfig

Estimator = Literal["k1", "k2", "k3"]

# e^20: log-ratios beyond this are numerical accidents, and their exponential would drown the batch.
MAX_LOG_RATIO = 20.0


def compute_kl(log_probs: Tensor, ref_log_probs: Tensor, estimator: Estimator) -> Tensor:  # [B, T] each
    """Per-token estimate of KL(policy || reference); formulas above. Differentiable in `log_probs`."""
    difference = (log_probs - ref_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    match estimator:
        case "k1":
            return difference
        case "k2":
            return 0.5 * difference.square()
        case "k3":
            return torch.exp(-difference) - 1 + difference


def apply_kl_to_rewards(
    token_rewards: Tensor,  # [B, T]
    old_log_probs: Tensor,  # [B, T]
    ref_log_probs: Tensor,  # [B, T]
    response_mask: Tensor,  # [B, T]
    kl: KLConfig,
) -> tuple[Tensor, dict[str, float]]:
    """Token rewards minus `kl.coef` times the token's KL (arXiv 1909.08593, eq. 2), zero where masked.

    The metric `kl` is the mean over the response tokens given.
    """
    mask = response_mask.bool()
    penalty = torch.where(mask, compute_kl(old_log_probs, ref_log_probs, kl.estimator), 0.0)  # [B, T]
    rewards = torch.where(mask, token_rewards, 0.0) - kl.coef * penalty
    return rewards, {"kl": (penalty.sum() / mask.sum()).item()}
