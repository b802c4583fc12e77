"""Rows of one episode, one behind the other: what an estimator sees where a context splits episodes into rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stitching:
    """`rows[e, k]` is the k-th row of episode e, -1 where it has fewer."""

    rows: Tensor  # [E, K]

    @classmethod
    def of(cls, episodes: Sequence[str]) -> Stitching:
        """The rows of an episode in the order in which they stand."""
        members: dict[str, list[int]] = {}
        for row, episode in enumerate(episodes):
            members.setdefault(episode, []).append(row)
        most = max(map(len, members.values()))
        return cls(torch.tensor([[*rows, *[-1] * (most - len(rows))] for rows in members.values()]))

    @property
    def first(self) -> Tensor:
        """The first row of each episode, `[E]`."""
        return self.rows[:, 0]

    def join(self, tensor: Tensor) -> Tensor:
        """`[B, T]` -> `[E, K * (T + 1)]`: behind each row stands a zero, so that turns of two rows never touch."""
        padded = torch.nn.functional.pad(tensor, (0, 1))
        padded = torch.cat([padded, torch.zeros_like(padded[:1])])  # row -1
        return padded[self.rows].flatten(1)

    def split(self, tensor: Tensor) -> Tensor:
        """`[E, K * (T + 1)]` -> `[B, T]`."""
        parts = tensor.unflatten(1, (self.rows.shape[1], -1))[..., :-1]
        there = self.rows >= 0
        out = torch.empty(int(there.sum()), parts.shape[-1], dtype=tensor.dtype)
        out[self.rows[there]] = parts[there]
        return out
