"""What a wrong command line, a wrong value or a wrong data set says, before anything is started."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from videorl.config import Config, configs_folder
from videorl.launch import main

ROW = {"id": "a", "task": "mc", "prompt": "What is it?", "choices": ["a dog", "a cat"], "answer": "A"}


@pytest.fixture
def base(tmp_path) -> list[str]:
    """The quickstart on a data set of one row, as a command line."""
    write_rows(tmp_path / "rows.jsonl", ROW)
    return [
        "recipe=quickstart", f"data.path={tmp_path}/rows.jsonl", "data.eval_path=null", f"data.media_root={tmp_path}",
        f"model.path={tmp_path}/model", "model.build=tiny", f"store.dir={tmp_path}/store", f"run.dir={tmp_path}/run",
        "run.live=plain", "run.trackers=[]",
    ]  # fmt: skip


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def never(config: Config) -> None:
    raise AssertionError("the run was started")


def problems(capsys, argv: list[str], run: Callable[[Config], None] = never) -> list[str]:
    """The lines of a refusal: exit code 2, nothing but these lines, each with its key."""
    assert main(run, "train", argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines and all(re.match(r"config: \S.*", line) for line in lines)
    return [line.removeprefix("config: ") for line in lines]


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rolout.group_size=3", "rolout.group_size: no such key; did you mean rollout.group_size?"),
        ("+typo=1", "typo: 1, no such key"),
        ("+rollout.grup_size=3", "rollout.grup_size: 3, no such key; did you mean rollout.group_size?"),
        ("rollout.group_size", "rollout.group_size: .*missing EQUAL"),
        ("~rollout.group_size", "rollout.group_size: is missing; give it a value"),
        ("algorithm=gropo", "algorithm/gropo.*grpo"),
        ("rewards.terms.mine.weight=1", r"rewards.terms.mine.weight: no such entry; to add one, write \+rewards"),
        ("seed=${no.such}", "no.such"),
    ],
)
def test_a_wrong_key_is_named_with_what_was_meant(capsys, base, override, said):
    (line,) = problems(capsys, [*base, override])
    assert re.search(said, line)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "recipe.*quickstart"),
        (["total_steps=3"], "recipe.*quickstart"),
        (["recipe=quickstrat"], "recipe/quickstrat.*quickstart"),
    ],
)
def test_without_a_recipe_there_is_a_list_of_them(capsys, argv, said):
    (line,) = problems(capsys, argv)
    assert re.search(said, line)


def test_mandatory_values_are_asked_for_all_at_once(capsys):
    lines = problems(capsys, ["recipe=real_clips"])
    assert [line.split(":")[0] for line in lines] == ["data.media_root", "data.path"]
    assert all("give it as" in line for line in lines)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rollout.group_size=many"], "rollout.group_size: 'many'.*integer"),
        (["rollout.group_size=0"], "rollout.group_size: 0.*greater than 0"),
        (["policy.optim.lr=nan"], "policy.optim.lr: nan.*finite"),
        (["run.live=loud"], "run.live: 'loud'.*'auto', 'rich' or 'plain'"),
        (["rollout.group_size=1"], "rollout.group_size: 1, algorithm.advantage=grpo.*at least 2"),
        (["policy.mini_batches=5"], "policy.mini_batches: 5, must divide rollout.prompts_per_step=32; set 4"),
        (["data.media_root=/no/such"], "data.media_root: '/no/such', no such folder; give"),
        (["data.path=/no/such.jsonl"], "data.path: '/no/such.jsonl', no such file; give"),
        (["rollout.max_model_len=100"], "rollout.max_model_len: 100, must be at least .*; raise it"),
        (["policy.micro_batch_tokens=100"], "policy.micro_batch_tokens: 100, must hold .*; raise it"),
        (["algorithm.advantage=gprpo"], "algorithm.advantage: 'gprpo' is not known; did you mean grpo?"),
        (["algorithm.loss=no_such_module:loss"], "algorithm.loss: .*no module named 'no_such_module'"),
        (["rollout.engine=vlm"], "rollout.engine: 'vlm' is not known; did you mean vllm?"),
        (["algorithm=ppo"], "critic: null, .*critic=default"),
        (["critic=default"], "critic: given, .*critic=none"),
        (["algorithm=dpo", "~algorithm.loss_options.beta"], "algorithm.loss_options: {}, dpo needs beta; add it"),
        (
            ["algorithm=dpo", "+algorithm.loss_options.gamma=1"],
            "loss_options.gamma: given, but dpo has no such setting",
        ),
        (["recipe=quickstart_dpo", "prefer.batch_size=3"], "prefer.batch_size: 3, must be a multiple of .*=2; change"),
        (
            ["recipe=quickstart_dpo", "policy.micro_batch_tokens=150"],
            "policy.micro_batch_tokens: 150, must hold both rows of a pair = 168; raise it",
        ),
        (["algorithm=dapo"], "algorithm.overlong.buffer: 512, .*lower it"),
        (["data.sampling.num_frames=4"], "data.sampling.fps: 2.0, num_frames: 4, give one"),
        (["rewards.terms.accuracy.requires=fromat"], "rewards.terms.accuracy.requires: 'fromat'.*'format'"),
        (["rewards.terms.accuracy.target=acuracy"], "rewards.terms.accuracy: 'acuracy'.*'accuracy'"),
        (["rewards.terms.accuracy.target=no_such_module:f"], "rewards.terms.accuracy: .*no module named"),
        (["model.lora={r: 4, alpha: 8, targets: [q_proj]}", "model.train_vision=true"], "model.train_vision: true"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule_and_a_remedy(capsys, base, overrides, said):
    (line,) = problems(capsys, [*base, *overrides])
    assert re.search(said, line)


def test_wrong_keys_and_wrong_values_come_together(capsys, base):
    wrong = ["rolout.group_size=3", "polcy.ranks=2", "seed=-1", "policy.ranks=two"]
    lines = problems(capsys, [*base, *wrong])
    assert {line.split(":")[0] for line in lines} == {"rolout.group_size", "polcy.ranks", "seed", "policy.ranks"}


def test_all_broken_rules_come_together(capsys, base):
    wrong = ["rollout.group_size=1", "policy.mini_batches=3", "data.media_root=/no/such", "rollout.max_model_len=10"]
    lines = problems(capsys, [*base, *wrong])
    assert {line.split(":")[0] for line in lines} == {override.split("=")[0] for override in wrong}


# --- what is accepted ------------------------------------------------------------------------------------------------


ENV = ["rewards.terms.format=null", "rewards.terms.accuracy=null", "policy.micro_batch_tokens=8192"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rollout.env={target: video_mrt}"], "rollout.env.target: 'video_mrt', choose one of .*video_mtr"),
        (["rollout.env={target: earl, params: {selection: 1}}"], "rollout.env.params: .*unexpected keyword.*selection"),
        (["rollout.env={target: earl, params: {budget: {intial: 4}}}"], "rollout.env.params: .*intial"),
        (["rollout.env={target: earl, context: {target: widow}}"], "rollout.env.context.target: 'widow', choose one"),
        (
            ["rollout.env={target: earl, context: {target: window, params: {turns: 1}}}", "algorithm=gspo"],
            "algorithm.loss: gspo, has one ratio.*an episode is several rows",
        ),
        (
            ["rollout.env={target: earl}", "rewards.terms.accuracy={target: accuracy, weight: 1}"],
            "rewards.terms.accuracy: given, but rollout.env=earl scores its episodes itself; set null",
        ),
        (["rollout.env={target: earl}", "policy.micro_batch_tokens=150"], "policy.micro_batch_tokens: 150, must hold"),
        (
            ["rollout.env={target: earl}", "algorithm.advantage=turn_grpo"],
            "algorithm.advantage_options: {}, .*turn_grpo needs turn_gamma; add",
        ),
        (
            ["rollout.env={target: earl}", "+algorithm.advantage_options.turn_gamma=1.0"],
            "algorithm.advantage_options.turn_gamma: given, but algorithm.advantage=grpo has no such setting",
        ),
    ],
)
def test_what_does_not_go_with_an_environment_is_refused(capsys, base, overrides, said):
    assert any(re.match(said, problem) for problem in problems(capsys, base + ENV + overrides))


def test_a_valid_command_line_starts_the_run(base):
    ran = []
    assert main(ran.append, "train", [*base, "rollout.group_size=16"]) == 0
    (config,) = ran
    assert config.rollout.group_size == 16


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (configs_folder() / "recipe").glob("*.yaml")))
@pytest.mark.parametrize("program", ["train", "sft", "eval"])
def test_every_recipe_is_valid(base, program, recipe):
    ran = []
    data = [override for override in base if override.startswith(("data.", "run."))]
    assert main(ran.append, program, [f"recipe={recipe}", *data]) == 0
    assert ran[0].name == recipe


def test_a_recipe_in_a_folder_of_ones_own(base, tmp_path):
    (tmp_path / "mine" / "recipe").mkdir(parents=True)
    recipe = """# @package _global_
defaults: [real_clips, override /algorithm: dr_grpo]
name: mine
data: {sampling: {fps: 4.0}}
rollout: {group_size: 8}
rewards: {terms: {short: {target: "my_code:even", weight: 0.1}}}
"""
    (tmp_path / "mine" / "recipe" / "mine.yaml").write_text(recipe)
    ran = []
    # options may stand anywhere between the overrides
    assert main(ran.append, "train", ["recipe=mine", "--config-dir", str(tmp_path / "mine"), *base[1:]]) == 0
    assert (ran[0].name, ran[0].rollout.group_size, ran[0].data.sampling.fps) == ("mine", 8, 4.0)
    assert {"format", "accuracy", "short"} <= ran[0].rewards.terms.keys()


def test_a_missing_folder_of_recipes_is_named(capsys, base):
    (line,) = problems(capsys, [*base, "--config-dir", "/no/such"])
    assert line.startswith("--config-dir: '/no/such', no such folder")


def test_the_configuration_can_be_printed_before_it_is_complete(capsys):
    assert main(never, "train", ["recipe=real_clips", "--cfg", "job"]) == 2
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["data"]["sampling"]["fps"] == 2.0
    assert "data.path" in err


# --- what is wrong with the data, said before Ray starts --------------------------------------------------------------


@pytest.fixture
def no_ray(monkeypatch):
    from videorl import train

    def started(config):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(train, "Cluster", started)
    return train.train


@pytest.mark.parametrize("key", ["data.path", "data.eval_path"])
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROW, ROW], "line 2: id 'a' is already the id of line 1; ids must be unique"),
        ([ROW | {"answer": "Z"}], "line 1: id 'a': answer='Z' must be a letter A..B"),
        ([], "holds no rows"),
    ],
)
def test_bad_rows_stop_the_run_with_one_message(capsys, base, no_ray, tmp_path, key, rows, said):
    path = write_rows(tmp_path / "bad.jsonl", *rows)
    assert main(no_ray, "train", [*base, f"{key}={path}"]) == 1
    err = capsys.readouterr().err
    assert err.count("error: ") == 1 and f"error: {path}" in err
    assert said in err


def test_a_missing_checkpoint_is_named(capsys, base, no_ray):
    assert main(no_ray, "train", [*base, "model.path=/no/such/model", "model.build=null"]) == 1
    assert "error: model.path: /no/such/model: no such folder; give" in capsys.readouterr().err


def test_a_run_with_checkpoints_keeps_its_configuration(capsys, base, no_ray, tmp_path):
    with pytest.raises(AssertionError, match="Ray was started"):
        main(no_ray, "train", base)
    capsys.readouterr()
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    lines = problems(capsys, [*base, "rollout.temperature=0.5", "seed=7", "total_steps=99"], run=no_ray)
    assert [line.split(":")[0] for line in lines] == ["seed", "rollout.temperature"]
    assert all("was begun with" in line and "another run.dir" in line for line in lines)
