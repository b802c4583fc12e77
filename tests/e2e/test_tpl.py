"""Temporal perplexity on the real workers and the store."""

from __future__ import annotations

import json

import pytest
from warm_workers import started

from videorl.data.__main__ import main
from videorl.data.prompts import Renderer
from videorl.data.reduced import reduce_frames
from videorl.data.schema import load_rows
from videorl.tpl import make_batch
from videorl.workers.policy import Policy


@pytest.fixture
def rows(stack, tmp_path):
    rows = [
        row | {"response": f"<answer>{row['choices'][0]}</answer>"} for row in stack.workspace.rows() if row["choices"]
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    return tmp_path


def command(stack, folder, *options):
    overrides = stack.workspace.overrides("cluster.placement=spread", "rollout.prompts_per_step=2")
    paths = ["--path", str(folder / "rows.jsonl"), "--out", str(folder / "scored.jsonl")]
    return ["tpl", *paths, *options, *overrides, "policy.mini_batches=1"]


@pytest.mark.parametrize("hold", [False, True], ids=["few frames", "held frames"])
def test_a_row_says_how_much_less_its_response_is_expected(stack, lent, rows, capsys, hold):
    assert main(command(stack, rows, "--reduced", "last", "--frames", "2", *(["--hold"] if hold else []))) == 0
    scored = load_rows(rows / "scored.jsonl")
    assert f"5 rows, difference with 2 last frames of each video{', held' * hold}" in capsys.readouterr().out

    renderer = Renderer(stack.config.data, stack.model, stack.source)
    prompts = [renderer.render(renderer.prompt(row)) for row in scored]
    few = [renderer.render(reduce_frames(prompt.prompt, renderer, "last", 2, hold)) for prompt in prompts]
    assert all((one.num_tokens > other.num_tokens) != hold for one, other in zip(prompts, few, strict=True))
    stack.encoders.ensure([item for prompt in few for item in prompt.media])
    means = []
    policy = Policy(stack.cluster, stack.config, None, 0)  # other tests may have trained the one that is running
    with started(stack, policy):
        for shown in (prompts, few):
            batch = make_batch(stack.model, shown)
            means.append((policy.compute_log_probs(batch).sum(1) / batch.lengths).tolist())
    for row, full, reduced in zip(scored, *means, strict=True):
        meta = row["meta"]
        assert (meta["tpl_all"], meta["tpl_reduced"]) == pytest.approx((full, reduced), abs=1e-5)
        assert meta["tpl"] == pytest.approx(full - reduced, abs=1e-5)
    assert len({row["meta"]["tpl"] for row in scored}) > 1


def test_all_frames_are_no_reduction(stack, lent, rows):
    assert main(command(stack, rows, "--frames", "64", "--form", "ratio")) == 0
    assert [row["meta"]["tpl"] for row in load_rows(rows / "scored.jsonl")] == [1.0] * 5


def test_a_row_without_a_response_is_refused(stack, lent, rows, capsys):
    row = load_rows(rows / "rows.jsonl")[0] | {"response": None}
    (rows / "rows.jsonl").write_text(json.dumps(row))
    assert main(command(stack, rows)) == 1
    assert "needs a video and a `response`" in capsys.readouterr().err
    assert not (rows / "scored.jsonl").exists()
