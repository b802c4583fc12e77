"""The loop of the stages that learn from rows as they stand, without rollouts: `sft` and `reward_model`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from videorl.beside import begin
from videorl.cluster import Cluster
from videorl.config import Config
from videorl.data.batch import Batch
from videorl.data.pair_batch import check_pairs
from videorl.data.prompts import PromptStream
from videorl.data.schema import load_rows
from videorl.models.base import VideoModel, build_model, open_model
from videorl.models.media import MediaSource, open_source
from videorl.rollout.frames import Openings
from videorl.rollout.speakers import texts
from videorl.run import Run
from videorl.types import Media, RenderedPrompt
from videorl.workers.encoder import Encoders


class Learner(Protocol):
    """A trainer's group of workers."""

    def ready(self) -> list[Any]: ...
    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...
    def export(self, folder: Path) -> None: ...


SomeLearner = TypeVar("SomeLearner", bound=Learner)


@dataclass(frozen=True)
class Tools:
    """What a stage makes its batches with."""

    config: Config
    model: VideoModel
    source: MediaSource
    encoders: Encoders


MakeBatch = Callable[[Tools, Sequence[RenderedPrompt], int], Batch]
"""(tools, prompts, step) -> rows with their responses."""


class _Prepared(NamedTuple):
    """A batch, and the stream of rows as it is after it."""

    batch: Batch
    state: dict[str, Any]
    counts: dict[str, float]


def load_pairs(config: Config, need_phrases: bool = False) -> list[dict[str, Any]]:
    """The rows of `data.path`, after the model that is to learn from them has been made where there is none.

    Raises DataError as `load_rows` and `check_pairs`.
    """
    rows = load_rows(config.data.path)
    build_model(config.model, texts(config), config.seed)
    check_pairs(open_model(config.model), rows, config.rollout.max_response_tokens, need_phrases)
    return rows


def fit_rows(
    config: Config,
    data: Sequence[dict[str, Any]],
    name: str,
    open_learner: Callable[[Cluster, Config], SomeLearner],
    make: MakeBatch,
    update: Callable[[SomeLearner, Batch], dict[str, float]],
    evaluate: Callable[[SomeLearner, Tools], dict[str, float]] | None = None,
) -> None:
    """`config.total_steps` steps on rows of data, resumed where they were; then the learner is exported.

    The next batch is made beside the update. Metrics are `<name>/*`, and `eval/*` before, while and after.
    """
    run = Run(config)
    build_model(config.model, texts(config), config.seed)
    model = open_model(config.model)
    source = open_source(config, model)
    openings = Openings.of(config, model, source)
    make_prompt = openings and openings.prompt
    rows = PromptStream(data, config.data, model, source, seed=config.seed, make=make_prompt)

    with Cluster(config) as cluster, run:
        encoders = Encoders(cluster, config, source)
        tools = Tools(config, model, source, encoders)
        learner = open_learner(cluster, config)
        cluster.wait(**{"encoders": encoders, name: learner})
        step, state = run.resume({name: learner})
        if state is not None:
            rows.load_state(state)
        elif evaluate:
            with run.step(0) as log:
                log.metrics("eval", evaluate(learner, tools))

        count = config.rollout.prompts_per_step

        def prepare(step: int) -> _Prepared:
            batch = make(tools, rows.take(count, encoders.ensure), step)
            return _Prepared(batch, rows.state(), rows.metrics())

        def look_ahead(step: int, in_use: Sequence[Media]) -> _Prepared | None:
            return prepare(step) if rows.fits_ahead(count, in_use) else None  # what is in use must stay in the store

        ahead: Future[_Prepared | None] | None = None
        while step < config.total_steps:
            step += 1
            with run.step(step) as log:
                with log.time("data"):
                    prepared = (ahead and ahead.result()) or prepare(step)
                if step < config.total_steps:  # beside the update
                    in_use = [item for row in prepared.batch.rows for item in row.media]
                    ahead = begin(partial(look_ahead, step + 1, in_use), "look-ahead")
                with log.time("update"):
                    log.metrics(name, update(learner, prepared.batch))
                if evaluate and run.due("eval", step):
                    with log.time("eval"):
                        log.metrics("eval", evaluate(learner, tools))
                log.metrics("data", prepared.counts)
                log.metrics("video", encoders.take_counts())
            if run.due("save", step):
                run.save(step, {name: learner}, prepared.state)

        learner.export(run.folder / "export")
        run.finish()
