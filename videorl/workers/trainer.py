"""What the policy's and the critic's workers have in common: a sharded module, its optimiser and its micro-batches."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from videorl.algorithms.losses import merge_metrics
from videorl.cluster import Cluster, Worker, all_ranks
from videorl.config import Config, OptimConfig, TrainerConfig
from videorl.data.batch import Batch, Row, forward_tokens, micro_batches, mini_batches, pad, shard
from videorl.models.base import VideoModel, open_model
from videorl.models.media import MediaSource, open_source
from videorl.models.sequence_parallel import sum_over
from videorl.workers.fsdp import (
    Optimizer,
    full_weights,
    init_process_group,
    load_sharded,
    same_number_of_calls,
    save_sharded,
    sequence_ranks,
    shard_module,
)
from videorl.workers.lora import add_adapters, merge_adapters
from videorl.workers.modules import HEAD_FILE, HEAD_PREFIX, Backbone, Inputs, make_inputs

_PER_TOKEN = (
    "rollout_log_probs",
    "old_log_probs",
    "ref_log_probs",
    "values",
    "advantages",
    "returns",
    "importance_weights",
)


class Counts(NamedTuple):
    """Of a whole mini-batch, over all ranks: what its loss is divided by."""

    tokens: int
    sequences: int  # of a batch of pairs twice their number


class Metrics(NamedTuple):
    shares: dict[str, float]  # this rank's shares of the mini-batch's metrics
    step: dict[str, float]  # of the optimiser step: the same on every rank


LossFn = Callable[[Batch, Counts], tuple[torch.Tensor, dict[str, torch.Tensor]]]


class TrainerWorker(Worker):
    """One rank. Subclasses say which module they train and what a micro-batch's loss is."""

    def __init__(self, config: Config, trainer: TrainerConfig, optim: OptimConfig | None, total_steps: int):
        super().__init__()
        torch.set_num_threads(config.cluster.threads)
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(config.seed)
        self.config, self.trainer = config, trainer
        self.device, self.mesh = init_process_group()
        self.ranks = sequence_ranks(self.mesh, trainer.sequence_parallel)
        self.model: VideoModel = open_model(config.model)
        if self.model.num_heads % trainer.sequence_parallel:
            raise ValueError(
                f"sequence_parallel: {trainer.sequence_parallel}, must divide the {self.model.num_heads} attention "
                f"heads of {self.model.path}; lower it"
            )
        self.source: MediaSource = open_source(config, self.model)
        hf = self.model.load()
        self.model.vision(hf).requires_grad_(config.model.train_vision and optim is not None)
        self.module = self.build(hf)
        if optim is None:
            self.module.requires_grad_(False)
        elif trainer.gradient_checkpointing:
            hf.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        shard_module(self.module, self.model.layers(hf), self.mesh, trainer.mixed_precision, trainer.cpu_offload)
        self.module.train(optim is not None)
        self.optimizer = Optimizer(self.module, optim, total_steps) if optim else None

    def build(self, hf: nn.Module) -> Backbone:
        raise NotImplementedError

    def adapted(self, hf: nn.Module) -> nn.Module:
        """With the LoRA that the configuration asks for, everything else frozen."""
        if lora := self.config.model.lora:
            hf.requires_grad_(False)
            add_adapters(self.model.language_model(hf), lora)
        return hf

    def per_token(self, batch: Batch, call: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        """`call` on each micro-batch, which gives `[b, T]`; together `[B, T]` in the batch's own order. No gradient."""
        out = torch.zeros(batch.response_ids.shape)
        with torch.no_grad():
            for indices, micro in self._micro_batches(batch):
                result = call(micro)
                if indices:
                    out[indices] = result.cpu()
        return out

    def train_on(self, mini: Batch, counts: Counts, loss: LossFn) -> Metrics:
        """Accumulate gradients over this rank's micro-batches, then one optimiser step.

        `loss` is already divided by counts of the whole mini-batch, over all ranks. FSDP averages gradients over
        ranks where the sum is wanted, hence the factor.
        """
        assert self.optimizer is not None
        shares = []
        for _, micro in self._micro_batches(mini):
            value, metrics = loss(micro, counts)
            (value * dist.get_world_size()).backward()
            shares.append(metrics)
        return Metrics(merge_metrics(shares), self.optimizer.step())

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[list[int], Batch]]:
        """(row indices, micro-batch), as many on every rank; fillers have no indices and a row without weight."""
        parts = micro_batches(batch, self.trainer.micro_batch_tokens, self.trainer.shared_prompt) if len(batch) else []
        for part in same_number_of_calls(parts, self.mesh, self.device):
            yield (part, batch.select(part)) if part is not None else ([], self._filler(batch))

    def _filler(self, like: Batch) -> Batch:
        """One row whose response mask is 0: it takes part in collectives and adds exactly nothing."""
        stop = self.model.stop_ids[0]
        columns = like.response_ids.shape[1]
        shape = (1, columns)
        zeros = {name: torch.zeros(shape) for name in _PER_TOKEN if getattr(like, name) is not None}
        return Batch(
            rows=(Row(id="filler", group="filler", token_ids=(stop,), media=(), seen=""),),
            response_ids=pad([[stop] * columns], torch.long),
            response_mask=torch.zeros(shape, dtype=torch.bool),
            lengths=torch.tensor([1]),
            **zeros,
        )

    def inputs(self, batch: Batch) -> Inputs:
        return make_inputs(self.model, self.source, batch, self.device, self.trainer.shared_prompt, self.ranks)

    def place(self, tokens: torch.Tensor, inputs: Inputs, like: torch.Tensor) -> torch.Tensor:
        """Values `[N]` of the response tokens that this rank predicted, as `[B, T]` with those of all; 0 elsewhere."""
        flat = torch.zeros(like.numel(), dtype=tokens.dtype, device=tokens.device)
        rows = flat.index_copy(0, inputs.owners, tokens).view(like.shape)
        return rows if self.ranks is None else sum_over(rows, self.ranks)

    def ready(self) -> None:
        """Answers once the worker is built."""

    def weights(self, trained_only: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """Full tensors by their Hugging Face names, LoRA merged: W + (alpha / r) B A."""
        skipped = set()
        if trained_only and not self.config.model.train_vision:
            tower = {id(parameter) for parameter in self.model.vision(self.module.hf).parameters()}
            skipped = {name for name, parameter in self.module.named_parameters() if id(parameter) in tower}
        tensors = full_weights(self.module, lambda name: name not in skipped)
        tensors = ((name.removeprefix("hf."), tensor) for name, tensor in tensors)
        lora = self.config.model.lora
        yield from merge_adapters(tensors, lora) if lora else tensors

    @all_ranks
    def export(self, folder: str) -> None:
        """Write a Hugging Face checkpoint (safetensors, tokenizer, processor) that `from_pretrained` and vLLM load; a
        scalar head, which they do not know, into a file of its own."""
        tensors = dict(self.weights(trained_only=False))
        if dist.get_rank() == 0:
            path = Path(folder)
            path.mkdir(parents=True, exist_ok=True)
            head = {name: tensors.pop(name) for name in list(tensors) if name.startswith(HEAD_PREFIX)}
            if head:
                save_file(head, path / HEAD_FILE)
            state = {name: tensor.to(self.model.dtype) for name, tensor in tensors.items()}
            self.model.shell().save_pretrained(path, state_dict=state)  # type: ignore[operator]
            for file in self.model.path.iterdir():
                if file.suffix in (".json", ".txt", ".jinja") and not (path / file.name).exists():
                    shutil.copy(file, path / file.name)

    @all_ranks
    def save(self, folder: str) -> None:
        assert self.optimizer is not None
        save_sharded(Path(folder), self.module, self.optimizer)

    @all_ranks
    def load(self, folder: str) -> None:
        assert self.optimizer is not None
        load_sharded(Path(folder), self.module, self.optimizer)


class TrainerGroup:
    """The driver's view of a trainer's ranks.

    Neighbouring ranks over which a packed row is spread (`sequence_parallel`) get the same rows and answer the same.
    """

    def __init__(self, cluster: Cluster, config: TrainerConfig, group: Any):
        self.cluster, self.config, self.group = cluster, config, group
        self.parts = config.ranks // config.sequence_parallel  # that rows are dealt to

    def ready(self) -> list[Any]:
        return [worker.ready.remote() for worker in self.group.workers]

    def save(self, folder: Path) -> None:
        self.group.save(str(folder))

    def load(self, folder: Path) -> None:
        self.group.load(str(folder))

    def export(self, folder: Path) -> None:
        self.group.export(str(folder))

    def per_row(self, method: str, batch: Batch) -> torch.Tensor:
        """Deal the rows to the ranks, call, and put the results `[b, T]` back in the batch's order."""
        shards = shard(batch, self.parts, self.config.shared_prompt)
        results = self._call(method, [batch.select(indices) for indices in shards])
        out = torch.zeros(batch.response_ids.shape)
        for indices, result in zip(shards, results, strict=True):
            out[indices] = result
        return out

    def _call(self, method: str, work: list[Any]) -> list[Any]:
        """`work[i]` done by the ranks of part i; what the first of them answers."""
        ranks = self.config.sequence_parallel
        shipped = [self.cluster.shipping(part) for part in work for _ in range(ranks)]
        return getattr(self.group, method)(shipped)[::ranks]

    def per_mini_batch(self, method: str, batch: Batch) -> dict[str, float]:
        """`epochs` times: cut into mini-batches, deal each to the ranks, one optimiser step each. Mean metrics.

        `token_ratio`: tokens of all rows, over those that were computed. Below 1 is padding, above 1 is sharing.
        """
        work: list[list[tuple[Batch, Counts]]] = [[] for _ in range(self.parts)]
        tokens = computed = 0
        for mini in mini_batches(batch, self.config.mini_batches) * self.config.epochs:
            counts = Counts(mini.num_tokens, int(mini.response_mask.any(1).sum()))
            for place, indices in enumerate(shard(mini, self.parts, self.config.shared_prompt)):
                part = mini.select(indices)
                work[place].append((part, counts))
                tokens += sum(part.row_tokens)
                computed += forward_tokens(part, self.config.micro_batch_tokens, self.config.shared_prompt)
        results: list[list[Metrics]] = self._call(method, work)
        steps = [merge_metrics(part.shares for part in step) | step[0].step for step in zip(*results, strict=True)]
        metrics = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        return metrics | {"token_ratio": tokens / computed}
