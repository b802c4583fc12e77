"""What a rollout needs from an inference engine, and the spreading of work over several."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import ray

from videorl.cluster import Cluster
from videorl.config import Config
from videorl.imports import load_object
from videorl.types import Generation, Request
from videorl.weight_sync import Weights

BUILT_IN = {"vllm": "videorl.rollout.vllm_engine:VLLMEngine"}


class Generate(Protocol):
    """All that rollout code knows of an engine: one request in, one generation out, many at a time."""

    async def __call__(self, request: Request) -> Generation: ...


class EngineActor(Protocol):
    """What `rollout.engine` names: a class that is started as a Ray actor with `(config, index)`."""

    @staticmethod
    def environment(config: Config) -> dict[str, str]:
        """Environment variables that must stand before the engine's library is imported."""
        ...

    def ready(self) -> None: ...
    async def generate(self, request: Request) -> Generation: ...
    async def load_weights(self, weights: Weights) -> None: ...


class Engines:
    """One or more engine actors behind one `generate`.

    The requests of a prompt go to one engine, whose caches hold it by then, unless that would leave another idle.
    """

    def __init__(self, cluster: Cluster, config: Config):
        self.cluster, self.config = cluster, config
        engine_class = load_object(BUILT_IN.get(config.rollout.engine, config.rollout.engine))
        self.actors = [
            cluster.actors(
                engine_class,
                1,
                float(config.rollout.tensor_parallel),
                config,
                index,
                max_concurrency=config.rollout.max_concurrency + 8,  # and the control calls
                runtime_env={"env_vars": engine_class.environment(config)},
            )[0]
            for index in range(config.rollout.num_engines)
        ]
        self._under_way = [0] * len(self.actors)
        self._home: dict[object, int] = {}  # prompt -> the engine that had it last

    def ready(self) -> list[Any]:
        return [actor.ready.remote() for actor in self.actors]

    async def generate(self, request: Request) -> Generation:
        index = self._choose((request.token_ids, request.media))
        self._under_way[index] += 1
        try:
            call = self.actors[index].generate.remote(self.cluster.shipping(request))
            return await asyncio.wait_for(call, self.config.rollout.timeout)
        except TimeoutError:
            raise TimeoutError(
                f"engine {index} gave no response within rollout.timeout={self.config.rollout.timeout:g} s; "
                "raise it, or lower rollout.max_response_tokens"
            ) from None
        finally:
            self._under_way[index] -= 1

    def _choose(self, prompt: object) -> int:
        """The prompt's own engine, or the one with the fewest requests where that one is a whole group behind it."""
        fewest = min(self._under_way)
        home = self._home.get(prompt)
        if home is None or self._under_way[home] - fewest > self.config.rollout.group_size:
            home = self._home[prompt] = self._under_way.index(fewest)
        return home

    def load_weights(self, weights: Weights) -> None:
        """All engines serve this version from the next request on."""
        ray.get([actor.load_weights.remote(weights) for actor in self.actors])
        self._home.clear()  # the caches are empty now
