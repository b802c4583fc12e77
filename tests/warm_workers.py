"""Trainers in processes that have imported torch, Ray and verl already: to start one takes ten seconds of CPU time, to
build its module, optimiser and seeds anew less than one."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import ray

from videorl.cluster import Cluster, Worker

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
