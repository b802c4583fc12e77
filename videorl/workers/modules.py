"""The two trainable modules, policy and critic, over one backbone: what FSDP shards and a micro-batch runs through."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from videorl import contract
from videorl.data.batch import Batch, Row
from videorl.models.base import Grid, VideoModel
from videorl.models.prefix_tree import PrefixTree, build_prefix_tree
from videorl.models.sequence_parallel import stretch
from videorl.types import expand_placeholders

if TYPE_CHECKING:
    from videorl.models.media import MediaSource

_LOGIT_ROWS = 4096  # log-probs are computed for so many positions at a time, which bounds the [rows, vocab] buffer


@dataclass(frozen=True)
class Inputs:
    """One micro-batch as tensors: padded rows, or all of them in one row along a prefix tree (then B is 1).

    With `ranks` they are this rank's stretch of that row, and the response tokens are those that it predicts.

    `predictors[i]` is the (flat) position whose hidden state predicts `targets[i]`.
    """

    token_ids: torch.Tensor  # [B, L]
    position_ids: torch.Tensor  # [3, B, L]
    visual_slots: torch.Tensor  # [V] flat positions in B*L of the placeholders
    visual_rows: torch.Tensor  # [V] the row of all features, one after another, that each of them takes
    features: list[torch.Tensor]  # per distinct video: embeddings [n, hidden], or patches for the module's own tower;
    patches: bool  #                with `ranks`, one tensor of the embeddings in the stretch
    grids: list[Grid]  # of the distinct videos
    predictors: torch.Tensor  # [N]
    targets: torch.Tensor  # [N]
    owners: torch.Tensor  # [N] (row, column) of the response token, as flat index into [B, T]
    tree: PrefixTree | None
    ranks: DeviceMesh | None


# What a token is to the language model, as the columns of a table
_ID, _POSITION, _VISUAL = 0, slice(1, 4), 4  # its visual feature is given by row, -1 where it is text


def make_inputs(
    model: VideoModel,
    source: MediaSource,
    batch: Batch,
    device: torch.device,
    shared: bool,
    ranks: DeviceMesh | None = None,
) -> Inputs:
    """Expand prompts, compute positions, read features, and verify each row against what its engine saw.

    `shared`: prefixes that rows have in common are put into the forward once. `ranks`, which needs it: those that the
    packed row is spread over.
    """
    distinct = {item.key: item for row in batch.rows for item in (*row.media, *row.later)}
    sizes = [item.num_tokens for item in distinct.values()]
    first_row = dict(zip(distinct, itertools.accumulate(sizes, initial=0), strict=False))
    responses = [ids[:length] for ids, length in zip(batch.response_ids.cpu(), batch.lengths.tolist(), strict=True)]
    laid_out = [_lay_out(model, row, response, first_row) for row, response in zip(batch.rows, responses, strict=True)]
    tables = [table for table, _ in laid_out]
    if shared:
        tree = build_prefix_tree([table.numpy() for table in tables])
        paths, shape = tree.paths, (1, tree.num_tokens + (-tree.num_tokens) % (ranks.size() if ranks else 1))
    else:
        tree, shape = None, (len(tables), max(map(len, tables)))
        paths = [torch.arange(len(table)) + index * shape[1] for index, table in enumerate(tables)]
    packed = torch.zeros(math.prod(shape), 5, dtype=torch.long)
    packed[:, _VISUAL] = -1
    for path, table in zip(paths, tables, strict=True):
        packed[path] = table
    for row, path in zip(batch.rows, paths, strict=True):  # as they stand now, wherever they came from
        if row.seen:
            placed = packed[path].numpy()
            contract.verify(row.id, row.seen, placed[:, _ID], placed[:, _POSITION].T, (*row.media, *row.later))

    sampled = batch.response_mask.cpu().bool()
    predictors = torch.cat(
        [path[before[mask[: len(before)]]] for path, (_, before), mask in zip(paths, laid_out, sampled, strict=True)]
    )
    owners = torch.nonzero(sampled.flatten()).flatten()
    here = slice(*stretch(len(packed), ranks)) if ranks else slice(0, len(packed))
    predicted = (predictors >= here.start) & (predictors < here.stop)
    packed = packed[here]
    visual_slots = torch.nonzero(packed[:, _VISUAL] >= 0).flatten()
    visual_rows = packed[visual_slots, _VISUAL]
    features = source.features(list(distinct.values()))
    if ranks and features and not source.pixels:  # those of the stretch alone go to the device
        features, visual_rows = [torch.cat(features)[visual_rows]], torch.arange(len(visual_rows))
    return Inputs(
        token_ids=packed[:, _ID].view(shape[0], -1).to(device),
        position_ids=packed[:, _POSITION].T.reshape(3, shape[0], -1).to(device),
        visual_slots=visual_slots.to(device),
        visual_rows=visual_rows.to(device),
        features=[tensor.to(device) for tensor in features],
        patches=source.pixels,
        grids=[item.grid for item in distinct.values()],
        predictors=(predictors[predicted] - here.start).to(device),
        targets=batch.response_ids.cpu().flatten()[owners[predicted]].to(device),
        owners=owners[predicted].to(device),
        tree=tree,
        ranks=ranks,
    )


def _lay_out(
    model: VideoModel, row: Row, response: torch.Tensor, first_row: Mapping[str, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[L, 5]`: id, position (time, height, width) and visual feature of each token of a row, videos expanded; and
    `[R]`: for each response token the place of the token before it, which predicts it."""
    media = (*row.media, *row.later)
    ids = torch.tensor([*row.token_ids, *response.tolist()])
    expanded = expand_placeholders(ids.tolist(), media, model.placeholder_id)
    table = torch.full((len(expanded), 5), -1)
    table[:, _ID] = torch.tensor(expanded)
    table[:, _POSITION] = model.position_ids(expanded, media, 0).T
    lengths = torch.ones(len(ids), dtype=torch.long)
    if media:
        visual = [torch.arange(item.num_tokens) + first_row[item.key] for item in media]
        placeholders = torch.nonzero(table[:, _ID] == model.placeholder_id).flatten()
        table[placeholders, _VISUAL] = torch.cat(visual)
        lengths[ids == model.placeholder_id] = torch.tensor([item.num_tokens for item in media])
    return table, (lengths.cumsum(0) - lengths)[len(row.token_ids) :] - 1


class Backbone(nn.Module):
    """Hidden states at the positions that predict response tokens, and nowhere else."""

    def __init__(self, model: VideoModel, hf: nn.Module):
        super().__init__()
        self.model = model
        self.hf = hf

    def hidden(self, inputs: Inputs) -> torch.Tensor:  # [N, hidden]
        embeds = self.model.embed(self.hf, inputs.token_ids)  # [B, L, hidden]
        features = self._features(inputs)
        if len(inputs.visual_slots):
            placed = torch.cat(features).to(embeds.dtype)[inputs.visual_rows]
            embeds = embeds.flatten(0, 1).index_copy(0, inputs.visual_slots, placed).view_as(embeds)
        elif features:
            embeds = embeds + 0.0 * features[0].sum()
        hidden = self.model.hidden_states(self.hf, embeds, inputs.position_ids, inputs.tree, inputs.ranks)
        return hidden.flatten(0, 1)[inputs.predictors]

    def _features(self, inputs: Inputs) -> list[torch.Tensor]:
        if not inputs.patches:
            return inputs.features
        tower = self.model.vision(self.hf)
        if not self.model.config.train_vision:
            with torch.no_grad():
                return self.model.encode(tower, inputs.features, inputs.grids) if inputs.features else []
        if not inputs.features:
            # A text-only micro-batch still runs the trained tower, with weight 0: gradients of one parameter must
            # exist on all ranks or on none, else the ranks' reductions do not match and hang.
            patches, grid = self.model.blank_patches()
            return self.model.encode(tower, [patches], [grid])
        return self.model.encode(tower, inputs.features, inputs.grids)


class TokenStats(NamedTuple):
    """Of the response tokens, under the distribution the engine samples from. `[N]` each."""

    log_probs: torch.Tensor
    entropies: torch.Tensor
    kl: torch.Tensor | None  # KL(reference || policy) of the whole distribution, where a reference was given


class PolicyModule(Backbone):
    def forward(self, inputs: Inputs, temperature: float, reference: torch.Tensor | None = None) -> TokenStats:
        """What the policy thinks of the response tokens: softmax(logits / temperature) with the banned ids removed.

        `reference`: log-probabilities `[N, vocab]` of another model, from `compute_distributions`. Logits exist for
        response positions only, a chunk at a time, and are recomputed in the backward pass.
        """
        hidden = self.hidden(inputs)
        starts = range(0, max(1, len(hidden)), _LOGIT_ROWS)
        chunks = []
        for rows in (slice(start, start + _LOGIT_ROWS) for start in starts):
            other = None if reference is None else reference[rows]
            chunks.append(
                checkpoint(self._chunk, hidden[rows], inputs.targets[rows], temperature, other, use_reentrant=False)
            )
        log_probs, entropies, kl = zip(*chunks, strict=True)
        return TokenStats(torch.cat(log_probs), torch.cat(entropies), None if reference is None else torch.cat(kl))

    def _chunk(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, reference: torch.Tensor | None
    ) -> TokenStats:
        all_log_probs = self._log_softmax(hidden, temperature)  # [n, vocab]
        entropy = -(all_log_probs.exp() * all_log_probs).sum(-1)
        log_probs = all_log_probs.gather(-1, targets[:, None])[:, 0]
        if reference is None:
            return TokenStats(log_probs, entropy, None)
        return TokenStats(log_probs, entropy, (reference.exp() * (reference - all_log_probs)).sum(-1))

    def _log_softmax(self, hidden: torch.Tensor, temperature: float) -> torch.Tensor:
        logits = self.model.logits(self.hf, hidden).float() / temperature
        banned = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        banned[list(self.model.banned_ids)] = True
        return logits.masked_fill(banned, torch.finfo(torch.float32).min).log_softmax(-1)

    @torch.no_grad()
    def compute_distributions(self, inputs: Inputs, temperature: float) -> torch.Tensor:
        """Log-probabilities `[N, vocab]` of everything that could stand in the place of each response token."""
        return self._log_softmax(self.hidden(inputs), temperature)


HEAD_PREFIX, HEAD_FILE = "value_head.", "value_head.safetensors"


class CriticModule(Backbone):
    """Values of the states before each response token: a linear head on the backbone's hidden state.

    A checkpoint that has a head, as that of a reward model, starts with it; else it starts as the constant 0, so that
    early advantages are the returns.
    """

    def __init__(self, model: VideoModel, hf: nn.Module):
        super().__init__(model, hf)
        head, embedding = hf.get_output_embeddings(), hf.get_input_embeddings()  # type: ignore[operator]
        if head.weight is not embedding.weight:
            head.weight.requires_grad_(False)  # no gradient reaches an untied head
        self.value_head = nn.Linear(model.hidden_size, 1, bias=False)
        nn.init.zeros_(self.value_head.weight)
        if (model.path / HEAD_FILE).exists():
            saved = load_file(model.path / HEAD_FILE)
            self.value_head.load_state_dict({name.removeprefix(HEAD_PREFIX): each for name, each in saved.items()})

    def forward(self, inputs: Inputs) -> torch.Tensor:  # [N]
        return self.value_head(self.hidden(inputs).to(self.value_head.weight.dtype)).float()[:, 0]
