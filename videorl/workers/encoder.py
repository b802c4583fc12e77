"""Encoders: actors that hold nothing but the vision tower and fill the store, once per clip."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import ray
import torch

from videorl.config import Config
from videorl.models.base import open_model
from videorl.models.media import open_source
from videorl.types import DataError, Media
from videorl.video.store import Store

if TYPE_CHECKING:  # a worker of one tower has no use for verl, which takes seconds to import
    from videorl.cluster import Cluster


class EncoderWorker:
    """One process with a vision tower (or, while the tower trains, with none: then frames are decoded ahead)."""

    def __init__(self, config: Config):
        torch.set_num_threads(config.cluster.threads)
        self.config = config
        self.model = open_model(config.model)
        self.source = open_source(config, self.model)
        self.tower = None
        if not config.model.train_vision:
            self.tower = self.model.load_vision().to("cuda" if torch.cuda.is_available() else "cpu")

    def ready(self) -> None:
        """Answers once the tower is loaded."""

    def fill(self, media: Sequence[Media]) -> tuple[int, int, dict[str, DataError]]:
        """Make sure the store holds what each of `media` stands for; the decoders work ahead of the tower.

        Returns (decodes, tower calls, {key: why the clip is unusable}).
        """
        decodes, encoded, failures = self.source.reader.decodes, 0, {}
        workers = self.config.data.decode_workers
        waiting = deque(media)
        decoding: deque[tuple[Media, Future[torch.Tensor]]] = deque()
        with ThreadPoolExecutor(workers) as decoders:
            while waiting or decoding:
                while waiting and len(decoding) <= workers:  # no farther ahead: frames are large
                    item = waiting.popleft()
                    decoding.append((item, decoders.submit(self.source.frames, item)))
                item, frames = decoding.popleft()
                try:
                    encoded += self._encode(item, frames.result())
                except DataError as error:
                    failures[item.key] = error
        return self.source.reader.decodes - decodes, encoded, failures

    @torch.inference_mode()
    def _encode(self, media: Media, frames: torch.Tensor) -> int:
        if self.tower is None:
            return 0
        with self.source.store.filling(media.key) as missing:
            if missing:
                (features,) = self.model.encode(self.tower, self.model.patches([frames]), [media.grid])
                self.source.store.put(media.key, features.cpu())
        return int(missing)


class Encoders:
    """The driver's view of the encoder actors. `ensure` is called with every step's media before they are used."""

    def __init__(self, cluster: Cluster, config: Config, store: Store):
        self.config, self.cluster, self.store = config, cluster, store
        self.actors = cluster.actors(EncoderWorker, config.encoder.workers, 0.1, config)
        self._decoded: set[str] = set()
        self.decodes = 0
        self.calls = 0
        self._lock = threading.Lock()  # the look-ahead asks from a thread of its own

    def ready(self) -> list[Any]:
        return [actor.ready.remote() for actor in self.actors]

    def take_counts(self) -> dict[str, int]:
        """Decodes and tower calls since the last call."""
        with self._lock:
            counts = {"decodes": self.decodes, "encoder_calls": self.calls}
            self.decodes = self.calls = 0
        return counts

    def ensure(self, media: Sequence[Media]) -> dict[str, DataError]:
        """Fill what is missing; the clips that cannot be used come back as {key: reason}."""
        distinct = {item.key: item for item in media}
        if self.config.model.train_vision:
            # Frames have a key of their own, which the actor looks up; once it has, who needs one that was evicted
            # since decodes it again.
            missing = [item for key, item in distinct.items() if key not in self._decoded]
        else:
            missing = [item for key, item in distinct.items() if key not in self.store]
        if not missing:
            return {}
        shares = [missing[start :: len(self.actors)] for start in range(len(self.actors))]
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
        if self.config.model.train_vision:
            self._decoded |= distinct.keys() - failures.keys()
        return failures
