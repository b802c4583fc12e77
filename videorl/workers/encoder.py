"""Encoders: actors that hold nothing but the vision tower and fill the store, once per clip.

A clip that is more than one encoder's share of the work is cut in time. That is exact: the towers of the Qwen-VL family
attend within a temporal step, and never across two.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
import torch

from videorl.config import Config
from videorl.gpus import ENCODER_GPUS
from videorl.models.base import open_model
from videorl.models.media import EmbeddingMissing, MediaSource, open_source
from videorl.types import DataError, Media

if TYPE_CHECKING:  # a worker of one tower has no use for verl, which takes seconds to import
    from videorl.cluster import Cluster


MIN_STEPS = 16  # temporal steps: a shorter part is not worth a second decoder's seek


@dataclass(frozen=True)
class Part:
    """Temporal steps `[start, stop)` of a clip."""

    media: Media
    start: int
    stop: int

    @property
    def whole(self) -> bool:
        return self.stop - self.start == self.media.grid[0]

    @property
    def key(self) -> str:
        """Of the part's features in the store."""
        if self.whole:
            return self.media.key
        return hashlib.sha256(f"{self.media.key}|{self.start}|{self.stop}".encode()).hexdigest()

    @property
    def size(self) -> int:
        return (self.stop - self.start) * self.media.grid[1] * self.media.grid[2]

    @property
    def together(self) -> object:
        """What parts have in common that are decoded and encoded in one go: single frames of one video."""
        return replace(self.media.clip, pick=None) if self.media.clip.pick else (self.media.key, self.start)


def bundle(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts that go together."""
    bundles: dict[object, list[Part]] = {}
    for part in parts:
        bundles.setdefault(part.together, []).append(part)
    return list(bundles.values())


def deal(media: Sequence[Media], workers: int, cut: bool = True) -> list[list[Part]]:
    """Each worker's parts, of balanced size: the largest bundle first, each to the worker that has least."""
    total = sum(math.prod(item.grid) for item in media)
    parts: list[Part] = []
    for item in media:
        steps, cuts = item.grid[0], 1
        neighbours = item.clip.shuffle is None and not (item.clip.hold or item.clip.pick)  # in time are so in the clip
        if cut and neighbours:
            shares = -(-math.prod(item.grid) * workers // total)
            cuts = max(1, min(shares, steps // MIN_STEPS))
        bounds = [steps * cut // cuts for cut in range(cuts + 1)]
        parts += [Part(item, start, stop) for start, stop in itertools.pairwise(bounds)]
    dealt: list[list[Part]] = [[] for _ in range(workers)]
    for together in sorted(bundle(parts), key=lambda parts: -sum(part.size for part in parts)):
        min(dealt, key=lambda own: sum(other.size for other in own)).extend(together)
    return dealt


class EncoderWorker:
    """One process with a vision tower (or with none, where pixels are wanted: then it decodes ahead)."""

    def __init__(self, config: Config):
        torch.set_num_threads(config.cluster.threads)
        self.config = config
        self.model = open_model(config.model)
        self.source = open_source(config, self.model)
        self.tower = None
        if not self.source.pixels:
            self.tower = self.model.load_vision().to("cuda" if torch.cuda.is_available() else "cpu")

    def ready(self) -> None:
        """Answers once the tower is loaded."""

    def fill(self, parts: Sequence[Part]) -> tuple[int, int, dict[str, DataError]]:
        """Make sure the store holds what each part stands for; the decoders work ahead of the tower.

        Returns (decodes, tower calls, {key of a clip: why it is unusable}).
        """
        decodes, encoded, failures = self.source.reader.decodes, 0, {}
        workers = self.config.data.decode_workers
        waiting = deque(bundle(parts))
        decoding: deque[tuple[list[Part], Future[list[torch.Tensor]]]] = deque()
        with ThreadPoolExecutor(workers) as decoders:
            while waiting or decoding:
                while waiting and len(decoding) <= workers:  # no farther ahead: frames are large
                    together = waiting.popleft()
                    decoding.append((together, decoders.submit(self._frames, together)))
                together, frames = decoding.popleft()
                try:
                    encoded += self._encode(together, frames.result())
                except DataError as error:
                    failures |= {part.media.key: error for part in together}
        return self.source.reader.decodes - decodes, encoded, failures

    def _frames(self, together: Sequence[Part]) -> list[torch.Tensor]:
        if together[0].media.clip.pick and not self.source.pixels:
            return self.source.picks([part.media for part in together])
        factor = self.model.temporal_factor
        return [
            self.source.frames(part.media, None if part.whole else slice(factor * part.start, factor * part.stop))
            for part in together
        ]

    @torch.inference_mode()
    def _encode(self, together: Sequence[Part], frames: Sequence[torch.Tensor]) -> int:
        store = self.source.store
        if self.tower is None or store is None:
            return 0
        with ExitStack() as locks:
            # in one order, so that two encoders never wait for each other
            wanted = sorted(zip(together, frames, strict=True), key=lambda pair: pair[0].key)
            missing = [pair for pair in wanted if locks.enter_context(store.filling(pair[0].key))]
            # what was cut may have been joined by others since
            missing = [pair for pair in missing if pair[0].whole or pair[0].media.key not in store]
            if missing:
                grids = [(part.stop - part.start, *part.media.grid[1:]) for part, _ in missing]
                patches = self.model.patches([pixels for _, pixels in missing])
                for (part, _), features in zip(missing, self.model.encode(self.tower, patches, grids), strict=True):
                    store.put(part.key, features.cpu())
        return len(missing)

    def join(self, parts: Sequence[Part]) -> None:
        """Store a clip of which the store holds all parts, in their order."""
        store, media = self.source.store, parts[0].media
        assert store is not None
        with store.filling(media.key) as missing:
            if missing:
                features = [store.get(part.key) for part in parts]
                found = [tensor for tensor in features if tensor is not None]
                if len(found) < len(parts):
                    raise EmbeddingMissing(f"{media.clip.path}: a part of it was evicted at once; raise store.max_gb")
                store.put(media.key, torch.cat(found))
        for part in parts:
            store.discard(part.key)


class Encoders:
    """The driver's view of the encoder actors. `ensure` is called with every step's media before they are used."""

    def __init__(self, cluster: Cluster, config: Config, source: MediaSource):
        self.cluster, self.source = cluster, source
        self.actors = cluster.actors(EncoderWorker, config.encoder.workers, ENCODER_GPUS, config)
        self._decoded: set[str] = set()
        self.decodes = 0
        self.calls = 0
        self._lock = threading.Lock()  # the look-ahead asks from a thread of its own

    def ready(self) -> list[Any]:
        return [actor.ready.remote() for actor in self.actors]

    def take_counts(self) -> dict[str, int]:
        """Decodes and tower calls since the last call; a clip that was cut counts once for each part."""
        with self._lock:
            counts = {"decodes": self.decodes, "encoder_calls": self.calls}
            self.decodes = self.calls = 0
        return counts

    def ensure(self, media: Sequence[Media]) -> dict[str, DataError]:
        """Fill what is missing; the clips that cannot be used come back as {key: reason}."""
        distinct = {item.key: item for item in media}
        store = self.source.store
        if store is None:
            return {}  # whoever needs a clip decodes it
        if self.source.pixels:
            # Frames have a key of their own, which the actor looks up; once it has, who needs one that was evicted
            # since decodes it again.
            missing = [item for key, item in distinct.items() if key not in self._decoded]
        else:
            missing = [item for key, item in distinct.items() if key not in store]
        if not missing:
            return {}
        shares = deal(missing, len(self.actors), cut=not self.source.pixels)
        calls = [
            actor.fill.remote(self.cluster.shipping(share))
            for actor, share in zip(self.actors, shares, strict=True)
            if share
        ]
        failures: dict[str, DataError] = {}
        for decodes, encoded, failed in ray.get(calls):
            with self._lock:
                self.decodes += decodes
                self.calls += encoded
            failures |= failed
        parts = [part for share in shares for part in share if not part.whole]
        self._join([part for part in parts if part.media.key not in failures])
        for part in parts:
            if part.media.key in failures:
                store.discard(part.key)
        if self.source.pixels:
            self._decoded |= distinct.keys() - failures.keys()
        return failures

    def _join(self, parts: Sequence[Part]) -> None:
        """Put the clips together that were cut."""
        cut: dict[str, list[Part]] = {}
        for part in sorted(parts, key=lambda part: part.start):
            cut.setdefault(part.media.key, []).append(part)
        ray.get(
            [
                self.actors[index % len(self.actors)].join.remote(self.cluster.shipping(found))
                for index, found in enumerate(cut.values())
            ]
        )
