"""Credit: token rewards of a batch of rollouts -> advantages and returns.

An estimator is a function whose parameters name what it needs, out of the arguments of `compute_advantages` plus
`gamma`, `lam`, `norm_by_std` and the `algorithm.advantage_options`; it returns advantages and returns, both [B, T].
The common ones are here; every other name of verl's registry goes to verl; `my_pkg.credit:my_estimator` goes to the
user's own function.
What holds for all of them: masked entries are zero on the way in and on the way out, `groups` arrives as integers
0..G-1 in a numpy array [B], and the arithmetic is in float64.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videorl.algorithms import verl
from videorl.algorithms.names import VERL_PARAMETERS, advantage_needs, needs_group
from videorl.algorithms.statistics import discounted_advantages, normalise_in_group, whiten
from videorl.algorithms.stitching import Stitching
from videorl.algorithms.turns import bilevel_gae, turn_gae, turn_grpo
from videorl.config import AlgorithmConfig
from videorl.imports import load_object

_SOURCES = {
    "values": "the critic's values [B, T]: configure a critic",
    "old_log_probs": "the policy's log-probs before the update [B, T]",
    "sum_pi_squared": "the sum of squared token probabilities [B, T], which the policy worker does not record",
    "reward_baselines": "the reward of one greedy response per prompt [B]",
    "term_rewards": "the separate reward terms, name -> [B]",
    "term_weights": "the weight of each reward term, name -> float",
}

Estimate = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Advantages:
    """Both are 0 where the response mask is 0. `returns` is what a critic is trained on."""

    advantages: Tensor  # [B, T]
    returns: Tensor  # [B, T]


def compute_advantages(
    algorithm: AlgorithmConfig,
    *,
    token_rewards: Tensor,  # [B, T]
    response_mask: Tensor,  # [B, T]
    groups: Sequence[str],
    episodes: Sequence[str] | None = None,
    values: Tensor | None = None,  # [B, T]
    old_log_probs: Tensor | None = None,  # [B, T]
    importance_weights: Tensor | None = None,  # [B, T]
    sum_pi_squared: Tensor | None = None,  # [B, T]
    reward_baselines: Tensor | None = None,  # [B]
    term_rewards: Mapping[str, Tensor] | None = None,
    term_weights: Mapping[str, float] | None = None,
) -> Advantages:
    """Estimate advantages with `algorithm.advantage` for the whole batch of one step.

    `groups` names the group of each row. Group statistics and whitening span the batch given, so this is called
    once per step, before rows are dealt out to mini-batches and ranks. `episodes` names the episode of each row, where
    one may have several: whatever the estimator, it sees them one behind the other as one.

    Raises ValueError where a tensor has another shape than the mask or is not finite under it, a row has no response
    token (its zero reward would enter its group's mean), the estimator needs something that was not given, or a
    group has one row under an estimator that compares rows of a group (it would keep its raw reward).
    """
    name = algorithm.advantage
    mask = response_mask.bool()
    stitching = Stitching.of(episodes) if episodes and len(set(episodes)) < len(mask) else None
    of_rows = range(len(mask)) if stitching is None else stitching.first.tolist()
    _check_rows(name, mask, groups, of_rows)
    per_token = {
        "token_rewards": token_rewards,
        "values": values,
        "old_log_probs": old_log_probs,
        "importance_weights": importance_weights,
        "sum_pi_squared": sum_pi_squared,
    }
    available: dict[str, Any] = {
        **{key: _clean(key, tensor, mask) for key, tensor in per_token.items() if tensor is not None},
        "response_mask": mask.double(),
        "reward_baselines": reward_baselines,
        "term_rewards": term_rewards,
        "term_weights": term_weights,
        "gamma": algorithm.gamma,
        "lam": algorithm.lam,
        "norm_by_std": algorithm.norm_by_std,
        **algorithm.advantage_options,
    }
    if stitching:
        for key in ("response_mask", *per_token):
            if key in available:
                available[key] = stitching.join(available[key])
    available["groups"] = np.unique([groups[row] for row in of_rows], return_inverse=True)[1]
    given = {key: value for key, value in available.items() if value is not None}
    missing = sorted(advantage_needs(name) - given.keys())
    if missing:
        needed = "; ".join(f"{key}, {_SOURCES.get(key, 'which is not computed here')}" for key in missing)
        raise ValueError(f"algorithm.advantage={name} needs {needed}")

    estimator = _resolve(name, algorithm)
    words = {word: VERL_PARAMETERS.get(word, word) for word in inspect.signature(estimator).parameters}
    with torch.no_grad():
        estimate = estimator(**{word: given[ours] for word, ours in words.items() if ours in given})
    if stitching:
        estimate = tuple(map(stitching.split, estimate))
    advantages, returns = (torch.where(mask, tensor, 0.0).to(token_rewards.dtype) for tensor in estimate)
    return Advantages(advantages, returns)


def _check_rows(name: str, mask: Tensor, groups: Sequence[str], of_episodes: Iterable[int]) -> None:
    if not mask.any(-1).all():
        rows = (~mask.any(-1)).nonzero().flatten().tolist()
        raise ValueError(f"rows {rows} have no response token: drop them before computing advantages")
    if len(groups) != len(mask):
        raise ValueError(f"groups has {len(groups)} entries for {len(mask)} rows: give one group id per row")
    if needs_group(name):
        alone = [group for group, size in Counter(groups[row] for row in of_episodes).items() if size == 1]
        if alone:
            raise ValueError(
                f"algorithm.advantage={name} compares rollouts of a group, but {alone[:3]} have one rollout each "
                f"({len(alone)} such groups): set rollout.group_size >= 2 and drop groups that lost their others"
            )


def _clean(name: str, tensor: Tensor, mask: Tensor) -> Tensor:
    if tensor.shape != mask.shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, response_mask {tuple(mask.shape)}: they must be equal"
        )
    tensor = torch.where(mask, tensor.double(), 0.0)
    if not tensor.isfinite().all():
        rows = (~tensor.isfinite()).any(-1).nonzero().flatten().tolist()
        raise ValueError(f"{name} is not finite on response tokens of rows {rows}: drop these rollouts")
    return tensor


def _resolve(name: str, algorithm: AlgorithmConfig) -> Callable[..., Estimate]:
    if ":" in name:
        return load_object(name)
    return _ESTIMATORS.get(name) or verl.advantage_estimator(name, algorithm)


def gae(token_rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, lam: float) -> Estimate:
    """Generalized advantage estimation (arXiv 1506.02438, eq. 16), then whitening over the batch's response tokens.

    Convention: a step is a response token. Masked tokens (the environment's turns) are passed over without a discount:
    the successor of a token is the next response token, however many tokens the environment wrote between
    the two. After a row's last response token the value is 0, for cut-off responses too.
    Returns are the unwhitened advantages plus the values.
    """
    advantages = discounted_advantages(token_rewards, values, response_mask, gamma, lam)
    return whiten(advantages, response_mask), advantages + values


def grpo(token_rewards: Tensor, response_mask: Tensor, groups: np.ndarray, norm_by_std: bool) -> Estimate:
    """GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2): (r - group mean) / (group std + 1e-6) on every token.

    r is the sum of a row's token rewards, std the sample standard deviation (n - 1). Without `norm_by_std` it is
    the advantage of Dr. GRPO. Equal rewards in a group give exactly 0.
    """
    advantages = normalise_in_group(token_rewards.sum(-1), groups, norm_by_std)[:, None] * response_mask
    return advantages, advantages


def dr_grpo(token_rewards: Tensor, response_mask: Tensor, groups: np.ndarray) -> Estimate:
    """Dr. GRPO (arXiv 2503.20783): r - group mean, whatever `norm_by_std` says."""
    return grpo(token_rewards, response_mask, groups, norm_by_std=False)


def gdpo(
    response_mask: Tensor,
    groups: np.ndarray,
    norm_by_std: bool,
    term_rewards: Mapping[str, Tensor],
    term_weights: Mapping[str, float],
) -> Estimate:
    """GDPO (arXiv 2601.05242): GRPO's advantage of each reward term by itself, their weighted sum, whitened.

    Token rewards are not read: the terms are all of the reward.
    """
    total = torch.zeros_like(response_mask)  # [B, T]
    for term, weight in term_weights.items():
        rewards = term_rewards[term].to(response_mask)  # [B]
        total += weight * normalise_in_group(rewards, groups, norm_by_std)[:, None]
    advantages = whiten(total, response_mask) * response_mask
    return advantages, advantages


def rloo(token_rewards: Tensor, response_mask: Tensor, groups: np.ndarray) -> Estimate:
    """RLOO (arXiv 2402.14740): r minus the mean reward of the group's other rows."""
    size = torch.from_numpy(np.bincount(groups)[groups]).to(token_rewards)  # [B]
    centred = normalise_in_group(token_rewards.sum(-1), groups, by_std=False)
    advantages = (centred * size / (size - 1))[:, None] * response_mask
    return advantages, advantages


def reinforce_plus_plus(token_rewards: Tensor, response_mask: Tensor, gamma: float) -> Estimate:
    """REINFORCE++ (arXiv 2501.03262): discounted reward-to-go over response tokens, whitened over the batch."""
    returns = discounted_advantages(token_rewards, torch.zeros_like(token_rewards), response_mask, gamma, lam=1.0)
    return whiten(returns, response_mask), returns


def reinforce_plus_plus_baseline(token_rewards: Tensor, response_mask: Tensor, groups: np.ndarray) -> Estimate:
    """REINFORCE++ with baseline (arXiv 2501.03262): r - group mean, whitened over the batch's response tokens.

    Whitening shifts by the mean over tokens, so a group of equal rewards is at zero only where that mean is.
    """
    centred = normalise_in_group(token_rewards.sum(-1), groups, by_std=False)[:, None]
    advantages = whiten(centred * response_mask, response_mask) * response_mask
    return advantages, advantages


def whitened(estimator: Callable[..., Estimate]) -> Callable[..., Estimate]:
    """The estimator with its advantages whitened over the batch's response tokens, as `gae` does."""

    @functools.wraps(estimator)  # its parameters say what it needs
    def estimate(response_mask: Tensor, **given: Any) -> Estimate:
        advantages, returns = estimator(response_mask=response_mask, **given)
        return whiten(advantages, response_mask), returns

    return estimate


_ESTIMATORS: dict[str, Callable[..., Estimate]] = {
    "gae": gae,
    "grpo": grpo,
    "grpo_vectorized": grpo,  # verl has two implementations of one estimator, of this and of rloo
    "dr_grpo": dr_grpo,
    "gdpo": gdpo,
    "rloo": rloo,
    "rloo_vectorized": rloo,
    "reinforce_plus_plus": reinforce_plus_plus,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
    "bilevel_gae": whitened(bilevel_gae),
    "turn_gae": whitened(turn_gae),
    "turn_grpo": turn_grpo,
}
