"""What lines of episodes are refused."""

from __future__ import annotations

import json

import pytest
from episode_lines import TASKS, change, change_episode, make_errored, make_line, refuse, row, write

from videorl.episodes.__main__ import main
from videorl.episodes.records import read_episodes
from videorl.types import DataError


def test_lines_come_back_as_they_were(tmp_path):
    lines = [make_line(env=name, index=place) for place, name in enumerate(TASKS)] + [make_errored()]
    path = write(tmp_path / "episodes.jsonl", *lines)
    assert [line for _, line in read_episodes(path, refuse)] == lines
    assert [place for place, _ in read_episodes(tmp_path, refuse)][-1] == f"{path}, line 7"  # of a run folder


def unsorted_turns() -> str:
    turns = json.loads(make_line().model_dump_json())["episode"]["turns"]
    return change_episode(turns=[turn | {"shown": 99} for turn in turns])


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{]", "must be JSON"),
        ("", "must be JSON"),
        (change(progress=float("nan")), "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("[]", "valid dictionary"),
        (change(step=-1), "step: .*greater than or equal to 0"),
        (change(steps=1), "steps: Extra inputs"),
        (change(progress=1.5), "progress: .*less than or equal to 1"),
        (change(score=None), "null is for errored episodes, and for them alone; this one is done"),
        (change_episode(status="errored"), "this one is errored"),
        (change(score={"turn": [0.1], "rollout": 1.0, "parts": {}}), "1 rewards, must be one for each of 2 turns"),
        (change(score={"turn": [0.1, 0.1], "rollout": 1.0, "parts": {"x": "inf"}}), "finite"),
        (change_episode(shown=[]), r"\[16, 20, 0\], must never fall"),
        (unsorted_turns(), r"\[99, 99, 20\], must never fall"),
        (change_episode(shown=[{"video": "w", "index": 0, "max_pixels": 1}] * 20), "no frame 0 of a video 'w'"),
        (change_episode(shown=[{"video": "v", "index": 64, "max_pixels": 1}] * 20), "no frame 64 of a video 'v'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, capsys, bad, says):
    path = write(tmp_path / "episodes.jsonl", make_line(), bad, make_line())
    with pytest.raises(DataError, match=f"episodes.jsonl, line 2: .*{says}"):
        list(read_episodes(path, refuse))
    assert main(["replay", path]) == 1
    assert "line 2" in capsys.readouterr().err


def test_times_that_fall_are_no_video(tmp_path):
    line = make_line()
    video = line.episode.task.videos[0].model_copy(update={"times": tuple(range(64, 0, -1))})
    task = line.episode.task.model_copy(update={"videos": (video,)})
    path = write(tmp_path / "e.jsonl", change_episode(task=json.loads(task.model_dump_json())))
    with pytest.raises(DataError, match="times of 'v' must be finite and increase"):
        list(read_episodes(path, refuse))


def test_an_unfinished_write_is_reported_and_skipped(tmp_path, capsys):
    whole = make_line().model_dump_json().encode()
    path = tmp_path / "episodes.jsonl"
    for size in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole + b"\n" + whole[:size])
        reported: list[str] = []
        assert len(list(read_episodes(path, reported.append))) == 1
        assert reported == [f"{path}, line 2: skipped: {size} bytes of a line whose writing did not finish"]
    assert main(["replay", str(path)]) == 0
    out, err = capsys.readouterr()
    assert row(out, "episodes")[0] == "1" and "line 2: skipped" in err
    path.write_bytes(whole + b"\n" + whole)  # only the end of the line is missing
    assert len(list(read_episodes(path, refuse))) == 2


def test_what_is_no_file(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "nowhere"):
        assert main(["replay", str(path)]) == 1
        assert "give an episodes.jsonl, or the folder of a run" in capsys.readouterr().err
