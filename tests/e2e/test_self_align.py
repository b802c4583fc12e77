"""Pairs that the real engine makes of its own responses, from cached embeddings."""

from __future__ import annotations

import json

import pytest

from videorl.config import ConfigError
from videorl.data.schema import load_rows
from videorl.models.base import weights_digest
from videorl.self_align.__main__ import self_align


@pytest.fixture
def config(stack, tmp_path):
    rows = [row | {"response": "<think>red</think><answer>A</answer>"} for row in stack.workspace.rows()[:12]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(*more):
        return stack.workspace.config(
            f"data.path={tmp_path}/rows.jsonl", f"run.dir={tmp_path}/run", "rollout.prompts_per_step=4",
            "rollout.max_response_tokens=64", "rollout.max_model_len=256", "policy.mini_batches=1",
            "cluster.placement=spread", *more,
        )  # fmt: skip

    return make


METHOD = "self_align={target: perturbed, params: {frames: 2, iteration: 1}}"


def test_answers_to_perturbed_videos_become_pairs_once(stack, lent, config, tmp_path, capsys, monkeypatch):
    self_align(config(METHOD))
    pairs = load_rows(tmp_path / "run" / "pairs.jsonl")
    assert f"{len(pairs)} pairs" in capsys.readouterr().out
    responses = {row["id"]: row["response"] for row in load_rows(tmp_path / "rows.jsonl")}
    digest = weights_digest(stack.model.path)
    for pair in pairs:
        assert pair["chosen"] == responses[pair["id"]] != pair["rejected"]
        assert (pair["provenance"]["model"], pair["provenance"]["iteration"]) == (digest, 1)
    shown = {pair["provenance"]["perturbation"] for pair in pairs}
    assert shown <= {"shuffled", "2 uniform frames"}

    records = tmp_path / "run" / "records.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    assert [json.loads(line)["id"] for line in lines] == list(responses)

    # killed after seven rows: the five others, and those alone, are asked about again, with the same words
    records.write_text("".join(lines[:7]))
    self_align(config(METHOD))
    assert records.read_text().splitlines(keepends=True) == lines
    assert load_rows(tmp_path / "run" / "pairs.jsonl") == pairs


def test_a_stage_that_is_not_configured_is_refused(config):
    with pytest.raises(ConfigError, match="self_align: null, recipe quickstart has no such stage"):
        self_align(config())


def test_an_unknown_method_is_refused_before_ray_starts(config):
    with pytest.raises(ConfigError, match=r"self_align\.target: 'savi'; choose one of videosavi, perturbed"):
        self_align(config("self_align={target: savi}"))
