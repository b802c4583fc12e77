"""Questions from tracks: each has one answer, which is the tracks' own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from clips import write_clip

from videorl.data.__main__ import main
from videorl.data.schema import load_rows
from videorl.data.synth.trajectories import (
    QUARTERS,
    Point,
    Tracks,
    draw_tracks,
    generate,
    load_tracks,
    make_rows,
)
from videorl.data.synthetic import COLOURS, FPS, SIDE
from videorl.types import DataError


def make_subject(*points):
    return {"points": [{"time": time, "attributes": attributes} for time, attributes in points]}


WALKER = make_subject((0, {"coat": "red", "action": "walks"}), (2, {"action": "sits"}), (3, {"action": "sits"}))
STANDER = make_subject((0, {"coat": "blue", "action": "stands"}))


def make_tracks(*subjects, video="a.mp4"):
    return Tracks.model_validate({"video": video, "subjects": list(subjects)})


def rows_of(*tracks, per_video=100):
    return list(make_rows(tracks, seed=0, per_video=per_video, sha256={each.video: "0" * 64 for each in tracks}))


def test_what_was_last_said_still_holds():
    subject = make_tracks(WALKER).subjects[0]
    assert subject.changes("action") == [(0, "walks"), (2, "sits")]
    assert [subject.at("action", time) for time in (0, 1.9, 2, 9)] == ["walks", "walks", "sits", "sits"]
    assert subject.at("coat", 9) == "red" and subject.at("hat", 9) is None


def test_both_ways_round():
    rows = rows_of(make_tracks(WALKER, STANDER))
    forward = [row for row in rows if row["data_source"] == "trajectories-forward"]
    backward = [row for row in rows if row["data_source"] == "trajectories-backward"]
    assert {row["prompt"] for row in forward} == {
        f"At {time} s there is something whose coat is red. How does its action change over the video?"
        for time in (0, 2, 3)
    }
    assert {row["response"] for row in forward} == {"walks from 0 s, sits from 2 s"}
    assert {row["prompt"] for row in backward} == {
        f"The action of something in this video is walks from 0 s, sits from 2 s. What is its coat at {time} s?"
        for time in (0, 2, 3)
    }
    for row in backward:
        assert row["choices"]["AB".index(row["answer"])] == "red" and row["response"] == row["answer"]
        assert row["videos"] == [{"path": "a.mp4", "sha256": "0" * 64}]
    assert len({row["id"] for row in rows}) == 6


def test_nothing_is_asked_that_has_two_answers():
    twin = make_subject((0, {"coat": "red", "action": "runs"}), (1, {"action": "falls"}))
    asked = {row["prompt"] for row in rows_of(make_tracks(WALKER, twin))}
    assert not any("whose coat is red" in prompt for prompt in asked)  # two have it
    # both coats are red, so that there are no options either
    assert asked == set()
    same = make_subject((0, {"coat": "blue", "action": "walks"}), (2, {"action": "sits"}))
    sources = {row["data_source"] for row in rows_of(make_tracks(WALKER, same))}
    assert sources == {"trajectories-forward"}  # two move in the same way
    later = make_subject((2, {"coat": "red", "action": "runs"}), (3, {"action": "falls"}))
    cues = {row["prompt"][:8] for row in rows_of(make_tracks(WALKER, later))}
    assert cues == {"At 0 s t"}  # before the second is there


@pytest.mark.parametrize(
    ("box", "place"),
    [([0, 0, 0.1, 0.1], "top left"), ([0.4, 0.4, 0.6, 0.6], "middle"), ([0.9, 0.4, 1, 0.6], "right"),
     ([0.4, 0.9, 0.6, 1], "bottom"), ([1 / 3, 0, 1, 2 / 3 + 0.01], "right")],
)  # fmt: skip
def test_a_box_is_a_place(box, place):
    assert Point(time=0, box=box).known == {"place": place}


def test_drawn_squares_are_where_their_tracks_say():
    for number in range(5):
        tracks, frames = draw_tracks(number, seed=3)
        for subject in tracks.subjects:
            for point in subject.points:
                row, column = divmod(QUARTERS.index(point.known["place"]), 2)
                half = SIDE // 2
                frame = frames[round(point.time * FPS)]
                quarter = frame[row * half : (row + 1) * half, column * half : (column + 1) * half]
                assert (quarter == np.array(COLOURS[point.known["colour"]])).all(-1).any()


def test_the_command_draws(tmp_path, capsys):
    arguments = ["synth", "trajectories", "--drawn", "3", "--out", str(tmp_path / "d"), "--seed", "1"]
    assert main([*arguments, "--per-video", "2"]) == 0
    rows = load_rows(tmp_path / "d" / "rows.jsonl")
    assert len(rows) == 6 and "rows.jsonl" in capsys.readouterr().out
    again = tmp_path / "again"
    generate(tmp_path / "d" / "tracks.jsonl", tmp_path / "d", again, seed=1, per_video=2)
    strip = [{**row, "meta": {}} for row in rows]
    assert [{**row, "meta": {}} for row in load_rows(again / "rows.jsonl")] == strip
    assert main([*arguments, "--per-video", "3"]) == 1
    assert "was made with {'per_video': 2}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"subjects": []}, "subjects: List should have at least 1 item"),
        ({"subjects": [make_subject((1, {"a": "x"}), (1, {"a": "y"}))]}, "time=1 comes after 1"),
        ({"subjects": [make_subject((1, {}))]}, "a point says nothing"),
        ({"subjects": [{"points": [{"time": 0, "box": [0.5, 0, 0.2, 1]}]}]}, "must be [left, top, right, bottom]"),
        ({"subjects": [{"points": [{"time": 0, "box": [0, 0, 1, 1], "attributes": {"place": "here"}}]}]}, "give one"),
        ({"colour": "red"}, "colour: Extra inputs"),
    ],
)
def test_bad_tracks_are_named(tmp_path, change, says):
    good = {"video": "a.mp4", "subjects": [WALKER]}
    path = tmp_path / "tracks.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"video": "b.mp4"} | change) + "\n")
    with pytest.raises(DataError, match="1 bad lines; correct them") as error:
        load_tracks(path)
    assert says in str(error.value) and "line 2: " in str(error.value)
    path.write_text((json.dumps(good) + "\n") * 2)
    with pytest.raises(DataError, match=r"'a\.mp4' has a line already"):
        load_tracks(path)


def test_what_gives_no_rows_is_said(tmp_path):
    write_clip(tmp_path / "a.mp4", num_frames=10, fps=5)
    path = tmp_path / "tracks.jsonl"
    path.write_text(json.dumps({"video": "a.mp4", "subjects": [STANDER]}))
    with pytest.raises(ValueError, match="nothing changes that another attribute could tell"):
        generate(path, tmp_path, tmp_path / "out", seed=0)
    path.write_text(json.dumps({"video": "a.mp4", "subjects": [WALKER]}))
    with pytest.raises(DataError, match=r"something starts at 3 s, but the file ends at 2\.000 s"):
        generate(path, tmp_path, tmp_path / "out", seed=0)
    with pytest.raises(ValueError, match="drawn=0 must be at least 1"):
        generate(0, tmp_path, tmp_path / "out", seed=0)
    with pytest.raises(ValueError, match="per_video=0"):
        generate(1, tmp_path, tmp_path / "out", seed=0, per_video=0)
