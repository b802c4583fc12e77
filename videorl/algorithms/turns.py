"""Credit over the turns of an episode: estimators whose rewards stand at the ends of turns.

A turn is a run of response tokens; what stands between two runs the environment wrote. All work on the ends of turns
laid out as `[B, K]`, without a loop over tokens: only the recursions run, over turns, or over tokens for all rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from videorl.algorithms.statistics import discounted_advantages, normalise_in_group


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
    return discounted_advantages(rewards, at_end, there, gamma, lam), at_end, ends


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
    to_go = discounted_advantages(rewards, torch.zeros_like(rewards), there, turn_gamma, lam=1.0)
    turns = groups[:, None] * ends.shape[1] + np.arange(ends.shape[1])  # [B, K], one number for a turn of a group
    _, peers, size = np.unique(turns[there.numpy()], return_inverse=True, return_counts=True)
    compared = normalise_in_group(to_go[there], peers, norm_by_std)
    advantage = torch.zeros_like(to_go)
    advantage[there] = torch.where(torch.from_numpy(size[peers]) > 1, compared, 0.0)
    ids = turn_ids(response_mask)
    advantages = advantage.gather(1, ids.clamp(min=0)) * (ids >= 0)
    return advantages, advantages
