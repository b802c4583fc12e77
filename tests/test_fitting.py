"""Which configuration a stage on pairs runs with, and when there is none."""

import json

import pytest

from videorl.algorithms.names import PREFERENCE_LOSSES, REWARD_MODEL_LOSSES
from videorl.config import ConfigError, load_config
from videorl.fitting import fitting, load_pairs
from videorl.train import refuse_pair_loss
from videorl.types import DataError


def recipe(*overrides: str):
    return load_config("prefer", list(overrides) or ["recipe=quickstart_dpo"])


def test_the_sections_values_take_the_place_of_rls():
    config = recipe()
    section = config.prefer
    assert section is not None
    found = fitting(config, "prefer", PREFERENCE_LOSSES)
    assert (found.total_steps, found.rollout.prompts_per_step) == (section.steps, section.batch_size)
    assert (found.model.path, found.data.path) == (section.model_path, section.path)
    assert found.policy.optim == section.optim
    assert found.critic is None and found.algorithm.kl is None
    assert found.run.dir == "runs/quickstart_dpo-prefer"


@pytest.mark.parametrize(
    "overrides, stage, losses, problem",
    [
        (["recipe=quickstart"], "prefer", PREFERENCE_LOSSES, "prefer: null, recipe quickstart has no such stage"),
        (
            ["recipe=quickstart_dpo", "algorithm=grpo"],
            "prefer", PREFERENCE_LOSSES, "algorithm.loss: vanilla, videorl.prefer learns from pairs; choose",
        ),
        (["recipe=quickstart_dpo"], "reward_model", REWARD_MODEL_LOSSES, "reward_model: null"),
    ],
)  # fmt: skip
def test_what_is_no_stage_is_refused(overrides, stage, losses, problem):
    with pytest.raises(ConfigError, match=problem):
        fitting(recipe(*overrides), stage, losses)


def test_a_tiny_model_is_made_for_the_words_of_the_pairs(tmp_path):
    rows = [{"id": "p", "task": "open", "prompt": "Who?", "chosen": "a marmot", "rejected": "a dog"}]
    (tmp_path / "pairs.jsonl").write_text(json.dumps(rows[0]))
    pairs = [f"{name}={tmp_path}/pairs.jsonl" for name in ("data.path", "reward_model.path")]
    place = [*pairs, f"data.media_root={tmp_path}", f"model.path={tmp_path}/model"]
    config = fitting(recipe("recipe=base_reward", "scale=tiny", *place), "reward_model", REWARD_MODEL_LOSSES)
    (row,) = load_pairs(config)
    assert row["chosen"] == "a marmot"
    assert (tmp_path / "model" / "model.safetensors").exists()
    with pytest.raises(DataError, match="has no `phrases`, which the loss needs"):
        load_pairs(config, need_phrases=True)


def test_reinforcement_learning_refuses_a_loss_on_pairs():
    with pytest.raises(ConfigError, match=r"algorithm\.loss: dpo, learns from pairs; run videorl.prefer"):
        refuse_pair_loss(recipe())
