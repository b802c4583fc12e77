"""Credit over the turns of an episode: estimators whose rewards stand at the ends of turns.

A turn is a run of response tokens; what stands between two runs the environment wrote. All work on the ends of turns
laid out as `[B, K]`, without a loop over tokens: only the recursions run, over turns, or over tokens for all rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def turn_ids(response_mask: Tensor) -> Tensor:
    """`[B, T]`: from 0, the turn of each response token; -1 elsewhere."""
    sampled = response_mask.bool()
    begins = sampled & ~torch.nn.functional.pad(sampled, (1, 0))[:, :-1]
    return torch.where(sampled, begins.cumsum(1) - 1, -1)


def turn_ends(response_mask: Tensor) -> tuple[Tensor, Tensor]:
    """(columns `[B, K]` of the last token of each turn, `[B, K]` whether there is such a turn)."""
    ids = turn_ids(response_mask)
    last = (ids >= 0) & (torch.nn.functional.pad(ids, (0, 1), value=-1)[:, 1:] != ids)
    count = int(ids.max()) + 1
    ends = torch.zeros(len(ids), count, dtype=torch.long)
    rows, columns = last.nonzero(as_tuple=True)
    ends[rows, ids[rows, columns]] = columns
    return ends, torch.arange(count) < last.sum(1, keepdim=True)


def turn_advantages(
    token_rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor, Tensor]:
    """GAE over turns: (advantages `[B, K]`, values at their ends `[B, K]`, ends `[B, K]`).

    A turn's reward is the one on its last token, its value the critic's there; after the last turn the value is 0.
    """
    ends, there = turn_ends(response_mask)
    rewards = token_rewards.gather(1, ends) * there
    at_end = values.gather(1, ends) * there
    advantages = torch.zeros_like(rewards)
    after = next_value = torch.zeros_like(rewards[:, 0])
    for k in reversed(range(ends.shape[1])):
        advantage = rewards[:, k] + gamma * next_value - at_end[:, k] + gamma * lam * after
        after = torch.where(there[:, k], advantage, after)
        next_value = torch.where(there[:, k], at_end[:, k], next_value)
        advantages[:, k] = advantage * there[:, k]
    return advantages, at_end, ends


def bilevel_gae(
    token_rewards: Tensor,  # [B, T]
    values: Tensor,  # [B, T]
    response_mask: Tensor,  # [B, T]
    gamma: float,
    lam: float,
    turn_gamma: float,
    turn_lam: float,
) -> tuple[Tensor, Tensor]:
    """Bi-level GAE (VAGEN; Video-MTR, arXiv 2508.20478): (advantages before whitening, returns), both `[B, T]`.

    First GAE over turns gives each turn's return. Then GAE over the tokens of each turn by itself, whose last token is
    rewarded with that return and followed by nothing. Rewards on other tokens, as of a KL, stay inside their turn.
    """
    advantage, at_end, ends = turn_advantages(token_rewards, values, response_mask, turn_gamma, turn_lam)
    _, there = turn_ends(response_mask)
    rows, turns = there.nonzero(as_tuple=True)
    rewards, last = token_rewards.clone(), torch.zeros_like(response_mask, dtype=torch.bool)
    rewards[rows, ends[rows, turns]] = (advantage + at_end)[rows, turns]
    last[rows, ends[rows, turns]] = True
    ids = turn_ids(response_mask)
    advantages = torch.zeros_like(token_rewards)
    after = next_value = torch.zeros_like(token_rewards[:, 0])
    for t in reversed(range(token_rewards.shape[1])):
        goes_on = ~last[:, t]
        delta = rewards[:, t] + gamma * next_value * goes_on - values[:, t]
        after = delta + gamma * lam * after * goes_on
        next_value = values[:, t]
        advantages[:, t] = after * (ids[:, t] >= 0)
    return advantages, (advantages + values) * (ids >= 0)


def turn_gae(
    token_rewards: Tensor, values: Tensor, response_mask: Tensor, turn_gamma: float, turn_lam: float
) -> tuple[Tensor, Tensor]:
    """Turn-wise GAE (VAGEN): the advantage of a turn on each of its tokens, before whitening."""
    advantage, at_end, _ = turn_advantages(token_rewards, values, response_mask, turn_gamma, turn_lam)
    ids = turn_ids(response_mask)
    own = ids.clamp(min=0)
    return advantage.gather(1, own) * (ids >= 0), (advantage + at_end).gather(1, own) * (ids >= 0)


def turn_grpo(
    token_rewards: Tensor, response_mask: Tensor, groups: np.ndarray, norm_by_std: bool, turn_gamma: float
) -> tuple[Tensor, Tensor]:
    """GRPO per turn: the discounted rewards from turn k on, compared with those of the group's other rows at turn k.

    Rows that have no turn k are not compared there; a turn that no other row of its group has keeps 0.
    """
    ends, there = turn_ends(response_mask)
    rewards = token_rewards.gather(1, ends) * there  # [B, K]
    to_go = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for k in reversed(range(rewards.shape[1])):
        following = rewards[:, k] + turn_gamma * following
        to_go[:, k] = following
    group = torch.from_numpy(groups)
    count = int(group.max()) + 1
    present = there.to(to_go)
    size = torch.zeros(count, to_go.shape[1], dtype=to_go.dtype).index_add_(0, group, present)
    mean = torch.zeros_like(size).index_add_(0, group, to_go * present) / size.clamp(min=1)
    centred = (to_go - mean[group]) * present
    variance = torch.zeros_like(size).index_add_(0, group, centred.square()) / (size - 1).clamp(min=1)
    std = variance.sqrt()[group]
    centred = torch.where((std < 1e-8) | (size[group] < 2), 0.0, centred)
    advantage = centred / (std + 1e-6) if norm_by_std else centred
    ids = turn_ids(response_mask)
    advantages = advantage.gather(1, ids.clamp(min=0)) * (ids >= 0)
    return advantages, advantages
