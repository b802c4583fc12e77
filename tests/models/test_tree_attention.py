"""One packed row along a prefix tree against every row by itself: log-probs and gradients, at depths 1 to 3."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from videorl.models.prefix_tree import PrefixTree, build_prefix_tree
from videorl.models.tree_attention import tree_attention

HEADS, KEY_HEADS, WIDTH = 4, 2, 32

fixed = settings(derandomize=True, deadline=None)


def rows_from(*texts: str) -> list[np.ndarray]:
    return [np.array([[ord(letter), place] for place, letter in enumerate(text)]).reshape(-1, 2) for text in texts]


def segments(tree: PrefixTree, texts: list[str]) -> list[str]:
    """The text of each node."""
    packed = [""] * tree.num_tokens
    for text, path in zip(texts, tree.paths, strict=True):
        for letter, place in zip(text, path.tolist(), strict=True):
            packed[place] = letter
    return ["".join(packed[node.start : node.stop]) for node in tree.nodes]


# Random trees: rows grown from one another, so that they share prefixes of all lengths
texts = st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4).flatmap(
    lambda parts: st.lists(
        st.lists(st.sampled_from(parts), min_size=1, max_size=3).map("".join), min_size=1, max_size=6
    )
)


@fixed
@given(texts=texts, min_shared=st.integers(1, 8))
def test_a_tree_holds_every_row_and_shares_prefixes(texts, min_shared):
    tree = build_prefix_tree(rows_from(*texts), min_shared)
    packed: dict[int, tuple[str, int]] = {}
    for text, path in zip(texts, tree.paths, strict=True):
        assert len(path) == len(text)
        for column, (letter, place) in enumerate(zip(text, path.tolist(), strict=True)):
            assert packed.setdefault(place, (letter, column)) == (letter, column)
    assert sorted(packed) == list(range(tree.num_tokens))
    # a token sees exactly the tokens before it on its row
    places = torch.arange(tree.num_tokens)
    for path in tree.paths:
        for length in range(1, len(path) + 1):
            query = path[length - 1]
            seen = (places <= query) & (query < tree.subtree_end)
            assert seen.nonzero().flatten().tolist() == path[:length].tolist()
    if min_shared == 1:  # nothing that two rows begin with stands twice
        assert tree.num_tokens == len({text[:length] for text in texts for length in range(1, len(text) + 1)}) or len(
            set(texts)
        ) < len(texts)


def test_trees_by_hand():
    group = ["prompt+one", "prompt+two!", "prompt+"]
    tree = build_prefix_tree(rows_from(*group), 4)
    assert segments(tree, group) == ["prompt+", "one", "two!"]
    assert [(node.start, node.stop, node.end) for node in tree.nodes] == [(0, 7, 14), (7, 10, 10), (10, 14, 14)]
    assert [len(path) for path in tree.paths] == [10, 11, 7]

    # "sys" is too short to share, what follows is not; the branches begin with the whole of it
    two = ["sys:aaaa1", "sys:aaaa2", "sys:bbbb1", "sys:bbbb2"]
    assert segments(build_prefix_tree(rows_from(*two), 5), two) == ["sys:aaaa", "1", "2", "sys:bbbb", "1", "2"]
    assert segments(build_prefix_tree(rows_from(*two), 4), two) == ["sys:", "aaaa", "1", "2", "bbbb", "1", "2"]
    assert segments(build_prefix_tree(rows_from(*two), 9), two) == two

    same = ["abc", "abc"]
    assert segments(build_prefix_tree(rows_from(*same), 3), same) == ["abc"]
    assert segments(build_prefix_tree(rows_from(*same), 4), same) == ["abc", "abc"]


def attend_row_by_row(query, key, value, tree: PrefixTree, rows: int) -> torch.Tensor:
    out = torch.zeros_like(query)
    for path in tree.paths[:rows]:
        out[:, :, path] = scaled_dot_product_attention(
            query[:, :, path], key[:, :, path], value[:, :, path], is_causal=True, enable_gqa=True, scale=0.3
        )
    return out


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


TREES = {
    "one row": ["abcdefg"],
    "a group": ["promptA", "promptBBBB", "promptC", "promptDD"],
    "two groups": ["promptA", "promptBBBB", "questionC", "questionDD"],
    "three turns": ["promptAAxx1", "promptAAxx22", "promptAAy", "promptBB", "promptAA", "other"],
    "long": ["p" * 1100 + "a" * 40, "p" * 1100 + "b" * 33, "p" * 1100 + "b" * 20 + "c" * 1030],
}


@pytest.mark.parametrize("name", TREES)
def test_attention_and_its_gradients_are_those_of_separate_rows(name):
    tree = build_prefix_tree(rows_from(*TREES[name]), 2)
    generator = torch.Generator().manual_seed(0)

    def normal(heads: int) -> torch.Tensor:
        return torch.randn(1, heads, tree.num_tokens, WIDTH, generator=generator).requires_grad_()

    query, key, value = normal(HEADS), normal(KEY_HEADS), normal(KEY_HEADS)
    grad = torch.randn(query.shape, generator=generator)

    out = tree_attention(query, key, value, tree, 0.3)
    found = torch.autograd.grad(out, (query, key, value), grad)
    plain = attend_row_by_row(query, key, value, tree, len(tree.paths))
    # a shared query has one output, which is the same in all of its rows: its gradient must count once
    wanted = torch.autograd.grad(plain, (query, key, value), grad)
    assert float((out - plain).abs().max()) < 2e-6
    for one, other in zip(found, wanted, strict=True):
        assert relative(one, other) < 2e-6


def test_the_kernel_is_flash_attention():
    """The operators that are called exist, and are those that SDPA itself picks on a CPU."""
    tree = build_prefix_tree(rows_from("promptA", "promptB"), 2)
    query = torch.randn(1, HEADS, tree.num_tokens, WIDTH, requires_grad=True)
    with torch.profiler.profile() as profile:
        tree_attention(query, query, query, tree).sum().backward()
    names = [event.key for event in profile.key_averages()]
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in names
    assert not any("math" in name for name in names)
