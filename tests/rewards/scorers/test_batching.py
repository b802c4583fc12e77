"""What waits together is computed together, and everybody gets the answer to the own item."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed

from videorl.rewards.result import Abstained
from videorl.rewards.scorers.batching import Batcher


class FakeNetwork:
    """Squares numbers and remembers the batches; a batch that holds 13 fails."""

    def __init__(self):
        self.batches: list[list[int]] = []

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        if 13 in items:
            raise ZeroDivisionError("thirteen")
        return [item**2 for item in items]


@fixed
@given(items=st.lists(st.integers(14, 99), max_size=12), size=st.integers(1, 5))
def test_calls_made_together_share_batches_and_keep_their_order(items, size):
    network = FakeNetwork()

    async def call_all():
        batcher = Batcher(network, size)
        return await asyncio.gather(*map(batcher, items)), batcher.take_counts()

    answers, counts = asyncio.run(call_all())
    assert answers == [item**2 for item in items]
    assert network.batches == [items[start : start + size] for start in range(0, len(items), size)]
    assert counts["calls"] == len(items) and counts["batches"] == len(network.batches)
    if items:
        assert counts["batch_size_mean"] == pytest.approx(len(items) / len(network.batches))
        assert counts["latency_mean"] >= 0


def test_calls_that_come_during_a_batch_make_up_the_next():
    network, begun, go_on = FakeNetwork(), threading.Event(), threading.Event()

    def slow(items: list[int]) -> list[int]:
        begun.set()
        assert go_on.wait(10)
        return network(items)

    async def call_in_two_waves():
        batcher = Batcher(slow, size=8)
        first = asyncio.create_task(batcher(1))
        while not begun.is_set():
            await asyncio.sleep(0)
        rest = [asyncio.create_task(batcher(item)) for item in (2, 3)]
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(first, *rest)

    assert asyncio.run(call_in_two_waves()) == [1, 4, 9]
    assert network.batches == [[1], [2, 3]]


def test_counts_start_again_when_they_are_taken():
    async def run():
        batcher = Batcher(FakeNetwork(), 2)
        await asyncio.gather(*map(batcher, [1, 2, 3]))
        return batcher.take_counts(), batcher.take_counts()

    first, second = asyncio.run(run())
    assert (first["calls"], first["batches"], first["batch_size_mean"]) == (3, 2, 1.5)
    assert second == {"calls": 0, "batches": 0}


def test_a_batch_that_fails_costs_its_own_items_and_no_others():
    async def run():
        batcher = Batcher(FakeNetwork(), 2)
        return await asyncio.gather(*map(batcher, [2, 13, 3, 4]), return_exceptions=True)

    *failed, third, fourth = asyncio.run(run())
    assert [(type(error), error.reason, error.message) for error in failed] == [
        (Abstained, "raised", "ZeroDivisionError: thirteen")
    ] * 2
    assert (third, fourth) == (9, 16)


def test_too_few_answers_are_a_failure():
    async def run():
        return await Batcher(lambda items: items[1:], 4)(1)

    with pytest.raises(Abstained, match="0 answers to 1 items"):
        asyncio.run(run())


def test_nothing_is_computed_for_a_caller_that_gave_up():
    network = FakeNetwork()

    async def run():
        batcher = Batcher(network, 4)
        tasks = [asyncio.create_task(batcher(item)) for item in (5, 6)]
        await asyncio.sleep(0)  # both wait, no batch has begun
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    cancelled, answer = asyncio.run(run())
    assert isinstance(cancelled, asyncio.CancelledError) and answer == 36
    assert network.batches == [[6]]


def test_a_batcher_outlives_its_event_loop():
    batcher = Batcher(FakeNetwork(), 4)

    async def call(item: int) -> int:
        return await batcher(item)

    assert [asyncio.run(call(3)), asyncio.run(call(4))] == [9, 16]
