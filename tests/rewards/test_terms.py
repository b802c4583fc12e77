import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.rewards.parsers import Failure
from videorl.rewards.terms import (
    RewardResult,
    RowError,
    accuracy,
    follows_format,
    gold_letter,
    gold_number,
    gold_spans,
    multiple_choice,
    number,
    temporal_iou,
)

fixed = settings(derandomize=True, deadline=None, max_examples=200)
COLOURS = ["red", "green", "blue", "yellow"]


def row(task, **fields):
    return {"id": "clip-7", "task": task, "prompt": "?", "videos": [], "data_source": "test", "meta": {}, **fields}


MC = row("mc", choices=COLOURS, answer="B")
GROUNDING = row("grounding", spans=[[2, 6]])


def say(answer, think="because"):
    return f"<think>{think}</think><answer>{answer}</answer>"


def test_format():
    assert follows_format(say("B"), MC) == RewardResult(1.0)
    assert follows_format("<answer>B</answer>", MC) == RewardResult(0.0, failure=Failure("wrong_tags"))
    twice = say("A") + say("B")
    assert follows_format(twice, MC).value == 0.0
    assert follows_format(twice, MC, mode="legacy").value == 1.0
    assert follows_format("B", MC, mode="legacy") == RewardResult(0.0, failure=Failure("wrong_tags"))
    assert follows_format("x</think><answer>B</answer>", MC, tags="prefilled").value == 1.0


@pytest.mark.parametrize(
    ("response", "value", "why"),
    [
        (say("B"), 1.0, None),
        (say("(B) green"), 1.0, None),
        (say("green"), 1.0, None),
        (say("A"), 0.0, None),
        ("<answer>B</answer>", 1.0, None),  # reads the answer without the strict format
        (say("A", think="so <answer>B</answer>"), 0.0, None),
        (say("B", think="so <answer>A</answer>"), 1.0, None),
        ("<think>so <answer>B</answer> or", 0.0, "unclosed_think"),
        (say("A") + "<answer>B</answer>", 1.0, None),  # the last answer stands; the format term refuses two
        (say("A, B, C, D"), 0.0, "several_letters"),
        (say("not A, not C"), 0.0, "several_letters"),
        (say("not B"), 0.0, "negated"),
        (say("Because"), 0.0, "no_letter"),
        (say("A red or blue one"), 0.0, "no_letter"),
        (say("E"), 0.0, "outside_options"),
        ("B", 0.0, "no_answer"),
    ],
)
def test_multiple_choice(response, value, why):
    result = multiple_choice(response, MC)
    assert result.value == value
    assert (result.failure.reason if result.failure else None) == why


def test_gold_letter():
    assert gold_letter(MC) == "B"
    assert gold_letter(row("mc", choices=COLOURS, answer="(c)")) == "C"
    assert gold_letter(row("mc", choices=COLOURS, answer="Yellow")) == "D"
    assert gold_letter(row("mc", choices=["3", "4"], answer="4")) == "B"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"choices": COLOURS, "answer": "E"}, "answer='E'"),
        ({"choices": COLOURS, "answer": "purple"}, "answer='purple'"),
        ({"choices": COLOURS, "answer": 1}, "answer=1"),
        ({"choices": COLOURS}, "answer=None"),
        ({"choices": ["red", "red"], "answer": "red"}, "several_letters"),
        ({"answer": "A"}, "choices=None"),
        ({"choices": [], "answer": "A"}, "choices="),
        ({"choices": "red", "answer": "A"}, "choices='red'"),
        ({"choices": [1, 2], "answer": "A"}, "choices="),
    ],
)
def test_bad_gold_letter_is_an_error_and_not_a_zero(fields, says):
    for response in (say("A"), "unreadable"):
        with pytest.raises(RowError, match=r"row 'clip-7': ") as error:
            multiple_choice(response, row("mc", **fields))
        assert says in str(error.value) and error.value.reason == "bad_gold"


@pytest.mark.parametrize(
    ("answer", "gold", "value"),
    [
        ("5", "5", 1.0),
        ("5", 5, 1.0),
        ("5", "6", 0.0),
        ("1,234", 1234, 1.0),
        ("5.0", "5", 0.0),  # one with a point, one without
        ("5", "5.0", 0.0),
        ("5", 5.0, 1.0),  # a table of floats says nothing about the point
        ("5.0", 5.0, 1.0),
        ("2", 2.001, 0.0),
        ("2.714", "2.71", 1.0),  # 2.71 after rounding
        ("2.716", "2.71", 0.0),  # 2.72
        ("0", 0, 1.0),
        ("0.0", 0, 1.0),
        ("0.001", 0, 0.0),  # gold 0: exactly 0, although it rounds to 0.00
        ("50%", 0.5, 0.0),  # nothing is divided by 100
        ("-3", -3, 1.0),
        ("3", -3, 0.0),
    ],
)
def test_number(answer, gold, value):
    assert number(say(answer), row("numeric", answer=gold)) == RewardResult(value)


@pytest.mark.parametrize(
    ("answer", "gold", "value"),
    [("5.25", 5, 1.0), ("4.75", "5", 1.0), ("5.5", 5, 0.0), ("0.25", 0, 0.0), ("9" * 300, 5, 0.0)],
)
def test_number_within_a_tolerance(answer, gold, value):
    assert number(say(answer), row("numeric", answer=gold), tolerance=0.25) == RewardResult(value)


@pytest.mark.parametrize("answer", ["nan", "inf", "-inf", "1e999", "5 or 6", "about five", ""])
def test_what_is_not_one_finite_number_is_wrong_and_says_so(answer):
    result = number(say(answer), row("numeric", answer=5), tolerance=1e300)
    assert result.value == 0.0 and result.failure is not None


@pytest.mark.parametrize(
    "gold", [None, True, "five", "3 or 4", "nan", float("nan"), float("inf"), 10**400, [5], {"value": 5}]
)
def test_bad_gold_number_is_an_error(gold):
    with pytest.raises(RowError, match=r"row 'clip-7': answer="):
        number(say("5"), row("numeric", answer=gold))


def test_gold_number_keeps_its_form():
    assert [type(gold_number(row("numeric", answer=gold))) for gold in ("5", "5.0", 5, 5.0)] == [int, float, int, float]


@pytest.mark.parametrize(
    ("answer", "iou"),
    [
        ("2 to 6", 1.0),
        ("3 to 5", 2 / 4),
        ("4 to 8", 2 / 6),
        ("0 to 4", 2 / 6),
        ("0 to 20", 4 / 20),  # the whole video earns its overlap and no more
        ("0:02 - 0:04", 2 / 4),
        ("6 to 8", 0.0),
        ("7 to 8", 0.0),
        ("0 to 1", 0.0),
        ("0 to 1" + "0" * 300, 0.0),  # 4 / 1e300
    ],
)
def test_temporal_iou(answer, iou):
    result = temporal_iou(say(answer), GROUNDING)
    assert result.value == pytest.approx(iou, abs=1e-12) and result.failure is None


@pytest.mark.parametrize(
    "answer", ["6 to 2", "4 to 4", "-2 to 6", "nan to 6", "2 to inf", "20% to 60%", "2", "2 to 6, 7 to 9"]
)
def test_unreadable_intervals_earn_nothing(answer):
    result = temporal_iou(say(answer), GROUNDING)
    assert result.value == 0.0 and result.failure is not None


def test_of_several_gold_spans_the_best_counts():
    several = row("grounding", spans=[[0, 1], [10, 14], (20, 30)])
    assert temporal_iou(say("10 to 14"), several).value == 1.0
    assert temporal_iou(say("12 to 25"), several).value == pytest.approx(5 / 18, abs=1e-12)  # 2/15 and 5/18
    assert temporal_iou(say("0 to 30"), several).value == pytest.approx(10 / 30, abs=1e-12)


spans = st.lists(st.integers(0, 10**7), min_size=2, max_size=2, unique=True).map(
    lambda ms: sorted(m / 1000 for m in ms)
)


@fixed
@given(spans, spans)
def test_iou_is_symmetric_in_range_and_the_ratio_of_lengths(a, b):
    there = temporal_iou(say(f"{a[0]} to {a[1]}"), row("grounding", spans=[b])).value
    back = temporal_iou(say(f"{b[0]} to {b[1]}"), row("grounding", spans=[a])).value
    overlap = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    assert there == back and 0.0 <= there <= 1.0
    assert there == pytest.approx(overlap / (a[1] - a[0] + b[1] - b[0] - overlap), abs=1e-9)


@pytest.mark.parametrize(
    "spans",
    [
        None,
        [],
        [2, 6],
        [[2]],
        [[6, 2]],
        [[2, 2]],
        [[-1, 2]],
        [["2", "6"]],
        ["26"],
        [[0, float("nan")]],
        [[0, float("inf")]],
        [[0, 10**400]],
        [[2, 6], None],
    ],
)
def test_bad_gold_spans_are_an_error(spans):
    with pytest.raises(RowError, match=r"row 'clip-7': spans="):
        temporal_iou(say("2 to 6"), row("grounding", spans=spans))


def test_gold_spans():
    assert gold_spans(GROUNDING) == [(2.0, 6.0)]


def test_accuracy_goes_by_task():
    assert accuracy(say("B"), MC).value == 1.0
    assert accuracy(say("B"), {**MC, "task": "next_event"}).value == 1.0
    assert accuracy(say("5.5"), row("numeric", answer=5), tolerance=0.5).value == 1.0
    assert accuracy(say("3 to 5"), GROUNDING).value == 0.5
    for task_row, answer in ((MC, "B"), (row("numeric", answer=5), "5"), (GROUNDING, "2 to 6")):
        assert accuracy(answer, task_row).value == 0.0
        assert accuracy(answer, task_row, tags="none").value == 1.0


@pytest.mark.parametrize("task", ["open", "custom", "nonsense"])
def test_accuracy_names_a_task_it_cannot_score(task):
    with pytest.raises(RowError, match=rf"row 'clip-7'.*task '{task}'.*a reward function of your own") as error:
        accuracy(say("B"), row(task, answer="B"))
    assert error.value.reason == "no_scorer"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_results_are_finite(value):
    with pytest.raises(ValueError, match=r"value is .*finite"):
        RewardResult(value)
    with pytest.raises(ValueError, match=r"speed is .*finite"):
        RewardResult(0.0, {"speed": value})


@fixed
@given(st.text())
def test_no_response_raises_or_leaves_the_range(text):
    for task_row in (MC, row("numeric", answer=5), GROUNDING):
        for response in (text, say(text)):
            assert 0.0 <= accuracy(response, task_row).value <= 1.0
            assert follows_format(response, task_row).value in (0.0, 1.0)
