"""Stages in order, skipped when done, taken up where one was killed; real commands that need no model."""

from __future__ import annotations

import json

import pytest

from videorl import pipeline
from videorl.config import ConfigError, configs_folder
from videorl.pipeline import load_pipeline, main

STAGES = """
name: small
source: raw.json
stages:
  convert:
    run: data convert --path ${source} --out rows.jsonl --force
    inputs: ["${source}"]
    outputs: [rows.jsonl]
  pairs:
    run: data pairs --path rows.jsonl --rollouts rollouts.jsonl --out pairs.jsonl --force
    inputs: [rows.jsonl, rollouts.jsonl]
    outputs: [pairs.jsonl]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "pipeline").mkdir(parents=True)
    (tmp_path / "mine" / "pipeline" / "small.yaml").write_text(STAGES)
    (tmp_path / "raw.json").write_text(json.dumps([{"id": "p", "problem": "Who?", "answer": "a dog", "videos": []}]))
    lines = [
        {"prompt_id": "p", "response": text, "reward": value, "terms": {}} for text, value in (("a", 1.0), ("b", 0.0))
    ]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def run(*arguments: str) -> int:
    return main(["recipe=small", "--config-dir", "mine", *arguments])


def test_stages_run_in_order_and_once(folder, capsys):
    assert run() == 0
    out = capsys.readouterr().out
    assert out.index("stage 1/2 convert: videorl data convert") < out.index("stage 2/2 pairs: videorl data pairs")
    first = (folder / "pairs.jsonl").stat().st_mtime_ns
    assert run() == 0
    assert "stage 2/2 pairs: done before" in capsys.readouterr().out
    assert (folder / "pairs.jsonl").stat().st_mtime_ns == first
    assert run("--show") == 0
    assert capsys.readouterr().out.count("done, ") == 2


def test_a_stage_that_was_killed_is_taken_up_again(folder, capsys, monkeypatch):
    ran = []

    def killed(words):
        ran.append(words[1])
        if words[1] == "pairs":
            raise KeyboardInterrupt
        return command(words)

    command = pipeline.run_command
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "run_command", killed)
        run()
    assert ran == ["convert", "pairs"] and not (folder / "pairs.jsonl").exists()
    assert run() == 0
    assert "convert: done before" in capsys.readouterr().out and (folder / "pairs.jsonl").exists()


def test_a_stage_that_fails_ends_the_run_with_its_code(folder, capsys):
    (folder / "rollouts.jsonl").write_text("")
    assert run() == 1
    assert "stage 2/2 pairs ended with 1; the same command goes on there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda folder: (folder / "raw.json").write_text("[]"), "raw.json has changed"),
        (lambda folder: (folder / "rows.jsonl").unlink(), "rows.jsonl is gone"),
    ],
)
def test_what_has_changed_under_a_finished_stage_stops_it(folder, capsys, change, problem):
    assert run() == 0
    change(folder)
    assert run() == 2
    said = capsys.readouterr().err
    assert f"stage 1/2 convert is done, but {problem}" in said and "--again convert" in said


def test_a_stage_can_be_run_again_with_all_after_it(folder, capsys):
    assert run() == 0
    (folder / "other.json").write_text((folder / "raw.json").read_text().replace("Who", "Which"))
    assert run("source=other.json") == 2
    assert "its command was 'data convert --path raw.json" in capsys.readouterr().err
    assert run("source=other.json", "--again", "convert") == 0
    assert "Which" in (folder / "pairs.jsonl").read_text()
    assert "done before" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["recipe=smal", "--config-dir", "mine"], "'smal' has no pipeline; did you mean small?"),
        (["recipe=small", "--config-dir", "mine", "sorce=x"], "sorce=x: no such variable; small.yaml has name, source"),
        (["recipe=small", "--config-dir", "mine", "--again", "dpo"], "--again: 'dpo' is no stage; there are convert"),
        (["recipe=small", "--config-dir", "mine", "source=none.json"], "its input none.json is not there"),
    ],
)
def test_what_is_wrong_is_said(folder, capsys, arguments, problem):
    assert main(arguments) == 2
    assert problem in capsys.readouterr().err


def test_a_file_that_is_no_pipeline_is_refused(folder):
    path = folder / "mine" / "pipeline" / "small.yaml"
    path.write_text(STAGES.replace("run: data pairs", "run: shell pairs"))
    with pytest.raises(ConfigError, match=r"stages\.pairs\.run: 'shell' is no stage; choose one of train"):
        load_pipeline("small", [], "mine")
    path.write_text("name: small\nstages:\n  one: {run: data, output: [x]}")
    with pytest.raises(ConfigError, match=r"small\.yaml: stages\.one\.outputs: Field required"):
        load_pipeline("small", [], "mine")


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (configs_folder() / "pipeline").glob("*.yaml")))
def test_every_pipeline_reads_what_was_made_before(recipe):
    """An input is an output of a stage before, or lies in the folder of one."""
    made: list[str] = []
    for stage in load_pipeline(recipe, []).stages.values():
        assert all(any(path == one or path.startswith(f"{one}/") for one in made) for path in stage.inputs)
        made += stage.outputs
