"""The policy: the model that is trained. The same worker, frozen, is the reference."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from videorl import weight_sync
from videorl.algorithms.losses import LossInputs, compute_policy_loss
from videorl.cluster import Cluster, all_ranks, per_rank
from videorl.config import Config, OptimConfig
from videorl.data.batch import Batch
from videorl.workers.fsdp import full_weights
from videorl.workers.lora import adapters_off, add_adapters, merge_adapters
from videorl.workers.modules import PolicyModule
from videorl.workers.trainer import Counts, Metrics, TrainerGroup, TrainerWorker


class PolicyWorker(TrainerWorker):
    """One rank of the policy, or of the reference where `optim` is None."""

    module: PolicyModule

    def __init__(self, config: Config, optim: OptimConfig | None, total_steps: int):
        super().__init__(config, config.policy, optim, total_steps)

    def build(self, hf: nn.Module) -> PolicyModule:
        if lora := self.config.model.lora:
            hf.requires_grad_(False)
            add_adapters(self.model.language_model(hf), lora)
        return PolicyModule(self.model, hf)

    def _forward(
        self, batch: Batch, blank: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [B, T] log-probs, [B, T] entropies
        inputs = self.inputs(batch)
        if blank:
            inputs = replace(inputs, features=[torch.zeros_like(tensor) for tensor in inputs.features])
        log_probs, entropies = self.module(inputs, self.config.rollout.temperature)
        like = batch.response_ids
        return self.place(log_probs, inputs, like), self.place(entropies, inputs, like)

    @per_rank
    def compute_log_probs(self, batch: Batch) -> torch.Tensor:
        return self.per_token(batch, lambda micro: self._forward(micro)[0])

    @per_rank
    def compute_base_log_probs(self, batch: Batch) -> torch.Tensor:
        """Log-probabilities of the model under the LoRA."""
        with adapters_off(self.module):
            return self.per_token(batch, lambda micro: self._forward(micro)[0])

    @per_rank
    def compute_blank_log_probs(self, batch: Batch) -> torch.Tensor:
        """Log-probabilities with zeros for the features (or patches) of every video."""
        return self.per_token(batch, lambda micro: self._forward(micro, blank=True)[0])

    @per_rank
    def update(self, minis: list[tuple[Batch, Counts]]) -> list[Metrics]:
        return [self.train_on(mini, counts, self._policy_loss) for mini, counts in minis]

    def _policy_loss(self, batch: Batch, counts: Counts) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch = batch.to(self.device)
        log_probs, entropies = self._forward(batch)
        inputs = LossInputs(
            log_probs=log_probs,
            old_log_probs=batch.need("old_log_probs"),
            advantages=batch.need("advantages"),
            response_mask=batch.response_mask,
            importance_weights=batch.importance_weights,
            rollout_log_probs=batch.rollout_log_probs,
            ref_log_probs=batch.ref_log_probs,
            entropy=entropies,
            num_tokens=counts.tokens,
            num_sequences=counts.sequences,
            max_response_tokens=self.config.rollout.max_response_tokens,
        )
        out = compute_policy_loss(inputs, self.config.algorithm)
        return out.loss, out.metrics

    @per_rank
    def fit(self, minis: list[tuple[Batch, Counts]]) -> list[Metrics]:
        """Supervised steps: mean negative log-probability of the masked tokens of each mini-batch."""
        return [self.train_on(mini, counts, self._nll) for mini, counts in minis]

    def _nll(self, batch: Batch, counts: Counts) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch = batch.to(self.device)
        log_probs, _ = self._forward(batch)
        loss = -(log_probs * batch.response_mask).sum() / counts.tokens
        return loss, {"loss": loss.detach()}

    # -- weights -----------------------------------------------------------------------------------------------------

    def _weights(self, trained_only: bool) -> Iterator[tuple[str, torch.Tensor]]:
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
    def publish(self, version: int) -> weight_sync.Weights | None:
        """Put the weights that training changes into the object store; rank 0 answers with their references."""
        weights = self._weights(trained_only=True)
        return weight_sync.publish(weights, version, self.model.dtype, owner=dist.get_rank() == 0)

    @all_ranks
    def export(self, folder: str) -> None:
        """Write a Hugging Face checkpoint (safetensors, tokenizer, processor) that `from_pretrained` and vLLM load."""
        tensors = dict(self._weights(trained_only=False))
        if dist.get_rank() == 0:
            path = Path(folder)
            path.mkdir(parents=True, exist_ok=True)
            state = {name: tensor.to(self.model.dtype) for name, tensor in tensors.items()}
            self.model.shell().save_pretrained(path, state_dict=state)  # type: ignore[operator]
            for file in self.model.path.iterdir():
                if file.suffix in (".json", ".txt", ".jinja") and not (path / file.name).exists():
                    shutil.copy(file, path / file.name)


class Policy(TrainerGroup):
    """The driver's view of the policy's ranks: whole batches in, whole batches out."""

    def __init__(self, cluster: Cluster, config: Config, optim: OptimConfig | None, total_steps: int):
        super().__init__(
            cluster, config.policy, cluster.group(PolicyWorker, config.policy.ranks, config, optim, total_steps)
        )

    @classmethod
    def trained(cls, cluster: Cluster, config: Config) -> Policy:
        return cls(
            cluster, config, config.policy.optim, config.total_steps * config.policy.mini_batches * config.policy.epochs
        )

    @classmethod
    def reference(cls, cluster: Cluster, config: Config, policy: Policy) -> Reference | None:
        """What KL is measured against, if it is: the base model under a LoRA, else a frozen copy."""
        if config.algorithm.kl is None:
            return None
        return (
            Reference(policy, base=True) if config.model.lora else Reference(cls(cluster, config, None, 0), base=False)
        )

    def compute_log_probs(self, batch: Batch) -> torch.Tensor:
        """Log-probabilities `[B, T]` of the response tokens under the current weights; 0 after a response's end."""
        return self.per_row("compute_log_probs", batch)

    def compute_blank_log_probs(self, batch: Batch) -> torch.Tensor:
        """The same `[B, T]` as if every video were blank: a control, which must differ."""
        return self.per_row("compute_blank_log_probs", batch)

    def update(self, batch: Batch) -> dict[str, float]:
        """Optimiser steps on a batch of rollouts: `epochs` passes over `mini_batches` mini-batches."""
        return self.per_mini_batch("update", batch)

    def fit(self, batch: Batch) -> dict[str, float]:
        """Supervised optimiser steps on rows whose responses are given."""
        return self.per_mini_batch("fit", batch)

    def publish(self, version: int) -> weight_sync.Weights:
        """Make the current weights available to engines, as that version."""
        return next(weights for weights in self.group.publish(version) if weights is not None)

    def export(self, folder: Path) -> None:
        self.group.export(str(folder))


class Reference:
    """Frozen log-probabilities: of a second worker group, or of a LoRA policy with its adapters off."""

    def __init__(self, policy: Policy, base: bool):
        self.policy = policy
        self.method = "compute_base_log_probs" if base else "compute_log_probs"

    def ready(self) -> list[Any]:
        return self.policy.ready()

    def compute_log_probs(self, batch: Batch) -> torch.Tensor:
        return self.policy.per_row(self.method, batch)
