"""What a rollout needs from an inference engine, and the spreading of work over several."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError

from videorl.cluster import Cluster
from videorl.config import Config
from videorl.gpus import engine_gpus
from videorl.imports import load_object
from videorl.types import Generation, Request
from videorl.weight_sync import Weights

logger = logging.getLogger(__name__)

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


class EngineLost(RuntimeError):
    """The process of an engine ended under a request, and that of its successor too."""


class Engines:
    """One or more engine actors behind one `generate`.

    The requests of a prompt go to one engine, whose caches hold it by then, unless that would leave another idle. An
    engine whose process ends is replaced, with the weights that it had, and its requests are made again.
    """

    def __init__(self, cluster: Cluster, config: Config):
        self.cluster, self.config = cluster, config
        engine_class = load_object(BUILT_IN.get(config.rollout.engine, config.rollout.engine))
        self._start = lambda index: cluster.actors(
            engine_class,
            1,
            engine_gpus(config),
            config,
            index,
            max_concurrency=config.rollout.max_concurrency + 8,  # and the control calls
            runtime_env={"env_vars": engine_class.environment(config)},
        )[0]
        self.actors = [self._start(index) for index in range(config.rollout.num_engines)]
        self._weights: Weights | None = None
        self._mending: dict[int, asyncio.Task[None]] = {}
        self._under_way = [0] * len(self.actors)
        self._home: dict[str, int] = {}  # the engine that had a request of this home last

    def ready(self) -> list[Any]:
        return [actor.ready.remote() for actor in self.actors]

    async def generate(self, request: Request) -> Generation:
        index = self._choose(request.home)
        self._under_way[index] += 1
        try:
            try:
                return await self._ask(index, request)
            except RayActorError:
                return await self._ask(index, request)  # its successor
        except RayActorError as error:
            raise EngineLost(f"engine {index} ended twice under a request: {str(error).splitlines()[0]}") from error
        except TimeoutError:
            raise TimeoutError(
                f"engine {index} gave no response within rollout.timeout={self.config.rollout.timeout:g} s; "
                "raise it, or lower rollout.max_response_tokens"
            ) from None
        finally:
            self._under_way[index] -= 1

    def _choose(self, home: str) -> int:
        """The home's own engine, or the one with the fewest requests where that one is a whole group behind it."""
        fewest = min(self._under_way)
        index = self._home.get(home)
        if index is None or self._under_way[index] - fewest > self.config.rollout.group_size:
            index = self._home[home] = self._under_way.index(fewest)
        return index

    async def _ask(self, index: int, request: Request) -> Generation:
        actor = self.actors[index]
        try:
            call = actor.generate.remote(self.cluster.shipping(request))
            return await asyncio.wait_for(call, self.config.rollout.timeout)
        except RayActorError:
            if self.actors[index] is actor:
                if index not in self._mending:
                    self._mending[index] = asyncio.create_task(self._mend(index))
                await asyncio.shield(self._mending[index])
            raise

    async def _mend(self, index: int) -> None:
        """Put a new engine in the place of one that has ended."""
        try:
            logger.warning("engine %d ended and is started again", index)
            actor = self._start(index)
            if self._weights is not None:
                await actor.load_weights.remote(self._weights)
            self.actors[index] = actor
        finally:
            del self._mending[index]

    def load_weights(self, weights: Weights) -> None:
        """All engines serve this version from the next request on."""
        self._weights = weights
        for index, call in enumerate([actor.load_weights.remote(weights) for actor in self.actors]):
            try:
                ray.get(call)
            except RayActorError:  # it ended since its last request
                self.actors[index] = self._start(index)
                ray.get(self.actors[index].load_weights.remote(weights))
        self._home.clear()  # the caches are empty now
