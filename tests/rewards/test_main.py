import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from makers import make_rendered, make_rollout

from videorl.rewards.__main__ import main
from videorl.rewards.hooks import HOOKS
from videorl.rewards.registry import SCORERS, TERMS
from videorl.rewards.result import Abstained
from videorl.run import make_line

ROWS = [
    {"id": "a", "task": "numeric", "prompt": "How many?", "answer": 4},
    {"id": "b", "task": "numeric", "prompt": "How many?", "answer": "10"},
]
RESPONSES = [
    ("a", "<think>x</think><answer>4</answer>"),
    ("a", "<think>x</think><answer>3</answer>"),
    ("b", "<think>x</think><answer>ten</answer>"),
    ("b", "10"),
]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def files(tmp_path):
    lines = [{"step": 1, "prompt_id": id, "index": i, "response": text} for i, (id, text) in enumerate(RESPONSES)]
    return write(tmp_path / "rollouts.jsonl", lines), write(tmp_path / "rows.jsonl", ROWS)


def score(files, *options, reward="number"):
    return main(["score", "--reward", reward, "--data", files[1], *options, files[0]])


def abstains_on_b(response, row):
    if row["id"] == "b":
        raise Abstained("unavailable", "the judge is down")
    return 0.5


def divides(response, row):
    return 1 / (row["answer"] == 4)


def test_list_prints_every_term_hook_and_scorer(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "range", "row", "fields", "source"]
    assert [line.split()[0] for line in lines[1:]] == [*TERMS, *HOOKS, *SCORERS]
    (line,) = [line for line in lines if line.startswith("number ")]
    assert line.split()[1:4] == ["[0,", "1]", "answer"]


def test_scores_are_summed_up(files, capsys):
    assert score(files) == 0
    out = capsys.readouterr().out
    # 1, 0, 0 and 0: mean 1/4, standard deviation sqrt(1/4 - 1/16) = 0.4330
    assert [cell.strip() for cell in out.splitlines()[3].strip("│").split("│")] == [
        *("4", "0.2500", "0.4330", "0.0000", "1.0000", "2", "0")
    ]
    assert "1 x no number (no_number)" in out and "1 x no complete <answer> block (no_answer)" in out


def test_each_score_is_written(files, tmp_path):
    out = tmp_path / "scores.jsonl"
    assert score(files, "--param", "tolerance=1", "--out", str(out)) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[1] == {"step": 1, "prompt_id": "a", "index": 1, "value": 1.0, "parts": {}, "failure": None}
    assert [line["value"] for line in lines] == [1.0, 1.0, 0.0, 0.0]
    assert lines[3]["failure"] == "no_answer"


def test_parameters_that_are_texts_need_no_quotes(files, tmp_path):
    out = tmp_path / "scores.jsonl"
    assert score(files, "--param", "tags=none", "--out", str(out)) == 0
    assert [json.loads(line)["value"] for line in out.read_text().splitlines()] == [1.0, 0.0, 0.0, 1.0]


def test_lines_of_a_run_can_be_scored(files, tmp_path, capsys):
    rollout = replace(make_rollout(make_rendered("a")), text=RESPONSES[0][1])
    assert score((write(tmp_path / "saved.jsonl", [make_line(7, rollout)]), files[1])) == 0
    assert "1.0000" in capsys.readouterr().out


def test_second_passes_are_left_out(files, tmp_path, capsys):
    lines = [{"prompt_id": "a", "response": RESPONSES[0][1]}, {"prompt_id": "a", "response": "B", "pass": "options"}]
    assert score((write(tmp_path / "saved.jsonl", lines), files[1])) == 0
    assert capsys.readouterr().out.splitlines()[3].split()[1:4:2] == ["1", "1.0000"]


def test_abstentions_are_counted_and_stay_out_of_the_mean(files, tmp_path, capsys):
    out = tmp_path / "scores.jsonl"
    assert score(files, "--out", str(out), reward=f"{__name__}:abstains_on_b") == 0
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[3].strip("│").split("│")]
    assert cells == ["4", "0.5000", "0.0000", "0.5000", "0.5000", "0", "2"]
    assert json.loads(out.read_text().splitlines()[2])["abstained"] == "unavailable: the judge is down"


@pytest.mark.parametrize(
    ("lines", "options", "says"),
    [
        ([], {"reward": "nubmer"}, "did you mean 'number'"),
        ([], {"param": "tolerance=-1"}, "params.tolerance: -1"),
        ([{"prompt_id": "c", "response": "4"}], {}, "rollouts.jsonl, line 1: .*prompt_id 'c' is no id of --data"),
        ([{"prompt_id": "a"}], {}, "line 1: KeyError: 'response'"),
        (["no rollout"], {}, "line 1: AttributeError"),
        ([{"prompt_id": "b", "response": "4"}], {"reward": f"{__name__}:divides"}, "line 1: ZeroDivisionError"),
        ([], {}, "holds no rollouts"),
    ],
)
def test_what_cannot_be_scored_is_an_error_that_names_the_line(tmp_path, capsys, lines, options, says):
    files = write(tmp_path / "rollouts.jsonl", lines), write(tmp_path / "rows.jsonl", ROWS)
    params = ["--param", options["param"]] if "param" in options else []
    assert score(files, *params, reward=options.get("reward", "number")) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and re.search(says, captured.err)


def test_missing_files_and_bad_parameters(files, capsys):
    assert score((files[0] + "x", files[1])) == 1
    assert score((files[0], files[1] + "x")) == 1
    with pytest.raises(SystemExit):
        score(files, "--param", "tolerance")
    assert "'tolerance' is not name=value" in capsys.readouterr().err


def test_scoring_needs_no_torch(files):
    code = (
        "import sys; from videorl.rewards.__main__ import main;"
        f"assert main(['score', '--reward', 'number', '--data', {files[1]!r}, {files[0]!r}]) == 0;"
        "assert not {'torch', 'ray', 'vllm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
