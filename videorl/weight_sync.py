"""Policy -> engine weights: buckets of named tensors in Ray's object store, read by every engine without a copy.

The policy's ranks gather one parameter at a time, so that no process holds more than a bucket beside its shard. Engines
on one node map the same object. This path needs no GPU and serves GPUs through host memory.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch

BUCKET_BYTES = 512 << 20


@dataclass(frozen=True)
class Weights:
    """References to the buckets of one version. The driver passes it on; it never holds the tensors."""

    version: int
    buckets: tuple[Any, ...]


def publish(
    tensors: Iterable[tuple[str, torch.Tensor]], version: int, dtype: torch.dtype, owner: bool
) -> Weights | None:
    """Put named tensors into the object store. Every rank must call it (gathering is collective); the owner puts."""
    buckets: list[Any] = []
    bucket: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if not owner:
            continue
        tensor = tensor.to(dtype)
        if bucket and size + tensor.nbytes > BUCKET_BYTES:
            buckets.append(ray.put(bucket))
            bucket, size = {}, 0
        bucket[name] = tensor
        size += tensor.nbytes
    if not owner:
        return None
    if bucket:
        buckets.append(ray.put(bucket))
    return Weights(version, tuple(buckets))


async def receive(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors of a version. They are views of the node's object store, so waiting for all costs no copy."""
    buckets = await asyncio.gather(*weights.buckets)
    return itertools.chain.from_iterable(bucket.items() for bucket in buckets)
