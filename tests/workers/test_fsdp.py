"""Schedules by hand; the optimiser, sharding and checkpoints of a process that is alone in its group."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from makers import make_optim_config
from torch import nn
from torch.distributed.tensor import DTensor

from videorl.workers.fsdp import (
    Optimizer,
    full_weights,
    init_process_group,
    learning_rate,
    load_sharded,
    same_number_of_calls,
    save_sharded,
    shard_module,
)


@pytest.fixture(scope="module")
def mesh() -> Iterator:
    with pytest.MonkeyPatch.context() as patch:
        # of port 0 the system makes a free one
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
            patch.setenv(name, value)
        device, mesh = init_process_group()
        assert device.type == ("cuda" if torch.cuda.is_available() else "cpu") and mesh.size() == 1
        yield mesh
        dist.destroy_process_group()


def make_module(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def take_step(optimizer: Optimizer, seed: int = 0) -> dict[str, float]:
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.module(inputs).square().sum().backward()
    return optimizer.step()


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in full_weights(module, lambda name: True)}


# --- the schedule ----------------------------------------------------------------------------------------------------


def test_the_warm_up_reaches_the_rate_in_its_last_step():
    config = make_optim_config(lr=0.8, warmup_steps=4)
    assert [learning_rate(config, step, 10) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert learning_rate(make_optim_config(lr=0.8, warmup_steps=0), 0, 10) == 0.8


def test_the_cosine_falls_from_the_rate_to_zero():
    config = make_optim_config(lr=2.0, warmup_steps=2, schedule="cosine")
    rates = [learning_rate(config, step, 6) for step in (0, 1, 2, 3, 4, 5, 6, 9)]
    half = math.sqrt(0.5)  # cos 45 degrees
    assert rates == pytest.approx([1, 2, 2, 1 + half, 1, 1 - half, 0, 0], abs=1e-12)


def test_a_run_that_is_all_warm_up_has_a_rate():
    config = make_optim_config(lr=1.0, warmup_steps=4, schedule="cosine")
    assert [learning_rate(config, step, 4) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


# --- the optimiser ---------------------------------------------------------------------------------------------------


def test_a_gradient_is_clipped_to_its_norm():
    module = nn.Linear(2, 1, bias=False)
    before = module.weight.detach().clone()
    optimizer = Optimizer(module, make_optim_config(lr=0.5, max_grad_norm=1.0), total_steps=10)
    module(torch.tensor([[3.0, 4.0]])).sum().backward()
    assert optimizer.step() == {"grad_norm": pytest.approx(5.0), "lr": 0.5, "skipped_steps": 0.0}
    # torch divides by the norm + 1e-6
    assert torch.allclose(before - module.weight.detach(), 0.5 * torch.tensor([[0.6, 0.8]]), atol=1e-6)
    assert module.weight.grad is None and optimizer.steps == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_skips_the_step(value):
    module = make_module()
    optimizer = Optimizer(module, make_optim_config(name="adamw", warmup_steps=4, lr=0.8), total_steps=10)
    take_step(optimizer)
    before = weights(module)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, value)
    assert optimizer.step() == {"grad_norm": 0.0, "lr": pytest.approx(0.4), "skipped_steps": 1.0}
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(module).items())
    assert optimizer.steps == 1 and take_step(optimizer)["lr"] == pytest.approx(0.4)  # the schedule did not move


def test_only_what_requires_a_gradient_is_stepped():
    module = make_module()
    module[0].requires_grad_(False)
    before = weights(module)
    take_step(Optimizer(module, make_optim_config(weight_decay=0.5), total_steps=10))
    after = weights(module)
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.equal(before["1.weight"], after["1.weight"])


def test_allocating_the_moments_changes_no_weight():
    module = make_module()
    before = weights(module)
    optimizer = Optimizer(module, make_optim_config(name="adamw", weight_decay=0.5), total_steps=10)
    optimizer.allocate()
    assert len(optimizer.inner.state) == 4 and optimizer.steps == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(module).items())


# --- sharded ---------------------------------------------------------------------------------------------------------


def test_sharding_changes_neither_outputs_nor_steps(mesh):
    plain, sharded = make_module(), make_module()
    sharded.bfloat16()
    with torch.no_grad():
        for ours, theirs in zip(plain.parameters(), sharded.parameters(), strict=True):
            ours.copy_(theirs.float())
    shard_module(sharded, list(sharded), mesh, mixed=False, offload=False)
    assert all(isinstance(p, DTensor) and p.dtype == torch.float32 for p in sharded.parameters())
    config = make_optim_config(lr=0.1)
    optimizers = [Optimizer(module, config, total_steps=10) for module in (plain, sharded)]
    for step in range(3):
        ours, theirs = (take_step(optimizer, step) for optimizer in optimizers)
        assert ours == pytest.approx(theirs, rel=1e-5)
    for name, tensor in weights(sharded).items():
        assert not isinstance(tensor, DTensor)
        assert torch.allclose(tensor, plain.state_dict()[name], atol=1e-6, rtol=0)


def test_mixed_precision_computes_in_bfloat16_over_float32_weights(mesh):
    module = make_module()
    shard_module(module, list(module), mesh, mixed=True, offload=False)
    assert module(torch.ones(1, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_full_weights_gives_what_is_kept(mesh):
    module = make_module()
    shard_module(module, list(module), mesh, mixed=False, offload=False)
    assert [name for name, _ in full_weights(module, lambda name: name.endswith("bias"))] == ["0.bias", "1.bias"]


def test_a_rank_alone_fills_up_nothing(mesh):
    assert list(same_number_of_calls([1, 2, 3], mesh, torch.device("cpu"))) == [1, 2, 3]
    assert list(same_number_of_calls([], mesh, torch.device("cpu"))) == []


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_checkpoint_takes_training_up_where_it_was(mesh, tmp_path, name):
    config = make_optim_config(name=name, lr=0.1, schedule="cosine", warmup_steps=2)

    def start(seed: int) -> Optimizer:
        module = make_module(seed)
        shard_module(module, list(module), mesh, mixed=False, offload=False)
        return Optimizer(module, config, total_steps=10)

    whole = start(seed=0)
    for step in range(3):
        take_step(whole, step)
    save_sharded(tmp_path / "checkpoint", whole.module, whole)
    resumed = start(seed=1)
    load_sharded(tmp_path / "checkpoint", resumed.module, resumed)
    assert resumed.steps == 3
    for step in range(3, 6):
        assert take_step(resumed, step) == take_step(whole, step)
    ours, theirs = weights(resumed.module), weights(whole.module)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_holds_only_what_is_trained(mesh, tmp_path):
    module = make_module()
    module[0].requires_grad_(False)
    shard_module(module, list(module), mesh, mixed=False, offload=False)
    optimizer = Optimizer(module, make_optim_config(), total_steps=10)
    save_sharded(tmp_path / "checkpoint", module, optimizer)
    other = make_module(seed=1)
    other[0].requires_grad_(False)
    frozen = other[0].weight.detach().clone()
    shard_module(other, list(other), mesh, mixed=False, offload=False)
    load_sharded(tmp_path / "checkpoint", other, Optimizer(other, make_optim_config(), total_steps=10))
    assert torch.equal(weights(other)["1.weight"], weights(module)["1.weight"])
    assert torch.equal(weights(other)["0.weight"], frozen)


def test_a_checkpoint_that_cannot_be_written_names_its_folder(mesh, tmp_path):
    module = make_module()
    shard_module(module, list(module), mesh, mixed=False, offload=False)
    (tmp_path / "checkpoint").write_text("in the way")
    with pytest.raises(OSError, match="checkpoint"):
        save_sharded(tmp_path / "checkpoint", module, Optimizer(module, make_optim_config(), total_steps=10))
