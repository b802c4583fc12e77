"""Numbers worked by hand. Agreement with verl on random tensors is in test_verl_contract.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.algorithms.advantages import compute_advantages
from videorl.algorithms.names import ADVANTAGES, needs_critic, needs_group

NAN = float("nan")
TOLERANCE = {"atol": 1e-5, "rtol": 0}


def outcome(rewards, length=2):
    """Rows of `length` response tokens with the reward on the last, and one poisoned column of padding."""
    token_rewards = torch.zeros(len(rewards), length + 1)
    token_rewards[:, length - 1] = torch.tensor(rewards)
    token_rewards[:, length] = NAN
    mask = torch.ones(len(rewards), length + 1)
    mask[:, length] = 0
    return {"token_rewards": token_rewards, "response_mask": mask}


def rows(values, length=2):
    return torch.tensor([[value] * length + [0.0] for value in values])


def test_grpo(make_algorithm):
    # mean 0.5, std sqrt(4 * 0.25 / 3) = 0.57735; 0.5 / 0.57735 = 0.86602. The second group has mean 2, std sqrt(2).
    result = compute_advantages(
        make_algorithm(), **outcome([1.0, 0.0, 3.0, 0.0, 1.0, 1.0]), groups=["a", "a", "b", "a", "a", "b"]
    )
    expected = rows([0.86602, -0.86602, 0.70711, -0.86602, 0.86602, -0.70711])
    torch.testing.assert_close(result.advantages, expected, **TOLERANCE)
    torch.testing.assert_close(result.returns, expected, **TOLERANCE)
    assert result.advantages.dtype == torch.float32


@pytest.mark.parametrize("changes", [{"norm_by_std": False}, {"advantage": "dr_grpo"}])
def test_grpo_without_std_is_dr_grpo(make_algorithm, changes):
    result = compute_advantages(make_algorithm(**changes), **outcome([1.0, 0.0, 0.0, 3.0]), groups=["a"] * 4)
    torch.testing.assert_close(result.advantages, rows([0.0, -1.0, -1.0, 2.0]), **TOLERANCE)


@pytest.mark.parametrize("name", ["rloo", "rloo_vectorized"])
def test_rloo_compares_with_the_other_rows(make_algorithm, name):
    # others' means: 4/3, 2, 2, 1 + ... for rewards 2, 0, 0, 4
    result = compute_advantages(make_algorithm(advantage=name), **outcome([2.0, 0.0, 0.0, 4.0]), groups=["a"] * 4)
    torch.testing.assert_close(result.advantages, rows([2 / 3, -2.0, -2.0, 10 / 3]), **TOLERANCE)


def test_gae_passes_over_masked_tokens_without_a_discount(make_algorithm):
    # gamma = lam = 0.5. Last response token: 1 - 0.25 = 0.75. First: 0.5 * 0.25 - 0.5 + 0.25 * 0.75 = -0.1875.
    # Whitened, two numbers are -1/sqrt(2) and 1/sqrt(2).
    result = compute_advantages(
        make_algorithm(advantage="gae", gamma=0.5, lam=0.5),
        token_rewards=torch.tensor([[0.0, NAN, NAN, 1.0, NAN]]),
        values=torch.tensor([[0.5, NAN, NAN, 0.25, NAN]]),
        response_mask=torch.tensor([[1, 0, 0, 1, 0]]),
        groups=["a"],
    )
    torch.testing.assert_close(result.returns, torch.tensor([[0.3125, 0.0, 0.0, 1.0, 0.0]]), **TOLERANCE)
    torch.testing.assert_close(result.advantages, torch.tensor([[-0.70711, 0.0, 0.0, 0.70711, 0.0]]), **TOLERANCE)


def test_reinforce_plus_plus_discounts_and_whitens(make_algorithm):
    result = compute_advantages(
        make_algorithm(advantage="reinforce_plus_plus", gamma=0.5), **outcome([1.0, 3.0]), groups=["a", "b"]
    )
    # returns 0.5, 1, 1.5, 3: mean 1.5, variance (1 + 0.25 + 0 + 2.25) / 3 = 3.5 / 3
    torch.testing.assert_close(result.returns, torch.tensor([[0.5, 1.0, 0.0], [1.5, 3.0, 0.0]]), **TOLERANCE)
    scale = (3.5 / 3) ** -0.5
    expected = torch.tensor([[-1.0, -0.5, 0.0], [0.0, 1.5, 0.0]]) * scale
    torch.testing.assert_close(result.advantages, expected, **TOLERANCE)


def test_reinforce_plus_plus_baseline_whitens_over_tokens(make_algorithm):
    # centred rewards 0.5 (one token) and -0.5 (three): mean -0.25, variance (0.5625 + 3 * 0.0625) / 3 = 0.25
    result = compute_advantages(
        make_algorithm(advantage="reinforce_plus_plus_baseline"),
        token_rewards=torch.tensor([[1.0, NAN, NAN], [0.0, 0.0, 0.0]]),
        response_mask=torch.tensor([[1, 0, 0], [1, 1, 1]]),
        groups=["a", "a"],
    )
    torch.testing.assert_close(result.advantages, torch.tensor([[1.5, 0, 0], [-0.5] * 3]), **TOLERANCE)


def test_gdpo_normalises_each_term_by_itself(make_algorithm):
    # Each term is +-1/sqrt(2) after normalising, whatever its scale; the equal term is 0. Sums: 3, -3, -1, 1
    # over sqrt(2), and whitening over two tokens each divides by sqrt(2 * (4.5 + 4.5 + 0.5 + 0.5) / 7).
    result = compute_advantages(
        make_algorithm(advantage="gdpo"),
        **outcome([0.0] * 4),
        groups=["a", "a", "b", "b"],
        term_rewards={
            "accuracy": torch.tensor([100.0, 0.0, 0.0, 100.0]),
            "format": torch.tensor([0.2, 0.1, 0.2, 0.1]),
            "length": torch.tensor([0.3, 0.3, 0.3, 0.3]),
        },
        term_weights={"accuracy": 2.0, "format": 1.0, "length": 5.0},
    )
    expected = rows([3.0, -3.0, -1.0, 1.0]) / 2**0.5 / (20 / 7) ** 0.5
    torch.testing.assert_close(result.advantages, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["grpo", "grpo_vectorized", "dr_grpo", "rloo", "rloo_vectorized"])
def test_equal_rewards_give_exactly_zero(make_algorithm, name):
    # 0.1 + 0.2 + 0 and 0 + 0 + 0.3 differ in the last bit of single precision.
    result = compute_advantages(
        make_algorithm(advantage=name),
        token_rewards=torch.tensor([[0.1, 0.2, 0.0], [0.0, 0.0, 0.3], [0.0, 0.3, 0.0]]),
        response_mask=torch.ones(3, 3),
        groups=["a"] * 3,
    )
    assert (result.advantages == 0).all()


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.integers(-8, 8), min_size=4, max_size=4),
    st.integers(-8, 8),
    st.integers(1, 8),
    st.permutations(range(4)),
)
def test_grpo_ignores_shift_scale_and_order(make_algorithm, rewards, shift, scale, order):
    groups = ["a", "a", "b", "b"]
    before = compute_advantages(make_algorithm(), **outcome(rewards), groups=groups).advantages
    moved = [float(rewards[i] * scale + shift) for i in order]
    after = compute_advantages(make_algorithm(), **outcome(moved), groups=[groups[i] for i in order]).advantages
    torch.testing.assert_close(after, before[list(order)], **TOLERANCE)


@pytest.mark.parametrize("name", [name for name in ADVANTAGES if needs_group(name)])
def test_a_group_of_one_is_refused(make_algorithm, name):
    with pytest.raises(ValueError, match=rf"{name} compares rollouts.*\['b'\].*group_size >= 2"):
        compute_advantages(make_algorithm(advantage=name), **outcome([1.0, 0.0, 1.0]), groups=["a", "a", "b"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gae", "gae needs values, .*configure a critic"),
        ("remax", "remax needs reward_baselines, the reward of one greedy response"),
        ("gdpo", "gdpo needs term_rewards, .*term_weights"),
        ("optimal_token_baseline", "needs old_log_probs, .*sum_pi_squared"),
        ("grpoo", "algorithm.advantage=grpoo is not known; did you mean grpo?"),
    ],
)
def test_what_is_missing_is_named(make_algorithm, name, message):
    with pytest.raises(ValueError, match=message):
        compute_advantages(make_algorithm(advantage=name), **outcome([1.0, 0.0]), groups=["a", "a"])


def test_bad_tensors_are_refused(make_algorithm):
    def compute(rewards, mask, groups=("a", "a")):
        return compute_advantages(
            make_algorithm(), token_rewards=torch.tensor(rewards), response_mask=torch.tensor(mask), groups=groups
        )

    with pytest.raises(ValueError, match=r"token_rewards is not finite on response tokens of rows \[1\]"):
        compute([[0.0], [NAN]], [[1], [1]])
    with pytest.raises(ValueError, match=r"rows \[0\] have no response token"):
        compute([[0.0], [0.0]], [[0], [1]])
    with pytest.raises(ValueError, match=r"token_rewards has shape \(2, 2\), response_mask \(2, 1\)"):
        compute([[0.0, 0.0], [0.0, 0.0]], [[1], [1]])
    with pytest.raises(ValueError, match="groups has 1 entries for 2 rows"):
        compute([[0.0], [0.0]], [[1], [1]], groups=["a"])


def own_estimator(token_level_rewards, response_mask, index, values, gamma=0.0):
    """In verl's words; `index` arrives as integers 0..G-1."""
    return token_level_rewards + torch.from_numpy(index)[:, None] + gamma, values


def test_an_import_string_names_the_users_own_estimator(make_algorithm):
    name = f"{__name__}:own_estimator"
    assert needs_critic(name) and needs_group(name)
    result = compute_advantages(
        make_algorithm(advantage=name, gamma=0.5),
        **outcome([1.0, 2.0, 3.0, 4.0]),
        values=torch.full((4, 3), 7.0),
        groups=["007", "7", "007", "7"],
    )
    expected = torch.tensor([[0.5, 1.5, 0], [1.5, 3.5, 0], [0.5, 3.5, 0], [1.5, 5.5, 0]])
    torch.testing.assert_close(result.advantages, expected, **TOLERANCE)
    torch.testing.assert_close(result.returns, rows([7.0] * 4), **TOLERANCE)


def test_needs():
    assert needs_critic("gae") and not needs_group("gae")
    assert needs_group("dr_grpo") and not needs_critic("dr_grpo")
    assert not needs_group("reinforce_plus_plus")
