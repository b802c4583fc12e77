"""One vLLM engine for many runs: each run starts a thin actor that forwards to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from videorl.config import Config
    from videorl.types import Generation, Request
    from videorl.weight_sync import Weights

TESTS = Path(__file__).resolve().parents[1]
NAME = "shared-vllm"
TARGET = "e2e.shared_engine:SharedEngine"


class SharedEngine:
    """`rollout.engine=TARGET`, while an actor `NAME` of class `VLLMEngine` runs."""

    def __init__(self, config: Config, index: int):
        self.engine: Any = ray.get_actor(NAME)

    @staticmethod
    def environment(config: Config) -> dict[str, str]:
        return {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}  # so that its process finds this class

    def ready(self) -> None:
        """Answers once the actor is there."""

    async def generate(self, request: Request) -> Generation:
        return await self.engine.generate.remote(request)

    async def load_weights(self, weights: Weights) -> None:
        await self.engine.load_weights.remote(weights)
