"""Groups to tensors by hand; cuts of a batch lose no row, split no group and keep their bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import make_group, make_media, make_rendered, make_rollout

from videorl.data.batch import (
    Batch,
    Row,
    at_last_token,
    forward_tokens,
    make_batch,
    micro_batches,
    mini_batches,
    pad,
    pair_rows,
    shard,
)
from videorl.types import Continuation, RolloutGroup

fixed = settings(derandomize=True, deadline=None, max_examples=100)


@pytest.fixture
def groups() -> list[RolloutGroup]:
    """Prompts of 2 + 2 x 3 visual and of 4 tokens; responses of 3, 1 and 2 tokens, some with an environment's turn."""
    video = [make_media("a", grid=(1, 2, 6)), make_media("b", grid=(3, 2, 2))]
    shown, text = make_rendered("bikes", (1, 9, 9, 2), video), make_rendered("zoo", (1, 2, 3, 4))
    first = [
        make_rollout(shown, (5, 6, 7), mask=(1, 0, 1), log_probs=(-1.0, 0.0, -2.0), reward=1.0, seen="x"),
        make_rollout(shown, (8,), log_probs=(-3.0,), reward=0.5, seen="y"),
    ]
    second = [make_rollout(text, (5, 7), mask=(1, 0), log_probs=(-4.0, 0.0), reward=-1.0)]
    return [
        RolloutGroup(prompt=shown, rollouts=tuple(first)),
        RolloutGroup(prompt=text, rollouts=tuple(second)),
    ]


def test_an_episode_of_two_rows(groups):
    """Turns 1 and 2 in the first row, turn 3 in the second, in a context that forgot turn 1: rewards at their ends."""
    clip = make_media("late", grid=(1, 2, 2))
    further = Continuation(
        token_ids=(1, 9, 4), media=(clip,), response_ids=(6, 8), response_mask=(1, 1), rollout_log_probs=(-1.0, -2.0),
        later=(), seen="z",
    )  # fmt: skip
    rollout = replace(
        groups[0].rollouts[0],
        further=(further,),
        reward=3.5,
        turn_rewards=(0.5, 1.0, 0.25),
        trained=(True, False, True),
    )
    batch = make_batch([replace(groups[0], rollouts=(rollout, groups[0].rollouts[1]))])
    assert [row.id for row in batch.rows] == ["bikes#0.1", "bikes#0.3", "bikes#1"]
    assert batch.episodes == ["0:bikes#0", "0:bikes#0", "0:bikes#1"]
    assert (batch.rows[1].token_ids, batch.rows[1].media, batch.rows[1].seen) == ((1, 9, 4), (clip,), "z")
    assert batch.response_ids.tolist() == [[5, 6, 7], [6, 8, 0], [8, 0, 0]]
    assert batch.need("token_rewards").tolist() == [[0.5, 0, 1.0], [0, 2.0, 0], [0.5, 0, 0]]
    assert batch.need("trained").tolist() == [[True, False, False], [True, True, False], [True, False, False]]
    # what is shared is the prompt of rows that have the same one
    loads = [4 + 4 + 3, 3 + 2, 1]
    assert shard(batch, 1, shared=True) == [[0, 1, 2]] and batch.row_tokens == [loads[0], loads[1], 8 + 1]


def test_rollouts_become_tensors(groups):
    batch = make_batch(groups)
    assert [row.id for row in batch.rows] == ["bikes#0", "bikes#1", "zoo#0"]
    assert [row.group for row in batch.rows] == ["0:bikes", "0:bikes", "1:zoo"]
    assert [row.seen for row in batch.rows] == ["x", "y", ""]
    assert batch.rows[1].media == groups[0].prompt.media and batch.rows[1].token_ids == (1, 9, 9, 2)
    assert batch.response_ids.tolist() == [[5, 6, 7], [8, 0, 0], [5, 7, 0]]
    assert batch.response_mask.tolist() == [[True, False, True], [True, False, False], [True, False, False]]
    assert batch.lengths.tolist() == [3, 1, 2]
    assert batch.need("rollout_log_probs").tolist() == [[-1, 0, -2], [-3, 0, 0], [-4, 0, 0]]
    # a reward stands where the policy last sampled, before the environment's turn of the third row
    assert batch.need("token_rewards").tolist() == [[0, 0, 1], [0.5, 0, 0], [-1, 0, 0]]
    assert batch.response_ids.dtype == torch.int64 and batch.response_mask.dtype == torch.bool
    assert len(batch) == 3 and batch.num_tokens == 4
    assert batch.row_tokens == [8 + 3, 8 + 1, 4 + 2]


def test_rewards_of_turns_stand_at_their_ends():
    group = make_group("p", [1.5, 0.0])
    first = replace(
        group.rollouts[0],
        response_ids=(5, 6, 7, 8),
        response_mask=(1, 1, 0, 1),
        rollout_log_probs=(-1.0, -1.0, 0.0, -1.0),
        turn_rewards=(0.2, 0.3),
        later=(make_media("later", grid=(1, 4, 4)),),
    )
    batch = make_batch([replace(group, rollouts=(first, group.rollouts[1]))])
    expected = torch.tensor([[0, 0.2, 0, 1.3], [0, 0, 0, 0]])
    assert torch.allclose(batch.need("token_rewards"), expected)
    assert batch.rows[0].later == first.later and batch.rows[1].later == ()
    assert batch.row_tokens[0] == batch.rows[0].num_prompt_tokens + 4 + 3  # a video of 4 tokens in place of one
    with pytest.raises(ValueError, match="3 turn_rewards for 2 turns"):
        replace(first, turn_rewards=(0.2, 0.3, 0.0))


def test_a_prompt_that_comes_twice_is_two_groups():
    batch = make_batch([make_group("p", [0.0]), make_group("p", [1.0, 2.0])])
    assert [row.group for row in batch.rows] == ["0:p", "1:p", "1:p"]


def test_at_last_token():
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 0, 0]]).bool()
    assert at_last_token(mask, torch.tensor([1, 2, 3])).tolist() == [[0, 1, 0], [0, 0, 2], [3, 0, 0]]


def test_pad():
    padded = pad([(1, 2), (), (3,)], torch.float32)
    assert padded.tolist() == [[1, 2], [0, 0], [3, 0]] and padded.dtype == torch.float32


# --- one batch -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(groups):
    batch = make_batch(groups)
    with pytest.raises(ValueError, match=r"2 rows, response_ids \(3, 3\), lengths \(3,\)"):
        Batch(
            rows=batch.rows[:2],
            response_ids=batch.response_ids,
            response_mask=batch.response_mask,
            lengths=batch.lengths,
        )
    with pytest.raises(ValueError, match=r"3 rows, response_ids \(3, 3\), lengths \(2,\)"):
        batch.with_(lengths=batch.lengths[:2])
    for name in ("response_mask", "values", "advantages", "importance_weights"):
        with pytest.raises(ValueError, match=rf"Batch.{name} is \(3, 2\), response_ids \(3, 3\)"):
            batch.with_(**{name: torch.zeros(3, 2)})
    with pytest.raises(TypeError, match="advantage"):
        batch.with_(advantage=torch.zeros(3, 3))


def test_a_field_is_needed_after_it_is_filled(groups):
    batch = make_batch(groups)
    with pytest.raises(ValueError, match=r"Batch.advantages is not filled yet"):
        batch.need("advantages")
    filled = batch.with_(advantages=torch.ones(3, 3))
    assert filled.need("advantages").sum() == 9
    assert batch.advantages is None and filled.rows is batch.rows


def test_select_keeps_rows_and_tensors_together(groups):
    batch = make_batch(groups).with_(advantages=torch.arange(9.0).view(3, 3))
    chosen = batch.select([2, 0])
    assert [row.id for row in chosen.rows] == ["zoo#0", "bikes#0"]
    assert chosen.need("advantages").tolist() == [[6, 7, 8], [0, 1, 2]]
    assert chosen.lengths.tolist() == [2, 3] and chosen.values is None
    empty = batch.select([])
    assert len(empty) == 0 and empty.num_tokens == 0 and empty.row_tokens == []
    assert empty.response_ids.shape == (0, 3)


def test_to_moves_every_tensor(groups):
    moved = make_batch(groups).to(torch.device("meta"))
    assert all(tensor.is_meta for _, tensor in moved._tensors()) and moved.rows == make_batch(groups).rows


# --- cuts ------------------------------------------------------------------------------------------------------------


def rows_of(groups: list[tuple[int, int]]) -> Batch:
    """A batch of groups, each given as (tokens of its prompt, rows)."""
    rows = [
        Row(id=f"{name}#{i}", group=str(name), token_ids=(name,) * tokens, media=(), seen="")
        for name, (tokens, count) in enumerate(groups)
        for i in range(count)
    ]
    ones = torch.ones(len(rows), 1)
    return Batch(rows=tuple(rows), response_ids=ones.long(), response_mask=ones.bool(), lengths=ones[:, 0].long())


many_groups = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 5)), min_size=1, max_size=12)


@fixed
@given(groups=many_groups, count=st.integers(1, 15))
def test_mini_batches_hold_whole_groups_in_order(groups, count):
    batch = rows_of(groups)
    minis = mini_batches(batch, count)
    assert len(minis) == min(count, len(groups))
    assert [row for mini in minis for row in mini.rows] == list(batch.rows)
    names = [{row.group for row in mini.rows} for mini in minis]
    assert sum(map(len, names)) == len(groups)  # no group is in two
    assert max(map(len, names)) - min(map(len, names)) <= 1


@fixed
@given(groups=many_groups, ranks=st.integers(1, 6))
def test_shards_hold_whole_groups_and_are_balanced(groups, ranks):
    batch = rows_of(groups)
    shards = shard(batch, ranks, shared=False)
    assert len(shards) == ranks
    assert sorted(index for indices in shards for index in indices) == list(range(len(batch)))
    names = [{batch.rows[index].group for index in indices} for indices in shards]
    assert sum(map(len, names)) == len(groups)
    assert all(indices == sorted(indices) for indices in shards)
    # the last group that came to the fullest rank came when that was the emptiest
    loads = [sum(batch.row_tokens[index] for index in indices) for indices in shards]
    assert max(loads) - min(loads) <= max((tokens + 1) * rows for tokens, rows in groups)
    assert sum(not indices for indices in shards) == max(0, ranks - len(groups))


def test_shards_by_hand():
    assert shard(rows_of([(1, 1), (1, 1), (7, 1), (3, 1)]), 2, shared=False) == [[0, 1, 3], [2]]  # 2 + 2 + 4 and 8


@fixed
@given(groups=many_groups, budget=st.integers(1, 300), shared=st.booleans())
def test_micro_batches_stay_within_the_budget(groups, budget, shared):
    batch = rows_of(groups)
    parts = micro_batches(batch, budget, shared)
    assert sorted(index for part in parts for index in part) == list(range(len(batch)))
    for part in parts:
        prompts = {batch.rows[index].group: batch.rows[index].num_prompt_tokens for index in part}
        packed = sum(prompts.values()) + len(part)  # every response has one token
        padded = len(part) * max(batch.row_tokens[index] for index in part)
        assert part and (len(part) == 1 or (packed if shared else padded) <= budget)


def test_micro_batches_by_hand():
    # rows of 2, 8, 5, 1, 4 and 2 tokens, longest first: 8 alone; 5 and 4 fill 2 x 5 of 10; 2, 2 and 1 fill 3 x 2
    batch = rows_of([(1, 1), (7, 1), (4, 1), (0, 1), (3, 1), (1, 1)])
    assert micro_batches(batch, 10, shared=False) == [[1], [2, 4], [0, 5, 3]]
    assert micro_batches(rows_of([(11, 1)]), 10, shared=False) == [[0]]
    # prompts of 5, 2 and 3 tokens with 3, 2 and 1 responses of one token: 8, 4 and 4
    groups = rows_of([(5, 3), (2, 2), (3, 1)])
    assert micro_batches(groups, 16, shared=True) == [[0, 1, 2, 3, 4, 5]]
    assert micro_batches(groups, 8, shared=True) == [[0, 1, 2], [3, 4, 5]]
    # the first group is cut, and its prompt stands twice: 5 + 2, 5 + 1
    assert micro_batches(groups, 7, shared=True) == [[0, 1], [2], [3, 4], [5]]
    assert micro_batches(groups, 4, shared=True) == [[0], [1], [2], [3, 4], [5]]


def pairs_of(prompts: list[int]) -> Batch:
    """Pairs on prompts of so many tokens; those of equal length are the same prompt."""
    batch = rows_of([(tokens, 2) for tokens in prompts])
    rows = [replace(row, token_ids=(0,) * len(row.token_ids), chosen=not i % 2) for i, row in enumerate(batch.rows)]
    return replace(batch, rows=tuple(rows))


@fixed
@given(prompts=st.lists(st.integers(1, 9), min_size=1, max_size=12), budget=st.integers(1, 60), shared=st.booleans())
def test_a_pair_is_never_cut(prompts, budget, shared):
    batch = pairs_of(prompts)
    parts = micro_batches(batch, budget, shared)
    assert sorted(index for part in parts for index in part) == list(range(len(batch)))
    for part in parts:
        chosen, rejected = pair_rows(batch.select(part))
        assert len(chosen) == len(rejected) == len(part) / 2
        packed = sum({len(batch.rows[index].token_ids) for index in part}) + len(part)
        padded = len(part) * max(batch.row_tokens[index] for index in part)
        assert len(part) == 2 or (packed if shared else padded) <= budget


def test_pair_rows_stand_in_the_same_order():
    batch = pairs_of([3, 4]).select([3, 2, 0, 1])
    assert pair_rows(batch) == ([1, 2], [0, 3])


def test_forward_tokens_by_hand():
    groups = rows_of([(5, 3), (2, 2), (3, 1)])  # rows of 6, 6, 6, 3, 3 and 4 tokens: 28
    assert forward_tokens(groups, 16, shared=True) == (5 + 3) + (2 + 2) + (3 + 1)
    assert forward_tokens(groups, 7, shared=True) == (5 + 2) + (5 + 1) + (2 + 2) + (3 + 1)
    assert forward_tokens(groups, 12, shared=False) == 2 * 6 + 2 * 6 + 2 * 3  # 6 and 6; 6 and 4; 3 and 3


def test_shards_count_what_is_shared_once():
    # packed 20 + 2, 5 + 8 and 9 + 1 tokens; one by one 42, 48 and 10
    groups = rows_of([(20, 2), (5, 8), (9, 1)])
    assert sorted(shard(groups, 2, shared=True)) == [[0, 1], [2, 3, 4, 5, 6, 7, 8, 9, 10]]
    assert sorted(shard(groups, 2, shared=False)) == [[0, 1, 10], [2, 3, 4, 5, 6, 7, 8, 9]]
