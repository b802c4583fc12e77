"""Policy and critic on FSDP2: any number of ranks, trained tower, LoRA, checkpoints and exports."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from warm_workers import SGD, started, weights

from videorl.data.batch import make_batch
from videorl.data.prompts import PromptStream
from videorl.models.base import open_model
from videorl.models.media import open_source
from videorl.rollout.engine import Engines
from videorl.workers.critic import Critic
from videorl.workers.encoder import Encoders
from videorl.workers.policy import Policy, Reference


@pytest.fixture(scope="module")
def batch(stack):
    """Rollouts of six prompts with made-up advantages; text-only and two-video rows among them."""
    rows = stack.workspace.rows()[:6]
    rows[0]["videos"] = [*rows[0]["videos"], *rows[1]["videos"]]
    rows[1]["videos"] = []
    batch = make_batch(stack.collect(stack.prompts(rows), label="workers"))
    generator = torch.Generator().manual_seed(0)
    shape = batch.response_ids.shape
    return batch.with_(
        old_log_probs=batch.rollout_log_probs,
        advantages=torch.randn(shape, generator=generator),
        returns=torch.randn(shape, generator=generator),
    )


def text_only(stack) -> list:
    """Prompts without videos, for workers whose embeddings have another dtype than the store's."""
    return stack.prompts([row | {"videos": []} for row in stack.workspace.rows()[:3] if row["task"] == "mc"])


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_two_ranks_train_as_one_and_their_checkpoint_loads_on_one(stack, batch, tmp_path):
    """Five SGD steps; the micro-batches, the ranks' loads and even the number of calls differ between the two."""
    config = stack.workspace.config(*SGD, "policy.mini_batches=1", "data.max_prompt_tokens=512")
    one = Policy.trained(stack.cluster, config)
    two_config = config.model_copy(
        update={"policy": config.policy.model_copy(update={"ranks": 2, "micro_batch_tokens": 600})}
    )
    two = Policy.trained(stack.cluster, two_config)
    with started(stack, one, two):
        before = weights(one, tmp_path / "before")
        for _ in range(5):
            metrics = [policy.update(batch) for policy in (one, two)]
        for name in ("policy_loss", "grad_norm", "entropy", "ratio_max"):
            assert metrics[0][name] == pytest.approx(metrics[1][name], rel=1e-3, abs=1e-6)
        after = weights(one, tmp_path / "one")
        assert largest_difference(before, after) > 1e-3
        assert largest_difference(after, weights(two, tmp_path / "two")) <= 1e-6

        (tmp_path / "checkpoint").mkdir()
        two.save(tmp_path / "checkpoint")
        two.update(batch)  # one step further
        one.update(batch)
        one.update(batch)  # two steps further: loading must take all of it back
        one.load(tmp_path / "checkpoint")
        one.update(batch)
        assert largest_difference(weights(one, tmp_path / "resumed"), weights(two, tmp_path / "on")) <= 1e-6


@pytest.fixture(scope="module")
def sharp_model(stack, tmp_path_factory):
    """The stack's model with query and key weights four times as large: a random tiny model hardly looks at positions,
    this one does."""
    folder = tmp_path_factory.mktemp("sharp") / "model"
    shutil.copytree(stack.config.model.path, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")):
            tensors[name] = 4 * tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


LORA = ["model.lora={r: 4, alpha: 8, targets: [q_proj, v_proj, down_proj]}", "policy.optim.lr=0.1"]


@pytest.mark.parametrize(
    ("common", "ways"),
    [
        ([], (["policy.ranks=2"], ["policy.gradient_checkpointing=true"])),
        (LORA, (["policy.ranks=2", "policy.gradient_checkpointing=true"],)),
        ([], (["policy.ranks=2", "policy.sequence_parallel=2"], ["policy.ranks=4", "policy.sequence_parallel=4"])),
        (LORA, (["policy.ranks=4", "policy.sequence_parallel=2", "policy.gradient_checkpointing=true"],)),
    ],
    ids=["shared", "shared with LoRA", "spread", "spread with LoRA"],
)
def test_packed_and_spread_rows_train_as_separate_ones(stack, batch, sharp_model, tmp_path, common, ways):
    """Log-probs, and weights after SGD steps, of rows that share prompts and are spread over ranks, against rows one by
    one on one rank. Prompts have two videos, one or none, and responses differ in length."""
    base = [*SGD, "policy.mini_batches=1", "data.max_prompt_tokens=512", f"model.path={sharp_model}"]
    base += ["policy.optim.max_grad_norm=1e9", "policy.optim.lr=0.01", *common]  # clipping would hide a factor
    plain = ["policy.shared_prompt=false", "policy.micro_batch_tokens=640"]
    configs = [stack.workspace.config(*base, *way) for way in (plain, *ways)]
    policies = [Policy.trained(stack.cluster, config) for config in configs]
    with started(stack, *policies):
        expected = policies[0].compute_log_probs(batch)
        before = weights(policies[0], tmp_path / "before")
        for policy in policies:
            assert (policy.compute_log_probs(batch) - expected).abs().max() <= 1e-5
            for _ in range(2):  # a LoRA's B starts at zero, so its A first moves in the second step
                metrics = policy.update(batch)
            assert metrics["skipped_steps"] == 0
        after = [weights(policy, tmp_path / f"after {index}") for index, policy in enumerate(policies)]
    moved = largest_difference(before, after[0])
    assert moved > 1e-3
    for other in after[1:]:
        assert largest_difference(after[0], other) <= 1e-5 * moved + 1e-7  # the weights' own rounding


def test_the_values_of_a_spread_row_are_those_of_one_rank(stack, batch):
    base = ["algorithm=ppo", "critic=default", "critic.optim.lr=1e-3", "critic.optim.name=sgd",
            "critic.optim.max_grad_norm=1e9", "critic.clip_value=10", "data.max_prompt_tokens=512",
            "cluster.placement=spread"]  # fmt: skip
    configs = [stack.workspace.config(*base, *way) for way in ([], ["policy.ranks=2", "policy.sequence_parallel=2"])]
    critics = [Critic(stack.cluster, config, config.critic) for config in configs]
    with started(stack, *critics):
        for critic in critics:
            for _ in range(3):  # the head starts at zero: only then the backbone learns
                critic.update(batch.with_(values=critic.compute_values(batch)))
        one, spread = (critic.compute_values(batch) for critic in critics)
    assert one.abs().max() > 1e-3
    assert (one - spread).abs().max() <= 1e-5


def test_adamw_moments_survive_a_checkpoint(stack, batch, tmp_path):
    config = stack.workspace.config("data.max_prompt_tokens=512", "cluster.placement=spread")
    policy = Policy.trained(stack.cluster, config)
    with started(stack, policy):
        policy.update(batch)
        (tmp_path / "checkpoint").mkdir()
        policy.save(tmp_path / "checkpoint")
        policy.update(batch)
        straight = weights(policy, tmp_path / "straight")
        policy.load(tmp_path / "checkpoint")
        policy.update(batch)
        assert largest_difference(straight, weights(policy, tmp_path / "resumed")) == 0.0


def test_a_trained_tower_reaches_the_engine(stack, tmp_path):
    """Pixels instead of embeddings: the tower learns, the engine's tower follows, log-probs agree throughout."""
    config = stack.workspace.config(*SGD, "model.train_vision=true")
    model = open_model(config.model)
    source = open_source(config, model)
    encoders = Encoders(stack.cluster, config, source)
    engines, policy = Engines(stack.cluster, config), Policy.trained(stack.cluster, config)
    pixels = replace(
        stack, config=config, model=model, source=source, encoders=encoders, engines=engines, policy=policy
    )
    with started(stack, engines, policy, encoders):
        engines.load_weights(policy.publish(version=0))
        prompts = pixels.prompts(stack.workspace.rows()[:3])
        assert pixels.parity(pixels.collect(prompts)) < 1e-4
        before = weights(policy, tmp_path / "before")
        batch = make_batch(pixels.collect(prompts))
        policy.update(
            batch.with_(old_log_probs=batch.rollout_log_probs, advantages=torch.ones(batch.response_ids.shape))
        )
        after = weights(policy, tmp_path / "after")
        moved = [name for name in after if "visual" in name and not torch.equal(before[name], after[name])]
        assert len(moved) > 10
        engines.load_weights(policy.publish(version=1))
        assert pixels.parity(pixels.collect(prompts, label="after")) < 1e-4


def test_lora_trains_adapters_alone_and_is_merged_for_engine_and_export(stack, batch, tmp_path):
    config = stack.workspace.config(
        *SGD, "data.max_prompt_tokens=512", "model.lora={r: 4, alpha: 8, targets: [q_proj, v_proj, down_proj]}",
        "algorithm=grpo_kl",
    )  # fmt: skip
    policy = Policy.trained(stack.cluster, config)
    reference = Policy.reference(stack.cluster, config, policy)
    assert isinstance(reference, Reference)
    with started(stack, policy):
        base = policy.compute_log_probs(batch)
        before = weights(policy, tmp_path / "before")
        with_reference = batch.with_(ref_log_probs=base)
        for _ in range(2):  # B starts at zero, so A first moves in the second step
            policy.update(with_reference)
        after = weights(policy, tmp_path / "after")
        changed = {name for name in after if not torch.equal(before[name], after[name])}
        assert changed == {
            name
            for name in after
            if "visual" not in name and any(t in name for t in ("q_proj.w", "v_proj.w", "down_proj.w"))
        }
        assert torch.equal(reference.compute_log_probs(batch), base)
        assert (policy.compute_log_probs(batch) - base).abs()[batch.response_mask].max() > 1e-4

        stack.engines.load_weights(policy.publish(version=7))
        groups = stack.collect(stack.prompts(stack.workspace.rows()[:3]), label="lora")
        assert stack.parity(groups, policy) < 1e-4
    stack.engines.load_weights(stack.policy.publish(version=8))


def test_the_critic_learns_the_returns(stack, batch):
    config = stack.workspace.config(
        "algorithm=ppo", "critic=default", "critic.optim.lr=1e-2", "data.max_prompt_tokens=512", "critic.clip_value=10",
        "cluster.placement=spread",
    )  # fmt: skip
    critic = Critic(stack.cluster, config, config.critic)
    with started(stack, critic):
        values = critic.compute_values(batch)
        assert torch.equal(values, torch.zeros_like(values))  # the head starts at zero
        losses = []
        for _ in range(8):
            losses.append(critic.update(batch.with_(values=critic.compute_values(batch)))["value_loss"])
    assert losses[-1] < 0.8 * losses[0]


def test_gradient_checkpointing_changes_nothing(stack, batch, tmp_path):
    results = []
    for checkpointing in ("false", "true"):
        config = stack.workspace.config(
            *SGD, f"policy.gradient_checkpointing={checkpointing}", "data.max_prompt_tokens=512"
        )
        policy = Policy.trained(stack.cluster, config)
        with started(stack, policy):
            policy.update(batch)
            results.append(weights(policy, tmp_path / checkpointing))
    assert largest_difference(*results) <= 1e-6


def test_a_non_finite_gradient_skips_the_step_on_all_ranks(stack, batch, tmp_path):
    config = stack.workspace.config(*SGD, "policy.ranks=2", "policy.mini_batches=1", "data.max_prompt_tokens=512")
    policy = Policy.trained(stack.cluster, config)
    poisoned = batch.need("advantages").clone()
    poisoned[0, 0] = float("inf")
    with started(stack, policy):
        before = weights(policy, tmp_path / "before")
        assert policy.update(batch.with_(advantages=poisoned))["skipped_steps"] == 1
        assert largest_difference(before, weights(policy, tmp_path / "after")) == 0.0
        assert policy.update(batch)["skipped_steps"] == 0


def test_bfloat16_keeps_float32_masters(stack, tmp_path):
    """Mixed precision, offload and checkpointing together; engine and trainer agree to bfloat16's resolution."""
    config = stack.workspace.config(
        "model.dtype=bfloat16",
        "policy.mixed_precision=true",
        "policy.cpu_offload=true",
        "policy.gradient_checkpointing=true",
        "cluster.placement=spread",
    )
    policy = Policy.trained(stack.cluster, config)
    with started(stack, policy):
        (tmp_path / "checkpoint").mkdir()
        policy.save(tmp_path / "checkpoint")
        (shard,) = (tmp_path / "checkpoint").glob("*.safetensors")
        assert {tensor.dtype for name, tensor in load_file(shard).items() if name != "steps"} == {torch.float32}
        assert {tensor.dtype for tensor in weights(policy, tmp_path / "export").values()} == {torch.bfloat16}
        stack.engines.load_weights(policy.publish(version=9))
        batch = make_batch(stack.collect(text_only(stack), label="bfloat16"))
        rounded = policy.compute_log_probs(batch)
        difference = (rounded - batch.need("rollout_log_probs")).abs()[batch.response_mask]
        assert 1e-4 < difference.max() < 0.1  # the engine of this test computes in float32
    stack.engines.load_weights(stack.policy.publish(version=10))


def test_encoders_share_a_long_clip_exactly(stack, tmp_path):
    """32 temporal steps: two encoders take 16 each, and one entry is left."""
    features = []
    for workers in (1, 2):
        config = stack.workspace.config(
            f"encoder.workers={workers}", f"store.dir={tmp_path}/{workers}", "data.sampling.fps=null",
            "data.sampling.num_frames=64", "data.sampling.max_frames=64", "data.max_prompt_tokens=512",
        )  # fmt: skip
        source = open_source(config, stack.model)
        encoders = Encoders(stack.cluster, config, source)
        with started(stack, encoders):
            (prompt,) = PromptStream(stack.workspace.rows()[:1], config.data, stack.model, source, seed=0).all(
                encoders.ensure
            )
            assert encoders.take_counts() == {"decodes": workers, "encoder_calls": workers}
        assert prompt.media[0].grid[0] == 32
        stored = [source.store.get(key) for key in source.store.keys()]  # noqa: SIM118  (a store is no mapping)
        assert len([tensor for tensor in stored if tensor.dtype == torch.float32]) == 1  # the parts are gone
        features.append(source.embeddings(prompt.media[0]).clone())
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=1e-6)
