"""Attention over a packed prefix tree, exact and without a mask over pairs of tokens, as transformers' attention.

On a CPU every node attends to itself, causally, and every shared node's keys are attended to by all of its descendants
in one unmasked call; the parts are merged by their log-sum-exps. The backward pass runs the same calls, each with the
merged output and log-sum-exp, as ring attention does (Liu et al. 2023, arXiv:2310.01889): no copy of a shared key is
made and no product is computed twice. On a GPU FlexAttention takes the tree as a block mask. Where a row is spread over
ranks, each rank attends for some of the heads.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.functional import scaled_dot_product_attention

from videorl.models.prefix_tree import Node, PrefixTree
from videorl.models.sequence_parallel import to_heads, to_tokens

NAME = "prefix_tree"

_ALONE = 1024  # a node of so many tokens has a call of its own, which takes it where it stands
_FILLED = 0.75  # shortest node beside the longest of a call

# The CPU operators are private to torch, which is pinned; tests compare them with separate rows.
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def register() -> str:
    """Make the name known to transformers. No mask function goes with it: models then build no mask."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(
        module: Any,
        query: torch.Tensor,  # [B, H, L, D]
        key: torch.Tensor,  # [B, K, L, D]; H is a multiple of K
        value: torch.Tensor,  # [B, K, L, D]
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        tree: PrefixTree | None = None,
        ranks: DeviceMesh | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:  # [B, L, H, D]
        if tree is None:  # plain causal rows
            out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
            return out, None
        if ranks is None:
            return tree_attention(query, key, value, tree, scaling).transpose(1, 2), None
        query, key, value = (to_heads(tensor, tree.num_tokens, ranks) for tensor in (query, key, value))
        return to_tokens(tree_attention(query, key, value, tree, scaling), ranks).transpose(1, 2), None

    AttentionInterface.register(NAME, attend)
    return NAME


def tree_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: PrefixTree, scaling: float | None = None
) -> torch.Tensor:
    """Attention `[1, H, L, D]` of queries `[1, H, L, D]` to keys and values `[1, K, L, D]` along the tree's paths."""
    if query.device.type == "cpu":
        return _TreeAttention.apply(query, key, value, tree, scaling)
    if len(tree.nodes) == 1:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return _flex()(query, key, value, block_mask=_block_mask(tree, query.device), scale=scaling, enable_gqa=True)


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, tree: PrefixTree, scaling: float | None):
        out = torch.empty_like(query)
        lse = torch.empty(query.shape[:3], dtype=torch.float32)
        for own in _own_parts(tree):
            part, part_lse = _forward(own.take(query), own.take(key), own.take(value), 0.0, True, scale=scaling)
            own.put(out, part)
            own.put(lse, part_lse)
        for node in tree.shared:
            below, seen = slice(node.stop, node.end), slice(node.start, node.stop)
            part, part_lse = _forward(query[:, :, below], key[:, :, seen], value[:, :, seen], 0.0, False, scale=scaling)
            merged = torch.logaddexp(lse[:, :, below], part_lse)
            before, after = (lse[:, :, below] - merged).exp()[..., None], (part_lse - merged).exp()[..., None]
            out[:, :, below] = out[:, :, below] * before + part * after
            lse[:, :, below] = merged
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.tree, ctx.scaling = tree, scaling
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        query, key, value, out, lse = ctx.saved_tensors
        d_query, d_key, d_value = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)

        for own in _own_parts(ctx.tree):
            taken = (own.take(tensor) for tensor in (query, key, value, out, lse))
            part = _backward(own.take_gradient(grad), *taken, 0.0, True, scale=ctx.scaling)
            for total, gradient in zip((d_query, d_key, d_value), part, strict=True):
                own.put(total, gradient)
        for node in ctx.tree.shared:
            below, seen = slice(node.stop, node.end), slice(node.start, node.stop)
            dq, dk, dv = _backward(
                grad[:, :, below], query[:, :, below], key[:, :, seen], value[:, :, seen],
                out[:, :, below], lse[:, :, below], 0.0, False, scale=ctx.scaling,
            )  # fmt: skip
            d_query[:, :, below] += dq
            d_key[:, :, seen] += dk
            d_value[:, :, seen] += dv
        return d_query, d_key, d_value, None, None


class _Own:
    """Nodes of similar length that attend to themselves in one call: `[n, heads, m, ...]`, the shorter ones padded.

    Padding repeats a node's last token. No token before it sees it, since the call is causal, and it gets no gradient.
    """

    def __init__(self, nodes: list[Node]):
        longest = max(node.stop - node.start for node in nodes)
        places = torch.tensor([node.start for node in nodes])[:, None] + torch.arange(longest)
        stops = torch.tensor([node.stop for node in nodes])[:, None]
        self.alone = slice(nodes[0].start, nodes[0].stop) if len(nodes) == 1 else None
        self.index = places.minimum(stops - 1)
        self.real = places < stops

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Of `[1, heads, L, ...]`."""
        if self.alone is not None:
            return tensor[:, :, self.alone]
        return tensor[0][:, self.index].transpose(0, 1)

    def take_gradient(self, tensor: torch.Tensor) -> torch.Tensor:
        taken = self.take(tensor)
        return taken if self.alone is not None else taken * self.real[:, None, :, None]

    def put(self, tensor: torch.Tensor, part: torch.Tensor) -> None:
        """Into `[1, heads, L, ...]`."""
        if self.alone is not None:
            tensor[:, :, self.alone] = part
        else:
            tensor[0][:, self.index[self.real]] = part.transpose(0, 1)[:, self.real]


@functools.lru_cache(maxsize=8)  # every layer asks, in both passes
def _own_parts(tree: PrefixTree) -> list[_Own]:
    """All nodes, those of similar length together: small calls cost more than a little padding."""
    parts: list[list[Node]] = []
    for node in sorted(tree.nodes, key=lambda node: node.start - node.stop):  # longest first
        longest = parts[-1][0].stop - parts[-1][0].start if parts else 0
        if 0 < longest < _ALONE and node.stop - node.start >= _FILLED * longest:
            parts[-1].append(node)
        else:
            parts.append([node])
    return [_Own(nodes) for nodes in parts]


@functools.lru_cache(maxsize=8)
def _block_mask(tree: PrefixTree, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    end = tree.subtree_end.to(device)

    def on_path(batch, head, query, key):
        return (key <= query) & (query < end[key])

    # compiled, else it is built from a dense mask [L, L]
    build = torch.compile(create_block_mask)
    return build(on_path, None, None, tree.num_tokens, tree.num_tokens, device=device)


@functools.cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
