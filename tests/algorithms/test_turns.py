"""Credit over turns: hand-worked numbers, a slow reference written out, and identities of the estimators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.algorithms.advantages import gae
from videorl.algorithms.turns import bilevel_gae, turn_ends, turn_gae, turn_grpo, turn_ids

fixed = settings(derandomize=True, deadline=None, max_examples=60)

# Two turns of two and three tokens with two of the environment's between them; a row of one turn
MASK = torch.tensor([[1, 1, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0]]).double()


def tensors(seed: int, mask: torch.Tensor, only_ends: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(mask.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    if only_ends:
        ends, there = turn_ends(mask)
        keep = torch.zeros_like(mask)
        rows, turns = there.nonzero(as_tuple=True)
        keep[rows, ends[rows, turns]] = 1
        rewards = rewards * keep
    return rewards * mask, values * mask


def test_turns_are_the_runs_of_response_tokens():
    assert turn_ids(MASK).tolist() == [[0, 0, -1, -1, 1, 1, 1], [0, -1, -1, -1, -1, -1, -1]]
    ends, there = turn_ends(MASK)
    assert ends.tolist() == [[1, 6], [0, 0]]
    assert there.tolist() == [[True, True], [True, False]]


def test_a_final_reward_is_discounted_by_turns():
    """Without values and with turn_gamma g, the turns of an episode that ends with 1 are worth g^2, g, 1."""
    mask = torch.tensor([[1, 0, 1, 0, 1]]).double()
    rewards = torch.tensor([[0, 0, 0, 0, 1.0]]).double()
    advantages, returns = bilevel_gae(rewards, torch.zeros_like(rewards), mask, 1.0, 1.0, 0.9, 1.0)
    assert advantages.tolist() == [pytest.approx([0.81, 0, 0.9, 0, 1])]
    assert torch.equal(advantages, returns)
    on_turns, _ = turn_gae(rewards, torch.zeros_like(rewards), mask, 0.9, 1.0)
    assert torch.equal(on_turns, advantages)


def test_bilevel_by_hand():
    """Turns of two tokens with values 0.5 0.25 | 0.5 0.5, rewards 1 and 2 at their ends; g_turn = 0.5, lambdas 1.

    Turn pass: A_2 = 2 - 0.5 = 1.5, return 2; A_1 = 1 + 0.5 * 0.5 - 0.25 + 0.5 * 1.5 = 1.75, return 2.
    Token pass: ends 2 - 0.25 = 1.75 and 2 - 0.5 = 1.5; first tokens 0.25 - 0.5 + 1.75 = 1.5 and 0.5 - 0.5 + 1.5 = 1.5.
    """
    mask = torch.tensor([[1, 1, 0, 1, 1]]).double()
    rewards = torch.tensor([[0, 1, 0, 0, 2.0]]).double()
    values = torch.tensor([[0.5, 0.25, 9, 0.5, 0.5]]).double() * mask
    advantages, returns = bilevel_gae(rewards, values, mask, 1.0, 1.0, 0.5, 1.0)
    assert advantages.tolist() == [pytest.approx([1.5, 1.75, 0, 1.5, 1.5])]
    assert returns.tolist() == [pytest.approx([2, 2, 0, 2, 2])]


def test_a_reward_inside_a_turn_stays_there():
    """As of a KL: bi-level GAE keeps it from the turns before, where GAE over all tokens spreads it."""
    mask = torch.tensor([[1, 1, 0, 1, 1]]).double()
    rewards = torch.tensor([[0, 0, 0, -1.0, 0]]).double()
    values = torch.zeros_like(rewards)
    advantages, _ = bilevel_gae(rewards, values, mask, 1.0, 1.0, 1.0, 1.0)
    assert advantages.tolist() == [[0, 0, 0, -1, 0]]
    _, returns = gae(rewards, values, mask, 1.0, 1.0)
    assert returns.tolist() == [[-1, -1, 0, -1, 0]]


@fixed
@given(
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.lists(st.lists(st.integers(0, 1), min_size=9, max_size=9), min_size=1, max_size=4),
)
def test_bilevel_is_the_reference(seed, discount, rows):
    mask = torch.tensor([[1, *row] for row in rows]).double()
    rewards, values = tensors(seed, mask)
    advantages, returns = bilevel_gae(rewards, values, mask, 0.9, discount, 0.8, 0.7)
    for index in range(len(mask)):
        expected = slow_bilevel(
            rewards[index].tolist(), values[index].tolist(), mask[index].tolist(), 0.9, discount, 0.8, 0.7
        )
        assert advantages[index].tolist() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(returns, (advantages + values) * mask)


def slow_bilevel(rewards, values, mask, gamma, lam, turn_gamma, turn_lam) -> list[float]:
    """The estimator as its papers write it, one token after the other."""
    turns, run = [], []
    for t, sampled in enumerate([*mask, 0]):
        if sampled:
            run.append(t)
        elif run:
            turns.append(run)
            run = []
    out, after, next_value = [0.0] * len(rewards), 0.0, 0.0
    goals = {}
    for tokens in reversed(turns):
        end = tokens[-1]
        after = rewards[end] + turn_gamma * next_value - values[end] + turn_gamma * turn_lam * after
        next_value = values[end]
        goals[end] = after + values[end]
    for tokens in turns:
        advantage = 0.0
        for t in reversed(tokens):
            if t == tokens[-1]:
                advantage = goals[t] - values[t]
            else:
                advantage = rewards[t] + gamma * values[t + 1] - values[t] + gamma * lam * advantage
            out[t] = advantage
    return out


@fixed
@given(st.integers(0, 10**6), st.lists(st.lists(st.integers(0, 1), min_size=7, max_size=7), min_size=1, max_size=4))
def test_without_discounts_bilevel_is_gae_over_all_tokens(seed, rows):
    mask = torch.tensor([[1, *row] for row in rows]).double()
    rewards, values = tensors(seed, mask, only_ends=True)
    _, plain = gae(rewards, values, mask, 1.0, 1.0)
    _, ours = bilevel_gae(rewards, values, mask, 1.0, 1.0, 1.0, 1.0)
    torch.testing.assert_close(ours * mask, plain * mask)
    _, discounted = bilevel_gae(rewards, values, mask, 1.0, 1.0, 0.5, 1.0)
    if int(turn_ids(mask).max()) > 0:
        assert not torch.allclose(discounted * mask, plain * mask)


def test_turn_grpo_compares_the_same_turn():
    """Rewards to go at turn 1: 3, 1; at turn 2: 2, -. Alone at its turn, the first row keeps 0 there."""
    mask = torch.tensor([[1, 0, 1], [1, 0, 0]]).double()
    rewards = torch.tensor([[1, 0, 2.0], [1, 0, 0]]).double()
    groups = np.array([0, 0])
    advantages, _ = turn_grpo(rewards, mask, groups, norm_by_std=False, turn_gamma=1.0)
    assert advantages.tolist() == [[1, 0, 0], [-1, 0, 0]]
    by_std, _ = turn_grpo(rewards, mask, groups, norm_by_std=True, turn_gamma=1.0)
    assert by_std.tolist() == [pytest.approx([0.5**0.5, 0, 0], abs=1e-5), pytest.approx([-(0.5**0.5), 0, 0], abs=1e-5)]


def test_turn_grpo_of_single_turns_is_grpo():
    from videorl.algorithms.advantages import grpo

    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]).double()
    rewards = torch.tensor([[0, 1.0, 0], [0, 0, 0.5], [2, 0, 0], [0, 2, 0]]).double()
    groups = np.array([0, 0, 1, 1])
    ours, _ = turn_grpo(rewards, mask, groups, norm_by_std=True, turn_gamma=0.9)
    theirs, _ = grpo(rewards, mask, groups, norm_by_std=True)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
