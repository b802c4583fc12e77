"""Ray: starting it, placing workers on it, and counting what the driver ships. `verl.single_controller` ends here.

Used from verl (0.9.1): `Worker`, `register`, `Dispatch`, `RayWorkerGroup`, `RayResourcePool`, `RayClassWithInitArgs`.
`tests/test_cluster.py` is their contract test.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from typing import TYPE_CHECKING, Any, cast

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # else a thread that outlives the cluster starts another one

import ray
from ray.exceptions import GetTimeoutError

from videorl.ending import end_on_sigterm
from videorl.gpus import trainer_ranks
from videorl.imports import fix_imports

fix_imports()
os.environ.setdefault("VERL_LOGGING_LEVEL", "ERROR")  # it warns at import that there is no accelerator

from verl.single_controller.base.decorator import Dispatch, register  # noqa: E402
from verl.single_controller.base.worker import Worker  # noqa: E402
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup  # noqa: E402

if TYPE_CHECKING:
    from videorl.config import Config

__all__ = ["Cluster", "Worker", "all_ranks", "per_rank"]

# Dispatch makes its members at run time, which no type checker sees
per_rank = register(dispatch_mode=cast(Any, Dispatch).ALL_TO_ALL)
"""A worker method called with one list per argument, `list[i]` for rank i; returns the list of results."""

all_ranks = register(dispatch_mode=cast(Any, Dispatch).ONE_TO_ALL)
"""A worker method called with the same arguments on every rank; returns the list of results."""


def worker_environment(threads: int) -> dict[str, str]:
    """Environment variables of every worker process, set before torch or vLLM is imported there."""
    return {
        "OMP_NUM_THREADS": str(threads),  # read at import; two threads beside another busy process are slower than one
        "TOKENIZERS_PARALLELISM": "false",
        "VERL_LOGGING_LEVEL": "ERROR",  # it warns in every process that there is no accelerator
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


_LOCAL_CPUS = 256
"""Of a Ray of our own. They are admission counters: its workers share the cores whatever the number says."""


class Cluster:
    """A running Ray with room for this configuration's workers. Leaving the `with` block shuts a local one down."""

    def __init__(self, config: Config):
        self.config = config
        self.shipped_bytes = 0
        self._closed = False
        self._lock = threading.Lock()
        workers = num_workers(config)
        options: dict[str, Any] = {
            "runtime_env": {"env_vars": worker_environment(config.cluster.threads)},
            "log_to_driver": False,  # errors reach the driver as exceptions; the rest is in Ray's session folder
            "logging_level": "error",
        }
        os.environ.setdefault("RAY_worker_niceness", "0")  # at nice 15 workers starve beside a busy driver
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # processes for tasks, of which there are none
        if config.cluster.address == "local":
            options |= {
                "address": "local",
                "num_cpus": max(os.cpu_count() or 1, _LOCAL_CPUS),
                "include_dashboard": False,
            }
        else:
            options["address"] = config.cluster.address
        self._groups: list[RayWorkerGroup] = []
        self._pools: list[RayResourcePool] = []
        self._actors: list[Any] = []
        self._shared_pools: dict[int, RayResourcePool] = {}  # by number of ranks
        self._owned = config.cluster.address == "local" and not ray.is_initialized()
        if not ray.is_initialized():
            ray.init(**options)
        end_on_sigterm()  # only now: Ray has put in a handler of its own, under which the process dies where it is
        available = ray.cluster_resources()
        self.use_gpu = config.cluster.device == "cuda" or (
            config.cluster.device == "auto" and available.get("GPU", 0) > 0
        )
        if available.get("CPU", 0) < workers:
            self.close()
            raise RuntimeError(
                f"cluster: {workers} workers need one Ray CPU each, the cluster has {available.get('CPU', 0):g}; "
                "start its nodes with a larger --num-cpus, or ask for fewer ranks, engines or encoders"
            )

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        for actor in [*(worker for group in self._groups for worker in group.workers), *self._actors]:
            ray.kill(actor)
        for pool in self._pools:  # else a Ray that goes on keeps the room for workers that are gone
            for placement in pool.pgs or ():
                ray.util.remove_placement_group(placement)
        if self._owned:
            ray.shutdown()

    def _refuse_when_closed(self) -> None:
        """Work beside must not replace an engine that closing has ended: Ray would end the process on the spot."""
        if self._closed:
            raise RuntimeError("the cluster is closed")

    def group(self, worker_class: type[Worker], ranks: int, *args: Any) -> RayWorkerGroup:
        """Start `ranks` workers of one class, joined by MASTER_ADDR; the group has the class's registered methods.

        With `cluster.placement=colocate` groups with the same number of ranks share GPUs, each taking an equal part.
        """
        if self.config.cluster.placement == "colocate":
            if ranks not in self._shared_pools:
                self._shared_pools[ranks] = self._pool(ranks, sharing=trainer_ranks(self.config).count(ranks))
            pool = self._shared_pools[ranks]
        else:
            pool = self._pool(ranks, sharing=1)
        remote = RayClassWithInitArgs(ray.remote(worker_class), *args)
        group = RayWorkerGroup(pool, remote, bin_pack=False, use_gpu=self.use_gpu)
        self._groups.append(group)
        return group

    def _pool(self, ranks: int, sharing: int) -> RayResourcePool:
        nodes = max(1, len([node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]))
        if not self.use_gpu or ranks % nodes:
            nodes = 1
        pool = RayResourcePool([ranks // nodes] * nodes, use_gpu=self.use_gpu, max_colocate_count=sharing)
        self._pools.append(pool)
        return pool

    def actors(self, actor_class: type, count: int, gpus: float, *args: Any, **options: Any) -> list[Any]:
        """Start `count` plain Ray actors of a class, of one CPU each unless the options say otherwise."""
        self._refuse_when_closed()
        options = {"num_cpus": 1, "num_gpus": gpus if self.use_gpu else 0, **options}
        remote = ray.remote(actor_class).options(**options)
        started = [remote.remote(*args) for _ in range(count)]
        self._actors += started
        return started

    def shipping(self, payload: Any) -> Any:
        """Count the pickled bytes of what the driver is about to send, and hand it back."""
        self._refuse_when_closed()
        size = len(pickle.dumps(payload, protocol=5))
        with self._lock:
            self.shipped_bytes += size
        return payload

    def take_counts(self) -> dict[str, int]:
        """Pickled bytes shipped since the last call."""
        with self._lock:
            shipped, self.shipped_bytes = self.shipped_bytes, 0
        return {"bytes": shipped}

    def wait(self, **parts: Any) -> None:
        """Until everything that was started answers; the parts start at the same time. None is skipped.

        Raises TimeoutError after `cluster.start_timeout`, naming what is late.
        """
        for name, part in parts.items():
            if part is not None:
                started = time.monotonic()
                try:
                    ray.get(part.ready(), timeout=self.config.cluster.start_timeout)
                except GetTimeoutError:
                    raise TimeoutError(
                        f"{name} did not start within cluster.start_timeout={self.config.cluster.start_timeout:g} s; "
                        "raise it, or see the worker logs in Ray's session folder"
                    ) from None
                print(f"{name} ready after {time.monotonic() - started:.0f} s", flush=True)


def num_workers(config: Config) -> int:
    """Ray workers that a training run starts."""
    return sum(trainer_ranks(config)) + config.rollout.num_engines + config.encoder.workers
