"""The recipe for one's own videos: frame times are those of the files, damaged files cost only themselves."""

from __future__ import annotations

import itertools
import json
import random
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from clips import flip_bytes, truncate, write_clip

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "clips"
GOOD, BAD = 6, 2


def overrides(stack, *more: str) -> list[str]:
    model = (f"model.path={stack.workspace.folder}/model", "model.build=null")
    return ["recipe=real_clips", *model, "run.live=plain", "run.trackers=[]", *more]


# --- frame times -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_run(stack, run_here, tmp_path_factory):
    if not REAL.is_dir():
        pytest.skip(f"no folder {REAL} with real clips; generated ones are tested in any case")
    data = (f"data.path={REAL}/questions.jsonl", f"data.media_root={REAL}", "total_steps=3")
    run = run_here("train", tmp_path_factory.mktemp("real"), *overrides(stack, *data))
    assert run.code == 0, run.err
    return run, REAL / "questions.jsonl"


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """Clips of irregular frame times that do not begin at 0, questions about them, and an exam; three are damaged."""
    folder = tmp_path_factory.mktemp("own")
    rng = random.Random(0)
    rows = []
    for index in range(GOOD + BAD + 4):
        gaps = rng.choices((0.02, 0.04, 0.3), k=39)
        times = list(itertools.accumulate(gaps, initial=1.0 + index / 4))
        path = write_clip(folder / f"{index}.mkv", num_frames=40, times=times)
        span = {"start": 0.5, "end": 2.5} if index % 2 else {}
        rows.append(
            {"id": f"clip-{index}", "task": "numeric", "prompt": "How many cells are light?", "answer": 3}
            | {"videos": [{"path": Path(path).name, **span}]}
        )
    truncate(folder / "2.mkv", 0.5)
    flip_bytes(folder / "4.mkv", 0.3, 600)
    truncate(folder / "9.mkv", 0.5)
    for name, part in (("lessons", rows[: GOOD + BAD]), ("exam", rows[GOOD + BAD :])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture(scope="module")
def own_overrides(stack, own, length_reward) -> list[str]:
    return overrides(
        stack, f"data.path={own}/lessons.jsonl", f"data.eval_path={own}/exam.jsonl", f"data.media_root={own}",
        "data.max_bad_fraction=0.25", "algorithm=grpo_kl", "eval.samples=1", length_reward,
    )  # fmt: skip


@pytest.fixture(scope="module")
def own_run(run_here, own, own_overrides, tmp_path_factory):
    run = run_here("train", tmp_path_factory.mktemp("own-run"), *own_overrides, "total_steps=3")
    assert run.code == 0, run.err
    return run, own / "lessons.jsonl"


@pytest.fixture(params=["real", "own"])
def trained(request):
    return request.getfixturevalue(f"{request.param}_run")


def test_frame_times_are_those_of_the_file(trained):
    """Each is a pts of the file, the first and the last are those of the span, the others are spread evenly in time."""
    run, data = trained
    rows = {row["id"]: row for row in map(json.loads, data.read_text().splitlines())}
    lines = run.rollouts()
    assert {line["step"] for line in lines} == {1, 2, 3}
    for line in lines:
        for video, path, shown in zip(
            rows[line["prompt_id"]]["videos"], line["media_paths"], line["frame_times"], strict=True
        ):
            assert Path(path).samefile(data.parent / video["path"])
            times = frame_times(path)
            start, end = times[0] + video.get("start", 0.0), times[0] + video.get("end", np.inf)
            inside = times[(times > start - 1e-6) & (times < end + 1e-6)]
            assert max(np.abs(times - time).min() for time in shown) < 1e-6  # rollouts.jsonl rounds to the microsecond
            assert shown == sorted(set(shown))
            assert (shown[0], shown[-1]) == pytest.approx((inside[0], inside[-1]), abs=1e-6)
            even = np.linspace(inside[0], inside[-1], len(shown))
            assert np.abs(np.array(shown) - even).max() <= np.diff(inside).max()


@cache
def frame_times(path: str) -> np.ndarray:
    with av.open(path) as container:
        stream = container.streams.video[0]
        return np.array(sorted(float(frame.pts * stream.time_base) for frame in container.decode(stream)))


def test_the_generated_clips_would_show_a_wrong_clock(own):
    """Index / average rate, the usual mistake, is far from the times of these files."""
    times = frame_times(str(own / "0.mkv"))
    assert times[0] >= 1
    usual = np.arange(len(times)) / (len(times) / (times[-1] - times[0]))
    assert np.abs(times - times[0] - usual).max() > 0.3


# --- damaged files ---------------------------------------------------------------------------------------------------


def test_bad_clips_are_set_aside_and_the_others_are_trained_on(own_run):
    run, _ = own_run
    seen = {line["prompt_id"] for line in run.rollouts()}
    assert seen == {f"clip-{index}" for index in range(GOOD + BAD)} - {"clip-2", "clip-4"}
    last = run.metrics()[3]
    assert last["data/bad"] == BAD
    assert last["data/corrupt"] == 1  # the packets of the other are cut off: seen before anything is decoded
    assert last["eval/prompts"] == 3
    assert all(line["policy/grad_norm"] > 0 for step, line in run.metrics().items() if step > 0)


def test_kl_to_the_reference_is_logged_and_grows_from_zero(own_run):
    run, _ = own_run
    kl = [line["policy/kl"] for step, line in run.metrics().items() if step > 0]
    assert kl[0] < kl[-1]
    assert kl[-1] > 0


@pytest.mark.parametrize("damaged", ["exam", "lessons"])
def test_a_run_without_a_good_clip_stops_and_loses_nothing(run_here, own, own_run, own_overrides, damaged):
    """The clips break between two runs in one folder; the second stops with a sentence and all of the first stays."""
    run, _ = own_run
    before = contents(run.run_dir)
    rows = map(json.loads, (own / f"{damaged}.jsonl").read_text().splitlines())
    clips = {path: path.read_bytes() for path in (own / row["videos"][0]["path"] for row in rows)}
    try:
        for path in clips:
            path.write_bytes(b"not a video")
        stopped = run_here("train", run.run_dir.parent, *own_overrides, "total_steps=5")
        assert stopped.code == 1
    finally:
        for path, content in clips.items():
            path.write_bytes(content)
    said = stopped.err[stopped.err.index("error: ") :]
    assert f"of {len(clips)} rows" in said and "not_a_video" in said and "data.max_bad_fraction" in said
    assert "Traceback" not in stopped.err
    assert contents(run.run_dir) == before


def contents(folder: Path) -> dict[str, bytes]:
    """All files that hold what a run did."""
    kept = ("metrics.jsonl", "rollouts.jsonl", "checkpoints/**/*", "export/*")
    files = [path for pattern in kept for path in folder.glob(pattern) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
