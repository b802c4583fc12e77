"""Sharding, optimising and saving one module with FSDP2, on any number of ranks, on CPU (gloo) and GPU (nccl)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from videorl.config import OptimConfig


def init_process_group() -> tuple[torch.device, DeviceMesh]:
    """Join the group described by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""
    cuda = torch.cuda.is_available()
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return device, init_device_mesh(device.type, (dist.get_world_size(),))


def sequence_ranks(mesh: DeviceMesh, size: int) -> DeviceMesh | None:
    """The `size` neighbouring ranks that a packed row is spread over, this one among them; None where it is not."""
    if size == 1:
        return None
    return init_device_mesh(mesh.device_type, (mesh.size() // size, size), mesh_dim_names=("data", "sequence"))[
        "sequence"
    ]


def shard_module(module: nn.Module, layers: Sequence[nn.Module], mesh: DeviceMesh, mixed: bool, offload: bool) -> None:
    """`fully_shard` each layer, then the rest as the root; parameters become fp32 master weights."""
    options: dict[str, Any] = {"mesh": mesh}
    if mixed:
        # Inputs are bfloat16 as they come; a cast would copy the prefix tree for every layer, which is a cache's key.
        options["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    if offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    for layer in layers:
        fully_shard(layer, **options)
    fully_shard(module, **options)
    module.float()


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Linear warm-up over `warmup_steps`, then constant or cosine to 0 at `total_steps`. `step` counts from 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Optimizer:
    """AdamW or SGD over the trainable parameters of a sharded module, with schedule, clipping and non-finite rule."""

    def __init__(self, module: nn.Module, config: OptimConfig, total_steps: int):
        self.module, self.config, self.total_steps = module, config, total_steps
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        if config.name == "adamw":
            self.inner: torch.optim.Optimizer = torch.optim.AdamW(
                self.parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
            )
        else:
            self.inner = torch.optim.SGD(self.parameters, lr=config.lr, weight_decay=config.weight_decay)
        self.steps = 0

    def allocate(self) -> None:
        """Create the moments before the first step, so that a checkpoint has somewhere to go. Changes no weight."""
        for group in self.inner.param_groups:
            group["lr"] = 0.0
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)

    def step(self) -> dict[str, float]:
        """Clip and step. A non-finite gradient skips the step on every rank, because the norm is the same on all."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        rate = learning_rate(self.config, self.steps, self.total_steps)
        skipped = not math.isfinite(grad_norm)
        if not skipped:
            for group in self.inner.param_groups:
                group["lr"] = rate
            self.inner.step()
            self.steps += 1
        self.inner.zero_grad(set_to_none=True)
        return {"grad_norm": 0.0 if skipped else grad_norm, "lr": rate, "skipped_steps": float(skipped)}


def same_number_of_calls(parts: list, mesh: DeviceMesh, device: torch.device) -> Iterator[Any]:
    """Yield `parts`, then None until every rank has had as many: sharded forwards are collective calls."""
    count = torch.tensor(len(parts), device=device)
    dist.all_reduce(count, dist.ReduceOp.MAX, group=mesh.get_group())
    yield from parts
    for _ in range(int(count) - len(parts)):
        yield None


def full_weights(module: nn.Module, keep: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, full tensor on CPU), one parameter at a time, on every rank (gathering is collective)."""
    for name, parameter in module.state_dict().items():
        if keep(name):
            tensor = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            yield name, tensor.detach().cpu()


def save_sharded(folder: Path, module: nn.Module, optimizer: Optimizer) -> None:
    """Write what training changes as a torch DCP checkpoint of safetensors files, readable by any number of ranks.

    Frozen parameters are not written: they are those of `model.path`.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(_state(module, optimizer), storage_writer=writer)
    except CheckpointException as error:  # a BaseException, in which a full disk is buried
        raise OSError(f"checkpoint {folder}: {error}") from error


def load_sharded(folder: Path, module: nn.Module, optimizer: Optimizer) -> None:
    """Load what `save_sharded` wrote, whatever the number of ranks that wrote it."""
    optimizer.allocate()
    state = _state(module, optimizer)
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(folder)))
    for inner in optimizer.inner.state.values():
        for name, tensor in inner.items():
            if name == "step":
                tensor.fill_(float(state["steps"]))
    optimizer.steps = int(state["steps"])


def _state(module: nn.Module, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """Trainable parameters, their moments, and the step count. Tensors only, so that no pickle is ever read back.

    All moments share one step count, which is kept once: DCP's safetensors reader has no 0-dimensional tensors.
    """
    state = {"steps": torch.tensor([optimizer.steps])}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            state[f"model.{name}"] = parameter.detach()
            moments = optimizer.inner.state.get(parameter, {})
            state |= {f"optimizer.{name}.{key}": value for key, value in moments.items() if key != "step"}
    return state
