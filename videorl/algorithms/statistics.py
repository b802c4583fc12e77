"""What estimators of advantages have in common: discounting, comparison within a group, whitening."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from videorl.types import EQUAL_REWARDS


def normalise_in_group(rewards: Tensor, groups: np.ndarray, by_std: bool) -> Tensor:  # [B] -> [B]
    group = torch.from_numpy(groups).to(rewards.device)
    size = torch.bincount(group)  # [G]
    mean = torch.zeros_like(size, dtype=rewards.dtype).index_add_(0, group, rewards) / size
    centred = rewards - mean[group]
    variance = torch.zeros_like(mean).index_add_(0, group, centred.square()) / (size - 1)
    std = variance.sqrt()[group]
    # Without this, dividing by a std made of rounding errors would turn equal rewards into advantages.
    centred = torch.where(std < EQUAL_REWARDS, 0.0, centred)
    return centred / (std + 1e-6) if by_std else centred


def discounted_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    advantages = torch.zeros_like(rewards)  # [B, T]
    advantage = next_value = torch.zeros_like(rewards[:, 0])  # [B], of the next response token
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        is_response = mask[:, t] > 0
        advantage = torch.where(is_response, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(is_response, values[:, t], next_value)
        advantages[:, t] = advantage * is_response
    return advantages


def whiten(tensor: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum()
    mean = (tensor * mask).sum() / count
    variance = ((tensor - mean).square() * mask).sum() / (count - 1).clamp(min=1)
    return (tensor - mean) * torch.rsqrt(variance + 1e-8)
