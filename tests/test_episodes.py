"""Recorded episodes: read, scored again, shown.

Most are of Video-MTR: to look at the evidence and answer right earns 0.5 + 2 x 0.1 + 1 = 1.7, and 1.6 in its release.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys

import pytest
from env_policies import make_task, make_video, perfect, play
from rich.console import Console

from videorl.envs.records import Episode, Evidence, FrameRef, Task
from videorl.envs.registry import load_env
from videorl.envs.video_mtr import VideoMTR
from videorl.episodes import (
    EpisodeLine,
    NamedEnv,
    choose_env,
    draw_timeline,
    main,
    read_episodes,
    replay,
    show_episode,
    split_frames,
)
from videorl.types import DataError

LOOK = "<think>look</think><retrieve>40,43</retrieve>"
RIGHT = "<think>x</think><answer>B</answer>"
HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]hi[/red]\u202e\r\x9b2J"
TASKS = {
    "single_turn": make_task(),
    "video_mtr": make_task(),
    "framethinker": make_task().model_copy(update={"question": "What happens at 00:41?"}),
    "video_com": make_task(make_video(121.0), spans=((42.0, 43.0),), boxes={43.0: (0.2, 0.2, 0.6, 0.6)}),
    "earl": make_task(),
    "vr_thinker": Task(
        id="pair",
        videos=(make_video(id="a"), make_video(id="b")),
        question="A cat jumps.",
        answer="1",
        evidence=Evidence(labels={"TA": 1, "VQ": 2, "MQ": 1, "OA": 1}),
    ),
}


class Plain(VideoMTR):
    """An environment of the user's."""


def make_line(policy=None, env: str = "video_mtr", params=None, task: Task | None = None, **fields) -> EpisodeLine:
    made = load_env(env, params or {})
    policy = policy or ([LOOK, RIGHT] if env == "video_mtr" else perfect)
    episode = play(made, task or TASKS.get(env) or make_task(), policy)
    named = NamedEnv(target=env, params=params or {})
    rest = {"step": 1, "id": "row-0", "index": 0, "progress": 0.25, "error": None}
    return EpisodeLine(**{**rest, "env": named, "episode": episode, "score": made.score(episode, 0.25), **fields})


def make_errored(**fields) -> EpisodeLine:
    episode = make_line([RIGHT]).episode.model_copy(update={"status": "errored", "turns": ()})
    return make_line(episode=episode, score=None, error="the engine died", **fields)


def write(path, *lines: EpisodeLine | str) -> str:
    path.write_text("".join(f"{line if isinstance(line, str) else line.model_dump_json()}\n" for line in lines))
    return str(path)


def refuse(text: str) -> None:
    raise AssertionError(f"nothing was to be reported: {text}")


def row(out: str, label: str) -> list[str]:
    """The other cells of a row of the printed table."""
    (line,) = [line for line in out.splitlines() if re.match(rf"│ +{label} ", line)]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_lines_come_back_as_they_were(tmp_path):
    lines = [make_line(env=name, index=place) for place, name in enumerate(TASKS)] + [make_errored()]
    path = write(tmp_path / "episodes.jsonl", *lines)
    assert [line for _, line in read_episodes(path, refuse)] == lines
    assert [place for place, _ in read_episodes(tmp_path, refuse)][-1] == f"{path}, line 7"  # of a run folder


def change(**fields) -> str:
    return json.dumps(json.loads(make_line().model_dump_json()) | fields)


def change_episode(**fields) -> str:
    return change(episode=json.loads(make_line().episode.model_dump_json()) | fields)


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


# --- scoring again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_the_environment_of_the_record_gives_its_score(name, tmp_path):
    path = write(tmp_path / "episodes.jsonl", make_line(env=name), make_line(["nonsense"] * 9, env=name))
    replayed = list(replay(read_episodes(path, refuse)))
    assert [each.score for each in replayed] == [each.line.score for each in replayed]
    assert [each.difference for each in replayed] == [0.0, 0.0] and all(each.reproduced for each in replayed)
    assert main(["replay", path]) == 0


def test_the_progress_of_the_record_counts():
    """EARL, right, and a selection that shows nothing: 0.5 + 1 for the action early in the training, 0.5 + 0.2 late."""
    select = '<tool_call>{"name": "select_frames", "arguments": {"target_frames": [1]}}</tool_call>'
    line = make_line([f"<think>look</think>{select}", RIGHT], "earl")
    late = line.model_copy(update={"progress": 0.75})
    assert [each.score and each.score.total for each in replay([("", line), ("", late)])] == [1.5, 0.7]


def test_the_table(tmp_path, capsys):
    """The first: 2 turns, 16 + 4 frames, reward 1.7. The second: malformed, then right: 0 + 0.1 + 1.0, 16 frames."""
    path = write(tmp_path / "e.jsonl", make_line(), make_line(["nonsense", RIGHT]), make_errored(), make_errored())
    assert main(["replay", path]) == 0
    out = capsys.readouterr().out
    assert row(out, "episodes")[0] == "4"
    assert [row(out, status)[0] for status in ("done", "truncated", "errored")] == ["2", "0", "2"]
    assert row(out, "turns, mean")[0] == "2.00" and row(out, "frames, mean")[0] == "18.00"
    assert row(out, "visual tokens, mean")[0] == f"{18 * 32:.2f}"  # 128 x 14 x 14 pixels are 32 tokens of 28 x 28
    assert row(out, "malformed turns")[0] == "25.0%"
    assert row(out, "accuracy, mean") == ["1.0000", "1.0000"]
    assert row(out, "total reward, mean") == ["1.4000", "1.4000"]
    assert "0 of 2 totals differ from the recorded ones, by 0 at most" in out
    assert "2 scored with video_mtr" in out


def test_another_variant_is_an_ablation_without_rollouts(tmp_path, capsys):
    path = write(tmp_path / "e.jsonl", make_line(), make_errored(index=1))
    out_path = tmp_path / "rescored.jsonl"
    assert main(["replay", path, "--params", '{"variant": "release"}', "--out", str(out_path)]) == 0
    out = capsys.readouterr().out
    assert row(out, "total reward, mean") == ["1.7000", "1.6000"]
    assert "1 of 1 totals differ from the recorded ones, by 0.1 at most" in out
    assert 'scored with video_mtr {"variant": "release"}' in out
    first, second = (line for _, line in read_episodes(out_path, refuse))
    assert first.score and first.score.total == pytest.approx(1.6)
    assert first.env.params == {"variant": "release"} and second.score is None
    assert main(["replay", str(out_path)]) == 0  # a record of its own
    assert "0 of 1 totals differ" in capsys.readouterr().out


def test_another_environment_scores_the_same_record(tmp_path, capsys):
    path = write(tmp_path / "e.jsonl", make_line())
    assert main(["replay", path, "--env", "single_turn"]) == 0
    out = capsys.readouterr().out
    assert row(out, "total reward, mean") == ["1.7000", "1.0000"]
    assert row(out, "evidence_iou, mean") == ["1.0000", "-"]


def test_parameters_of_the_record_stay_where_the_environment_does():
    recorded = NamedEnv(target="video_mtr", params={"drop": 0.25, "gated": True})
    assert choose_env(recorded, None, {}) == recorded
    assert choose_env(recorded, None, {"gated": False}).params == {"drop": 0.25, "gated": False}
    assert choose_env(recorded, "video_mtr", {"gated": False}).params == {"drop": 0.25, "gated": False}
    assert choose_env(recorded, "earl", {"switch": 0.1}) == NamedEnv(target="earl", params={"switch": 0.1})


@pytest.mark.parametrize("field", ["rollout", "turn", "parts"])
def test_a_score_that_is_not_reproduced_is_named(tmp_path, capsys, field):
    line = make_line(id=f"row-7{HOSTILE}", step=3, index=2)
    assert line.score
    other = {"rollout": 1.5, "turn": (0.7, 0.0), "parts": {}}[
        field
    ]  # a turn's reward that moved: the total is the same
    forged = line.model_copy(update={"score": line.score.model_copy(update={field: other})})
    path = write(tmp_path / "e.jsonl", make_line(), forged)
    assert main(["replay", path]) == 1
    out = capsys.readouterr().out
    (named,) = [line for line in out.splitlines() if "not reproduced" in line]
    total = 2.2 if field == "rollout" else 1.7
    assert named.startswith("not reproduced: step 3, row-7") and named.endswith(f"#2: {total} recorded, 1.7 now")
    assert "\x1b" not in out and "[red]" in named
    assert f"{int(field == 'rollout')} of 2 totals differ" in out
    assert main(["replay", path, "--params", '{"variant": "release"}']) == 0  # another one may say something else


def test_one_billionth_is_the_same(tmp_path, capsys):
    line = make_line()
    assert line.score
    for more, code in ((5e-10, 0), (2e-9, 1)):
        near = line.model_copy(update={"score": line.score.model_copy(update={"rollout": 1.0 + more})})
        assert main(["replay", write(tmp_path / "e.jsonl", near)]) == code
    capsys.readouterr()


def test_episodes_are_chosen_by_step_task_and_number(tmp_path, capsys):
    lines = [make_line(step=step, id=id, index=k) for step in (1, 2) for id in ("a", "b") for k in range(3)]
    path = write(tmp_path / "e.jsonl", *lines)
    for options, count in (
        ([], 12),
        (["--step", "2"], 6),
        (["--id", "b"], 6),
        (["--step", "2", "--id", "b"], 3),
        (["--limit", "5"], 5),
        (["--id", "b", "--limit", "4"], 4),
    ):
        assert main(["replay", path, *options]) == 0
        assert row(capsys.readouterr().out, "episodes")[0] == str(count)
    assert main(["replay", path, "--step", "3"]) == 1
    assert "no such episode" in capsys.readouterr().err


def test_code_that_a_file_names_runs_only_where_the_command_names_it(tmp_path, capsys):
    target = f"{__name__}:Plain"
    path = write(tmp_path / "e.jsonl", make_line(env=target))
    assert main(["replay", path]) == 1
    assert f"line 1: ValueError: env.target: {target!r}" in " ".join(capsys.readouterr().err.split())
    assert main(["replay", path, "--env", target]) == 0
    assert "0 of 1 totals differ" in capsys.readouterr().out
    owned = tmp_path / "owned"
    forged = make_line(env=target).model_copy(
        update={"env": NamedEnv(target="os:system", params={"command": f"touch {owned}"})}
    )
    for options in ([], ["--params", "{}"], ["--env", "video_mtr"]):
        main(["replay", write(tmp_path / "e.jsonl", forged), *options])
    assert not owned.exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (change(env={"target": "video_mrt", "params": {}}), "ValueError: target: 'video_mrt'"),
        (change(env={"target": "video_mtr", "params": {"dorp": 1}}), "ValueError: params: .*dorp"),
        (make_line(env="vr_thinker").model_dump_json().replace('"OA":1', '"XX":1'), "KeyError: 'OA'"),
    ],
)
def test_what_cannot_be_scored_names_the_line(tmp_path, capsys, line, says):
    path = write(tmp_path / "e.jsonl", make_line(), line)
    assert main(["replay", path, "--out", str(tmp_path / "out.jsonl")]) == 1
    assert re.search(f"e.jsonl, line 2: {says}", capsys.readouterr().err)
    assert [file.name for file in tmp_path.iterdir()] == ["e.jsonl"]


def test_a_file_that_exists_is_kept(tmp_path, capsys):
    path = write(tmp_path / "e.jsonl", make_line())
    before = (tmp_path / "e.jsonl").read_text()
    assert main(["replay", path, "--out", path]) == 1
    assert "exists; choose another name" in capsys.readouterr().err
    assert (tmp_path / "e.jsonl").read_text() == before


@pytest.mark.parametrize("options", [["--params", "{"], ["--params", "[1]"], ["--limit", "0"], ["--step", "x"], ["x"]])
def test_wrong_options_exit_with_2(tmp_path, capsys, options):
    path = write(tmp_path / "e.jsonl", make_line())
    with pytest.raises(SystemExit) as ended:
        main(["replay", path, *options])
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


# --- showing ----------------------------------------------------------------------------------------------------------


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
        "import sys, videorl.episodes as e; e.load_env('video_mtr', {}); assert not {'torch', 'ray'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
