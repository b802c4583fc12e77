"""What a user has in the folder from which a run is started."""

import pathlib

from videorl.algorithms.losses import vanilla
from videorl.rollout.vllm_engine import VLLMEngine


def length(response, row, *, per):
    return min(1.0, len(response) / per)


def even(response, row):
    return float(len(response) % 2 == 0)


def half(inputs, algorithm):
    losses, _ = vanilla(inputs, algorithm)
    return losses / 2, {"mine": 7 + 0 * losses.detach()}


class CountingEngine(VLLMEngine):
    def __init__(self, config, index):
        super().__init__(config, index)
        self.log = pathlib.Path(config.run.dir) / f"engine-{index}"

    async def generate(self, request):
        with self.log.open("a") as file:
            file.write(".")
        return await super().generate(request)
