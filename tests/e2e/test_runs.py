"""Whole runs by the command line: what a run leaves behind, once per clip, and resuming after a kill."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import pytest
from safetensors.torch import load_file

KILLED_AFTER = 2


# --- a run of three epochs -------------------------------------------------------------------------------------------


def test_a_run_leaves_its_folder(whole_run, course):
    names = {path.name for path in whole_run.run_dir.iterdir()} - {".lock"}
    assert names == {
        *("config.yaml", "metrics.jsonl", "rollouts.jsonl", "summary.json", "curves.png"),
        *("checkpoints", "export"),
    }
    assert list(whole_run.metrics()) == list(range(course.steps + 1))
    assert [step for step, line in whole_run.metrics().items() if "eval/accuracy" in line] == [0, 3, 6]
    assert "Traceback" not in whole_run.err


def test_every_epoch_shows_every_row_once(whole_run, course):
    ids = list(chain.from_iterable(whole_run.batches().values()))
    epochs = [ids[start : start + course.rows] for start in range(0, len(ids), course.rows)]
    assert len(epochs) == 3
    assert all(len(set(epoch)) == course.rows for epoch in epochs)


def test_each_clip_is_decoded_and_encoded_once_in_three_epochs(whole_run, course):
    metrics = whole_run.metrics().values()
    assert sum(line.get("video/encoder_calls", 0) for line in metrics) == course.num_clips
    assert sum(line.get("video/decodes", 0) for line in metrics) == course.num_clips


def test_the_users_reward_and_loss_are_what_is_trained_on(whole_run):
    for line in whole_run.rollouts():
        assert line["terms"]["length"] == pytest.approx(min(1.0, len(line["response"]) / 120), abs=1e-9)
        weights = {"format": 0.1, "accuracy": 0.9 * (line["terms"]["format"] > 0), "length": 1.0}
        assert line["reward"] == pytest.approx(sum(weights[name] * line["terms"][name] for name in weights), abs=1e-9)
    trained = [line for step, line in whole_run.metrics().items() if step > 0]
    assert all(line["policy/mine"] == pytest.approx(7, rel=1e-6) for line in trained)
    assert all(line["policy/grad_norm"] > 0 for line in trained)
    assert all(line["parity/max_log_prob_diff"] < 1e-4 for line in trained)


# --- the same, killed and resumed ------------------------------------------------------------------------------------


UNLIKE = ("data/hidden", "time/", "video/", "run/", "driver/bytes", "rollout/prefix_cached")
"""What may differ: clocks; work that the store saves; saves between two steps; how numbers are spelled; and how many
requests reached the engine after a sibling had left its prompt in the cache."""

RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Idle processes of a Ray node, which try for 60 s to reach a head that died with the driver."""


@dataclass(frozen=True)
class Interrupted:
    refused: Any  # a second program, while the first had the folder
    before: list[str]  # lines of metrics.jsonl when the first was killed
    orphans: set[str]
    resumed: Any


@pytest.fixture(scope="module")
def interrupted(program, course, whole_run, tmp_path_factory) -> Interrupted:
    """The whole run in another folder, on the same data and store, killed in the step after `KILLED_AFTER`."""
    folder = tmp_path_factory.mktemp("interrupted")
    killed = program("train", folder, *course.overrides)
    killed.until((killed.run_dir / "config.yaml").exists)
    refused = program("train", folder, *course.overrides)
    refused.wait()
    killed.until((killed.run_dir / "checkpoints" / f"step-{KILLED_AFTER:08d}").exists)
    killed.kill()
    before = (killed.run_dir / "metrics.jsonl").read_text().splitlines()
    resumed = program("train", folder, *course.overrides)
    orphans = killed.leftovers(30, but=RAY_AGENTS)
    resumed.succeed()
    return Interrupted(refused, before, orphans | killed.leftovers(60), resumed)


def test_a_second_program_in_the_folder_is_refused(interrupted):
    assert interrupted.refused.wait() == 2
    (line,) = interrupted.refused.err.splitlines()
    assert line.startswith("config: run.dir: ") and "in use by process" in line


def test_a_killed_program_leaves_no_process(interrupted):
    assert interrupted.orphans == set()


def test_a_resumed_run_keeps_every_step_that_has_a_checkpoint(interrupted):
    published = len(interrupted.before) - 1  # step 0 has a line too
    assert published >= KILLED_AFTER
    (said,) = [line for line in interrupted.resumed.out.splitlines() if "resuming after step" in line]
    resumed_after = int(said.rpartition(" ")[2])
    assert published - 1 <= resumed_after <= published
    after = (interrupted.resumed.run_dir / "metrics.jsonl").read_text().splitlines()
    assert after[: resumed_after + 1] == interrupted.before[: resumed_after + 1]


def test_a_resumed_run_is_the_run_that_was_never_killed(whole_run, interrupted):
    assert interrupted.resumed.batches() == whole_run.batches()
    assert interrupted.resumed.rollouts() == whole_run.rollouts()
    resumed, whole = interrupted.resumed.metrics(), whole_run.metrics()
    assert resumed.keys() == whole.keys()
    for step in whole:
        # log-probs depend in their last bits on which requests an engine step happened to join
        assert alike(resumed[step]) == pytest.approx(alike(whole[step]), rel=1e-5, abs=1e-5), f"step {step}"


def alike(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if not name.startswith(UNLIKE)}


def test_a_second_run_on_the_same_store_decodes_and_encodes_nothing(interrupted):
    metrics = interrupted.resumed.metrics().values()
    assert sum(line.get("video/encoder_calls", 0) for line in metrics) == 0
    assert sum(line.get("video/decodes", 0) for line in metrics) == 0


def test_weights_of_the_resumed_run_are_those_of_the_whole_run(whole_run, interrupted):
    runs = (whole_run, interrupted.resumed)
    whole, resumed = (load_file(run.run_dir / "export" / "model.safetensors") for run in runs)
    assert whole.keys() == resumed.keys()
    assert max(float((whole[name] - resumed[name]).abs().max()) for name in whole) <= 1e-6
