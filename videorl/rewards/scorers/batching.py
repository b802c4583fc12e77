"""Merging concurrent calls into batches."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from videorl.rewards.result import Abstained

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batcher(Generic[Item, Answer]):
    """`await batcher(item)` is what `compute` answers that item; items that wait together are computed together.

    `compute` takes up to `size` items and gives as many answers, in order. It runs in a thread, one call at a time; the
    items that arrive meanwhile make up the next batch, so nothing ever waits for a batch to fill.
    """

    def __init__(self, compute: Callable[[list[Item]], Sequence[Answer]], size: int):
        self._compute, self._size = compute, size
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._latencies: list[float] = []
        self._sizes: list[int] = []

    async def __call__(self, item: Item) -> Answer:
        """Raises `Abstained`, reason `raised`, where `compute` fails."""
        started = time.monotonic()
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())  # starts after the calls that are ready to run now
        try:
            return await future
        finally:
            self._latencies.append(time.monotonic() - started)

    def take_counts(self) -> dict[str, float]:
        """Since the last call: `calls`, `batches`, and where there were any `batch_size_mean`, `latency_mean` (s)."""
        latencies, self._latencies = self._latencies, []
        sizes, self._sizes = self._sizes, []
        counts: dict[str, float] = {"calls": len(latencies), "batches": len(sizes)}
        if sizes:
            counts["batch_size_mean"] = sum(sizes) / len(sizes)
        if latencies:
            counts["latency_mean"] = sum(latencies) / len(latencies)
        return counts

    async def _work(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
            batch = [(item, future) for item, future in taken if not future.done()]  # the others' callers gave up
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        self._sizes.append(len(batch))
        answers: Sequence[Answer] = ()
        failure = ""
        try:
            answers = await asyncio.to_thread(self._compute, [item for item, _ in batch])
            if len(answers) != len(batch):
                raise ValueError(f"{len(answers)} answers to {len(batch)} items")
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        for place, (_, future) in enumerate(batch):
            if future.done():
                continue
            if failure:
                future.set_exception(Abstained("raised", failure))
            else:
                future.set_result(answers[place])
