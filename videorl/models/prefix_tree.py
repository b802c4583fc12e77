"""Rows that begin alike, as one packed row in which each shared prefix stands once.

A node is a segment of tokens, a row is a path from a root. Nodes are packed depth first, so that all descendants of a
node follow it without a gap: a token attends to every earlier token whose node's subtree it lies in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

MIN_SHARED = 32  # tokens: below it, sharing a segment costs more in attention calls than it saves


@dataclass(frozen=True)
class Node:
    """Tokens `[start, stop)` of the packed row; its descendants are `[stop, end)`."""

    start: int
    stop: int
    end: int


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """The layout of a packed row."""

    nodes: tuple[Node, ...]  # depth first
    paths: tuple[torch.Tensor, ...]  # per row: the packed position of each of its tokens

    @property
    def num_tokens(self) -> int:
        return self.nodes[-1].stop

    @cached_property
    def shared(self) -> tuple[Node, ...]:
        """Nodes that have descendants."""
        return tuple(node for node in self.nodes if node.stop < node.end)

    @cached_property
    def subtree_end(self) -> torch.Tensor:
        """`[num_tokens]`: where the descendants of a token's node end. Token q sees k iff k <= q < subtree_end[k]."""
        return torch.cat([torch.full((node.stop - node.start,), node.end) for node in self.nodes])


def build_prefix_tree(rows: Sequence[np.ndarray], min_shared: int = MIN_SHARED) -> PrefixTree:
    """The tree of rows `[length, k]`, whose k integers say all that a token is: its id, position and visual feature.

    Equal prefixes of at least `min_shared` tokens stand once; a shorter one is repeated in each branch that has it.
    """
    nodes: list[Node] = []
    paths: list[list[np.ndarray]] = [[] for _ in rows]
    packed = 0

    def add(members: Sequence[int], begin: int) -> None:
        """Pack what `members` hold from column `begin` on; up to there they are equal."""
        nonlocal packed
        agree = _agreement([rows[member] for member in members], begin)
        if len(members) > 1 and agree - begin < min_shared:
            for branch in _branches(rows, members, agree):
                # A branch that is the whole set would never end: its rows are equal up to their ends
                for part in [branch] if len(branch) < len(members) else [[member] for member in branch]:
                    add(part, begin)
            return
        place, start = len(nodes), packed
        nodes.append(Node(start, start, start))
        packed += agree - begin
        stop = packed
        for member in members:
            paths[member].append(np.arange(start, stop))
        for branch in _branches(rows, [member for member in members if len(rows[member]) > agree], agree):
            add(branch, agree)
        nodes[place] = Node(start, stop, packed)

    for branch in _branches(rows, range(len(rows)), 0):
        add(branch, 0)
    return PrefixTree(
        nodes=tuple(nodes),
        paths=tuple(torch.from_numpy(np.concatenate(path)) for path in paths),
    )


def _agreement(rows: Sequence[np.ndarray], begin: int) -> int:
    """The column up to which all rows are equal, known to be at least `begin`."""
    first, shortest = rows[0], min(map(len, rows))
    for row in rows[1:]:
        differs = (row[begin:shortest] != first[begin:shortest]).any(1)
        if differs.any():
            shortest = begin + int(differs.argmax())
    return shortest


def _branches(rows: Sequence[np.ndarray], members: Sequence[int], column: int) -> list[list[int]]:
    """Members by their token at `column`; each that ends there is a branch of its own."""
    found: dict[object, list[int]] = {}
    for member in members:
        row = rows[member]
        found.setdefault(row[column].tobytes() if column < len(row) else member, []).append(member)
    return list(found.values())
