"""`python -m videorl.data check` on real files, and how it is reached."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from clips import write_clip

from videorl.data.__main__ import COMMANDS, main
from videorl.data.schema import CanonicalRow


def make_row(id="x", **fields):
    return CanonicalRow.model_validate({"id": id, "task": "open", "prompt": "Why?"} | fields).model_dump()


def check(folder, rows, *options):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["check", "--path", str(folder / "rows.jsonl"), "--media-root", str(folder)]
    return main([*arguments, "--workers", "1", "--max-pixels", "3136", *options])


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """50 frames at 25 fps, whole and cut in the middle."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "whole.mp4")
    (folder / "cut.mp4").write_bytes((folder / "whole.mp4").read_bytes()[:2000])
    return folder


def test_check_accepts_good_data(clips, capsys):
    rows = [make_row("a", videos=[{"path": "whole.mp4"}]), make_row("b", videos=[{"path": "whole.mp4", "end": 1.0}])]
    assert check(clips, [*rows, make_row("text")]) == 0
    lines = [line.strip("│ ").split() for line in capsys.readouterr().out.splitlines()]
    cells = [[cell for cell in line if cell != "│"] for line in lines]
    assert ["open", "3", "0"] in cells
    # 4 frames each (2 s at 2 fps; never fewer than 4), 96 x 64 shrunk to 56 x 28 for 3136 pixels: 2 * 2 * 1 tokens
    assert ["seconds", "of", "a", "clip", "1.0", "1.5", "2.0", "3.0"] in cells
    assert ["visual", "tokens", "of", "a", "row", "4", "4", "4", "8"] in cells


def test_check_counts_pairs(clips, capsys):
    phrases = [{"chosen": [2, 5], "rejected": [2, 6]}]
    rows = [
        make_row("p", chosen="a red car", rejected="a blue car", phrases=phrases),
        make_row("q", chosen="a red car is shown", rejected="a car"),
        make_row("text"),
    ]
    assert check(clips, rows) == 0
    assert "2 pairs, 1 with phrases; chosen has more words in 50%" in capsys.readouterr().out
    assert check(clips, [rows[0] | {"phrases": [{"chosen": [2, 50], "rejected": [2, 6]}]}]) == 1
    assert "[2, 50] of chosen must be [start, end) of its 9 characters" in capsys.readouterr().err


def test_check_lists_bad_clips_by_reason(clips, capsys):
    rows = [
        make_row("good", videos=[{"path": "whole.mp4"}]),
        make_row("broken", videos=[{"path": "cut.mp4"}]),
        make_row("away", videos=[{"path": "../whole.mp4"}]),
        make_row("late", task="grounding", videos=[{"path": "whole.mp4"}], spans=[[0, 2.1]]),
    ]
    assert check(clips, rows) == 1
    out = capsys.readouterr().out
    assert "outside_root: 1 bad rows" in out and "away: '../whole.mp4'" in out
    assert "span_outside_clip: 1 bad rows" in out and "late: span [0.0, 2.1] leaves its clip of 2.000 s" in out
    assert "broken: " in out and "good: " not in out


def test_check_reports_bad_rows_before_it_reads_clips(clips, capsys):
    assert check(clips, [{"id": "a"}]) == 1
    assert "line 1: id 'a': task is missing" in capsys.readouterr().err


def test_check_reads_answers_as_rewards_will(clips, capsys):
    """To the schema these two options differ; to the parser "red" is either."""
    rows = [make_row(id, task="mc", choices=["red", "Red."], answer=id) for id in ("A", "red")]
    assert check(clips, rows) == 1
    out = capsys.readouterr().out
    assert (
        "bad_gold: 1 bad rows" in out and "red: row 'red': answer='red' must be a letter or" in out and "A: " not in out
    )


def test_check_reads_other_layouts(clips, capsys):
    record = {"problem": "How many?", "answer": "3", "videos": ["whole.mp4"]}
    assert check(clips, [record], "--from", "auto") == 0
    assert "layout easyr1: answer and problem in all of the first 1 records" in capsys.readouterr().out
    assert check(clips, [record, record | {"images": ["a.png"]}], "--from", "easyr1") == 1
    assert "not_video: 1 bad rows" in (out := capsys.readouterr().out) and "line 2: the record has images" in out


def test_impossible_options_are_refused(clips, capsys):
    assert check(clips, [make_row()], "--fps", "0") == 1
    assert "fps=0.0 must be a positive finite number" in capsys.readouterr().err


# --- how commands are reached ----------------------------------------------------------------------------------------


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert all(f"    {name} " in out for name in (*COMMANDS, "synth"))


@pytest.mark.parametrize("arguments", [[], ["chekc"], ["synth"], ["synth", "nothing"]])
def test_unknown_commands_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2 and "usage: " in capsys.readouterr().err


def test_kinds_of_synthesis_are_run_and_may_refuse(monkeypatch, capsys):
    class FakeKind:
        name, help = "fake", "a fake kind"

        def add_arguments(self, parser):
            parser.add_argument("--number", type=int)

        def run(self, args):
            if args.number < 0:
                raise ValueError(f"number={args.number} is negative")

    monkeypatch.setattr("videorl.data.__main__.KINDS", {"fake": FakeKind()})
    assert main(["synth", "fake", "--number", "1"]) == 0
    assert main(["synth", "fake", "--number", "-1"]) == 1
    assert capsys.readouterr().err == "number=-1 is negative\n"


def test_commands_need_no_torch():
    own = [module for module, _ in COMMANDS.values() if module.startswith("videorl.data.")]
    names = ", ".join(["videorl.data.__main__", *own])
    code = f"import sys, {names}; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
