"""Preference training: `python -m videorl.prefer recipe=...`. Data, workers, run directory and evaluation are RL's."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from videorl.algorithms.names import PHRASE_LOSSES
from videorl.config import Config
from videorl.data.batch import Batch, pad
from videorl.data.pair_batch import make_pair_batch
from videorl.data.prompts import PromptStream
from videorl.fitting import load_pairs
from videorl.launch import main
from videorl.models.base import weights_digest
from videorl.stages import of_stage
from videorl.train import Job, report, start
from videorl.types import DataError, Media


def prefer(config: Config) -> None:
    """Train on pairs of a chosen and a rejected response: DPO and its relatives."""
    config = of_stage(config, "prefer")
    load_pairs(config, need_phrases=config.algorithm.loss in PHRASE_LOSSES)  # what is wrong is said before all else
    count = config.rollout.prompts_per_step
    with start(config) as job:
        reference = ReferenceLogProbs(job)
        for step in range(job.step + 1, config.total_steps + 1):
            with job.run.step(step) as log:
                with log.time("data"):
                    batch = take_pairs(job, job.prompts)
                if step < config.total_steps:  # beside the update
                    job.prompts.look_ahead(count, job.encoders.ensure, job.in_use(shown(batch)))
                with log.time("update"):
                    log.metrics("policy", job.policy.prefer(reference.fill(batch)))
                if job.run.due("eval", step):
                    with log.time("weight_sync"):
                        job.engines.load_weights(job.policy.publish(version=step))
                report(job, step, log)
            if job.run.due("save", step):
                job.run.save(step, job.learners, job.prompts.state())


def take_pairs(job: Job, rows: PromptStream) -> Batch:
    rollout = job.config.rollout
    prompts = rows.take(rollout.prompts_per_step, job.encoders.ensure)
    loss = job.config.algorithm.loss
    with_phrases = loss in PHRASE_LOSSES or ":" in loss
    return make_pair_batch(job.runner.model, prompts, rollout.max_response_tokens, with_phrases)


def shown(batch: Batch) -> list[Media]:
    """The media of all rows, each once."""
    return list({item.key: item for row in batch.rows for item in row.media}.values())


def _identity(job: Job) -> str:
    """Of what log-probabilities of the rows follow from."""
    config = job.config
    settings = config.model_dump(mode="json", include={"seed", "model", "data", "rollout"})
    parts = [weights_digest(job.runner.model.path), job.prompts.fingerprint, settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class ReferenceLogProbs:
    """Log-probabilities of all responses under the policy as it was before the first step: the reference, for which no
    second model is needed. They are computed once, a file for each batch in the run directory, and kept.

    Their folder is named by what they follow from: weights, rows and settings. A run without a checkpoint may be begun
    again with others. Raises DataError `no_reference` where a resumed run has none of its own.
    """

    def __init__(self, job: Job):
        folder = job.run.folder / "reference" / _identity(job)
        if job.step == 0:  # later the policy is no longer the reference
            folder.mkdir(parents=True, exist_ok=True)
            self._compute(job, folder)
        elif not folder.exists():
            raise DataError(
                "no_reference",
                f"{folder} is not there: prefer.model_path={job.config.model.path} has changed since the run began, or "
                "the folder was removed; restore it, or choose another run.dir",
            )
        self._kept: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            self._kept |= load_file(file)

    def _compute(self, job: Job, folder: Path) -> None:
        """The batches of the first epoch, as training will draw them."""
        config = job.config
        rows = PromptStream.train(config, job.runner.model, job.prompts.renderer.source)
        epoch = -(-len(rows) // config.rollout.prompts_per_step)
        for number in range(1, min(epoch, config.total_steps) + 1):
            job.run.progress("reference log-probs, batch", number, min(epoch, config.total_steps))
            file = folder / f"{number:06d}.safetensors"
            batch = take_pairs(job, rows)
            if not file.exists():
                log_probs = job.policy.compute_log_probs(batch)  # [B, T]
                unpublished = file.with_suffix(".building")
                save_file(
                    {row.id: log_probs[index, : batch.lengths[index]].clone() for index, row in enumerate(batch.rows)},
                    unpublished,
                )
                unpublished.replace(file)

    def fill(self, batch: Batch) -> Batch:
        return batch.with_(ref_log_probs=pad([self._kept[row.id].tolist() for row in batch.rows], torch.float32))


if __name__ == "__main__":
    sys.exit(main(prefer, "prefer"))
