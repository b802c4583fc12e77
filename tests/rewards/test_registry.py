import subprocess
import sys

import pytest

from videorl.rewards.__main__ import main
from videorl.rewards.parsers import Failure
from videorl.rewards.registry import TERMS, Term, load
from videorl.rewards.terms import RewardResult

ROW = {
    "id": "clip-7",
    "task": "mc",
    "prompt": "Which colour?",
    "videos": [],
    "choices": ["red", "green"],
    "answer": "B",
    "spans": None,
    "data_source": "squares",
    "meta": {"index": 3, "level": "easy", "answer": "green"},
}
RESPONSE = "<think>x</think><answer>B</answer>"


def ours(response, row, scale=1.0):
    return scale * len(response) + row["meta"]["index"]


def ours_by_keyword(*, row, response, scale):
    return RewardResult(scale, {"length": len(response)}, Failure("mine"))


def verl_score(data_source, solution_str, ground_truth, extra_info=None, bonus=0):
    assert (data_source, solution_str) == ("squares", RESPONSE)
    assert extra_info is not None and (extra_info["id"], extra_info["index"]) == ("clip-7", 3)
    return {"score": ground_truth == "B", "bonus": bonus, "pred": "B", "golden": extra_info["answer"] == "green"}


def verl_without_extra_info(data_source, solution_str, ground_truth):
    return 1.0 if ground_truth else 0.0


def trl_score(prompts, completions, answer, level, **columns):
    assert "prompt" not in columns and columns["choices"] == [["red", "green"]]
    return [float((prompts, completions, answer, level) == (["Which colour?"], [RESPONSE], ["B"], ["easy"]))]


def trl_chat(completions, **_):
    return [float(len(completions[0][0]["content"]))]


def trl_two(completions, **_):
    return [1.0, 2.0]


def unknown_form(text, gold):
    return 1.0


def needs_a_parameter(response, row, threshold):
    return float(threshold)


def gives(response, row, value):
    return value


bounded = Term(gives, low=-1.0, high=1.0, fields=("meta",), source="here")


def here(name, **params):
    return load(f"{__name__}:{name}", **params)


def test_built_ins_load_by_name():
    assert load("accuracy")(response=RESPONSE, row=ROW) == RewardResult(1.0)
    assert load("multiple_choice", tags="none")("red", ROW).value == 0.0
    assert load("multiple_choice", tags="none")("green", ROW).value == 1.0


def test_built_ins_declare_the_fields_they_read():
    gold = {
        "mc": {"choices": ["red", "green"], "answer": "B"},
        "numeric": {"answer": 5},
        "grounding": {"spans": [[2, 6]]},
    }
    tasks = {"multiple_choice": ["mc"], "number": ["numeric"], "temporal_iou": ["grounding"], "format": ["mc"]}
    for name, term in TERMS.items():
        for task in tasks.get(name, list(gold)):
            whole = {"id": "clip-7", "task": task, **gold[task]}
            declared = {key: value for key, value in whole.items() if key in ("id", *term.fields)}
            assert load(name)(RESPONSE, declared) == load(name)(RESPONSE, whole)


def test_our_form():
    assert here("ours")(RESPONSE, ROW).value == len(RESPONSE) + 3
    assert here("ours", scale=2)(response="ab", row=ROW).value == 7
    assert here("ours_by_keyword", scale=0.5)("ab", ROW) == RewardResult(0.5, {"length": 2}, Failure("mine"))


def test_verl_form():
    result = here("verl_score", bonus=0.25)(RESPONSE, ROW)
    assert result == RewardResult(1.0, {"bonus": 0.25, "golden": 1.0})
    assert here("verl_without_extra_info")(RESPONSE, {"id": "g", "spans": [[1, 2]]}).value == 1.0


def test_trl_form():
    assert here("trl_score")(RESPONSE, ROW).value == 1.0
    chat = {**ROW, "prompt": [{"role": "user", "content": "Which colour?"}]}
    assert here("trl_chat")("four", chat).value == 4.0
    with pytest.raises(ValueError, match="too many values"):
        here("trl_two")("four", ROW)


@pytest.mark.parametrize(
    ("target", "params", "says"),
    [
        ("acuracy", {}, "did you mean 'accuracy'"),
        ("zzz", {}, "choose from accuracy, format"),
        ("no.such.module:fn", {}, "no module named"),
        (f"{__name__}:nothing", {}, "defines no 'nothing'"),
        (f"{__name__}:unknown_form", {}, r"this one takes \(text, gold\)"),
        (f"{__name__}:ours", {"sclae": 2}, r"params\.sclae is not a parameter; did you mean 'scale'"),
        (f"{__name__}:ours", {"row": {}}, r"params\.row is not a parameter"),
        (f"{__name__}:verl_score", {"solution_str": ""}, r"params\.solution_str is not a parameter"),
        (f"{__name__}:needs_a_parameter", {}, r"params\.threshold is missing"),
        ("format", {"mode": "loose"}, r"params\.mode: 'loose': Input should be 'strict' or 'legacy'"),
        ("format", {"tags": "none"}, r"params\.tags: 'none'"),
        ("number", {"tolerance": -1}, r"params\.tolerance: -1"),
        ("temporal_iou", {"mode": "json"}, r"params\.mode: 'json'"),
    ],
)
def test_what_cannot_work_is_refused_before_any_response(target, params, says):
    with pytest.raises(ValueError, match=says):
        load(target, **params)


@pytest.mark.parametrize("value", [-1.0, 0, True, 1.0])
def test_values_inside_the_range(value):
    assert here("bounded", value=value)("", ROW).value == value


@pytest.mark.parametrize("value", [1.0000001, -2, float("nan"), float("inf")])
def test_values_outside_the_range(value):
    with pytest.raises(ValueError, match=r"outside the declared range \[-1.0, 1.0\]|finite"):
        here("bounded", value=value)("", ROW)


@pytest.mark.parametrize("value", [None, "1.0", {"acc": 1.0}, [], ()])
def test_what_is_not_a_reward(value):
    with pytest.raises((TypeError, ValueError, KeyError)):
        here("gives", value=value)("", ROW)


def test_list_prints_every_term(capsys):
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "range", "row", "fields", "source"]
    assert [line.split()[0] for line in lines[1:]] == list(TERMS)
    assert "temporal_iou     [0, 1]  spans " in lines[4]


def test_the_package_needs_no_torch():
    code = (
        "import sys, videorl.rewards.rubric, videorl.rewards.report, videorl.rewards.__main__;"
        "assert not {'torch', 'ray', 'vllm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
