"""A pipeline of real stages that is killed in each of them goes on there, and ends as one that never was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from warm_workers import SGD

from videorl.pipeline import main
from videorl.run import Run

STEPS = 3
TRAINED = {"cold_start": "sft", "learn": "prefer", "judge": "reward_model"}


def pipeline(stack, rows: dict[str, Path], folder: Path) -> dict:
    """Its paths are absolute: the workers that are lent were started in another folder."""
    given = [word for word in stack.workspace.overrides() if not word.startswith(("recipe=", "model."))]
    sizes = ["rollout.max_response_tokens=64", "rollout.max_model_len=256", "policy.mini_batches=1", "eval.samples=1"]
    place = " ".join([*given, *SGD, *sizes, "run.save_every=1"])

    def learn(name: str, recipe: str, start: str, path: Path, *more: str) -> dict:
        program = TRAINED[name]
        section = {"path": path, "model_path": start, "steps": STEPS, "batch_size": 3, "optim.lr": 1.0e-2}
        words = [f"{program}.{key}={value}" for key, value in section.items()]
        run = " ".join([program, f"recipe={recipe}", place, *words, f"run.dir={folder}/{name}", *more])
        return {"run": run, "inputs": [str(path), start], "outputs": [f"{folder}/{name}/export"]}

    model, started, learned = (
        str(stack.workspace.folder / "model"),
        f"{folder}/cold_start/export",
        f"{folder}/learn/export",
    )
    return {
        "name": "whole",
        "stages": {
            "cold_start": learn("cold_start", "quickstart", model, rows["sft"], "sft.train_vision=false"),
            "learn": learn("learn", "quickstart_dpo", started, rows["pairs"], "run.eval_every=0"),
            "judge": learn("judge", "base_reward_cpu", started, rows["pairs"], "data.eval_path=null"),
            "exam": {
                "run": f"evaluate recipe=quickstart {place} model.path={learned} run.dir={folder}/exam",
                "inputs": [learned],
                "outputs": [f"{folder}/exam/metrics.jsonl"],
            },
        },
    }


@pytest.fixture
def folders(stack, tmp_path):
    """Two, each with the file of the pipeline."""
    rows = {"sft": tmp_path / "sft.jsonl", "pairs": tmp_path / "pairs.jsonl"}
    content = {"sft": stack.workspace.rows("sft")[:9], "pairs": stack.workspace.pair_rows()}
    for name, path in rows.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in content[name]))
    for name in ("whole", "killed"):
        file = tmp_path / name / "pipeline" / "whole.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(yaml.safe_dump(pipeline(stack, rows, tmp_path / name), sort_keys=False))
    return tmp_path


def exam(folder: Path) -> dict[str, float]:
    (line,) = map(json.loads, (folder / "exam" / "metrics.jsonl").read_text().splitlines())
    return {name: value for name, value in line.items() if name.startswith("eval/")}


def test_killed_in_every_stage_it_goes_on_there_and_ends_as_a_whole_one(stack, lent, folders, monkeypatch, capsys):
    monkeypatch.chdir(folders / "whole")
    assert main(["recipe=whole", "--config-dir", "."]) == 0

    killed: list[str] = []
    steps = Run.step

    def step(run: Run, number: int):
        name = run.folder.name
        if name not in killed and (number == 2 or name == "exam"):
            killed.append(name)
            raise KeyboardInterrupt
        return steps(run, number)

    monkeypatch.setattr(Run, "step", step)
    monkeypatch.chdir(folders / "killed")
    codes = [main(["recipe=whole", "--config-dir", "."]) for _ in range(5)]
    assert killed == [*TRAINED, "exam"] and codes == [130] * 4 + [0]
    assert capsys.readouterr().out.count("done before") == 0 + 0 + 1 + 2 + 3  # a stage ends in the run after its kill

    start = load_file(stack.workspace.folder / "model/model.safetensors")
    for name in TRAINED:
        expected, found = (load_file(folders / run / name / "export/model.safetensors") for run in ("whole", "killed"))
        assert any((expected[key] - start[key]).abs().max() > 1e-5 for key in expected)
        assert all((expected[key] - found[key]).abs().max() <= 1e-6 for key in expected), name
    assert exam(folders / "killed") == pytest.approx(exam(folders / "whole"), abs=1e-6)
