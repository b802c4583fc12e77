"""The two trainable modules, policy and critic, over one backbone: what FSDP shards and a micro-batch runs through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from videorl import contract
from videorl.data.batch import Batch
from videorl.models.base import Grid, VideoModel
from videorl.types import Media, expand_placeholders

if TYPE_CHECKING:
    from videorl.models.media import MediaSource

_LOGIT_ROWS = 4096  # log-probs are computed for so many positions at a time, which bounds the [rows, vocab] buffer


@dataclass(frozen=True)
class Inputs:
    """One micro-batch as tensors. `predictors[i]` is the (flat) position whose hidden state predicts `targets[i]`."""

    token_ids: torch.Tensor  # [B, L]
    position_ids: torch.Tensor  # [3, B, L]
    visual_slots: torch.Tensor  # [V] flat positions in B*L of the prompts' placeholders
    features: list[torch.Tensor]  # per distinct video: embeddings [n, hidden], or patches for a trained tower
    grids: list[Grid]
    feature_of_slot: list[int]  # per video placed in a prompt, in order: index into `features`
    predictors: torch.Tensor  # [N]
    targets: torch.Tensor  # [N]
    owners: torch.Tensor  # [N] (row, column) of the response token, as flat index into [B, T]


def make_inputs(model: VideoModel, source: MediaSource, batch: Batch, device: torch.device) -> Inputs:
    """Expand prompts, compute positions, read features, and verify each row against what its engine saw."""
    sequences, positions, slots, predictors, targets, owners = [], [], [], [], [], []
    distinct: dict[str, Media] = {}
    placed: list[str] = []
    width = max(batch.row_tokens)
    columns = batch.response_ids.shape[1]
    for index, row in enumerate(batch.rows):
        expanded = expand_placeholders(row.token_ids, row.media, model.placeholder_id)
        if row.seen:
            contract.verify(row.id, row.seen, expanded, row.media)
        length = int(batch.lengths[index])
        prompt_ids = torch.tensor(expanded)
        sequences.append(torch.cat([prompt_ids, batch.response_ids[index, :length]]))
        positions.append(model.position_ids(expanded, row.media, length))
        slots.append(torch.nonzero(prompt_ids == model.placeholder_id).flatten() + index * width)
        for item in row.media:
            distinct[item.key] = item
            placed.append(item.key)
        predictors.append(torch.arange(length) + len(expanded) - 1 + index * width)
        targets.append(batch.response_ids[index, :length])
        owners.append(torch.arange(length) + index * columns)
    return Inputs(
        token_ids=nn.utils.rnn.pad_sequence(sequences, batch_first=True).to(device),
        position_ids=nn.utils.rnn.pad_sequence([p.T for p in positions], batch_first=True).permute(2, 0, 1).to(device),
        visual_slots=torch.cat(slots).to(device),
        features=[tensor.to(device) for tensor in source.features(list(distinct.values()))],
        grids=[item.grid for item in distinct.values()],
        feature_of_slot=[list(distinct).index(key) for key in placed],
        predictors=torch.cat(predictors).to(device),
        targets=torch.cat(targets).to(device),
        owners=torch.cat(owners).to(device),
    )


class Backbone(nn.Module):
    """Hidden states at the positions that predict response tokens, and nowhere else."""

    def __init__(self, model: VideoModel, hf: nn.Module):
        super().__init__()
        self.model = model
        self.hf = hf

    def hidden(self, inputs: Inputs) -> torch.Tensor:  # [N, hidden]
        embeds = self.model.embed(self.hf, inputs.token_ids)  # [B, L, hidden]
        features = self._features(inputs)
        if inputs.feature_of_slot:
            placed = torch.cat([features[i] for i in inputs.feature_of_slot]).to(embeds.dtype)
            embeds = embeds.flatten(0, 1).index_copy(0, inputs.visual_slots, placed).view_as(embeds)
        elif features:
            embeds = embeds + 0.0 * features[0].sum()
        hidden = self.model.hidden_states(self.hf, embeds, inputs.position_ids)
        return hidden.flatten(0, 1)[inputs.predictors]

    def _features(self, inputs: Inputs) -> list[torch.Tensor]:
        if not self.model.config.train_vision:
            return inputs.features
        tower = self.model.vision(self.hf)
        if not inputs.features:
            # A text-only micro-batch still runs the trained tower, with weight 0: gradients of one parameter must
            # exist on all ranks or on none, else the ranks' reductions do not match and hang.
            patches, grid = self.model.blank_patches()
            return self.model.encode(tower, [patches], [grid])
        return self.model.encode(tower, inputs.features, inputs.grids)


class PolicyModule(Backbone):
    def forward(self, inputs: Inputs, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies `[N]` of the response tokens, under the distribution the engine samples from.

        That is softmax(logits / temperature) with the banned ids removed. Logits exist for response positions only,
        a chunk at a time, and are recomputed in the backward pass.
        """
        hidden = self.hidden(inputs)
        log_probs, entropies = [], []
        for rows, targets in zip(hidden.split(_LOGIT_ROWS), inputs.targets.split(_LOGIT_ROWS), strict=True):
            chunk = checkpoint(self._chunk, rows, targets, temperature, use_reentrant=False)
            log_probs.append(chunk[0])
            entropies.append(chunk[1])
        return torch.cat(log_probs), torch.cat(entropies)

    def _chunk(self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float):
        logits = self.model.logits(self.hf, hidden).float() / temperature  # [n, vocab]
        banned = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        banned[list(self.model.banned_ids)] = True
        all_log_probs = logits.masked_fill(banned, torch.finfo(torch.float32).min).log_softmax(-1)
        entropy = -(all_log_probs.exp() * all_log_probs).sum(-1)
        return all_log_probs.gather(-1, targets[:, None])[:, 0], entropy


class CriticModule(Backbone):
    """Values of the states before each response token: a linear head on the backbone's hidden state."""

    def __init__(self, model: VideoModel, hf: nn.Module):
        super().__init__(model, hf)
        head, embedding = hf.get_output_embeddings(), hf.get_input_embeddings()  # type: ignore[operator]
        head.weight.requires_grad_(head.weight is embedding.weight)  # no gradient reaches an untied head
        self.value_head = nn.Linear(model.hidden_size, 1, bias=False)
        nn.init.zeros_(self.value_head.weight)  # starts as the constant 0, so that early advantages are the returns

    def forward(self, inputs: Inputs) -> torch.Tensor:  # [N]
        return self.value_head(self.hidden(inputs).to(self.value_head.weight.dtype)).float()[:, 0]
