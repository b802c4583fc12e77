import subprocess
import sys

import pytest

import videorl.rewards
from videorl.answers.answer import Failure
from videorl.answers.gold import RowError
from videorl.rewards.registry import load
from videorl.rewards.result import RewardResult
from videorl.rewards.term import Term

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
    assert videorl.rewards.load("number")(response="<answer>3</answer>", gold=3).value == 1.0
    assert load("accuracy")(response=RESPONSE, row=ROW) == RewardResult(1.0)
    assert load("multiple_choice", tags="none")("red", ROW).value == 0.0
    assert load("multiple_choice", tags="none")("green", ROW).value == 1.0


def test_a_row_can_be_given_by_its_fields():
    assert load("multiple_choice")(response=RESPONSE, gold="B", choices=["red", "green"]).value == 1.0
    assert load("multiple_choice")(response=RESPONSE, gold="A", **{**ROW, "answer": None}).value == 0.0
    assert load("accuracy", tags="none")(response="6", gold=6, task="numeric").value == 1.0
    assert load("multiple_choice")(RESPONSE, ROW, gold="A").value == 0.0  # over the row's own
    assert ROW["answer"] == "B"


@pytest.mark.parametrize(
    ("name", "answer", "gold"),
    [("number", "6", 6), ("temporal_iou", "2 to 6", [[2, 6]]), ("box_iou", "[1, 2, 3, 4]", [[1, 2, 3, 4]])],
)
def test_gold_goes_to_the_field_in_which_the_term_looks_for_it(name, answer, gold):
    meta = {"index": 3}
    assert load(name)(response=f"<answer>{answer}</answer>", gold=gold, meta=meta).value == 1.0
    assert meta == {"index": 3}


def test_without_its_gold_a_response_cannot_be_scored():
    with pytest.raises(RowError, match=r"row '\(no row\)': answer=None must be one finite number"):
        load("number")("<answer>6</answer>")


def test_user_functions_take_the_same_call():
    assert here("ours")(RESPONSE, meta={"index": 3}).value == len(RESPONSE) + 3
    assert here("verl_without_extra_info")(response=RESPONSE, gold="B").value == 1.0


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
        ("zzz", {}, "choose from accuracy, box_giou"),
        ("no.such.module:fn", {}, "no module named"),
        (f"{__name__}:nothing", {}, "defines no 'nothing'"),
        (f"{__name__}:unknown_form", {}, r"this one takes \(text, gold\)"),
        (f"{__name__}:ours", {"sclae": 2}, r"params\.sclae is not a parameter; did you mean 'scale'"),
        (f"{__name__}:ours", {"row": {}}, r"params\.row is not a parameter"),
        (f"{__name__}:verl_score", {"solution_str": ""}, r"params\.solution_str is not a parameter"),
        (f"{__name__}:needs_a_parameter", {}, r"params\.threshold is missing"),
        ("format", {"mode": "loose"}, r"params\.mode: 'loose': Input should be 'strict', 'answer_only'"),
        ("format", {"tags": "none"}, r"params\.tags: 'none'"),
        ("number", {"tolerance": -1}, r"params\.tolerance: -1"),
        ("temporal_iou", {"mode": "yaml"}, r"params\.mode: 'yaml'"),
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


def test_the_package_needs_no_torch():
    code = (
        "import sys, videorl.rewards.rubric, videorl.rewards.report, videorl.rewards.__main__;"
        "assert not {'torch', 'ray', 'vllm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
