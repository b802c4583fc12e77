"""Every shipped configuration loads; whatever is wrong with one is said at once, with the key it is about."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from videorl import config as config_module
from videorl.config import (
    Config,
    ConfigError,
    EnvConfig,
    PassConfig,
    Section,
    StageConfig,
    TargetConfig,
    TermConfig,
    compose_config,
    configs_folder,
    load_config,
)


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (configs_folder() / group).glob("*.yaml"))


def given(recipe: str) -> list[str]:
    """The recipe, and a value for each key that only the user can know."""
    return [f"recipe={recipe}", "data.path=rows.jsonl", "data.media_root=media"]


def problems(*overrides: str, extra_dir: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config("train", list(overrides), str(extra_dir) if extra_dir else None)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


# --- what is shipped -------------------------------------------------------------------------------------------------


@pytest.mark.e2e  # hundreds of compositions, a quarter of a second each: too slow for `make test-fast`
@pytest.mark.parametrize("recipe", names("recipe"))
def test_every_recipe_loads_with_every_algorithm(recipe):
    alone = load_config("train", given(recipe))
    assert alone.name == recipe and alone.run.dir == f"runs/{recipe}"
    for algorithm in names("algorithm"):
        config = load_config("train", [*given(recipe), f"algorithm={algorithm}"])
        assert config.model_copy(update={"algorithm": alone.algorithm}) == alone  # a group changes its section alone


def test_recipes_and_algorithms_are_there():
    assert {"quickstart", "quickstart_ppo", "real_clips"} <= set(names("recipe"))
    assert {"grpo", "ppo", "dapo"} <= set(names("algorithm"))


@pytest.mark.parametrize("group", ["model", "critic", "cluster"])
def test_every_choice_of_a_group_loads(group):
    for name in names(group):
        load_config("train", [*given("qwen2_5_vl_7b_grpo"), f"{group}={name}", "model.path=model"])


def test_a_critic_follows_the_policy():
    config = load_config("train", [*given("quickstart"), "critic=default", "policy.micro_batch_tokens=4321"])
    assert config.critic is not None and config.critic.micro_batch_tokens == 4321


@pytest.mark.parametrize(("name", "suffix"), [("sft", "-sft"), ("eval", "-eval")])
def test_the_other_commands_have_run_folders_of_their_own(name, suffix):
    config = load_config(name, given("quickstart"))
    assert config.run.dir == f"runs/quickstart{suffix}"
    assert load_config("train", given("quickstart")).model_copy(update={"run": config.run}) == config


def test_only_what_the_user_must_know_has_no_default():
    assert problems("recipe=qwen2_5_vl_7b_grpo") == [
        "data.media_root: has no default; give it as data.media_root=... on the command line",
        "data.path: has no default; give it as data.path=... on the command line",
    ]


def sections() -> list[type[Section]]:
    """The schema's classes, each once."""
    found: list[type[Section]] = []
    pending: list[type[Section]] = [Config]
    while pending:
        section = pending.pop()
        if section not in found:
            found.append(section)
            pending += [part for field in section.model_fields.values() for part in nested(field.annotation)]
    return found


def nested(annotation: object) -> list[type[Section]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Section) else []
    return [section for part in get_args(annotation) for section in nested(part)]


ENTRIES = (TermConfig, StageConfig, PassConfig, EnvConfig, TargetConfig)


def test_there_are_fewer_than_120_keys():
    own = {
        (base, name)  # what two sections inherit is one thing to learn
        for section in sections()
        for name, field in section.model_fields.items()
        for base in section.__mro__
        if name in vars(base).get("__annotations__", {}) and not nested(field.annotation)
    }
    assert 60 < len(own) < 120  # what there is to learn
    values, _ = compose_config("train", given("qwen2_5_vl_7b_grpo"))
    assert sum(1 for _ in leaves(values)) < 120  # what a run without critic and cold start has


def leaves(values: object):
    if isinstance(values, dict) and values:
        for value in values.values():
            yield from leaves(value)
    else:
        yield values


def test_the_schema_has_no_defaults_and_is_frozen():
    for section in sections():
        for name, field in section.model_fields.items():
            entry = section in ENTRIES  # of a mapping or a list: these have no place in YAML for defaults
            assert field.is_required() or entry, f"{section.__name__}.{name}: values live in configs/"
        assert section.model_config["extra"] == "forbid" and section.model_config["frozen"]
    config = load_config("train", given("quickstart"))
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_all_problems_are_said_at_once():
    found = problems(
        "recipe=qwen2_5_vl_7b_grpo",
        "data.path=rows.jsonl",
        "rollot.group_size=3",
        "rollout.group_size=0",
        "policy.optim.lr=-1",
        "run.live=loud",
        "total_steps",
        "data.sampling.fps=[1",
    )
    keys = [problem.split(":")[0] for problem in found]
    assert sorted(keys) == [
        "data.media_root",
        "data.sampling.fps=[1",
        "policy.optim.lr",
        "rollot.group_size",
        "rollout.group_size",
        "run.live",
        "total_steps",
    ]
    assert "rollout.group_size: 0, input should be greater than 0; change it" in found
    assert "run.live: 'loud', input should be 'auto', 'rich' or 'plain'; change it" in found
    assert all("\n" not in problem for problem in found)


def test_a_key_that_is_not_there_has_a_hint():
    hints = {
        "seeed=1": "seeed: no such key; did you mean seed?",
        "rollout.groupsize=4": "rollout.groupsize: no such key; did you mean rollout.group_size?",
        "group_size=4": "group_size: no such key; did you mean rollout.group_size?",
        "qqq.zzz=1": "qqq.zzz: no such key; `--cfg job` shows every key",
        "rewards.terms.own.weight=1": (
            "rewards.terms.own.weight: no such entry; to add one, write +rewards.terms.own.weight=1"
        ),
    }
    assert problems(*given("quickstart"), *hints) == list(hints.values())


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("+rollout.groupsize=4", "rollout.groupsize: 4, no such key; did you mean rollout.group_size?"),
        ("~rollout.engine", "rollout.engine: is missing; give it a value (null where a feature is off)"),
        ("rollout=3", "rollout: 3, input should be a valid dictionary"),
    ],
)
def test_what_composes_but_is_no_configuration_is_refused(override, hint):
    (problem,) = problems(*given("quickstart"), override)
    assert problem.startswith(hint)


@pytest.mark.parametrize("override", ["recipe=quick", "algorithm=grp", "critic=big"])
def test_an_unknown_choice_lists_what_there_is(override):
    group, name = override.split("=")
    (problem,) = problems(*given("quickstart"), override)
    assert f"{group}/{name}" in problem and all(choice in problem for choice in names(group))


def test_without_a_recipe_the_recipes_are_listed():
    (problem,) = problems("data.path=rows.jsonl")
    assert "You must specify 'recipe'" in problem and all(recipe in problem for recipe in names("recipe"))


# --- recipes of the user's own ---------------------------------------------------------------------------------------


OWN = """\
# @package _global_
defaults:
  - quickstart
  - override /algorithm: mine

name: own
rollout:
  group_size: 3
rewards:
  terms:
    tool: {target: my_pkg.rewards:tool_use, weight: 0.5, requires: null, params: {limit: 2}}
"""


@pytest.fixture
def own_folder(tmp_path) -> Path:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "own.yaml").write_text(OWN)
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm" / "mine.yaml").write_text("defaults: [grpo, _self_]\nclip_high: 0.3\n")
    return tmp_path


def test_a_folder_adds_recipes_and_groups(own_folder):
    config = load_config("train", ["recipe=own"], str(own_folder))
    assert config.name == "own" and config.rollout.group_size == 3
    assert config.algorithm.clip_high == 0.3 and config.algorithm.clip_low == 0.2
    assert config.rewards.terms.keys() == {"format", "accuracy", "tool"}
    assert config.rewards.terms["tool"].params == {"limit": 2}
    shipped = load_config("train", ["recipe=quickstart", "algorithm=mine"], str(own_folder))
    assert shipped.algorithm.clip_high == 0.3


def test_what_is_wrong_in_a_folder_is_said(own_folder):
    (problem,) = problems("recipe=owm", extra_dir=own_folder)
    assert "recipe/owm" in problem and "own" in problem.split()
    (own_folder / "recipe" / "own.yaml").write_text(OWN + "rollot: {group_size: 2}\n")
    (problem,) = problems("recipe=own", extra_dir=own_folder)
    assert problem.startswith("rollot: {'group_size': 2}, no such key; did you mean rollout?")
    (own_folder / "recipe" / "own.yaml").write_text("name: [")
    (problem,) = problems("recipe=own", extra_dir=own_folder)
    assert "own.yaml" in problem
    (problem,) = problems("recipe=own", extra_dir=own_folder / "nowhere")
    assert "nowhere" in problem and "no such folder" in problem


# --- what it costs ---------------------------------------------------------------------------------------------------

LIGHT = ("config", "types", "rewards.rubric", "algorithms.names", "data.schema")
HEAVY = ("torch", "ray", "transformers", "vllm", "verl", "av")
CHECK = """
import sys
for name in {light}:
    __import__(f"videorl.{{name}}")
print(*[name for name in {heavy} if name in sys.modules])
"""


def test_what_everything_imports_is_light():
    program = CHECK.format(light=LIGHT, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_configs_are_found_beside_the_code():
    assert (configs_folder() / "train.yaml").is_file()
    assert configs_folder().resolve() == Path(config_module.__file__).parents[1].resolve() / "configs"
