"""Supervised cold start: `python -m videorl.sft recipe=quickstart`. Data, model, workers and run directory are RL's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import torch

from videorl.beside import begin
from videorl.cluster import Cluster
from videorl.config import Config, ConfigError
from videorl.data.batch import Batch, Row, make_batch, pad
from videorl.data.prompts import Ensure, PromptStream
from videorl.data.schema import load_rows
from videorl.launch import main
from videorl.models.base import VideoModel, build_model, open_model
from videorl.models.media import MediaSource, open_source
from videorl.rollout.episodes import Episodes
from videorl.rollout.frames import FrameStore, Openings
from videorl.rollout.speakers import Demonstrator, texts
from videorl.run import Run
from videorl.types import DataError, Media, RenderedPrompt
from videorl.workers.encoder import Encoders
from videorl.workers.policy import Policy


def fit(config: Config) -> None:
    """Fit the model to the `response` of each row, before reinforcement learning."""
    config = supervised(config)
    run = Run(config)
    build_model(config.model, texts(config), config.seed)
    model = open_model(config.model)
    source = open_source(config, model)
    openings = Openings.of(config, model, source)
    make = openings and openings.prompt
    rows = PromptStream(load_rows(config.data.path), config.data, model, source, seed=config.seed, make=make)

    with Cluster(config) as cluster, run:
        encoders = Encoders(cluster, config, source)
        policy = Policy.trained(cluster, config)
        cluster.wait(encoders=encoders, policy=policy)
        step, state = run.resume({"policy": policy})
        if state is not None:
            rows.load_state(state)

        count = config.rollout.prompts_per_step

        def prepare(step: int) -> _Prepared:
            prompts = rows.take(count, encoders.ensure)
            batch = make_supervised_batch(config, model, prompts, encoders.ensure, source, step)
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
                    log.metrics("policy", policy.fit(prepared.batch))
                log.metrics("data", prepared.counts)
                log.metrics("video", encoders.take_counts())
            if run.due("save", step):
                run.save(step, {"policy": policy}, prepared.state)

        policy.export(run.folder / "export")
        run.finish()


class _Prepared(NamedTuple):
    """A batch, and the stream of rows as it is after it."""

    batch: Batch
    state: dict[str, Any]
    counts: dict[str, float]


def supervised(config: Config) -> Config:
    """The configuration with its `sft` section in the place of what reinforcement learning uses."""
    if config.sft is None:
        raise ConfigError([f"sft: null, recipe {config.name} has no supervised stage; give an `sft` section"])
    sft = config.sft
    model = config.model.model_copy(update={"path": sft.model_path, "train_vision": sft.train_vision})
    if sft.model_path == "tiny":
        model = model.model_copy(update={"path": f"{config.run.dir}/start", "build": "tiny"})
    policy = config.policy.model_copy(update={"mini_batches": 1, "epochs": 1, "optim": sft.optim})
    return config.model_copy(
        update={
            "total_steps": sft.steps,
            "model": model,
            "policy": policy,
            "data": config.data.model_copy(update={"path": sft.path}),
            "rollout": config.rollout.model_copy(update={"prompts_per_step": sft.batch_size}),
        }
    )


def make_supervised_batch(
    config: Config, model: VideoModel, prompts: Sequence[RenderedPrompt], ensure: Ensure, source: MediaSource, step: int
) -> Batch:
    """Rows whose response is the target text and the end-of-turn token; or demonstrated episodes of an environment."""
    if config.rollout.env is not None:
        assert config.sft is not None
        rate, after = config.sft.noise
        rate = rate if step > after * config.total_steps else 0.0
        demonstrations = Episodes(config, model, FrameStore(config, model, source, ensure), Demonstrator(model, rate))
        groups = demonstrations.collect(
            prompts, group_size=1, temperature=1.0, label=f"sft {step}", progress=lambda done: None
        )
        if failed := [failed for group in groups for failed in group.failed]:
            raise DataError("demonstration", f"{len(failed)} of {len(groups)} demonstrations failed: {failed[0].why}")
        return make_batch(groups)
    responses = []
    for prompt in prompts:
        target = prompt.prompt.row["response"]
        if not target:
            raise DataError("no_response", f"row {prompt.prompt.id}: has no `response` to fit; add one or take it out")
        responses.append([*model.tokenizer.encode(target, add_special_tokens=False), model.stop_ids[0]])
    lengths = torch.tensor([len(response) for response in responses])
    return Batch(
        rows=tuple(
            Row(id=prompt.prompt.id, group=prompt.prompt.id, token_ids=prompt.token_ids, media=prompt.media, seen="")
            for prompt in prompts
        ),
        response_ids=pad(responses, torch.long),
        response_mask=torch.arange(int(lengths.max()))[None] < lengths[:, None],
        lengths=lengths,
    )


if __name__ == "__main__":
    sys.exit(main(fit, "sft"))
