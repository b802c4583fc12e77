import json
import random
import re
from collections import Counter
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.data import synthetic
from videorl.data.schema import load_rows
from videorl.data.synthetic import (
    COLOURS,
    KINDS,
    Example,
    draw_example,
    draw_response,
    generate,
    main,
    render_frames,
)

FILES = ("train.jsonl", "eval.jsonl", "sft.jsonl")
SMALL: dict[str, Any] = {"seed": 7, "num_train": 6, "num_eval": 3, "sft_copies": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    generate(path, **SMALL)
    return path


def read(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def decode(path):
    """[(seconds, uint8 [H, W, 3])] on the container's clock."""
    with av.open(str(path)) as container:
        return [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10_000))
def test_the_answer_follows_from_the_squares(kind, seed):
    example = draw_example(kind, random.Random(seed))
    if kind == "ground":
        (square,) = example.squares
        assert example.choices is None
        assert example.span == (square.start, square.end)
        assert 0 <= square.start < square.end <= 8 and 2 <= square.end - square.start <= 4
        assert (example.think, example.answer) == (square.colour, f"{square.start} to {square.end}")
        return
    assert example.span is None
    if kind == "first":
        early, late = sorted(example.squares, key=lambda square: square.start)
        assert early.start < late.start and early.colour != late.colour
        truth, choices = early.colour, ("red", "green", "blue", "yellow")
    else:
        truth, choices = str(len(example.squares)), ("1", "2", "3", "4")
    assert example.choices == choices  # one order for all questions
    assert (example.think, example.answer) == (truth, "ABCD"[choices.index(truth)])


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10_000))
def test_pixels_at_every_time(kind, seed):
    squares = draw_example(kind, random.Random(seed)).squares
    frames = render_frames(squares)
    assert frames.shape == (64, 56, 56, 3) and frames.dtype == np.uint8
    for index, frame in enumerate(frames):
        visible = [square for square in squares if square.start <= index / 8 < square.end]
        # Squares overlap neither each other nor the border, so their areas add up.
        assert (frame != 90).any(axis=-1).sum() == 20 * 20 * len(visible)
        for square in visible:
            assert (frame[square.y : square.y + 20, square.x : square.x + 20] == COLOURS[square.colour]).all()


def test_the_file_shows_the_square_during_the_span(folder):
    row = read(folder, "train.jsonl")[2]
    ((start, end),) = row["spans"]
    (square,) = draw_example("ground", random.Random("7/train/2")).squares
    frames = decode(folder / row["videos"][0]["path"])
    assert [seconds for seconds, _ in frames] == [index / 8 for index in range(64)]
    middle = slice(square.y + 8, square.y + 12), slice(square.x + 8, square.x + 12)
    for seconds, frame in frames:
        expected = COLOURS[square.colour] if start <= seconds < end else (90, 90, 90)
        # 12 of 255: what x264 at crf 18 and the conversion to YUV lose inside a flat square.
        assert np.abs(frame[middle].astype(int) - expected).max() <= 12, seconds


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_equally_likely(kind):
    rng = random.Random(0)
    answers = Counter(draw_example(kind, rng).answer for _ in range(4000))
    if kind == "ground":
        lengths = Counter()
        for text, count in answers.items():
            start, end = map(int, text.split(" to "))
            lengths[end - start] += count
        assert len(answers) == 7 + 6 + 5
        answers = lengths
    expected = 4000 / len(answers)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in answers.values())  # five standard deviations


def test_unknown_kind():
    with pytest.raises(ValueError, match="'last' is not one of first, count, ground"):
        draw_example("last", random.Random(0))


def test_rows_are_canonical(folder):
    train, held_out, sft = (load_rows(folder / name) for name in FILES)
    assert (len(train), len(held_out), len(sft)) == (6, 3, 12)
    assert len({row["id"] for row in train + held_out + sft}) == 21
    assert Counter(row["data_source"] for row in train) == {f"synthetic-{kind}": 2 for kind in KINDS}
    for row in train + held_out + sft:
        grounding = row["data_source"] == "synthetic-ground"
        assert {name for name, value in row.items() if value is not None} - {"response", "choices"} == {
            *("id", "task", "prompt", "videos", "data_source", "meta", "spans" if grounding else "answer")
        }
        assert row["task"] == ("grounding" if grounding else "mc")
        assert (row["choices"] is None, row["answer"] is None, row["spans"] is None) == (
            grounding,
            grounding,
            not grounding,
        )
        assert (folder / row["videos"][0]["path"]).is_file()
        assert "(A)" not in row["prompt"]
    assert train[0]["id"] == "train-first-0000" and train[0]["prompt"] == "Which colour appears first?"
    assert held_out[2]["id"] == "eval-ground-0002" and held_out[2]["prompt"] == train[2]["prompt"]
    videos = [row["videos"][0]["path"] for row in train + held_out]
    assert len(set(videos)) == len({(folder / path).read_bytes() for path in videos}) == 9


def test_sft_rows_repeat_the_training_rows_with_a_response(folder):
    train = {row["id"]: row for row in read(folder, "train.jsonl")}
    for row in read(folder, "sft.jsonl"):
        clip_id, copy = row["id"].split("#")
        assert copy in ("0", "1")
        assert re.fullmatch(r"<think>\w+</think><answer>([A-D]|\d to \d)</answer>", row.pop("response"))
        assert row | {"id": clip_id} == train[clip_id]


def test_response_without_noise_is_the_truth():
    rng = random.Random(0)
    choice = Example("count", (), "?", ("1", "2", "3", "4"), "3", "C")
    span = Example("ground", (), "?", None, "red", "2 to 6", (2, 6))
    assert {draw_response(choice, 0.0, rng) for _ in range(50)} == {"<think>3</think><answer>C</answer>"}
    assert {draw_response(span, 0.0, rng) for _ in range(50)} == {"<think>red</think><answer>2 to 6</answer>"}


@pytest.mark.parametrize("kind", ("first", "count"))
def test_noise_replaces_think_and_answer_independently(kind):
    example = draw_example(kind, random.Random(1))
    rng, number = random.Random(0), 8000
    drawn = Counter(draw_response(example, 0.5, rng) for _ in range(number))
    share = {response: count / number for response, count in drawn.items()}
    assert len(share) == 4 * 4
    truth = f"<think>{example.think}</think><answer>{example.answer}</answer>"
    # 1/2 + 1/2 * 1/4 * 1/4 for the truth, 1/32 for each other pair; at most 0.0056 is one standard deviation.
    assert share.pop(truth) == pytest.approx(17 / 32, abs=0.025)
    assert all(value == pytest.approx(1 / 32, abs=0.01) for value in share.values())


def test_noise_on_spans():
    example = draw_example("ground", random.Random(1))
    rng, number = random.Random(0), 4000
    answers = Counter(
        re.sub(r".*<answer>(.*)</answer>", r"\1", draw_response(example, 1.0, rng)) for _ in range(number)
    )
    assert len(answers) == 18
    # A span of two seconds: 1/3 for its length, 1/7 for its start.
    assert answers["0 to 2"] / number == pytest.approx(1 / 21, abs=0.017)  # five standard deviations


def test_same_seed_same_data(folder, tmp_path):
    generate(tmp_path / "again", **SMALL)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    for row in read(folder, "train.jsonl"):
        path = row["videos"][0]["path"]
        assert (tmp_path / "again" / path).read_bytes() == (folder / path).read_bytes()

    generate(tmp_path / "other", **dict(SMALL, seed=8))
    assert (tmp_path / "other" / "train.jsonl").read_bytes() != (folder / "train.jsonl").read_bytes()


def test_splits_do_not_depend_on_each_other(folder, tmp_path):
    generate(tmp_path, **dict(SMALL, num_train=3))
    assert (tmp_path / "eval.jsonl").read_bytes() == (folder / "eval.jsonl").read_bytes()
    assert read(tmp_path, "train.jsonl") == read(folder, "train.jsonl")[:3]


def test_finished_folder_is_reused(tmp_path):
    generate(tmp_path, **SMALL)
    (tmp_path / "train.jsonl").write_text("untouched")
    generate(tmp_path, **SMALL)
    assert (tmp_path / "train.jsonl").read_text() == "untouched"


def test_finished_folder_of_other_parameters_is_refused(folder):
    with pytest.raises(ValueError, match=r"'seed': 7.*not.*'seed': 8.*another folder or delete"):
        generate(folder, **dict(SMALL, seed=8))
    with pytest.raises(ValueError, match="another folder or delete"):
        generate(folder, **SMALL, label_noise=0.25)


@pytest.mark.parametrize("failing", ["_write_video", "_write_rows"])
def test_interrupted_run_is_completed(failing, folder, tmp_path, monkeypatch):
    write, calls = getattr(synthetic, failing), []

    def interrupted(path, content):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, failing, interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path, **SMALL)
    assert not (tmp_path / "manifest.json").exists()

    generate(tmp_path, **SMALL)
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_train": 0}, "num_train=0"),
        ({"num_eval": -1}, "num_eval=-1"),
        ({"sft_copies": -1}, "sft_copies=-1"),
        ({"label_noise": 1.5}, r"label_noise=1\.5"),
    ],
)
def test_parameters_out_of_range(change, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        generate(tmp_path, **(SMALL | change))
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--seed", "7", "--train", "3", "--eval", "3"]
    main(arguments)
    printed = capsys.readouterr().out
    for text in ("train.jsonl", "eval.jsonl", "sft.jsonl"):
        assert text in printed
    with pytest.raises(SystemExit):
        main([*arguments[:3], "8", *arguments[4:]])
    assert "another folder" in capsys.readouterr().err
