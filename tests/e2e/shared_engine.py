"""One vLLM engine for many runs: each run starts a thin actor that forwards to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from videorl.config import Config
    from videorl.types import Generation, Request
    from videorl.weight_sync import Weights

NAME = "shared-vllm"


class SharedEngine:
    """`rollout.engine=e2e.shared_engine:SharedEngine`, while an actor `NAME` of class `VLLMEngine` runs."""

    def __init__(self, config: Config, index: int):
        self.engine: Any = ray.get_actor(NAME)

    @staticmethod
    def environment(config: Config) -> dict[str, str]:
        return {"PYTHONPATH": os.pathsep.join(map(str, TESTS.parents[:1] + (TESTS,)))}  # where this module is

    def ready(self) -> None:
        """Answers once the actor is there."""

    async def generate(self, request: Request) -> Generation:
        return await self.engine.generate.remote(request)

    async def load_weights(self, weights: Weights) -> None:
        await self.engine.load_weights.remote(weights)
