"""Experiment trackers. Each has a thread of its own, so none can stop training: not by failing, not by hanging."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from videorl.imports import require

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a tracker shows about a run. `config` is redacted."""

    folder: Path
    config: Mapping[str, Any]


class Tracker(Protocol):
    """One back end. All calls come from one thread, in the order of steps; an exception ends it, not the run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


Opener = Callable[[], Tracker]


class Trackers:
    """Hands every step to all trackers without waiting for any of them."""

    def __init__(self, openers: Mapping[str, Opener]):
        self._queues: dict[str, SimpleQueue] = {name: SimpleQueue() for name in openers}
        self._threads = {
            name: threading.Thread(target=_feed, args=(name, opener, self._queues[name]), daemon=True)
            for name, opener in openers.items()
        }
        for thread in self._threads.values():
            thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, queue in self._queues.items():
            if self._threads[name].is_alive():
                queue.put((step, metrics))

    def close(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Let the trackers finish, for `timeout` seconds together."""
        for queue in self._queues.values():
            queue.put(None)
        deadline = time.monotonic() + timeout
        for name, thread in self._threads.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.warning("tracker %s did not finish within %g s; metrics.jsonl is complete", name, timeout)


def _feed(name: str, opener: Opener, queue: SimpleQueue) -> None:
    try:
        tracker = opener()
        while (item := queue.get()) is not None:
            tracker.log(*item)
        tracker.close()
    except Exception as error:
        logger.warning("tracker %s is off from here on, metrics.jsonl stays complete: %r", name, error)


def tracker_openers(names: Sequence[str], info: RunInfo) -> dict[str, Opener]:
    """What `Trackers` needs for the named back ends. Raises ModuleNotFoundError where a package is not installed."""
    return {name: _BACK_ENDS[name](info) for name in names}


def _kept_id(info: RunInfo, name: str, new: Callable[[], str]) -> str:
    """The id under which the tracker knows this run, so that a resumed run continues the same curves."""
    path = info.folder / f"{name}.id"
    kept = path.read_text() if path.exists() else ""
    if not kept:
        kept = new()
        path.write_text(kept)
    return kept


class _TensorBoard:
    def __init__(self, info: RunInfo):
        self.writer = EventFileWriter(str(info.folder / "tensorboard"))
        self.started = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self.started:  # hides what an interrupted process wrote for this step and later ones
            self._add(step, session_log=SessionLog(status=SessionLog.START))
            self.started = True
        values = [Summary.Value(tag=name, simple_value=number) for name, number in metrics.items()]
        self._add(step, summary=Summary(value=values))
        self.writer.flush()

    def _add(self, step: int, **content: Any) -> None:
        self.writer.add_event(Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, wandb: Any, info: RunInfo):
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "videorl"),
            name=info.folder.name,
            id=_kept_id(info, "wandb", lambda: uuid.uuid4().hex),
            resume="allow",
            dir=str(info.folder),
            config=dict(info.config),
            settings=wandb.Settings(console="off"),  # its capture of stdout and the live view's would nest
        )
        # an axis of our own: wandb's counter cannot go back to the step a run resumes from
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log({"step": step, **metrics})

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    def __init__(self, mlflow: Any, info: RunInfo):
        self.client = mlflow.MlflowClient()
        self.metric = mlflow.entities.Metric

        def new_run() -> str:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "videorl")
            experiment = self.client.get_experiment_by_name(name)
            experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
            run_id = self.client.create_run(experiment_id, run_name=info.folder.name).info.run_id
            self.client.log_dict(run_id, dict(info.config), "config.yaml")
            return run_id

        self.run_id = _kept_id(info, "mlflow", new_run)
        self.client.update_run(self.run_id, status="RUNNING")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        named = {re.sub(r"[^\w.\- :/]", "_", name): number for name, number in metrics.items()}  # it refuses recall@0.5
        self.client.log_batch(self.run_id, [self.metric(name, number, now, step) for name, number in named.items()])

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


class _SwanLab:
    def __init__(self, swanlab: Any, info: RunInfo):
        self.run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT_NAME", "videorl"),
            name=info.folder.name,
            id=_kept_id(info, "swanlab", lambda: uuid.uuid4().hex),
            resume="allow",
            log_dir=str(info.folder / "swanlab"),
            config=dict(info.config),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


def _optional(name: str, tracker: Callable[[Any, RunInfo], Tracker]) -> Callable[[RunInfo], Opener]:
    """The package is imported where the caller can see that it is missing; the tracker is opened in its thread."""

    def prepare(info: RunInfo) -> Opener:
        module = require(name, extra=name)
        return lambda: tracker(module, info)

    return prepare


_BACK_ENDS: dict[str, Callable[[RunInfo], Opener]] = {
    "tensorboard": lambda info: lambda: _TensorBoard(info),
    "wandb": _optional("wandb", _Wandb),
    "mlflow": _optional("mlflow", _MLflow),
    "swanlab": _optional("swanlab", _SwanLab),
}
