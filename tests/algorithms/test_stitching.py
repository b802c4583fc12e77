"""Credit over episodes of several rows is that of the episode in one row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.algorithms.advantages import compute_advantages
from videorl.algorithms.stitching import Stitching


def test_rows_are_joined_behind_each_other_with_a_gap():
    stitching = Stitching.of(["a", "b", "a"])
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert stitching.first.tolist() == [0, 1]
    assert stitching.join(rows).tolist() == [[1, 2, 0, 5, 6, 0], [3, 4, 0, 0, 0, 0]]
    assert torch.equal(stitching.split(stitching.join(rows)), rows)


OPTIONS = {"bilevel_gae": {"turn_gamma": 0.9, "turn_lam": 0.8}, "turn_gae": {"turn_gamma": 0.9, "turn_lam": 0.8}}
OPTIONS |= {"turn_grpo": {"turn_gamma": 0.9}, "gae": {}, "grpo": {}, "rloo": {}, "reinforce_plus_plus": {}}


@pytest.mark.parametrize("name", OPTIONS)
@settings(derandomize=True, deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_split_episodes_are_credited_as_whole_ones(make_algorithm, name, seed):
    """Two groups of two episodes of three turns of two tokens: in one row each, or with the last turn in another."""
    rng = torch.Generator().manual_seed(seed)
    algorithm = make_algorithm(advantage=name, gamma=0.95, lam=0.9, advantage_options=OPTIONS[name])
    mask = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1]).bool().repeat(4, 1)
    rewards = torch.randn(4, 8, generator=rng) * mask
    values = torch.randn(4, 8, generator=rng) * mask
    groups = ["p", "p", "q", "q"]
    whole = compute_advantages(
        algorithm, token_rewards=rewards, values=values, response_mask=mask, groups=groups, episodes=list("abcd")
    )

    def split(tensor: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(8, 5, dtype=tensor.dtype)
        rows[0::2], rows[1::2, :2] = tensor[:, :5], tensor[:, 6:]
        return rows

    parts = compute_advantages(
        algorithm, token_rewards=split(rewards), values=split(values), response_mask=split(mask),
        groups=[group for group in groups for _ in range(2)], episodes=list("aabbccdd"),
    )  # fmt: skip
    torch.testing.assert_close(parts.advantages, split(whole.advantages))
    torch.testing.assert_close(parts.returns, split(whole.returns))
