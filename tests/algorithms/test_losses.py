"""Numbers worked by hand, and the split property. Agreement with verl is in test_verl_contract.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.algorithms.losses import (
    LossInputs,
    aggregate_loss,
    compute_policy_loss,
    compute_value_loss,
    merge_metrics,
)

NAN = float("nan")
MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
KL = {"where": "loss", "estimator": "k3", "coef": 0.5}


def one_row(ratios, advantages, **tensors):
    """One row of len(ratios) tokens with old log-prob -2 and a poisoned token behind; the mini-batch is this row."""
    log_probs = torch.tensor([[-2.0 + math.log(ratio) for ratio in ratios] + [NAN]], requires_grad=True)
    inputs = LossInputs(
        log_probs=log_probs,
        old_log_probs=torch.tensor([[-2.0] * len(ratios) + [NAN]]),
        advantages=torch.tensor([[*advantages, NAN]]),
        response_mask=torch.tensor([[1] * len(ratios) + [0]]),
        num_tokens=len(ratios),
        num_sequences=1,
        max_response_tokens=10,
        **{name: torch.tensor([[*values, NAN]]) for name, values in tensors.items()},
    )
    return inputs, log_probs


def run(inputs, log_probs, algorithm):
    output = compute_policy_loss(inputs, algorithm)
    (gradient,) = torch.autograd.grad(output.loss, log_probs, retain_graph=True)
    return output.loss.item(), gradient[0].tolist(), merge_metrics([output.metrics])


def test_vanilla(make_algorithm):
    # bounds 0.8 and 1.28, dual 3:  -1.28 (high), +0.8 (low), +3 (dual), -2.2 (free); sum 0.32
    # only the free token has a gradient: -2.2 / 4
    loss, gradient, metrics = run(*one_row([1.5, 0.5, 4.0, 1.1], [1.0, -1.0, -1.0, 2.0]), make_algorithm())
    assert loss == pytest.approx(0.08, abs=1e-5)
    assert gradient == pytest.approx([0, 0, 0, -0.55, 0], abs=1e-5)
    k3 = [ratio - 1 - math.log(ratio) for ratio in (1.5, 0.5, 4.0, 1.1)]
    expected = {
        "policy_loss": 0.08,
        "clip_fraction": 0.75,
        "clip_fraction_low": 0.25,
        "clip_fraction_high": 0.25,
        "clip_fraction_dual": 0.25,
        "approx_kl": sum(k3) / 4,
        "ratio_mean": 7.1 / 4,
        "ratio_max": 4.0,
    }
    assert metrics == pytest.approx(expected, abs=1e-5)


def test_importance_weights_scale_the_policy_loss_of_each_token(make_algorithm):
    row = one_row([1.1, 1.1], [1.0, 2.0], importance_weights=[0.5, 2.0])
    loss, gradient, _ = run(*row, make_algorithm())
    assert loss == pytest.approx(-(0.55 + 4.4) / 2, abs=1e-5)
    assert gradient == pytest.approx([-0.275, -2.2, 0], abs=1e-5)


def test_gspo_clips_the_sequence_ratio(make_algorithm):
    # exp(mean(log 2, log 8)) = 4
    algorithm = make_algorithm(loss="gspo", loss_agg="seq-mean-token-mean")
    loss, gradient, metrics = run(*one_row([2.0, 8.0], [-1.0, -1.0]), algorithm)
    assert (loss, gradient) == (pytest.approx(4.0, abs=1e-4), pytest.approx([2.0, 2.0, 0], abs=1e-4))
    assert metrics["clip_fraction"] == 0
    loss, gradient, metrics = run(*one_row([2.0, 8.0], [1.0, 1.0]), algorithm)
    assert (loss, gradient) == (pytest.approx(-1.28, abs=1e-5), [0, 0, 0])
    assert metrics["clip_fraction"] == 1


def test_cispo_keeps_the_gradient_of_clipped_tokens(make_algorithm):
    # weights 1.28 and 1; log-probs -2 + ln 2 and -2; A = 1, -1
    loss, gradient, metrics = run(*one_row([2.0, 1.0], [1.0, -1.0]), make_algorithm(loss="cispo"))
    assert loss == pytest.approx((1.28 * (2 - math.log(2)) - 2.0) / 2, abs=1e-5)
    assert gradient == pytest.approx([-0.64, 0.5, 0], abs=1e-5)
    assert metrics["clip_fraction"] == 0.5


def test_kl_and_entropy_are_aggregated_like_the_policy_loss(make_algorithm):
    # on-policy, A = 0: loss = 0.5 * mean(k1 = 1, 0) - 0.1 * mean(entropy) = 0.25 - 0.2, summed over tokens twice that
    row = one_row([1.0, 1.0], [0.0, 0.0], ref_log_probs=[-3.0, -2.0], entropy=[1.0, 3.0])
    kl = {"where": "loss", "estimator": "k1", "coef": 0.5}
    loss, gradient, metrics = run(*row, make_algorithm(kl=kl, entropy_coef=0.1))
    assert loss == pytest.approx(0.05, abs=1e-6)
    assert gradient == pytest.approx([0.25, 0.25, 0], abs=1e-6)
    assert {name: metrics[name] for name in ("policy_loss", "kl", "entropy")} == pytest.approx(
        {"policy_loss": 0.0, "kl": 0.5, "entropy": 2.0}, abs=1e-6
    )
    summed, _, _ = run(*row, make_algorithm(kl=kl, entropy_coef=0.1, loss_agg="seq-mean-token-sum"))
    assert summed == pytest.approx(0.1, abs=1e-6)


def test_kl_in_the_reward_is_not_in_the_loss(make_algorithm):
    row = one_row([1.0], [1.0], ref_log_probs=[-5.0])
    algorithm = make_algorithm(kl={"where": "reward", "estimator": "k1", "coef": 0.5})
    assert run(*row, algorithm)[0] == run(*row, make_algorithm())[0]


@pytest.mark.parametrize(("mode", "expected"), [*zip(MODES, (2.5, 5.0, 3.0, 0.5), strict=True)])
def test_aggregation(mode, expected):
    # rows 1, 2, 3 and 4: 10 / 4; (6 + 4) / 2; (2 + 4) / 2; (6 + 4) / 2 / 10
    loss = aggregate_loss(
        torch.tensor([[1.0, 2.0, 3.0], [4.0, NAN, NAN], [NAN, NAN, NAN]]),
        torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]]),
        mode,
        num_tokens=4,
        num_sequences=2,
        max_response_tokens=10,
    )
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def row_loss(inputs, algorithm):
    """A user's loss: the log-prob of a row's first token on each of its tokens."""
    return inputs.log_probs[:, :1] * inputs.advantages, {"first": inputs.log_probs[:, :1].expand_as(inputs.advantages)}


@pytest.mark.parametrize("loss", ["vanilla", "gspo", "cispo", f"{__name__}:row_loss"])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**16), owners=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_shares_of_any_split_add_up(make_algorithm, assert_split_invariant, loss, mode, seed, owners):
    parts = [[row for row in range(6) if owners[row] == owner] for owner in sorted(set(owners))]
    assert_split_invariant(make_algorithm(loss=loss, loss_agg=mode, kl=KL, entropy_coef=0.01), seed, parts)


def test_value_loss():
    # V 1.0, old 0.5, clip 0.2 -> 0.7; R = 2: max(1, 1.69). V 0.6, inside: 0.36. Half of the mean: 0.5125
    values = torch.tensor([[1.0, NAN, 0.6]], requires_grad=True)
    output = compute_value_loss(
        values=values,
        old_values=torch.tensor([[0.5, NAN, 0.5]]),
        returns=torch.tensor([[2.0, NAN, 0.0]]),
        response_mask=torch.tensor([[1, 0, 1]]),
        num_tokens=2,
        clip_value=0.2,
    )
    assert output.loss.item() == pytest.approx(0.5125, abs=1e-6)
    (gradient,) = torch.autograd.grad(output.loss, values)
    assert gradient[0].tolist() == pytest.approx([0.0, 0.0, 0.3], abs=1e-6)
    expected = {"value_loss": 0.5125, "value_clip_fraction": 0.5, "value_mean": 0.8}
    assert merge_metrics([output.metrics]) == pytest.approx(expected, abs=1e-6)


def test_value_loss_shares_add_up():
    generator = torch.Generator().manual_seed(0)
    values, old_values, returns = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 5, generator=generator) < 0.6

    def share(rows):
        return compute_value_loss(
            values=values[rows],
            old_values=old_values[rows],
            returns=returns[rows],
            response_mask=mask[rows],
            num_tokens=int(mask.sum()),
            clip_value=0.2,
        ).metrics

    assert merge_metrics([share([0, 2]), share([1]), share([3])]) == pytest.approx(
        merge_metrics([share([0, 1, 2, 3])]), abs=1e-6
    )


def test_merging_takes_the_largest_of_a_maximum():
    parts = [{"a": torch.tensor(1.0), "b_max": torch.tensor(-2.0)}, {"a": 0.5, "b_max": -3.0}]
    assert merge_metrics(parts) == {"a": 1.5, "b_max": -2.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl": KL}, "kl.where=loss needs ref_log_probs"),
        ({"entropy_coef": 0.1}, "entropy_coef=0.1 needs entropy"),
        ({"loss": "vanila"}, "algorithm.loss=vanila is not known; did you mean vanilla?"),
        ({"loss_options": {"tau_pos": 2.0}}, "loss_options=.*: vanilla has none"),
    ],
)
def test_what_is_missing_or_wrong_is_named(make_algorithm, changes, message):
    with pytest.raises(ValueError, match=message):
        run(*one_row([1.0], [1.0]), make_algorithm(**changes))


def test_inputs_refuse_unequal_shapes_and_empty_counts():
    tensor = torch.zeros(2, 3)
    good = dict.fromkeys(("log_probs", "old_log_probs", "advantages", "response_mask"), tensor)
    counts = {"num_tokens": 6, "num_sequences": 2, "max_response_tokens": 3}
    with pytest.raises(ValueError, match=r"advantages has shape \(2, 2\), response_mask \(2, 3\)"):
        LossInputs(**good | {"advantages": torch.zeros(2, 2)}, **counts)
    with pytest.raises(ValueError, match="num_tokens=0"):
        LossInputs(**good, **counts | {"num_tokens": 0})
