"""Recorded episodes on the terminal."""

from __future__ import annotations

import asyncio
import io
import re
import subprocess
import sys

import pytest
from env_policies import make_video, perfect
from episode_lines import HOSTILE, LOOK, RIGHT, TASKS, make_errored, make_line, write
from rich.console import Console

from videorl.envs.records import Episode, FrameRef
from videorl.envs.registry import load_env
from videorl.episodes.__main__ import main
from videorl.episodes.records import EpisodeLine
from videorl.episodes.show import draw_timeline, show_episode, split_frames


def play_with_observations(name: str, policy) -> tuple[Episode, list[tuple[FrameRef, ...]]]:
    """An episode, and the frames of each observation that the model was given."""

    async def run():
        env = load_env(name, {})
        opening = await env.reset(TASKS[name], 0)
        observed = [tuple(ref for message in opening for ref in message.refs)]
        for k in range(20):
            result = await env.step(policy(env, k))
            if result.obs is None:
                return env.episode(), observed
            observed.append(result.obs.refs)
        raise AssertionError("the episode did not end")

    return asyncio.run(run())


@pytest.mark.parametrize("policy", [lambda env, k: perfect(env), lambda env, k: "nonsense" if k == 0 else perfect(env)])
@pytest.mark.parametrize("name", TASKS)
def test_each_turn_has_the_frames_of_its_observation(name, policy):
    episode, observed = play_with_observations(name, policy)
    frames = split_frames(episode)
    assert len(frames) == 1 + len(episode.turns)
    assert frames[: len(observed)] == observed
    assert tuple(ref for refs in frames for ref in refs) == episode.shown


def test_a_last_turn_keeps_what_it_was_granted():
    line = make_line([LOOK] * 3)
    assert line.episode.status == "truncated"
    assert [[ref.index for ref in refs] for refs in split_frames(line.episode)[1:]] == [[40, 41, 42, 43]] * 3
    unplayed = line.episode.model_copy(update={"turns": (), "shown": line.episode.shown[:16]})
    assert split_frames(unplayed) == [line.episode.shown[:16]]


@pytest.mark.parametrize(
    ("spans", "seen", "granted", "drawn"),
    [
        ([], [], [], "----------"),
        ([(3.0, 4.5)], [], [], "---==-----"),
        ([(3.0, 4.5)], [0, 3], [4, 9, 10], "o--OX----x"),  # 10 s, the end, stands in the last column
        ([], [2, 5], [2], "--x--o----"),
        ([(-5.0, 0.5), (9.5, 99.0)], [], [], "=--------="),
        ([(-5.0, -1.0), (11.0, 12.0)], [], [], "----------"),  # outside the video
    ],
)
def test_timeline_by_hand(spans, seen, granted, drawn):
    assert draw_timeline(make_video(11.0), spans, seen, granted, width=10) == drawn


def test_timeline_of_one_frame_and_of_times_that_begin_late():
    assert draw_timeline(make_video(1.0), [], [], [0], width=4) == "x---"
    late = make_video(11.0).model_copy(update={"times": (100.0, 105.0, 110.0)})
    assert draw_timeline(late, [(104.0, 105.0)], [0], [1], width=10) == "o---=X----"


def shown(line: EpisodeLine, width: int = 100) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    show_episode(line, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_an_episode_is_shown_turn_by_turn():
    """Candidate frame k at k s of 0 to 63 stands in column 60 k / 63; the evidence, 40 to 43 s, in columns 38 to 40."""
    out = plain(shown(make_line(step=3, id="row-7", index=2)))
    for text in (
        "step 3, row-7#2",
        "Which colour is shown?",
        "(B) green",
        "40.00 to 43.00 s",
        "<think>look</think><retrieve>40,43</retrieve>",
        'retrieve {"first": 40, "last": 43}',
        "4 granted at 40.00* 41.00* 42.00* 43.00* s",
        "accuracy 1, evidence_iou 1, format 1",
        "1.7 = turns 0.7 + rollout 1",
        "20 frames",
    ):
        assert text in out, text
    first = (0, 3, 7, 12, 16, 20, 23, 27, 32, 36, 43, 47, 52, 56, 59)  # and 42 s, in the evidence, in column 40
    assert "16 granted at 0.00 4.00 8.00 13.00 17.00 21.00 25.00 29.00 34.00 38.00 42.00* 46.00" in out
    drawn = re.findall(r"0\.00 \|([-=oOxX]{60})\| 63\.00 s", out)
    assert len(drawn) == 3
    for place, (mark, evidence) in enumerate([("x", "==X"), ("o", "XXX"), ("o", "OOO")]):
        expected = [mark if column in first else "-" for column in range(60)]
        expected[38:41] = evidence
        assert drawn[place] == "".join(expected)
    assert re.findall(r"\nreward +(.+?) *\n", out) == ["0.6", "0.1"]
    assert len(re.findall(r"\nframes +none granted", out)) == 1


def test_what_was_not_executed_says_why():
    out = plain(shown(make_line(["nonsense", "<think>x</think><retrieve>9,3</retrieve>", RIGHT])))
    assert re.search(r"malformed +there is no block of", out)
    assert re.search(r'refused +retrieve \{"first": 9, "last": 3\}: 9,3 is no range of frames', out)
    assert re.search(r'executed +answer \{"text": "B"\}', out)
    assert re.search(r"status +done", out)


def test_two_videos_have_a_timeline_each():
    out = plain(shown(make_line(env="vr_thinker")))
    labelled = [re.split(r"  +", line.strip()) for line in out.splitlines() if line.startswith(("video", "frames"))]
    for place, said in enumerate(["4 granted at 0.00 21.00 42.00 63.00 s", "1 granted at 0.00 s", "none granted"]):
        assert labelled[4 * place : 4 * place + 4] == [
            ["video", "a"],
            ["frames", said],
            ["video", "b"],
            ["frames", said],
        ]
    assert out.count("| 63.00 s") == 2 * 3
    assert "TA 1, VQ 2, MQ 1, OA 1" in out


def test_boxes_stand_behind_the_time_of_their_frame():
    out = plain(shown(make_line(env="video_com")))
    assert "43.00 s [0.2 0.2 0.6 0.6]" in out and "43.00*[0.2 0.2 0.6 0.6]" in out


def test_an_errored_episode_says_so():
    out = plain(shown(make_errored()))
    assert "errored: the engine died" in out and "none: the episode errored" in out


def test_hostile_text_is_text(tmp_path, capsys):
    task = TASKS["video_mtr"].model_copy(
        update={"question": HOSTILE, "options": (HOSTILE, "green"), "answer": HOSTILE, "id": HOSTILE}
    )
    said = f"<think>{HOSTILE}\nsecond line</think><answer>{HOSTILE}</answer>"
    line = make_line([HOSTILE, said], task=task, id=HOSTILE)
    out = shown(line, width=200)
    assert "\x1b[2J" not in out and "\x1b]" not in out
    assert all(character.isprintable() or character == "\n" for character in plain(out))
    assert out.count("[red]hi[/red]") >= 6
    assert re.search(r"\n +second line</think>", plain(out))  # lines stay lines
    path = write(tmp_path / "e.jsonl", line, make_line(step=2, id=HOSTILE))
    assert main(["show", path, HOSTILE]) == 0
    assert main(["show", path, "nothing"]) == 1
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err


def test_show_finds_the_episode(tmp_path, capsys):
    lines = [make_line(step=step, id=id, index=k) for step in (1, 2) for id in ("a", "b#1") for k in range(2)]
    path = write(tmp_path / "episodes.jsonl", *lines)
    for name, options, title, more in (
        ("a", [], "step 1, a#0", "3 more: step 1, a#1, step 2, a#0, step 2, a#1; choose with #INDEX and --step"),
        ("a#1", [], "step 1, a#1", "1 more: step 2, a#1;"),
        ("a#1", ["--step", "2"], "step 2, a#1", ""),
        ("b#1", ["--step", "2"], "step 2, b#1#0", "1 more: step 2, b#1#1;"),  # an id with a #
        ("b#1#1", ["--step", "1"], "step 1, b#1#1", ""),
    ):
        assert main(["show", str(tmp_path), name, *options]) == 0
        out = capsys.readouterr().out
        assert title in out.splitlines()[0]
        assert more in out and ("more" in out) == bool(more)
    assert main(["show", path, "a#7", "--step", "2"]) == 1
    assert re.search(r"no episode 'a#7' of step 2; it holds a#[01], a#[01]", capsys.readouterr().err)


def test_no_torch_and_no_ray():
    code = (
        "import sys, videorl.episodes.__main__; from videorl.envs.registry import load_env; load_env('video_mtr', {}); "
        "assert not {'torch', 'ray'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
