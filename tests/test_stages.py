"""Which configuration a program runs with, and when there is none."""

import pytest

from videorl.config import ConfigError, load_config
from videorl.stages import of_stage


def recipe(program: str, *overrides: str):
    return load_config(program, [*overrides])


@pytest.mark.parametrize(
    ("program", "name"), [("sft", "quickstart"), ("prefer", "quickstart_dpo"), ("reward_model", "base_reward_cpu")]
)
def test_the_sections_values_take_the_place_of_rls(program, name):
    config = recipe(program, f"recipe={name}", f"{program}.model_path=some/model")
    section = getattr(config, program)
    assert section is not None
    found = of_stage(config, program)
    assert (found.total_steps, found.rollout.prompts_per_step) == (section.steps, section.batch_size)
    assert (found.model.path, found.data.path) == (section.model_path, section.path)
    assert found.policy.optim == section.optim
    assert found.critic is None and found.algorithm.kl is None
    assert found.policy.epochs == 1
    assert of_stage(found, program) == found


def test_a_supervised_start_says_what_trains_and_may_begin_with_nothing():
    found = of_stage(recipe("sft", "recipe=quickstart", "run.dir=runs/mine"), "sft")
    assert found.model.train_vision and found.policy.mini_batches == 1
    assert (found.model.path, found.model.build) == ("runs/mine/start", "tiny")


@pytest.mark.parametrize("program", ["train", "eval", "self_align"])
def test_other_programs_run_with_what_was_given(program):
    config = recipe(program, "recipe=quickstart_ppo")
    assert of_stage(config, program) is config


@pytest.mark.parametrize(
    ("overrides", "stage", "problem"),
    [
        (["recipe=quickstart"], "prefer", "prefer: null, recipe quickstart has no such stage"),
        (["recipe=quickstart_dpo"], "reward_model", "reward_model: null"),
        (["recipe=real_clips", "data.path=a.jsonl", "data.media_root=a"], "sft", "sft: null"),
        (
            ["recipe=quickstart_dpo", "algorithm=grpo"],
            "prefer",
            "algorithm.loss: vanilla, videorl.prefer learns from pairs; choose algorithm= dpo",
        ),
        (["recipe=quickstart_dpo"], "train", r"algorithm\.loss: dpo, learns from pairs; run videorl.prefer"),
    ],
)
def test_what_is_no_stage_is_refused(overrides, stage, problem):
    with pytest.raises(ConfigError, match=problem):
        of_stage(recipe("prefer", *overrides), stage)
