"""One step off policy: `python -m videorl.train_async recipe=...` rolls out the next batch while it trains on this one.

The loop of `train` with the rollout moved beside the update. A batch was sampled with weights one version older than
those it is trained on, never more; the ratio between the two enters the loss through `algorithm.importance_cap`. It is
faster where engines and policy have processors of their own, as GPUs are. A batch is on policy where nothing was
sampled beside the step before: the first one of a process, after a resume too, and where the store cannot hold the
clips of two steps. In a step's line `data/*`, `video/*` and `driver/*` count what was collected beside it for the next.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from functools import partial

from videorl.beside import begin
from videorl.config import Config, ConfigError
from videorl.launch import main
from videorl.run import StepLog
from videorl.stages import of_stage
from videorl.train import Job, collect, learn, report, shown, start
from videorl.types import DataError, Media, RolloutGroup

Ahead = tuple[list[RolloutGroup], StepLog]


def train_async(config: Config) -> None:
    """Post-train a video LLM with reinforcement learning, rolling out one step ahead of the update."""
    config = of_stage(config, "train")
    if config.algorithm.importance_cap is None:
        raise ConfigError(
            ["algorithm.importance_cap: null, rollouts are one version old here and must be weighted for it; set 2.0"]
        )
    with start(config) as job:
        coming: Future[Ahead | None] | None = None
        for step in range(job.step + 1, config.total_steps + 1):
            # 1. sampled beside the step before this one, whose results are saved by now; else sampled now, on policy
            groups, gathered = (coming and coming.result()) or _collect(job, step)
            with job.run.step(step) as log:
                log.merge(gathered)
                _keep(job, groups)
                state = job.prompts.state()  # before the next prompts are taken: a checkpoint rolls them out again
                ahead = partial(_collect_beside, job, step + 1, job.in_use(shown(groups)))
                coming = begin(ahead, "rollout") if step < config.total_steps else None
                learn(job, groups, step, log, max_staleness=1)  # 2. to 5.
                if coming:
                    _wait(coming)
                with log.time("weight_sync"):  # 6. nothing is being sampled now
                    job.engines.load_weights(job.policy.publish(version=step))
                report(job, step, log)
            if job.run.due("save", step):
                job.run.save(step, job.learners, state)


def _collect(job: Job, step: int) -> Ahead:
    log = StepLog(step, lambda _: None)  # the live view shows the step that trains
    with log.time("rollout"):
        groups = collect(job, step, log)
    return groups, log


def _collect_beside(job: Job, step: int, in_use: Sequence[Media]) -> Ahead | None:
    """None where the store cannot hold the clips of this step beside those that are in use."""
    fits = job.prompts.fits_ahead(job.config.rollout.prompts_per_step, in_use)
    return _collect(job, step) if fits else None


def _wait(coming: Future[Ahead | None]) -> None:
    """Until it is done, well or badly; how much of it was hidden stands in the line of the step that it is for."""
    started = time.perf_counter()
    wait([coming])
    if not coming.exception() and (ahead := coming.result()):
        _, log = ahead
        log.value("rollout/hidden", 1 - min(1.0, (time.perf_counter() - started) / log.numbers["time/rollout"]))


def _keep(job: Job, groups: Sequence[RolloutGroup]) -> None:
    """What an evaluation since the rollout has pushed out of the store is made again."""
    for failure in job.encoders.ensure(shown(groups)).values():
        raise DataError(failure.reason, f"a clip that was rolled out cannot be read any more: {failure}")


if __name__ == "__main__":
    sys.exit(main(train_async, "train"))
