"""A run's `export/` is a checkpoint that transformers and vLLM load as it is, and with which both say the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def evaluation(program, course, whole_run, tmp_path_factory):
    """`python -m videorl.evaluate` of the export, with its overrides."""
    overrides = [*course.overrides, f"model.path={whole_run.run_dir}/export"]
    return program("evaluate", tmp_path_factory.mktemp("evaluation"), *overrides).succeed(), overrides


@pytest.fixture(scope="module")
def answers(evaluation) -> dict[str, str]:
    """{prompt id: its greedy answer}."""
    run, _ = evaluation
    return {line["prompt_id"]: line["response"] for line in run.rollouts() if line["temperature"] == 0}


@pytest.fixture(scope="module")
def opened(evaluation):
    """Configuration, model, source and the rendered held-out prompts."""
    from videorl.config import load_config
    from videorl.data.prompts import PromptStream
    from videorl.models.base import open_model
    from videorl.models.media import open_source

    config = load_config("eval", evaluation[1])
    model = open_model(config.model)
    source = open_source(config, model)
    stream = PromptStream.held_out(config, model, source)
    assert stream is not None
    return config, model, source, stream.all(lambda media: {})


def test_evaluation_reports_what_the_run_reported_at_its_end(evaluation, whole_run, course):
    run, _ = evaluation
    now, then = run.metrics()[0], whole_run.metrics()[course.steps]
    names = [name for name in then if name.startswith("eval/")]
    assert len(names) > 8
    assert {name: now[name] for name in names} == pytest.approx({name: then[name] for name in names}, abs=1e-9)


def test_the_answers_depend_on_the_prompt(answers, opened):
    *_, prompts = opened
    assert set(answers) == {prompt.prompt.id for prompt in prompts}
    assert len(set(answers.values())) > 1


def test_only_the_language_model_was_trained(whole_run, workspace):
    before = load_file(workspace.folder / "model" / "model.safetensors")
    after = load_file(whole_run.run_dir / "export" / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not [name for name in moved if "visual" in name]


def test_transformers_answers_as_the_evaluation_did(answers, opened):
    """By the plain forward of the exported model over raw frames, at the positions of the original Qwen2.5-VL."""
    from transformers import AutoModelForImageTextToText

    config, model, source, prompts = opened
    exported = AutoModelForImageTextToText.from_pretrained(model.path, dtype=torch.float32).eval()
    assert {prompt.prompt.id: greedy(exported, config, model, source, prompt) for prompt in prompts} == answers


@torch.inference_mode()
def greedy(exported, config, model, source, prompt) -> str:
    from videorl.types import expand_placeholders

    shown = expand_placeholders(prompt.token_ids, prompt.media, model.placeholder_id)
    patches = torch.cat(model.patches([source.frames(item) for item in prompt.media]))
    answer: list[int] = []
    while len(answer) < config.rollout.max_response_tokens and answer[-1:] != list(model.stop_ids):
        logits = exported(
            input_ids=torch.tensor([shown + answer]),
            position_ids=model.position_ids(shown, prompt.media, len(answer))[:, None],  # [3, 1, L]
            pixel_values_videos=patches,
            video_grid_thw=torch.tensor([item.grid for item in prompt.media]),
            use_cache=False,
        ).logits[0, -1]
        logits[list(model.banned_ids)] = -torch.inf
        answer.append(int(logits.argmax()))
    return model.tokenizer.decode(answer, skip_special_tokens=True)


def test_vllm_answers_as_the_evaluation_did(answers, evaluation, start, tmp_path):
    script = str(Path(__file__).with_name("greedy_vllm.py"))
    start(tmp_path, sys.executable, script, str(tmp_path / "answers.json"), *evaluation[1]).succeed()
    assert json.loads((tmp_path / "answers.json").read_text()) == answers
