"""Encoders: actors that hold nothing but the vision tower and fill the store, once per clip."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import ray
import torch

from videorl.cluster import Cluster
from videorl.config import Config
from videorl.models.base import open_model
from videorl.models.media import open_source
from videorl.types import DataError, Media
from videorl.video.store import Store


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

    def fill(self, media: Media) -> tuple[int, int, DataError | None]:
        """Make sure the store holds what `media` stands for. (decodes, tower calls, why the clip is unusable)."""
        decodes = self.source.reader.decodes
        try:
            encoded = self._fill(media)
        except DataError as error:
            return self.source.reader.decodes - decodes, 0, error
        return self.source.reader.decodes - decodes, encoded, None

    @torch.inference_mode()
    def _fill(self, media: Media) -> int:
        if self.tower is None:
            self.source.frames(media)
            return 0
        with self.source.store.filling(media.key) as missing:
            if missing:
                patches = self.model.patches([self.source.frames(media)])
                (features,) = self.model.encode(self.tower, patches, [media.grid])
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

    def ready(self) -> list[Any]:
        return [actor.ready.remote() for actor in self.actors]

    def take_counts(self) -> dict[str, int]:
        """Decodes and tower calls since the last call."""
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
        failures: dict[str, DataError] = {}
        actors = itertools.cycle(self.actors)
        calls = [next(actors).fill.remote(self.cluster.shipping(item)) for item in missing]
        for item, (decodes, encoded, error) in zip(missing, ray.get(calls), strict=True):
            self.decodes += decodes
            self.calls += encoded
            if error is not None:
                failures[item.key] = error
        if self.config.model.train_vision:
            self._decoded |= distinct.keys() - failures.keys()
        return failures
