"""From rollout groups to what workers train on: a `Batch`, cut into mini-batches, shards and micro-batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch

from videorl.algorithms.turns import turn_ends
from videorl.algorithms.verl import balanced_partitions
from videorl.types import Continuation, Media, RenderedPrompt, Rollout, RolloutGroup, count_turns


@dataclass(frozen=True, kw_only=True)
class Row:
    """The prompt of one row, as handles, and the media that its response shows: those of the environment's turns.

    `seen` is the engine's fingerprint, '' where no engine took part (SFT). Rows of one `episode` follow one another:
    they are the same episode in contexts that do not continue each other. The two rows of a pair are a group.
    """

    id: str
    group: str
    token_ids: tuple[int, ...]  # one placeholder per video
    media: tuple[Media, ...]
    seen: str
    later: tuple[Media, ...] = ()  # one placeholder each in the response
    episode: str = ""  # '': a row by itself
    chosen: bool | None = None  # of a pair: whether this is the chosen row or the rejected

    @property
    def prompt(self) -> tuple[tuple[int, ...], tuple[Media, ...]]:
        """What rows of the same prompt have in common."""
        return self.token_ids, self.media

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.token_ids) + _visual(self.media)

    def num_response_tokens(self, length: int) -> int:
        """Of a response in which a placeholder stands for each video."""
        return length + _visual(self.later)


def _visual(media: Sequence[Media]) -> int:
    """Tokens of videos, beside the placeholder of each."""
    return sum(item.num_tokens - 1 for item in media)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows with their responses, right-padded to `[B, T]`. Fields that later stages fill are None until then.

    Entries where `response_mask` is 0 mean nothing and must not influence anything.
    """

    rows: tuple[Row, ...]
    response_ids: torch.Tensor  # [B, T] int64
    response_mask: torch.Tensor  # [B, T] bool: the policy sampled this token
    lengths: torch.Tensor  # [B] tokens of each response, environment turns included
    trained: torch.Tensor | None = None  # [B, T] bool: of the sampled tokens, those that the policy learns from
    rollout_log_probs: torch.Tensor | None = None  # [B, T]
    token_rewards: torch.Tensor | None = None  # [B, T]
    old_log_probs: torch.Tensor | None = None  # [B, T]
    ref_log_probs: torch.Tensor | None = None  # [B, T]
    values: torch.Tensor | None = None  # [B, T]
    advantages: torch.Tensor | None = None  # [B, T]
    returns: torch.Tensor | None = None  # [B, T]
    importance_weights: torch.Tensor | None = None  # [B, T]
    phrases: torch.Tensor | None = None  # [B, T] int64: which of a pair's phrases a token is in, 0: none

    def __post_init__(self):
        shape = self.response_ids.shape
        if len(self.rows) != shape[0] or self.lengths.shape != shape[:1]:
            raise ValueError(
                f"Batch: {len(self.rows)} rows, response_ids {tuple(shape)}, lengths {tuple(self.lengths.shape)}"
            )
        for name, tensor in self._tensors():
            if name != "lengths" and tensor.shape != shape:
                raise ValueError(f"Batch.{name} is {tuple(tensor.shape)}, response_ids {tuple(shape)}")

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [(name, value) for name, value in values if isinstance(value, torch.Tensor)]

    def __len__(self) -> int:
        return len(self.rows)

    def with_(self, **tensors: torch.Tensor | None) -> Batch:
        return replace(self, **tensors)

    @property
    def episodes(self) -> list[str]:
        return [row.episode or row.id for row in self.rows]

    def need(self, name: str) -> torch.Tensor:
        """A field that an earlier stage must have filled."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"Batch.{name} is not filled yet")
        return value

    def select(self, indices: Sequence[int]) -> Batch:
        index = torch.tensor(list(indices), dtype=torch.long)
        chosen = {name: tensor[index] for name, tensor in self._tensors()}
        return replace(self, rows=tuple(self.rows[i] for i in indices), **chosen)

    def to(self, device: torch.device) -> Batch:
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors()})

    @property
    def num_tokens(self) -> int:
        """Tokens the policy sampled: the normaliser of token-mean losses."""
        return int(self.response_mask.sum())

    @property
    def row_tokens(self) -> list[int]:
        """Tokens of each row's forward: prompt with visual tokens, and response."""
        return [
            row.num_prompt_tokens + row.num_response_tokens(int(n))
            for row, n in zip(self.rows, self.lengths, strict=True)
        ]


def make_batch(groups: Sequence[RolloutGroup]) -> Batch:
    """Rollouts to tensors. A turn's reward stands on its last token, the rest of a rollout's on the last of all."""
    rows: list[Row] = []
    parts: list[Rollout | Continuation] = []
    turn_rewards: list[tuple[float, ...]] = []
    rest: list[float] = []
    trained: list[list[bool]] = []
    for number, group in enumerate(groups):
        for index, rollout in enumerate(group.rollouts):
            id = f"{group.prompt.prompt.id}#{index}"
            earned = rollout.turn_rewards or (0.0,) * rollout.num_turns
            kept = rollout.trained or (True,) * rollout.num_turns
            first = 0
            for part in (rollout, *rollout.further):
                turns = slice(first, first := first + count_turns(part.response_mask))
                begun = part.prompt if isinstance(part, Rollout) else part
                rows.append(
                    Row(
                        id=f"{id}.{turns.start + 1}" if rollout.further else id,
                        group=f"{number}:{group.prompt.prompt.id}",  # dynamic sampling can meet a prompt twice
                        episode=f"{number}:{id}",
                        token_ids=begun.token_ids,
                        media=begun.media,
                        seen=part.seen,
                        later=part.later,
                    )
                )
                parts.append(part)
                turn_rewards.append(earned[turns])
                rest.append(rollout.reward - sum(earned) if turns.stop == rollout.num_turns else 0.0)
                trained.append(_spread(kept[turns], part.response_mask))
    mask = pad([part.response_mask for part in parts], torch.bool)
    return Batch(
        rows=tuple(rows),
        response_ids=pad([part.response_ids for part in parts], torch.long),
        response_mask=mask,
        lengths=torch.tensor([len(part.response_ids) for part in parts]),
        trained=None if all(map(all, trained)) else pad(trained, torch.bool) & mask,
        rollout_log_probs=pad([part.rollout_log_probs for part in parts], torch.float32),
        token_rewards=_token_rewards(mask, turn_rewards, rest),
    )


def prompt_row(prompt: RenderedPrompt, **fields: Any) -> Row:
    """A row of a prompt by itself, which no engine has seen; `fields` of `Row` go over the prompt's."""
    own = {"id": prompt.prompt.id, "group": prompt.prompt.id, "token_ids": prompt.token_ids, "media": prompt.media}
    return Row(**{**own, "seen": "", **fields})


def make_given_batch(rows: Sequence[Row], responses: Sequence[Sequence[int]]) -> Batch:
    """Rows whose responses were not sampled: every token of them counts."""
    lengths = torch.tensor([len(response) for response in responses])
    return Batch(
        rows=tuple(rows),
        response_ids=pad(responses, torch.long),
        response_mask=torch.arange(int(lengths.max()))[None] < lengths[:, None],
        lengths=lengths,
    )


def _spread(turns: Sequence[bool], response_mask: Sequence[int]) -> list[bool]:
    """What holds for each turn, for each token; environment tokens count as their turn before."""
    begins = accumulate(int(now > before) for before, now in pairwise((0, *response_mask)))
    return [turns[max(0, turn - 1)] for turn in begins]


def _token_rewards(mask: torch.Tensor, turns: Sequence[Sequence[float]], rest: Sequence[float]) -> torch.Tensor:
    rewards = at_last_token(mask, torch.tensor(rest))
    ends, there = turn_ends(mask)
    earned = torch.nn.functional.pad(pad(turns, torch.float32), (0, ends.shape[1] - max(map(len, turns))))
    return rewards.scatter_add(1, ends, earned * there)


def at_last_token(response_mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values `[B]` as `[B, T]`: each on the last token that its row's policy sampled, zero elsewhere."""
    last = response_mask.shape[1] - 1 - response_mask.flip(1).int().argmax(1)
    return torch.zeros(response_mask.shape).scatter(1, last[:, None], values[:, None].float())


def pad(sequences: Sequence[Sequence], dtype: torch.dtype) -> torch.Tensor:
    """Right-pad with zeros to `[B, T]`."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(s, dtype=dtype) for s in sequences], batch_first=True)


def pair_rows(batch: Batch) -> tuple[list[int], list[int]]:
    """Of the pairs in a batch the indices of the chosen rows, and those of the rejected ones in the same order."""
    places = {(row.group, row.chosen): index for index, row in enumerate(batch.rows)}
    chosen = [index for index, row in enumerate(batch.rows) if row.chosen]
    return chosen, [places[batch.rows[index].group, False] for index in chosen]


def mini_batches(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch into `count` mini-batches of whole groups, in order, as even as the number of groups allows."""
    groups = list(dict.fromkeys(row.group for row in batch.rows))
    if len(groups) < count:
        count = len(groups)
    part = {group: index * count // len(groups) for index, group in enumerate(groups)}
    return [batch.select([i for i, row in enumerate(batch.rows) if part[row.group] == m]) for m in range(count)]


def shard(batch: Batch, ranks: int, shared: bool) -> list[list[int]]:
    """Row indices of each rank: whole groups, so dealt that the tokens of the ranks' forwards are balanced.

    Keeping a group on one rank lets the trainer share what its rows share. A rank may be left without rows when there
    are fewer groups than ranks.
    """
    members: dict[str, list[int]] = {}
    for index, row in enumerate(batch.rows):
        members.setdefault(row.group, []).append(index)
    groups, tokens = list(members.values()), batch.row_tokens
    loads = [sum(tokens[i] for i in rows) for rows in groups]
    if shared:  # a prompt that several rows of a group have counts once
        for place, rows in enumerate(groups):
            prompts = Counter(batch.rows[i].prompt for i in rows)
            tokens_of = {batch.rows[i].prompt: batch.rows[i].num_prompt_tokens for i in rows}
            loads[place] -= sum((count - 1) * tokens_of[prompt] for prompt, count in prompts.items())
    return [sorted(i for group in part for i in groups[group]) for part in balanced_partitions(loads, ranks)]


def micro_batches(batch: Batch, budget: int, shared: bool) -> list[list[int]]:
    """Row indices of forwards of at most `budget` tokens, visual ones included; at least one row, or pair, each.

    `shared`: rows of one prompt come together, and its tokens count once. Otherwise rows are padded to their longest.
    """
    return _packed(_pieces(batch, budget), budget) if shared else _padded(batch, budget)


def forward_tokens(batch: Batch, budget: int, shared: bool) -> int:
    """Tokens that the forwards of `micro_batches` compute, padding included."""
    if shared:
        return sum(piece.tokens for piece in _pieces(batch, budget))
    tokens = batch.row_tokens
    return sum(len(part) * max(tokens[index] for index in part) for part in _padded(batch, budget))


def _indivisible(batch: Batch) -> list[list[int]]:
    """Row indices of what a forward holds whole: the loss of a pair needs both of its rows."""
    units: dict[object, list[int]] = {}
    for index, row in enumerate(batch.rows):
        units.setdefault(index if row.chosen is None else row.group, []).append(index)
    return list(units.values())


class _Piece(NamedTuple):
    """Rows of one prompt that go into a forward together, and its tokens."""

    tokens: int
    rows: list[int]


def _pieces(batch: Batch, budget: int) -> list[_Piece]:
    """The rows of each prompt, in as many pieces as the budget makes necessary: each repeats the prompt."""
    pieces: dict[object, list[_Piece]] = {}
    lengths = batch.lengths.tolist()
    for rows in _indivisible(batch):
        first = batch.rows[rows[0]]
        length = sum(batch.rows[index].num_response_tokens(lengths[index]) for index in rows)
        found = pieces.setdefault(first.prompt, [])
        if found and found[-1].tokens + length <= budget:
            found[-1] = _Piece(found[-1].tokens + length, [*found[-1].rows, *rows])
        else:
            found.append(_Piece(first.num_prompt_tokens + length, rows))
    return [piece for found in pieces.values() for piece in found]


def _packed(pieces: Sequence[_Piece], budget: int) -> list[list[int]]:
    """Forwards of whole pieces: the largest first, each into the first forward that has room."""
    parts: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: -piece.tokens):
        for index, part in enumerate(parts):
            if part.tokens + piece.tokens <= budget:
                parts[index] = _Piece(part.tokens + piece.tokens, part.rows + piece.rows)
                break
        else:
            parts.append(piece)
    return [part.rows for part in parts]


def _padded(batch: Batch, budget: int) -> list[list[int]]:
    """Forwards whose padded size `rows * longest` is at most the budget."""
    tokens = batch.row_tokens
    parts: list[list[int]] = []
    longest = 0
    for rows in sorted(_indivisible(batch), key=lambda rows: -max(tokens[index] for index in rows)):
        # the longest come first, so what begins a part says its padded length
        if parts and (len(parts[-1]) + len(rows)) * longest <= budget:
            parts[-1] += rows
        else:
            parts.append([*rows])
            longest = max(tokens[index] for index in rows)
    return parts
