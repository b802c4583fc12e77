"""Supervised cold start: `python -m videorl.sft recipe=quickstart`. Data, model, workers and run directory are RL's."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from videorl.config import Config
from videorl.data.batch import Batch, make_batch, make_given_batch, prompt_row
from videorl.data.schema import load_rows
from videorl.fitting import Tools, fit_rows
from videorl.launch import main
from videorl.rollout.episodes import Episodes
from videorl.rollout.frames import FrameStore
from videorl.rollout.speakers import Demonstrator
from videorl.stages import of_stage
from videorl.types import DataError, RenderedPrompt
from videorl.workers.policy import Policy


def fit(config: Config) -> None:
    """Fit the model to the `response` of each row, before reinforcement learning."""
    config = of_stage(config, "sft")
    fit_rows(config, load_rows(config.data.path), "policy", Policy.trained, make_supervised_batch, Policy.fit)


def make_supervised_batch(tools: Tools, prompts: Sequence[RenderedPrompt], step: int) -> Batch:
    """Rows whose response is the target text and the end-of-turn token; or demonstrated episodes of an environment."""
    config, model = tools.config, tools.model
    if config.rollout.env is not None:
        assert config.sft is not None
        rate, after = config.sft.noise
        rate = rate if step > after * config.total_steps else 0.0
        store = FrameStore(config, model, tools.source, tools.encoders.ensure)
        groups = Episodes(config, model, store, Demonstrator(model, rate)).collect(
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
    return make_given_batch([prompt_row(prompt) for prompt in prompts], responses)


if __name__ == "__main__":
    sys.exit(main(fit, "sft"))
