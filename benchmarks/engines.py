"""An engine and an encoder with one configuration, of two or more that a benchmark compares."""

from __future__ import annotations

from typing import Any

import ray

from videorl.cluster import Cluster
from videorl.config import Config
from videorl.data.prompts import PromptStream
from videorl.data.schema import load_rows
from videorl.models.base import open_model
from videorl.models.media import open_source
from videorl.rollout.engine import Engines
from videorl.rollout.episodes import open_runner
from videorl.rollout.frames import Openings
from videorl.types import RenderedPrompt
from videorl.workers.encoder import Encoders


class Side:
    def __init__(self, cluster: Cluster, config: Config):
        self.config, self.model = config, open_model(config.model)
        self.source = open_source(config, self.model)
        self.encoders, self.engines = Encoders(cluster, config, self.source), Engines(cluster, config)
        self.runner = open_runner(config, self.model, self.source, self.engines.generate, None, self.encoders.ensure)

    def prompts(self) -> list[RenderedPrompt]:
        """Of all rows, what they show being available."""
        openings = Openings.of(self.config, self.model, self.source)
        rows = load_rows(self.config.data.path)
        make = openings and openings.prompt
        return PromptStream(rows, self.config.data, self.model, self.source, seed=0, make=make).all(
            self.encoders.ensure
        )

    def collect(self, prompts: list[RenderedPrompt], **options: Any) -> list[Any]:
        return self.runner.collect(prompts, progress=lambda done: None, **options)

    def end(self) -> None:
        for actor in (*self.engines.actors, *self.encoders.actors):
            ray.kill(actor)
