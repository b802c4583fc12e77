"""The critic: values of the states before each response token, from a backbone of its own."""

from __future__ import annotations

import torch
from torch import nn

from videorl.algorithms.losses import compute_value_loss
from videorl.cluster import Cluster, per_rank
from videorl.config import Config, CriticConfig
from videorl.data.batch import Batch
from videorl.workers.modules import CriticModule
from videorl.workers.trainer import Counts, Metrics, TrainerGroup, TrainerWorker


class CriticWorker(TrainerWorker):
    module: CriticModule

    def __init__(self, config: Config, critic: CriticConfig, total_steps: int):
        self.critic = critic
        super().__init__(config, critic, critic.optim, total_steps)

    def build(self, hf: nn.Module) -> CriticModule:
        return CriticModule(self.model, hf)

    def _forward(self, batch: Batch) -> torch.Tensor:  # [B, T]
        inputs = self.inputs(batch)
        return self.place(self.module(inputs), inputs, batch.response_ids)

    @per_rank
    def compute_values(self, batch: Batch) -> torch.Tensor:
        return self.per_token(batch, self._forward)

    @per_rank
    def update(self, minis: list[tuple[Batch, Counts]]) -> list[Metrics]:
        return [self.train_on(mini, counts, self._value_loss) for mini, counts in minis]

    def _value_loss(self, batch: Batch, counts: Counts) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch = batch.to(self.device)
        out = compute_value_loss(
            values=self._forward(batch),
            old_values=batch.need("values"),
            returns=batch.need("returns"),
            response_mask=batch.response_mask,
            num_tokens=counts.tokens,
            clip_value=self.critic.clip_value,
        )
        return out.loss, out.metrics


class Critic(TrainerGroup):
    """The driver's view of the critic's ranks."""

    def __init__(self, cluster: Cluster, config: Config, critic: CriticConfig):
        steps = config.total_steps * critic.mini_batches * critic.epochs
        super().__init__(cluster, critic, cluster.group(CriticWorker, critic.ranks, config, critic, steps))

    def compute_values(self, batch: Batch) -> torch.Tensor:
        """Values `[B, T]`: column t is the value before response token t is sampled."""
        return self.per_row("compute_values", batch)

    def update(self, batch: Batch) -> dict[str, float]:
        return self.per_mini_batch("update", batch)
