"""Recorded episodes, scored again."""

from __future__ import annotations

import re

import pytest
from episode_lines import HOSTILE, RIGHT, TASKS, change, make_errored, make_line, refuse, row, write

from videorl.episodes.__main__ import main
from videorl.episodes.records import NamedEnv, read_episodes
from videorl.episodes.replay import choose_env, replay


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
    target = "episode_lines:Plain"
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
