"""Work that is the same for many items, on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_on_all_cores(
    function: Callable[[Item], Result], items: Sequence[Item], items_per_task: int
) -> Iterator[Result]:
    """`map(function, items)`, in order. A task should be half a second of work; for less than two, no process starts.

    The function and the items go to other processes, and the results come back: they must be picklable.
    """
    workers = min(os.cpu_count() or 1, len(items) // items_per_task)
    if workers < 2:
        yield from map(function, items)
        return
    # Fresh processes: a fork of one that holds Ray's or torch's threads can hang
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, items, chunksize=items_per_task)
