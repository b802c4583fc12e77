"""What is relied on in verl: each test fails when a new verl changes it. No other module here imports verl."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch

from videorl.algorithms import verl
from videorl.algorithms.advantages import compute_advantages
from videorl.algorithms.kl import compute_kl
from videorl.algorithms.losses import aggregate_loss, compute_value_loss
from videorl.algorithms.names import (
    ADVANTAGES,
    FIXED_LOSS_AGG,
    LOSSES,
    SPLIT_DEPENDENT_LOSSES,
    VERL_PARAMETERS,
)

MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
OWN_ADVANTAGES = (
    "grpo",
    "grpo_vectorized",
    "rloo",
    "rloo_vectorized",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "gae",
    "gdpo",
)
OURS_ALONE = {"dr_grpo", "bilevel_gae", "turn_gae", "turn_grpo"}
VERL_ADVANTAGES = sorted(ADVANTAGES.keys() - OURS_ALONE - {*OWN_ADVANTAGES})
OWN_LOSSES = ("vanilla", "gspo", "cispo")
VERL_LOSSES = sorted(set(LOSSES) - set(OWN_LOSSES))


@pytest.fixture(scope="module")
def core():
    return verl.core_algos()


def test_verl_is_imported_on_first_use_and_the_names_need_no_torch():
    code = (
        "import sys; import videorl.algorithms.names; assert 'torch' not in sys.modules; "
        "import videorl.algorithms.advantages, videorl.algorithms.losses; assert 'verl' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_name_tables_are_verls_registries_and_ours(core):
    assert set(ADVANTAGES) == core.ADV_ESTIMATOR_REGISTRY.keys() | OURS_ALONE
    assert set(LOSSES) == core.POLICY_LOSS_REGISTRY.keys()


def test_the_needs_of_estimators_are_their_required_parameters(core):
    common = {"token_rewards", "response_mask", "gamma", "lam", "config"}
    for name, function in core.ADV_ESTIMATOR_REGISTRY.items():
        required = {
            VERL_PARAMETERS.get(parameter.name, parameter.name)
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        }
        ours_alone = {"term_rewards", "term_weights"} if name == "gdpo" else set()
        assert required - common == ADVANTAGES[name] - ours_alone, name


GROUPS = ["b", "a", "b", "a", "c", "c"]


def credit_inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(6, 5, generator=generator) < 0.7
    mask[:, 1] = True
    per_token = dict(
        zip(
            ("token_rewards", "values", "old_log_probs", "importance_weights", "sum_pi_squared"),
            torch.rand(5, 6, 5, generator=generator, dtype=torch.float64),
            strict=True,
        )
    )
    per_token["old_log_probs"] = -per_token["old_log_probs"]
    return per_token, mask, torch.rand(6, generator=generator, dtype=torch.float64)


def call_verl_estimator(core, name, algorithm):
    per_token, mask, baselines = credit_inputs()
    given = {key: tensor * mask for key, tensor in per_token.items()} | {
        "response_mask": mask.double(),
        "groups": np.array([1, 0, 1, 0, 2, 2]),
        "reward_baselines": baselines,
        "gamma": algorithm.gamma,
        "lam": algorithm.lam,
        "norm_by_std": algorithm.norm_by_std,
        "config": core.AlgoConfig(gamma=algorithm.gamma, norm_adv_by_std_in_grpo=algorithm.norm_by_std),
    }
    function = core.get_adv_estimator_fn(name)
    words = {word: VERL_PARAMETERS.get(word, word) for word in inspect.signature(function).parameters}
    advantages, returns = function(**{word: given[ours] for word, ours in words.items() if ours in given})
    return advantages * mask, returns * mask


@pytest.mark.parametrize("norm_by_std", [True, False])
@pytest.mark.parametrize("name", [*OWN_ADVANTAGES, *VERL_ADVANTAGES])
def test_every_estimator_gives_verls_numbers_whatever_is_masked(core, make_algorithm, name, norm_by_std):
    algorithm = make_algorithm(advantage=name, gamma=0.9, lam=0.8, norm_by_std=norm_by_std)
    expected_advantages, expected_returns = call_verl_estimator(core, name, algorithm)
    per_token, mask, baselines = credit_inputs()
    result = compute_advantages(
        algorithm,
        **{key: tensor.masked_fill(~mask, torch.nan) for key, tensor in per_token.items()},
        response_mask=mask,
        groups=GROUPS,
        reward_baselines=baselines,
        term_rewards={"all": (per_token["token_rewards"] * mask).sum(-1)},  # verl's gdpo without separate terms
        term_weights={"all": 1.0},
    )
    # grpo_vectorized of verl works in single precision
    torch.testing.assert_close(result.advantages, expected_advantages, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.returns, expected_returns, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", OWN_LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_our_losses_are_verls(make_algorithm, mini_batches, monkeypatch, name, mode):
    algorithm = make_algorithm(loss=name, loss_agg=mode, clip_low=0.1, clip_high=0.15, clip_dual=1.3)
    batch, parts = mini_batches.random(3), [[4, 0], [2, 1, 5], [3]]
    loss, gradients, metrics = mini_batches.loss_and_gradients(batch, parts, algorithm)
    monkeypatch.setattr("videorl.algorithms.losses._TOKEN_LOSSES", {})
    verl_loss, verl_gradients, verl_metrics = mini_batches.loss_and_gradients(batch, parts, algorithm)
    # verl adds 1e-8 to the length of a row
    assert loss == pytest.approx(verl_loss, abs=1e-7)
    torch.testing.assert_close(gradients, verl_gradients, atol=1e-7, rtol=0)
    # verl reports the tokens at the dual bound apart from the others
    ours = metrics["clip_fraction"] - metrics.get("clip_fraction_dual", 0.0)
    assert ours == pytest.approx(verl_metrics["clip_fraction"], abs=1e-6)


def options(name):
    return {"dro_beta": 0.5} if name == "dro" else {"tau_neg": 2.0} if name == "sapo" else {}


@pytest.mark.parametrize("name", sorted(set(VERL_LOSSES) - SPLIT_DEPENDENT_LOSSES))
@pytest.mark.parametrize("mode", MODES)
def test_verls_losses_are_shares_of_the_mini_batch(make_algorithm, assert_split_invariant, name, mode):
    algorithm = make_algorithm(loss=name, loss_agg=FIXED_LOSS_AGG.get(name, mode), loss_options=options(name))
    for seed, parts in enumerate([[[0, 3], [1, 2, 4], [5]], [[5, 4], [3], [2, 0], [1]]]):
        assert_split_invariant(algorithm, seed, parts)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("clip_cov", {"clip_cov_ratio": 0.5, "clip_cov_lb": -9.0, "clip_cov_ub": 9.0}), ("kl_cov", {"kl_cov_ratio": 0.3})],
)
def test_the_split_dependent_losses_are(make_algorithm, mini_batches, name, settings):
    torch.manual_seed(0)
    algorithm, batch = make_algorithm(loss=name, loss_options=settings), mini_batches.random(0)
    whole, gradients, _ = mini_batches.loss_and_gradients(batch, [[0, 1, 2, 3, 4, 5]], algorithm)
    split, _, _ = mini_batches.loss_and_gradients(batch, [[0, 3], [1, 2, 4, 5]], algorithm)
    assert name in SPLIT_DEPENDENT_LOSSES
    assert abs(whole - split) > 1e-3
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_options_reach_verls_losses(make_algorithm, mini_batches):
    def loss(name, **settings):
        algorithm = make_algorithm(loss=name, loss_agg="seq-mean-token-mean", loss_options=settings)
        return mini_batches.loss_and_gradients(mini_batches.random(0), [[0, 1, 2, 3, 4, 5]], algorithm)[0]

    assert loss("sapo", tau_neg=3.0) != loss("sapo")
    assert loss("dro", dro_beta=1.0) != loss("dro", dro_beta=2.0)
    assert loss("bypass_mode", rollout_correction={"loss_type": "reinforce"}) != loss("bypass_mode")
    with pytest.raises(ValueError, match=r"loss=dro: .*dro_beta must be a positive value.*loss_options=\{\}"):
        loss("dro")
    with pytest.raises(ValueError, match=r"loss_options=dro_bta is not known; did you mean dro_beta\?"):
        loss("dro", dro_bta=1.0)


def test_bypass_mode_takes_the_engines_log_probs(make_algorithm, mini_batches):
    batch = mini_batches.random(0)
    everything = [[0, 1, 2, 3, 4, 5]]
    bypass, _, _ = mini_batches.loss_and_gradients(batch, everything, make_algorithm(loss="bypass_mode"))
    batch.tensors["old_log_probs"] = batch.tensors["rollout_log_probs"]
    del batch.tensors["importance_weights"]
    vanilla, _, _ = mini_batches.loss_and_gradients(batch, everything, make_algorithm())
    assert bypass == pytest.approx(vanilla, abs=1e-9)
    del batch.tensors["rollout_log_probs"]
    with pytest.raises(ValueError, match="bypass_mode needs rollout_log_probs"):
        mini_batches.loss_and_gradients(batch, everything, make_algorithm(loss="bypass_mode"))


@pytest.mark.parametrize("name", FIXED_LOSS_AGG)
def test_a_fixed_aggregation_cannot_be_changed(make_algorithm, mini_batches, name):
    with pytest.raises(ValueError, match=f"{name} is defined on per-sequence means; set algorithm.loss_agg="):
        mini_batches.loss_and_gradients(mini_batches.random(0), [[0]], make_algorithm(loss=name))


@pytest.mark.parametrize("mode", MODES)
def test_aggregation_is_verls(core, mode):
    generator = torch.Generator().manual_seed(0)
    losses, mask = torch.randn(4, 6, generator=generator), torch.rand(4, 6, generator=generator) < 0.5
    counts = {"num_tokens": 31, "num_sequences": 9, "max_response_tokens": 8}
    expected = core.agg_loss(
        losses, mask.float(), mode, dp_size=1, batch_num_tokens=31, global_batch_size=9, loss_scale_factor=8
    )
    torch.testing.assert_close(aggregate_loss(losses, mask, mode, **counts), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_is_verls(core, estimator):
    log_probs, ref_log_probs = -torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = core.kl_penalty(log_probs, ref_log_probs, estimator)
    torch.testing.assert_close(compute_kl(log_probs, ref_log_probs, estimator), expected, atol=1e-6, rtol=0)


def test_value_loss_is_verls(core):
    generator = torch.Generator().manual_seed(0)
    values, old_values, returns = torch.randn(3, 4, 6, generator=generator)
    mask = torch.rand(4, 6, generator=generator) < 0.5
    output = compute_value_loss(
        values=values, old_values=old_values, returns=returns, response_mask=mask, num_tokens=31, clip_value=0.3
    )
    expected, _ = core.compute_value_loss(values, returns, old_values, mask.float(), 0.3, batch_num_tokens=31)
    torch.testing.assert_close(output.loss, expected, atol=1e-6, rtol=0)
