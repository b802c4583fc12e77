"""One packed row over several ranks: each holds an equal stretch of its tokens, and in attention some of its heads.

Jacobs et al. 2023, DeepSpeed Ulysses (arXiv:2309.14509). Everything but attention works on single tokens, so a rank
computes its own stretch. For attention an all-to-all turns stretches of all heads into the whole row of some heads, and
another one turns the result back. Both are permutations, so the backward pass of the one is the other: nothing is
approximated, and stretches need no regard for segments, videos or responses.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh


def stretch(num_tokens: int, ranks: DeviceMesh) -> tuple[int, int]:
    """(start, stop) of this rank's stretch, equally long on all ranks: the last ones may reach past the row's end."""
    each = -(-num_tokens // ranks.size())
    start = each * ranks.get_local_rank()
    return start, start + each


def to_heads(tensor: torch.Tensor, num_tokens: int, ranks: DeviceMesh) -> torch.Tensor:
    """Stretches `[1, H, l, D]` of all heads to `[1, H', num_tokens, D]`, all tokens of this rank's heads.

    H' = H / ranks. Where the ranks do not divide the number of (key and value) heads, each is repeated until they do:
    H' is then the least common multiple of the two, over the ranks.
    """
    size = ranks.size()
    if repeats := math.lcm(tensor.shape[1], size) // tensor.shape[1] - 1:
        tensor = tensor.repeat_interleave(repeats + 1, dim=1)
    return _ToHeads.apply(tensor, num_tokens, ranks)


def to_tokens(tensor: torch.Tensor, ranks: DeviceMesh) -> torch.Tensor:
    """All tokens of this rank's heads `[1, H', L, D]` to its stretch `[1, H, l, D]` of all heads."""
    return _ToTokens.apply(tensor, ranks)


def sum_over(tensor: torch.Tensor, ranks: DeviceMesh) -> torch.Tensor:
    """The sum of all ranks' tensors, on each of them.

    Its gradient is passed on as it is: every rank goes on with the same loss, which counts once.
    """
    return _SumOver.apply(tensor, ranks)


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, num_tokens: int, ranks: DeviceMesh):
        ctx.ranks = ranks
        return _gather_tokens(tensor, num_tokens, ranks)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return _gather_heads(grad, ctx.ranks), None, None


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, ranks: DeviceMesh):
        ctx.num_tokens, ctx.ranks = tensor.shape[2], ranks
        return _gather_heads(tensor, ranks)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return _gather_tokens(grad, ctx.num_tokens, ctx.ranks), None


class _SumOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, ranks: DeviceMesh):
        total = tensor.clone()
        dist.all_reduce(total, group=ranks.get_group())
        return total

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return grad, None


def _gather_tokens(tensor: torch.Tensor, num_tokens: int, ranks: DeviceMesh) -> torch.Tensor:
    _, heads, length, width = tensor.shape
    received = _exchange(tensor.reshape(ranks.size(), heads // ranks.size(), length, width), ranks)
    return received.transpose(0, 1).reshape(1, heads // ranks.size(), -1, width)[:, :, :num_tokens]


def _gather_heads(tensor: torch.Tensor, ranks: DeviceMesh) -> torch.Tensor:
    _, heads, num_tokens, width = tensor.shape
    length = -(-num_tokens // ranks.size())
    padded = torch.nn.functional.pad(tensor, (0, 0, 0, length * ranks.size() - num_tokens))
    received = _exchange(padded.reshape(heads, ranks.size(), length, width).transpose(0, 1), ranks)
    return received.reshape(1, heads * ranks.size(), length, width)


def _exchange(parts: torch.Tensor, ranks: DeviceMesh) -> torch.Tensor:
    """`parts[i]` goes to rank i; what rank i sent is `[i]` of the answer."""
    parts = parts.contiguous()
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=ranks.get_group())
    return received
