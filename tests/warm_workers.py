"""Trainers in processes that have imported torch, Ray and verl already: to start one takes ten seconds of CPU time, to
build its module, optimiser and seeds anew less than one."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import Any, ClassVar

import ray
import torch
from safetensors.torch import load_file

from videorl.cluster import Cluster, Worker
from videorl.rollout.engine import Engines
from videorl.workers.encoder import Encoders

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # worker processes cannot import test modules


class WarmCluster(Cluster):
    """Groups that are parked instead of ended are taken up again by the next with their class and number of ranks.

    A cluster that closes parks its own. They end with Ray.
    """

    _parked: ClassVar[dict[tuple[type, int], list[Any]]] = {}

    def group(self, worker_class: type[Worker], ranks: int, *args: Any) -> Any:
        kind = worker_class, ranks
        if parked := self._parked.get(kind):
            group = parked.pop()
            ray.get([worker.__ray_call__.remote(build_anew, *args) for worker in group.workers])
            self._groups.append(group)
        else:
            group = super().group(worker_class, ranks, *args)
            group.kind = kind
        return group

    def park(self, group: Any) -> None:
        self._parked.setdefault(group.kind, []).append(group)

    def close(self) -> None:
        if self._owned:  # Ray ends
            self._parked.clear()
        else:
            for group in self._groups:
                self.park(group)
            self._groups, self._pools = [], []  # what their processes are placed in
        super().close()


def build_anew(worker: Any, *args: Any) -> None:
    type(worker).__init__(worker, *args)


# --- what tests of workers have in common ---------------------------------------------------------------------------

SGD = ("policy.optim.name=sgd", "policy.optim.lr=0.1", "policy.optim.warmup_steps=0", "cluster.placement=spread")


@contextmanager
def started(stack, *parts):
    """Workers for one test. Engines and encoders end with it; processes of trainers are for the next to build in."""
    stack.cluster.wait(**{f"part {index}": part for index, part in enumerate(parts)})
    try:
        yield
    finally:
        for part in parts:
            if not isinstance(part, Engines | Encoders):
                stack.cluster.park(part.group)
                continue
            for actor in part.actors:
                ray.kill(actor)


def weights(policy, folder) -> dict[str, torch.Tensor]:
    policy.export(folder)
    return load_file(folder / "model.safetensors")
