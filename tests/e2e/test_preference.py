"""Preference training on the real workers: what a step on pairs does to the policy, however its rows are cut."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
import torch
from warm_workers import SGD, started, weights

from videorl.config import load_config
from videorl.data.pair_batch import make_pair_batch
from videorl.data.prompts import PromptStream
from videorl.types import DataError
from videorl.workers.policy import Policy

LOSSES = {"dpo": {"beta": 0.1}, "rrpo": {"beta": 0.1, "alpha": 0.5}}


@pytest.fixture(scope="module")
def pairs(stack):
    stream = PromptStream(stack.workspace.pair_rows(), stack.config.data, stack.model, stack.source, seed=0)
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


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair_file(stack, tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in stack.workspace.pair_rows()))
    return path


def stage(stack, pair_file, run_dir, program="prefer", *more):
    overrides = [override for override in stack.workspace.overrides() if not override.startswith("recipe=")]
    return load_config(
        program,
        [
            "recipe=quickstart_dpo", *overrides, *SGD, f"prefer.path={pair_file}", "policy.mini_batches=1",
            f"prefer.model_path={stack.workspace.folder}/model", "prefer.optim.lr=1.0e-3", "prefer.optim.name=sgd",
            "prefer.steps=4", "prefer.batch_size=3", "rollout.max_response_tokens=64", "rollout.max_model_len=256",
            f"run.dir={run_dir}", "run.save_every=1", "run.eval_every=0", "eval.samples=1", *more,
        ],
    )  # fmt: skip


def learned(run):
    """What a step learned, without clocks and work that stores and caches save."""
    return {
        step: {name: value for name, value in line.items() if name.startswith(("policy/", "eval/accuracy"))}
        for step, line in run.metrics().items()
    }


def test_a_run_that_was_killed_goes_on_against_the_same_reference(
    stack, lent, pair_file, open_run, tmp_path, monkeypatch
):
    from videorl.prefer import prefer

    prefer(stage(stack, pair_file, tmp_path / "whole"))
    whole = learned(open_run(tmp_path / "whole"))
    assert list(whole) == [0, 1, 2, 3, 4]
    assert whole[1]["policy/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert whole[4]["policy/margin"] > whole[2]["policy/margin"] > 0
    assert {"eval/accuracy", "eval/accuracy_greedy"} <= whole[0].keys() & whole[4].keys()

    calls = []

    def killed(policy, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return update(policy, batch)

    update = Policy.prefer
    config = stage(stack, pair_file, tmp_path / "killed")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Policy, "prefer", killed)
        prefer(config)
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "killed" / "reference").rglob("*.safetensors")}
    assert len(kept) == 2  # an epoch of six pairs
    prefer(config)
    assert {
        file.name: file.stat().st_mtime_ns for file in (tmp_path / "killed" / "reference").rglob("*.safetensors")
    } == kept
    (other,) = (tmp_path / "killed" / "reference").iterdir()
    other.rename(other.with_name("of-other-weights"))
    with pytest.raises(DataError, match=r"is not there: prefer.model_path=.* has changed since the run began"):
        prefer(config)
    resumed = learned(open_run(tmp_path / "killed"))
    for step, line in whole.items():
        assert resumed[step] == pytest.approx(line, abs=1e-6), step


def test_a_reward_model_learns_its_pairs_and_its_scorer_says_the_same(stack, lent, pair_file, open_run, tmp_path):
    from videorl.reward_model import fit_reward_model
    from videorl.rewards.result import Sample
    from videorl.rewards.scorers.video_reward_model import VideoRewardModel

    config = stage(
        stack, pair_file, tmp_path / "model", "reward_model", "algorithm=bradley_terry",
        "~algorithm.loss_options.beta", "prefer.steps=30",
        "prefer.batch_size=6", "prefer.optim.name=adamw", "prefer.optim.lr=2.0e-3", f"data.eval_path={pair_file}",
    )  # fmt: skip
    config = config.model_copy(update={"reward_model": config.prefer})
    fit_reward_model(config)
    metrics = open_run(tmp_path / "model").metrics()
    assert metrics[0]["eval/margin"] == 0  # the head starts at zero
    assert metrics[1]["reward_model/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics[30]["eval/pair_accuracy"] == 1 and metrics[30]["eval/margin"] > 1

    scorer = VideoRewardModel(stack.config, path=str(tmp_path / "model" / "export"))
    rows = stack.workspace.pair_rows()
    media = {row["id"]: prompt.media for row, prompt in zip(rows, stack.prompts(rows), strict=True)}
    samples = [
        Sample(id=f"{row['id']}#{side}", response=row[side], row=row, media=media[row["id"]])
        for row in rows
        for side in ("chosen", "rejected")
    ]

    async def ask():
        return [result.parts["logit"] for result in await asyncio.gather(*map(scorer, samples))]

    logits = asyncio.run(ask())
    margins = [chosen - rejected for chosen, rejected in zip(logits[::2], logits[1::2], strict=True)]
    assert sum(margins) / len(margins) == pytest.approx(metrics[30]["eval/margin"], abs=1e-4)


def test_a_scorer_without_a_head_is_refused(stack):
    from videorl.rewards.scorers.video_reward_model import VideoRewardModel

    with pytest.raises(ValueError, match=r"has no value_head\.safetensors; name the export of a reward model"):
        VideoRewardModel(stack.config, path=str(stack.workspace.folder / "model"))
