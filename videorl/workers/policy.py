"""The policy: the model that is trained. The same worker, frozen, is the reference."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method

from videorl import weight_sync
from videorl.algorithms.losses import LossInputs, compute_policy_loss
from videorl.algorithms.names import TOKEN_KL_LOSSES
from videorl.algorithms.preference import Pairs, compute_preference_loss
from videorl.cluster import Cluster, all_ranks, per_rank
from videorl.config import Config, OptimConfig
from videorl.data.batch import Batch, pair_rows
from videorl.workers.fsdp import shard_module
from videorl.workers.lora import adapters_off
from videorl.workers.modules import PolicyModule
from videorl.workers.trainer import Counts, Metrics, TrainerGroup, TrainerWorker


class PolicyWorker(TrainerWorker):
    """One rank of the policy, or of the reference where `optim` is None."""

    module: PolicyModule

    def __init__(self, config: Config, optim: OptimConfig | None, total_steps: int):
        super().__init__(config, config.policy, optim, total_steps)
        self.frozen: PolicyModule | None = None  # for a loss that needs the reference's whole distribution
        if optim and config.algorithm.loss in TOKEN_KL_LOSSES:
            self.frozen = self.module if config.model.lora else self._frozen_copy()
            register_fsdp_forward_method(self.frozen, "compute_distributions")

    def _frozen_copy(self) -> PolicyModule:
        """The model as it was before training."""
        hf = self.model.load()
        module = PolicyModule(self.model, hf).requires_grad_(False)
        shard_module(module, self.model.layers(hf), self.mesh, self.trainer.mixed_precision, self.trainer.cpu_offload)
        return module.eval()

    def build(self, hf: nn.Module) -> PolicyModule:
        return PolicyModule(self.model, self.adapted(hf))

    def _forward(
        self, batch: Batch, blank: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [B, T] log-probs, [B, T] entropies
        inputs = self.inputs(batch)
        if blank:
            inputs = replace(inputs, features=[torch.zeros_like(tensor) for tensor in inputs.features])
        stats = self.module(inputs, self.config.rollout.temperature)
        like = batch.response_ids
        return self.place(stats.log_probs, inputs, like), self.place(stats.entropies, inputs, like)

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

    @per_rank
    def prefer(self, minis: list[tuple[Batch, Counts]]) -> list[Metrics]:
        """Steps on pairs: `algorithm.loss`, a mean over the pairs of each mini-batch."""
        return [self.train_on(mini, counts, self._preference_loss) for mini, counts in minis]

    def _preference_loss(self, batch: Batch, counts: Counts) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch = batch.to(self.device)
        inputs, temperature = self.inputs(batch), self.config.rollout.temperature
        reference = None
        if self.frozen is not None:
            with adapters_off(self.frozen) if self.config.model.lora else nullcontext():
                reference = self.frozen.compute_distributions(inputs, temperature)
        stats = self.module(inputs, temperature, reference)
        log_probs = self.place(stats.log_probs, inputs, batch.response_ids)
        chosen, rejected = pair_rows(batch)
        if not chosen:  # a filler
            return 0.0 * log_probs.sum(), {}
        ratios = log_probs - batch.need("ref_log_probs")
        phrases, token_kl = batch.phrases, None
        if stats.kl is not None:
            token_kl = self.place(stats.kl, inputs, batch.response_ids)[chosen]
        pairs = Pairs(
            chosen_log_ratios=ratios[chosen],
            rejected_log_ratios=ratios[rejected],
            chosen_mask=batch.response_mask[chosen],
            rejected_mask=batch.response_mask[rejected],
            chosen_phrases=None if phrases is None else phrases[chosen],
            rejected_phrases=None if phrases is None else phrases[rejected],
            token_kl=token_kl,
        )
        algorithm = self.config.algorithm
        out = compute_preference_loss(algorithm.loss, algorithm.loss_options, pairs, counts.sequences // 2)
        return out.loss, out.metrics

    @all_ranks
    def publish(self, version: int) -> weight_sync.Weights | None:
        """Put the weights that training changes into the object store; rank 0 answers with their references."""
        weights = self.weights(trained_only=True)
        return weight_sync.publish(weights, version, self.model.dtype, owner=dist.get_rank() == 0)


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

    def prefer(self, batch: Batch) -> dict[str, float]:
        """Optimiser steps on pairs, with `ref_log_probs`."""
        return self.per_mini_batch("prefer", batch)

    def publish(self, version: int) -> weight_sync.Weights:
        """Make the current weights available to engines, as that version."""
        return next(weights for weights in self.group.publish(version) if weights is not None)


class Reference:
    """Frozen log-probabilities: of a second worker group, or of a LoRA policy with its adapters off."""

    def __init__(self, policy: Policy, base: bool):
        self.policy = policy
        self.method = "compute_base_log_probs" if base else "compute_log_probs"

    def ready(self) -> list[Any]:
        return self.policy.ready()

    def compute_log_probs(self, batch: Batch) -> torch.Tensor:
        return self.policy.per_row(self.method, batch)
