"""Reward models: `python -m videorl.reward_model recipe=...`. A number for a response, fitted to pairs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import fmean

from videorl.config import Config
from videorl.data.batch import Batch, pair_rows
from videorl.data.pair_batch import check_pairs, make_pair_batch
from videorl.data.prompts import PromptStream
from videorl.data.schema import load_rows
from videorl.fitting import Tools, fit_rows, load_pairs
from videorl.launch import main
from videorl.models.base import open_model
from videorl.stages import of_stage
from videorl.types import RenderedPrompt
from videorl.workers.reward_model import RewardModel


def fit_reward_model(config: Config) -> None:
    """Fit a scalar head, and the model under it, to pairs of a chosen and a rejected response."""
    config = of_stage(config, "reward_model")
    rows = load_pairs(config)
    exam = Exam(config)
    check_pairs(open_model(config.model), exam.rows, config.rollout.max_response_tokens)
    fit_rows(config, rows, "reward_model", RewardModel, make_batch, RewardModel.fit, exam if exam.rows else None)


def make_batch(tools: Tools, prompts: Sequence[RenderedPrompt], step: int) -> Batch:
    return make_pair_batch(tools.model, prompts, tools.config.rollout.max_response_tokens)


class Exam:
    """Held-out pairs: `pair_accuracy`, also by `data_source`; and `longer_preferred`, the share of pairs of unequal
    length of which the longer response got the higher score, beside the share of which it is the chosen one."""

    def __init__(self, config: Config):
        self.rows = load_rows(config.data.eval_path) if config.data.eval_path else []

    def __call__(self, model: RewardModel, tools: Tools) -> dict[str, float]:
        stream = PromptStream(self.rows, tools.config.data, tools.model, tools.source, seed=0)
        prompts = stream.all(tools.encoders.ensure)
        batch = make_batch(tools, prompts, 0)
        scores, lengths = model.compute_scores(batch), batch.lengths
        chosen, rejected = pair_rows(batch)
        margins = (scores[chosen] - scores[rejected]).tolist()
        longer = (lengths[chosen] - lengths[rejected]).tolist()
        unequal = [(margin, length) for margin, length in zip(margins, longer, strict=True) if length]
        by_source: dict[str, list[float]] = {}
        for prompt, margin in zip(prompts, margins, strict=True):
            by_source.setdefault(prompt.prompt.row["data_source"], []).append(float(margin > 0))
        metrics = {"pair_accuracy": fmean(margin > 0 for margin in margins), "margin": fmean(margins)}
        metrics |= {f"pair_accuracy/{source}": fmean(values) for source, values in sorted(by_source.items())}
        if unequal:
            metrics["longer_preferred"] = fmean(margin * length > 0 for margin, length in unequal)
            metrics["longer_chosen"] = fmean(length > 0 for _, length in unequal)
        return metrics


if __name__ == "__main__":
    sys.exit(main(fit_reward_model, "reward_model"))
