"""A worker without a model, for the contract test of the worker groups."""

import os

from videorl.cluster import Worker, all_ranks, per_rank


class EchoWorker(Worker):
    def __init__(self, greeting: str):
        super().__init__()
        self.greeting = greeting

    @per_rank
    def own(self, item):
        return self.rank, item

    @all_ranks
    def same(self, item):
        return f"{self.greeting} {item} from {self.rank} of {self.world_size}"

    @all_ranks
    def environment(self):
        return {
            name: os.environ.get(name)
            for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
        }
