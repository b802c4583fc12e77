"""The dry run of small data sets: what it counts, what it estimates, when it says no, and what it does without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clips import write_clip

from videorl.config import Config, load_config
from videorl.data.prompts import PromptStream
from videorl.data.schema import CanonicalRow
from videorl.models.media import MediaSource
from videorl.planning import Scan, describe, dry_run, scan_rows
from videorl.types import DataError
from videorl.video.reader import VideoReader

SETTINGS = (
    "data.sampling={fps: 2.0, min_frames: 2, max_frames: 16, min_pixels: 784, max_pixels: 7840, total_pixels: 125440}",
    "data.instructions={numeric: null, grounding: null}",
)
TOKENS = 2 * 2 * 3  # 2 s of 84x56 at 2 fps: 4 frames are 2 steps of 2 x 3 tokens
TEXT = 19 // 4  # of the characters of the question


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_clip(folder / "a.mp4", num_frames=20, fps=10, size=(84, 56))
    write_clip(folder / "b.mp4", num_frames=20, fps=10, size=(56, 84))
    (folder / "notes.mp4").write_text("not a video")
    return folder


def make_row(id: str, *videos: str | dict[str, Any], **fields: Any) -> dict[str, Any]:
    refs = [{"path": video} if isinstance(video, str) else video for video in videos]
    row = {"id": id, "task": "numeric", "prompt": "How many are there?", "answer": 2, "videos": refs}
    return CanonicalRow.model_validate(row | fields).model_dump()


GOOD = [
    make_row("one", "a.mp4"),
    make_row("two", "a.mp4", "b.mp4"),
    make_row("text"),
    make_row("span", "b.mp4", task="grounding", answer=None, spans=[[0.5, 2.0]]),
]
BAD = {
    "gone": ("missing", make_row("gone", "nowhere.mp4")),
    "outside": ("outside_root", make_row("outside", "../a.mp4")),
    "notes": ("not_a_video", make_row("notes", "a.mp4", "notes.mp4")),
    "late": ("span_outside_clip", make_row("late", "a.mp4", task="grounding", answer=None, spans=[[0.5, 9.0]])),
}


@pytest.fixture
def configured(root, tmp_path):
    """A function that writes rows and gives the configuration of a run on them."""

    def configured(rows: list[dict[str, Any]], *overrides: str, recipe: str = "qwen2_5_vl_7b_grpo") -> Config:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = [f"recipe={recipe}", f"data.path={path}", f"data.media_root={root}", *SETTINGS]
        return load_config("train", [*given, "rollout.prompts_per_step=4", *overrides])

    return configured


def lines(config: Config, scan: Scan) -> dict[str, str]:
    return dict(describe(config, scan))


# --- exit codes ------------------------------------------------------------------------------------------------------


def test_a_good_data_set_is_ready(configured, capsys):
    assert dry_run(configured(GOOD)) == 0
    printed = capsys.readouterr().out
    assert "ready: configuration and data are valid; nothing was started" in printed
    assert "not ready" not in printed


@pytest.mark.parametrize(("allowed", "code"), [(0.5, 0), (0.49, 1), (0.0, 1)])
def test_bad_rows_are_named_and_counted(configured, capsys, allowed, code):
    rows = [row for _, row in BAD.values()]
    config = configured(GOOD + rows, f"data.max_bad_fraction={allowed}", "rollout.prompts_per_step=2")
    assert dry_run(config) == code
    printed = capsys.readouterr().out
    for id, (reason, _) in BAD.items():
        assert f"row {id}: {reason}: " in printed
    refused = f"not ready: 4 of 8 rows are bad, data.max_bad_fraction={allowed:g} are allowed"
    assert (refused in printed) == (code == 1)


@pytest.mark.parametrize(("limit", "usable"), [(28, 4), (27, 3), (16, 3), (15, 1), (3, 0)])
def test_rows_that_are_too_long_do_not_fill_a_step(configured, capsys, limit, usable):
    """Four rows make a step; one shows two clips, two show one, one is text."""
    code = dry_run(configured(GOOD, f"data.max_prompt_tokens={limit}"))
    refused = f"not ready: {usable} rows can be used, fewer than rollout.prompts_per_step=4; lower it or add rows"
    assert (code, refused in capsys.readouterr().out) == ((0, False) if usable == 4 else (1, True))


def test_a_data_set_smaller_than_a_step_is_refused(configured):
    assert dry_run(configured(GOOD, "rollout.prompts_per_step=5")) == 1


# --- what is counted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [None, "[numeric,open]"])
def test_rows_that_accuracy_cannot_score_are_refused(configured, tasks):
    """Each well-formed response to them would be lost, and only the others be trained on."""
    asked = [f"rewards.terms.accuracy.tasks={tasks}"] if tasks else []
    row = make_row("why", "a.mp4", task="open", answer="because")
    with pytest.raises(DataError, match=r"of 5 rows 1 are open; set rewards\.terms\.accuracy\.tasks=\[mc,"):
        dry_run(configured([*GOOD, row], *(word.replace("rewards", "+rewards") for word in asked)))
    assert dry_run(configured([*GOOD, row], "+rewards.terms.accuracy.tasks=[numeric,grounding]")) == 0


def test_a_scan_counts_rows_clips_and_tokens(configured):
    rows = GOOD + [row for _, row in BAD.values()]
    scan = scan_rows(configured(rows, "data.max_prompt_tokens=20"), rows)
    assert (scan.num_rows, scan.scanned) == (8, 8)
    assert scan.tasks == {"numeric": 6, "grounding": 2}
    assert {id: why.split(":")[0] for id, why in scan.bad.items()} == {id: reason for id, (reason, _) in BAD.items()}
    assert list(scan.clip_tokens.values()) == [TOKENS, TOKENS]  # each clip once; those of bad rows are not stored
    assert scan.prompt_tokens == [TOKENS + TEXT, 2 * TOKENS + TEXT, TEXT, TOKENS + TEXT]
    assert scan.too_long == 1  # two clips and the text are 28


def test_spans_of_one_file_are_clips_of_their_own(configured):
    halves = [{"path": "a.mp4", "end": 1.0}, {"path": "a.mp4", "start": 1.0}, {"path": "a.mp4", "fps": 4.0}]
    rows = [make_row(str(number), video) for number, video in enumerate(halves)]
    scan = scan_rows(configured(rows), rows)
    assert list(scan.clip_tokens.values()) == [TOKENS // 2, TOKENS // 2, 2 * TOKENS]


def test_a_limit_scans_the_first_rows_and_extrapolates(configured):
    rows = [make_row(str(number), {"path": "a.mp4", "end": 1 + number / 10}) for number in range(8)]
    config = configured(rows)
    scan = scan_rows(config, rows, limit=2)
    assert (scan.num_rows, scan.scanned, len(scan.prompt_tokens)) == (8, 2, 2)
    assert lines(config, scan)["distinct clips"] == "8"


def test_with_the_tokenizer_the_count_is_that_of_the_prompt(configured, tiny, tmp_path):
    config = configured(GOOD, f"model.path={tiny.path}", "model.dtype=float32")
    scan = scan_rows(config, GOOD, tokenizer=tiny.tokenizer)
    with VideoReader() as reader:
        source = MediaSource(tiny, reader, SimpleNamespace())  # type: ignore[arg-type]
        prompts = PromptStream(GOOD, config.data, tiny, source, seed=0).all(lambda media: {})
    assert scan.prompt_tokens == [prompt.num_tokens for prompt in prompts]


# --- what is estimated -----------------------------------------------------------------------------------------------


def make_scan(num_rows: int, scanned: int, *clip_tokens: int) -> Scan:
    clips = {(str(number),): tokens for number, tokens in enumerate(clip_tokens)}
    return Scan(num_rows=num_rows, scanned=scanned, prompt_tokens=[100, 300], clip_tokens=clips)


def test_the_estimates_of_a_published_model_by_hand(configured):
    config = configured(GOOD, "rollout.group_size=8", "total_steps=50", "policy.mini_batches=2", "policy.ranks=4")
    found = lines(config, make_scan(200, 100, 1000, 3000))
    # 4000 tokens, twice as many in all, of 3584 values in bfloat16: 54.7 MiB
    assert found["embedding store"] == f"about {8000 * 3584 * 2 / 2**20:.1f} MiB of store.max_gb=50"
    assert found["distinct clips"] == "4" and found["prompt tokens"] == "mean 200, largest 300"
    assert found["a step"] == (
        "4 prompts x 8 responses = 32 rollouts, 2 optimiser steps; an epoch is 50.0 steps, the run 1.0 epochs"
    )
    assert found["workers"] == "4 policy, 4 engine, 1 encoder, 4 reference; 8 GPUs, or CPUs alone"  # the recipe has KL
    # 16 bytes of each of 8.29e9 parameters over 4 ranks; 16384 tokens x 3584 x 28 layers x 4 bytes
    assert found["memory of a policy rank"] == "about 30.9 GiB of state + 6.1 GiB of activations"
    assert found["memory of an engine"].startswith("about 15.4 GiB of weights per device")  # bfloat16


def test_a_store_that_is_too_small_is_said(configured):
    config = configured(GOOD, "store.max_gb=0.05")
    assert "MORE THAN ITS BUDGET" in lines(config, make_scan(1, 1, 8000))["embedding store"]  # 54.7 of 51.2 MiB
    assert "MORE" not in lines(config, make_scan(1, 1, 7000))["embedding store"]


def test_a_trained_tower_stores_no_embeddings(configured):
    config = configured(GOOD, "model.train_vision=true")
    assert lines(config, make_scan(1, 1, 10))["embedding store"].startswith("off: the vision tower trains")


def test_lora_needs_no_reference_and_less_state(configured):
    config = configured(GOOD, "model.lora={r: 8, alpha: 16, targets: [q_proj]}", "policy.ranks=1")
    found = lines(config, make_scan(1, 1, 10))
    assert "reference" not in found["workers"]
    # 12 bytes of a hundredth and 4 of all 8.29e9
    assert found["memory of a policy rank"].startswith("about 31.8 GiB of state")


def test_an_unknown_model_is_said_to_be_unknown(configured):
    found = lines(configured(GOOD, "model.path=some/model"), make_scan(1, 1, 10))
    assert found["memory"] == "unknown: some/model is neither a folder nor a published name"
    assert "embedding store" not in found


def test_a_checkpoint_folder_is_measured(configured, tiny_folder):
    config = configured(GOOD, f"model.path={tiny_folder}", "model.dtype=float32")
    found = lines(config, make_scan(1, 1, 1000))
    assert found["embedding store"].startswith(f"about {1000 * 128 * 4 / 2**20:.1f} MiB of")  # 128 wide
    size = sum(file.stat().st_size for file in tiny_folder.glob("*.safetensors"))
    assert found["memory of an engine"].startswith(f"about {size / 2**20:.1f} MiB")


# --- what it does without --------------------------------------------------------------------------------------------

ALONE = """
import socket, sys

def refuse(*arguments):
    raise OSError("no network here")

socket.socket.connect = refuse
from videorl.config import load_config
from videorl.planning import dry_run
code = dry_run(load_config("train", sys.argv[1:]))
print("imported:", *[name for name in ("torch", "ray", "transformers", "huggingface_hub") if name in sys.modules])
sys.exit(code)
"""


def test_a_dry_run_needs_no_weights_no_tokenizer_and_no_network(root, configured, tmp_path):
    configured(GOOD)
    overrides = ["recipe=qwen2_5_vl_7b_grpo", f"data.path={tmp_path}/rows.jsonl", f"data.media_root={root}"]
    command = [sys.executable, "-c", ALONE, *overrides, "rollout.prompts_per_step=4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ready: " in done.stdout and done.stdout.splitlines()[-1].strip() == "imported:"
