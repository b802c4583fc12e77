"""Preference training on the real workers: what a step on pairs does to the policy, however its rows are cut."""

from __future__ import annotations

import math
import random

import pytest
import torch
from warm_workers import SGD, started, weights

from videorl.data.pair_batch import make_pair_batch
from videorl.data.phrases import align_phrases
from videorl.data.prompts import PromptStream
from videorl.data.synthetic import draw_example, draw_response
from videorl.workers.policy import Policy

LOSSES = {"dpo": {"beta": 0.1}, "rrpo": {"beta": 0.1, "alpha": 0.5}}


def pair_rows(stack):
    """Rows with a right and a wrong response of unequal length."""
    rng = random.Random(0)
    rows = stack.workspace.rows()[:6]
    for row in rows:
        kind = row["data_source"].removeprefix("synthetic-")
        row["chosen"] = draw_response(draw_example(kind, rng), 0.0, rng)
        row["rejected"] = row["chosen"].replace("<think>", "<think>red ")[: rng.choice([-9, -1])]
        row["phrases"] = align_phrases(row["chosen"], row["rejected"])
    return rows


@pytest.fixture(scope="module")
def pairs(stack):
    stream = PromptStream(pair_rows(stack), stack.config.data, stack.model, stack.source, seed=0)
    return make_pair_batch(stack.model, stream.all(stack.encoders.ensure), 64)


def policy_for(stack, loss, *overrides):
    """It is told the loss; three steps on all pairs."""
    options = ", ".join(f"{name}: {value}" for name, value in LOSSES[loss].items())
    config = stack.workspace.config(
        *SGD, f"algorithm={loss}", f"algorithm.loss_options={{{options}}}", "total_steps=3",
        "rollout.max_response_tokens=64", "rollout.max_model_len=256", *overrides,
    )  # fmt: skip
    return Policy.trained(stack.cluster, config)


def train(policy, batch, steps):
    batch = batch.with_(ref_log_probs=policy.compute_log_probs(batch))
    return [policy.prefer(batch) for _ in range(steps)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("lora", ["null", "{r: 4, alpha: 8, targets: [q_proj, v_proj]}"], ids=["full", "lora"])
def test_it_starts_at_the_reference_and_leaves_it_for_the_chosen(stack, pairs, loss, lora):
    policy = policy_for(stack, loss, f"model.lora={lora}", "policy.mini_batches=1", "policy.optim.lr=0.01")
    with started(stack, policy):
        first, second, third = train(policy, pairs, 3)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert 0 < second["margin"] < third["margin"]
    if loss == "rrpo":
        assert first["kl"] == pytest.approx(0, abs=1e-6)
        assert second["kl"] > 0


@pytest.fixture(scope="module")
def whole(stack, pairs, tmp_path_factory):
    return {loss: after_two_steps(stack, pairs, loss, tmp_path_factory.mktemp(loss)) for loss in LOSSES}


def after_two_steps(stack, pairs, loss, folder, *overrides):
    policy = policy_for(stack, loss, "policy.mini_batches=1", *overrides)
    with started(stack, policy):
        metrics = train(policy, pairs, 2)[-1]
        return weights(policy, folder), metrics


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "overrides",
    [("policy.micro_batch_tokens=300",), ("policy.shared_prompt=false", "policy.micro_batch_tokens=600"),
     ("policy.ranks=2",)],
    ids=["small", "plain", "two ranks"],
)  # fmt: skip
def test_the_cut_of_a_batch_changes_nothing(stack, pairs, whole, loss, overrides, tmp_path):
    expected, metrics = whole[loss]
    found, others = after_two_steps(stack, pairs, loss, tmp_path, *overrides)
    for name, tensor in expected.items():
        assert (tensor - found[name]).abs().max() <= 1e-6, name
    assert {name: others[name] for name in metrics if name != "token_ratio"} == pytest.approx(
        {name: value for name, value in metrics.items() if name != "token_ratio"}, abs=1e-4
    )


def test_the_gradient_is_that_of_the_formula(stack, pairs):
    """At the reference the loss is -log sigmoid(0) and its gradient that of -beta / 2 * (chosen - rejected) log-probs:
    a step of SGD of length e raises the mean difference by e * |gradient|² to first order."""
    policy = policy_for(
        stack, "dpo", "policy.mini_batches=1", "policy.optim.lr=1.0e-3", "policy.optim.max_grad_norm=1.0e9"
    )
    with started(stack, policy):
        before, after = train(policy, pairs, 2)
    gained = after["margin"] - before["margin"]  # = beta * (difference of the log-probs)
    # loss' = -1/2 * margin': |gradient of the loss|² * lr = 1/2 * gained
    assert gained / 2 == pytest.approx(1e-3 * before["grad_norm"] ** 2, rel=0.02)
    assert torch.isfinite(torch.tensor(list(after.values()))).all()
