"""Every recipe has its pages and can start; the table of methods is what the recipes say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from videorl import recipes
from videorl.config import ConfigError, configs_folder, load_config
from videorl.data.synth.examples import PAIRS, RECIPES, ROWS, generate
from videorl.launch import config_problems, main
from videorl.recipes import Method, describe_parts, load_methods, load_parts, make_page

ROOT = Path(recipes.__file__).parent.parent
NO_METHOD = {"quickstart", "quickstart_dpo", "quickstart_ppo", "real_clips", "qwen2_5_vl_7b_grpo"}  # ours, of no paper
NO_METHOD |= {"long_video", "earl_cpu", "video_mtr_cpu", "base_reward_cpu", "ppo_with_reward_model_cpu"}
FOR_THE_CPU = {"videossr"}  # at its own size
ALL = sorted(path.stem for path in (configs_folder() / "recipe").glob("*.yaml"))


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "data"
    generate(folder, seed=0)
    return folder


def overrides(recipe: str, folder: Path, *more: str) -> list[str]:
    pairs = [f"{PAIRS[recipe]}.path={folder}/{recipe}.jsonl"] if recipe in PAIRS else []
    return [
        f"recipe={recipe}",
        *pairs,
        f"data.path={folder}/{recipe}.jsonl",
        f"data.media_root={folder}",
        "data.eval_path=null",
        *more,
    ]


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_is_up_to_date():
    assert (ROOT / "docs" / "methods.md").read_text() == make_page(), recipes.COMMAND


def test_the_table_has_every_published_method_and_every_one_has_examples():
    assert set(load_methods()) == set(ALL) - NO_METHOD == set(RECIPES)


def test_a_row_of_the_table(monkeypatch, tmp_path):
    method = {"method": "A|B", "paper": "2503.18013", "faithful": ["one", "two"], "differs": [], "unknown": ["three"]}
    (tmp_path / "vision_r1").mkdir()
    (tmp_path / "vision_r1" / "method.yaml").write_text(yaml.safe_dump(method))
    monkeypatch.setattr(recipes, "RECIPES", tmp_path)
    *_, line = make_page().splitlines()
    name, recipe, parts, faithful, differs, unknown = line.removeprefix("| ").removesuffix(" |").split(" | ")
    assert name == r"A\|B ([2503.18013](https://arxiv.org/abs/2503.18013))"
    assert recipe == "[vision_r1](../recipes/vision_r1/README.md)"
    assert parts.startswith("**advantage** grpo<br>**loss** vanilla")
    assert "**stages** recall from 50% of the steps: xi0 0.75, xi1 0.75, xi2 0.9; precision from 50%" in parts
    assert (faithful, differs, unknown) == ("one<br>two", "", "three")


def test_the_parts_of_a_recipe():
    """T-GRPO in Video-R1: a pass over shuffled frames, with which one of two hooks compares."""
    parts = dict(describe_parts(load_parts("video_r1")))
    assert parts["KL"] == "k3 x 0.04 in the loss"
    assert parts["terms"] == "`format` x 1; accuracy: `video_r1_accuracy` x 1"
    assert parts["group hooks"] == "temporal: `temporal_bonus` x 1; length: `length_window` x 1"
    assert parts["second passes"] == "shuffled: `shuffled_frames`"
    assert parts.keys().isdisjoint({"scorers", "stages", "dynamic sampling", "overlong penalty"})
    parts = dict(describe_parts(load_parts("keye_gspo")))
    assert parts["second passes"].startswith("hints: `hint_ladder`, trained on")
    assert parts["scorers"] == "`judge` x 1 (on open)"


def test_the_parts_of_a_recipe_of_pairs():
    assert dict(describe_parts(load_parts("rrpo"))) == {"pairs": "`perturbed`", "loss": "rrpo, beta 0.01, alpha 0.1"}


def test_a_term_of_no_weight_is_only_logged():
    assert "accuracy: `hungarian_iou` (logged)" in dict(describe_parts(load_parts("vision_r1")))["terms"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"paper": 2503.1}, "paper: Input should be a valid string"),
        ({"unknown": None}, "unknown: Input should be a valid list"),
        ({"notes": ["x"]}, "notes: Extra inputs are not permitted"),
        ({"faithful": [" "]}, "faithful.0: String should match"),
    ],
)
def test_a_bad_method_file_is_named_with_its_key(monkeypatch, tmp_path, change, says):
    method = {"method": "M", "paper": "2503.18013", "faithful": [], "differs": [], "unknown": []}
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "method.yaml").write_text(yaml.safe_dump(method | change))
    monkeypatch.setattr(recipes, "RECIPES", tmp_path)
    with pytest.raises(ValueError, match=r"m/method\.yaml: ") as caught:
        load_methods()
    assert says in str(caught.value)


def test_the_command_prints_and_writes_the_same(tmp_path, capsys):
    recipes.main([])
    recipes.main(["--write", str(tmp_path / "methods.md")])
    assert capsys.readouterr().out == (tmp_path / "methods.md").read_text() == make_page()


def test_the_command_imports_nothing_heavy():
    """To compose a recipe, and to describe all of them."""
    parts = json.dumps([load_parts(recipe).model_dump(mode="json") for recipe in load_methods()])
    code = (
        "import json, sys; from videorl.config import Config; from videorl.recipes import describe_parts, load_parts; "
        "load_parts('video_r1'); "
        "[list(describe_parts(Config.model_validate(each))) for each in json.load(sys.stdin)]; "
        "print({'torch', 'ray', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=parts, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ALL)
def test_every_recipe_has_its_page(recipe):
    page = (ROOT / "recipes" / recipe / "README.md").read_text()
    assert page.startswith(f"# {recipe}\n")
    if recipe in NO_METHOD:
        assert not (ROOT / "recipes" / recipe / "method.yaml").exists()
        return
    assert Method.model_validate(yaml.safe_load((ROOT / "recipes" / recipe / "method.yaml").read_text()))
    if recipe in FOR_THE_CPU:
        assert f"python -m videorl.train recipe={recipe}" in page
        return
    assert "python -m videorl.data synth examples --out data/examples\n" in page
    lines = re.sub(r"\\\n\s+", "", page).splitlines()  # a command may go on over lines
    program = PAIRS.get(recipe, "train")
    (command,) = (line for line in lines if f"{program} recipe={recipe} scale=tiny" in line)
    steps = "total_steps=2" if program == "train" else f"{program}.steps=2"
    assert "data.path=data/examples/" in command and f"data.media_root=data/examples {steps}" in command


@pytest.mark.parametrize("scale", ["full", "tiny"])
@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_is_valid(examples, recipe, scale):
    try:
        config = load_config(PAIRS.get(recipe, "train"), overrides(recipe, examples, f"scale={scale}"))
    except ConfigError as error:
        pytest.fail(str(error))
    assert list(config_problems(config)) == []
    assert config.name == recipe
    assert (config.model.build == "tiny") == (scale == "tiny")


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_dry_run_of_the_full_size_ends_well(examples, recipe, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train"])
    count = f"{PAIRS[recipe]}.batch_size" if recipe in PAIRS else "rollout.prompts_per_step"
    size = [f"{count}={ROWS}", "policy.mini_batches=1", "dry_run=true"]
    assert main(_never, PAIRS.get(recipe, "train"), overrides(recipe, examples, *size)) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert f"{ROWS} (" in said and "0 bad, 0 too long" in said


def _never(config: object) -> None:
    raise AssertionError("a dry run starts nothing")
