import argparse
import json
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from clips import draw_index, read_index, write_clip

from videorl.data.schema import load_rows
from videorl.data.synth import videossr
from videorl.data.synth.footage import Take
from videorl.data.synth.videossr import (
    KINDS,
    SMALL,
    Settings,
    add_arguments,
    count,
    generate,
    ground,
    jigsaw,
    run,
    sft_rows,
)
from videorl.types import VideoError
from videorl.video.reader import VideoReader

TINY = replace(
    SMALL,
    kinds=("grayscale", "swap", "count", "jigsaw"),
    num_train=8,
    num_eval=4,
    step=(0.04, 0.2),
    shape_size=(0.2, 0.3),
    sft_clean=2,
    sft_noisy=2,
    label_noise=0.5,
)
FILES = {"train.jsonl", "eval.jsonl", "eval_time.jsonl", "eval_source.jsonl", "sft.jsonl"}


def make_take(num_frames=16, fps=2.0, height=56, width=56):
    frames = np.stack([draw_index(index, width, height) for index in range(num_frames)])
    return Take(frames=frames, times=np.arange(num_frames) / fps, end=num_frames / fps)


def make_rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Four videos of 4 s; the last by name is the one held out."""
    folder = tmp_path_factory.mktemp("footage")
    for name in "abcz":
        write_clip(folder / f"{name}.mp4", num_frames=100, fps=25)
    return folder


@pytest.fixture(scope="module")
def held_out_twice(tmp_path_factory):
    """Five videos of which two are held out, so that every split has two to swap between."""
    folder = tmp_path_factory.mktemp("footage")
    for name in "abcyz":
        write_clip(folder / f"{name}.mp4", num_frames=100, fps=25)
    return folder


SETTINGS = replace(TINY, held_out=("[yz].mp4",))


@pytest.fixture(scope="module")
def folder(held_out_twice, tmp_path_factory):
    out = tmp_path_factory.mktemp("videossr")
    generate(held_out_twice, out, seed=3, settings=SETTINGS)
    return out


# --- one question ----------------------------------------------------------------------------------------------------


def test_grounding_spans_are_true_times():
    take, other = make_take(), make_take()
    lengths = set()
    for seed in range(60):
        question = ground(take, "invert", other, SMALL, make_rng(seed))
        ((start, end),) = question.fields["spans"]
        assert start.is_integer() and end.is_integer() and 0 <= start < end <= 8
        assert question.text == f"{start:.0f}-{end:.0f}"
        assert question.parameters == {"frames": [start * 2, end * 2]}
        inverted = (question.takes[0].frames != take.frames).any(axis=(1, 2, 3)).tolist()
        assert inverted == [start <= time < end for time in take.times]
        lengths.add(end - start)
    assert lengths == {1, 2, 3}
    assert question.prompt == "Between which seconds are the colours inverted?"


def test_grounding_with_the_published_spans_and_uneven_times():
    times = np.cumsum([0.0] + [0.3, 0.5] * 23 + [0.3])
    take = Take(frames=make_take(48).frames, times=times, end=20.0)
    lengths = set()
    for seed in range(80):
        question = ground(take, "blur", take, Settings(), make_rng(seed))
        first, last = question.parameters["frames"]
        lengths.add(last - first)
        assert question.fields["spans"] == [[pytest.approx(times[first]), pytest.approx(take.at(last))]]
        low, high = map(float, question.text.split("-"))
        assert (low, high) == pytest.approx((times[first], take.at(last)), abs=0.05)
    assert lengths == set(range(8, 17))


def test_count_of_one_shape_is_a_number():
    answers = Counter()
    for seed in range(40):
        question = count(make_take(), SMALL, make_rng(seed))
        assert question.fields == {"task": "numeric", "answer": len(question.parameters["shapes"])}
        assert question.text == str(question.fields["answer"])
        answers[question.fields["answer"]] += 1
    assert set(answers) == {1, 2, 3, 4} and question.prompt == "How many squares appear?"


def test_count_of_three_shapes():
    question = count(make_take(48, 2.0, 180, 320), Settings(), make_rng())
    names = Counter(shape["name"] for shape in question.parameters["shapes"])
    assert question.fields == {
        "task": "open",
        "answer": f"{names['circle']},{names['square']},{names['triangle']}",
    }
    assert "circles, squares and triangles" in question.prompt and "circles,squares,triangles" in question.prompt


def test_jigsaw_answers_with_the_clip_of_each_piece():
    take = make_take(12)
    question = jigsaw(take, replace(SMALL, num_frames=12, span_frames=(2, 4), pieces=4), make_rng(5))
    firsts = [read_index(clip.frames[0]) for clip in question.takes]  # piece k begins with frame 3 k
    assert sorted(firsts) == [0, 3, 6, 9] and firsts != [0, 3, 6, 9]
    assert question.fields == {"task": "custom", "answer": question.text}
    in_order = [question.takes[int(digit) - 1] for digit in question.text]
    assert [read_index(frame) for clip in in_order for frame in clip.frames] == list(range(12))
    assert all(clip.times.tolist() == [0, 0.5, 1] and clip.end == 1.5 for clip in question.takes)
    assert question.prompt.startswith("Clip 1: <video>\nClip 2: <video>\nClip 3: <video>\nClip 4: <video>\n")


def test_jigsaw_worked_by_hand():
    class FixedOrder:
        """A fake generator: clips 1, 2, 3 show pieces 2, 0, 1 (counted from 0)."""

        def permutation(self, count):
            return np.array([2, 0, 1])

    settings = replace(SMALL, num_frames=6, span_frames=(2, 4), pieces=3)
    # Piece 0 is clip 2, piece 1 is clip 3, piece 2 is clip 1.
    assert jigsaw(make_take(6), settings, FixedOrder()).text == "231"


# --- a data set ------------------------------------------------------------------------------------------------------


def test_rows(folder):
    rows = {name: load_rows(folder / name) for name in FILES}
    assert {path.name for path in folder.glob("*.jsonl")} == FILES
    assert [len(rows[name]) for name in ("train.jsonl", "eval_time.jsonl", "eval_source.jsonl")] == [8, 4, 4]
    assert rows["eval.jsonl"] == rows["eval_time.jsonl"] + rows["eval_source.jsonl"]
    assert Counter(row["data_source"] for row in rows["train.jsonl"]) == {
        "videossr-grounding": 4,
        "videossr-count": 2,
        "videossr-jigsaw": 2,
    }
    assert {row["data_source"] for row in rows["eval.jsonl"]} == {
        f"videossr-{task}-{split}" for task in ("grounding", "count", "jigsaw") for split in ("time", "source")
    }
    assert [row["id"] for row in rows["train.jsonl"]][:4] == [
        "train-grayscale-00000",
        "train-swap-00001",
        "train-count-00002",
        "train-jigsaw-00003",
    ]
    assert {row["task"] for row in rows["train.jsonl"]} == {"grounding", "numeric", "custom"}
    videos = [video["path"] for name in ("train.jsonl", "eval.jsonl") for row in rows[name] for video in row["videos"]]
    assert len(videos) == len(set(videos)) == 12 + 4 * 4
    assert {path.relative_to(folder).as_posix() for path in (folder / "videos").iterdir()} == set(videos)


def test_provenance_and_splits(folder, held_out_twice):
    for row in load_rows(folder / "train.jsonl") + load_rows(folder / "eval.jsonl"):
        (step,) = row["meta"]["provenance"]
        assert (step["generator"], step["version"], step["seed"]) == ("videossr", 1, 3)
        assert row["id"].startswith(f"{step['split']}-{step['kind']}-")
        assert len(step["sources"]) == (2 if step["kind"] == "swap" else 1)
        assert len({source["path"] for source in step["sources"]}) == len(step["sources"])
        for source in step["sources"]:
            assert (held_out_twice / source["path"]).is_file() and len(source["sha256"]) == 64
            start, end = source["span"]
            # Of 4 s: trained on up to 0.6 * 4 - 0.05 * 4 = 2.2 s; held out by time from 2.4 s; a frame lasts 0.04 s.
            if step["split"] == "train":
                assert source["path"] in ("a.mp4", "b.mp4", "c.mp4") and 0 <= start < end <= 2.2 + 0.3
            elif step["split"] == "time":
                assert source["path"] in ("a.mp4", "b.mp4", "c.mp4") and 2.4 <= start < end <= 4.0 + 0.3
            else:
                assert source["path"] in ("y.mp4", "z.mp4")


def test_the_clip_shows_what_its_row_says(folder):
    """Grey seconds, read from the file with the project's own reader."""
    from videorl.data.prompts import check_spans
    from videorl.types import Clip, Sampling

    sampling = Sampling(
        fps=2.0, num_frames=None, min_frames=2, max_frames=16, min_pixels=784, max_pixels=3136, total_pixels=100352
    )
    with VideoReader() as reader:
        for row in load_rows(folder / "train.jsonl"):
            plans = [reader.plan(Clip(path=str(folder / v["path"]), sampling=sampling)) for v in row["videos"]]
            check_spans(row, plans)
            pieces = len(plans)
            assert [len(plan.pts) for plan in plans] == [16 // pieces] * pieces
            assert [plan.duration for plan in plans] == pytest.approx([8.0 / pieces] * pieces)


def test_sft_rows_are_right_first_and_noisy_then(folder):
    train = {row["id"]: row for row in load_rows(folder / "train.jsonl")}
    rows = load_rows(folder / "sft.jsonl")
    assert len(rows) == 8 * 4
    for number in range(4):
        assert {row["id"] for row in rows[8 * number : 8 * (number + 1)]} == {f"{id}#{number}" for id in train}
    for row in rows[:16]:
        (step,) = row["meta"]["provenance"]
        (span,) = row["spans"] or [None]
        truth = f"{span[0]:g}-{span[1]:g}" if span else str(row["answer"])
        assert row["response"] == f"<think>{step['kind']}</think><answer>{truth}</answer>"
        assert row | {"id": row["id"].split("#")[0], "response": None} == train[row["id"].split("#")[0]]
    assert [row["id"].split("#")[0] for row in rows[:8]] != [row["id"].split("#")[0] for row in rows[8:16]]


def test_noise_takes_the_answers_of_the_same_task():
    made = [
        ({"id": f"{task}{i}", "data_source": task, "meta": {"provenance": [{"kind": task}]}}, f"{task}-{i}")
        for task in ("x", "y")
        for i in range(10)
    ]
    settings = replace(SMALL, sft_clean=0, sft_noisy=100, label_noise=0.4)
    wrong = 0
    for row in sft_rows(made, settings, random.Random(0)):
        task, index = row["id"].split("#")[0][0], row["id"].split("#")[0][1:]
        answer = row["response"].removeprefix(f"<think>{task}</think><answer>").removesuffix("</answer>")
        assert answer.startswith(task)  # also the think block keeps its kind
        wrong += answer != f"{task}-{index}"
    # 0.4 * 9/10 of 2000 rows = 720; five standard deviations are 5 * sqrt(2000 * 0.36 * 0.64) = 107.
    assert abs(wrong - 720) < 107


def test_the_same_seed_gives_the_same_files(folder, held_out_twice, tmp_path):
    generate(held_out_twice, tmp_path / "again", seed=3, settings=SETTINGS)
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = tmp_path / "again"
    assert files == {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    generate(held_out_twice, tmp_path / "other", seed=4, settings=replace(SETTINGS, num_eval=0))
    assert (tmp_path / "other" / "train.jsonl").read_bytes() != files[next(p for p in files if p.name == "train.jsonl")]
    assert not (tmp_path / "other" / "eval.jsonl").exists()


def test_questions_do_not_depend_on_how_many_there_are(folder, held_out_twice, tmp_path):
    generate(held_out_twice, tmp_path, seed=3, settings=replace(SETTINGS, num_train=4, num_eval=0))
    assert load_rows(tmp_path / "train.jsonl") == load_rows(folder / "train.jsonl")[:4]


def test_a_finished_folder_is_left_alone(folder, held_out_twice):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    generate(held_out_twice, folder, seed=3, settings=SETTINGS)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match=r"was made with \{'label_noise': 0.5\}, not \{'label_noise': 0.1\}"):
        generate(held_out_twice, folder, seed=3, settings=replace(SETTINGS, label_noise=0.1))


def test_an_interrupted_folder_is_completed(folder, held_out_twice, tmp_path, monkeypatch):
    write, calls = videossr.write_mp4, []

    def interrupted(path, take):
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        write(path, take)

    with monkeypatch.context() as patch:
        patch.setattr(videossr, "write_mp4", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(held_out_twice, tmp_path, seed=3, settings=SETTINGS)
    assert not (tmp_path / "manifest.json").exists()
    generate(held_out_twice, tmp_path, seed=3, settings=SETTINGS)
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_the_published_settings_on_short_videos(footage, tmp_path):
    """48 frames at their real times; a held-out fifth of 3.6 s has only 18, and is left out, which is said."""
    kinds = ("rotate90", "jigsaw", "count")
    settings = replace(Settings(), kinds=kinds, num_train=3, num_eval=3, max_pixels=96 * 64)
    generate(footage, tmp_path, seed=0, settings=settings)
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {
        *("train.jsonl", "eval.jsonl", "eval_source.jsonl", "skipped.jsonl")
    }
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(entry["path"], entry["split"], entry["reason"]) for entry in skipped] == [
        (f"{name}.mp4", "time", "bad_span") for name in "abc"
    ]
    rows = load_rows(tmp_path / "train.jsonl")
    assert [len(row["videos"]) for row in rows] == [1, 6, 1]
    # The middle 90 % of 4 s begins at 0.2 s; 0.75 * 3.6 = 2.7 s of it are trained on.
    assert rows[0]["meta"]["provenance"][0]["sources"][0]["span"] == pytest.approx([0.2, 2.9], abs=0.1)


def test_damaged_files_are_left_out_and_listed(footage, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in "ab":
        (videos / f"{name}.mp4").write_bytes((footage / f"{name}.mp4").read_bytes())
    (videos / "broken.mp4").write_bytes(b"no video at all" * 100)
    settings = replace(TINY, kinds=("noise",), num_train=2, num_eval=0, held_out=("a.mp4",))
    generate(videos, tmp_path / "out", seed=0, settings=settings)
    (entry,) = map(json.loads, (tmp_path / "out" / "skipped.jsonl").read_text().splitlines())
    assert (entry["path"], entry["reason"]) == ("broken.mp4", "not_a_video")
    (videos / "b.mp4").unlink()
    with pytest.raises(ValueError, match=r"none of 2 videos can be used for training: .*broken\.mp4"):
        generate(videos, tmp_path / "none", seed=0, settings=settings)
    assert not (tmp_path / "none" / "manifest.json").exists()


def test_swap_needs_another_video_in_each_split(footage, tmp_path):
    with pytest.raises(ValueError, match="'swap' shows another video, and split 'source' has one"):
        generate(footage, tmp_path, seed=0, settings=replace(TINY, kinds=("swap",)))


def test_a_file_that_fails_to_decode_stops_the_run(footage, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise VideoError("corrupt", "a.mp4: damaged")

    monkeypatch.setattr(videossr, "load_footage", fail)
    with pytest.raises(VideoError, match="damaged"):
        generate(footage, tmp_path, seed=0, settings=replace(TINY, kinds=("blur",)))
    assert not (tmp_path / "manifest.json").exists()


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"kinds": ()},
        {"kinds": ("melt",)},
        {"num_train": 0},
        {"num_eval": -1},
        {"eval_share": 1.0},
        {"keep": 0.0},
        {"num_frames": 1},
        {"source_frames": 40},
        {"max_pixels": 0},
        {"step": (0.0, 1.0)},
        {"step": (2.0, 1.0)},
        {"fps": 0.0},
        {"side": 57},
        {"crop": (0.5, 1.5)},
        {"span_grid": 0},
        {"span_frames": (1, 4)},
        {"span_frames": (8, 48)},
        {"span_frames": (2, 16), "span_grid": 20},
        {"shapes": ("star",)},
        {"shape_frames": (0, 3)},
        {"shapes_per_frame": (3, 2)},
        {"shape_gap": -1},
        {"shape_size": (0.2, 1.0)},
        {"shape_area": 0.0},
        {"pieces": 7},
        {"pieces": 12},
        {"sft_clean": -1},
        {"sft_noisy": -1},
        {"label_noise": 1.5},
    ],
)
def test_settings_that_cannot_be_made(change):
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r} does not hold")):
        replace(Settings(), **change)


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(ValueError, match=r"num_train=0 .*; .*pieces=1 "):
        Settings(num_train=0, pieces=1)


def test_every_setting_is_an_option(footage, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = ["--videos", str(footage), "--out", str(tmp_path), "--seed", "1"]
    words = "--small --kinds blur count --num-train 4 --num-eval 0 --step 0.05 0.1 --side 32 --shape-size 0.2 0.3"
    given = parser.parse_args([*arguments, *words.split(), "--shapes-stay", "--no-shapes-vivid"])
    run(given)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["kinds"] == ["blur", "count"] and manifest["step"] == [0.05, 0.1] and manifest["side"] == 32
    assert manifest["shapes_stay"] is True and manifest["shapes_vivid"] is False
    assert manifest["fps"] == SMALL.fps and manifest["label_noise"] == SMALL.label_noise
    assert "train.jsonl" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parser.parse_args([*arguments, "--help"])
    printed = capsys.readouterr().out
    for name in Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in printed
    for kind in KINDS:
        assert kind in printed
