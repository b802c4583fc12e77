"""The reward model: one number for a whole response, from the critic's head at its end, fitted to pairs."""

from __future__ import annotations

import torch
from torch import nn

from videorl.algorithms.preference import compute_bradley_terry_loss
from videorl.cluster import Cluster, per_rank
from videorl.config import Config
from videorl.data.batch import Batch, at_last_token, pair_rows
from videorl.workers.modules import CriticModule
from videorl.workers.trainer import Counts, Metrics, TrainerGroup, TrainerWorker


class RewardModelWorker(TrainerWorker):
    module: CriticModule

    def __init__(self, config: Config, total_steps: int):
        super().__init__(config, config.policy, config.policy.optim, total_steps)

    def build(self, hf: nn.Module) -> CriticModule:
        return CriticModule(self.model, self.adapted(hf))

    def _forward(self, batch: Batch) -> torch.Tensor:  # [B, T], the score in place of the last token
        ends = at_last_token(batch.response_mask, torch.ones(len(batch))).bool() & batch.response_mask
        inputs = self.inputs(batch.with_(response_mask=ends))
        return self.place(self.module(inputs), inputs, batch.response_ids)

    @per_rank
    def compute_scores(self, batch: Batch) -> torch.Tensor:
        return self.per_token(batch, self._forward)

    @per_rank
    def fit(self, minis: list[tuple[Batch, Counts]]) -> list[Metrics]:
        return [self.train_on(mini, counts, self._loss) for mini, counts in minis]

    def _loss(self, batch: Batch, counts: Counts) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        scores = self._forward(batch).sum(1)  # [B]
        chosen, rejected = pair_rows(batch)
        if not chosen:  # a filler
            return 0.0 * scores.sum(), {}
        options = self.config.algorithm.loss_options
        out = compute_bradley_terry_loss(scores[chosen], scores[rejected], counts.sequences // 2, **options)
        return out.loss, out.metrics


class RewardModel(TrainerGroup):
    """The driver's view of the reward model's ranks, which are as many as the policy would have."""

    def __init__(self, cluster: Cluster, config: Config):
        steps = config.total_steps * config.policy.mini_batches
        super().__init__(cluster, config.policy, cluster.group(RewardModelWorker, config.policy.ranks, config, steps))

    def compute_scores(self, batch: Batch) -> torch.Tensor:
        """One number `[B]` for each response."""
        return self.per_row("compute_scores", batch).sum(1)

    def fit(self, batch: Batch) -> dict[str, float]:
        """Optimiser steps on pairs."""
        return self.per_mini_batch("fit", batch)
