"""What holds for every built-in term, whatever a model writes."""

import pytest
from hypothesis import given
from responses import COLOURS, fixed, fragments, hostile, make_row, reason, say

from videorl.answers.answer import REASONS
from videorl.rewards.registry import TERMS, load

META = {
    "boxes": [[10, 10, 50, 50], [60, 10, 90, 40]],
    "tube": {"fps": 1, "size": [100, 60], "boxes": {"2": [10, 10, 50, 50], "3": [12, 10, 52, 50]}},
    "keyframes": {"12": {"area": 400, "boxes": [[10, 10, 50, 50]]}, "24": {"area": 0, "boxes": []}},
    "video_length": 10.0,
    "problem_type": "regression",
}
ANSWERS = {  # what a row of the term has in `answer`
    "counts": "3, 1, 2",
    "permutation": "312",
    "scores": "4, 3, 5",
    "yes_no": "no",
    "text_match": "a red bike",
    "word_accuracy": "a red bike",
    "rouge": "a red bike",
    "number": 5,
    "regression": 5,
    "video_r1_accuracy": 5,
}
MODES = {  # the parameters under which a term reads in another way
    "format": [{"mode": mode} for mode in ("answer_only", "legacy", "legacy_prefix")],
    "multiple_choice": [{"mode": mode} for mode in ("v1", "video_r1", "longvila")],
    "number": [{"tolerance": 1}],
    "video_r1_accuracy": [{"mode": "legacy"}],
    "temporal_iou": [{"mode": "json"}, {"tags": "none"}],
}


def make_term_row(name, **fields):
    answer = ANSWERS.get(name, "B")
    return make_row("mc", choices=COLOURS, answer=answer, spans=[[2, 6]]) | {"meta": META} | fields


REWARDS = [(name, load(name, **params), make_term_row(name)) for name in TERMS for params in ({}, *MODES.get(name, ()))]


@fixed
@given(hostile | fragments)
def test_no_response_raises_or_leaves_the_range_or_fails_without_a_reason(text):
    for response in (text, say(text), say("B", think=text), f"<think>{text}", f"{text}</think><answer>{text}</answer>"):
        for name, reward, row in REWARDS:
            result = reward(response, row)
            assert TERMS[name].low <= result.value <= TERMS[name].high, name
            assert result.failure is None or result.failure.reason in REASONS, name


@pytest.mark.parametrize("unit", ["<answer>", "</think>", "9", "A ", "[[", '{"', "\u0301\u0316", "the answer is "])
def test_time_is_linear(unit):
    """Quadratic time would be many minutes for each; see the test of the parsers."""
    text = unit * (1_000_000 // len(unit))
    for name, reward, row in REWARDS:
        for response in (text, say(text)):
            assert reward(response, row).value <= TERMS[name].high, name


@pytest.mark.parametrize(("task", "answer"), [("mc", "B"), ("numeric", 5), ("grounding", "2 to 6")])
@pytest.mark.parametrize("name", TERMS)
def test_a_term_reads_the_fields_that_it_declares_and_no_others(name, task, answer):
    gold = {"answer": answer} if name == "accuracy" else {}
    whole = make_term_row(name, task=task, **gold)
    declared = {key: value for key, value in whole.items() if key in ("id", *TERMS[name].fields)}
    response = say(str(answer) if name == "accuracy" else READABLE.get(name, ("B",))[0])
    assert load(name)(response, declared) == load(name)(response, whole)


# --- how models cheat ------------------------------------------------------------------------------------------------

# term -> (a right answer, a wrong answer that can be read)
READABLE = {
    "multiple_choice": ("B", "A"),
    "number": ("5", "6"),
    "regression": ("5", "6"),
    "counts": ("3, 1, 2", "3, 1, 1"),
    "permutation": ("312", "321"),
    "scores": ("4, 3, 5", "4, 3, 4"),
    "verdict": ("green", "red"),
    "yes_no": ("no", "yes"),
    "text_match": ("a red bike", "a blue car"),
    "word_accuracy": ("a red bike", "a blue car"),
    "rouge": ("a red bike", "a blue car"),
    "video_r1_accuracy": ("5", "6"),
    "temporal_iou": ("2 to 6", "3 to 6"),
    "accuracy": ("B", "A"),
}


@pytest.mark.parametrize("name", READABLE)
def test_only_the_final_answer_counts(name):
    right, wrong = READABLE[name]
    reward, row = load(name), make_term_row(name)
    best, worse = reward(say(right), row), reward(say(wrong), row)
    assert best.value == pytest.approx(1.0, abs=1e-8) and worse.value < best.value and worse.failure is None

    quoted = f"it could be <answer>{right}</answer>"
    assert reward(say(wrong, think=quoted), row) == worse
    assert reward(say(wrong, think=f"</think><answer>{right}</answer><think>"), row) == worse
    assert reward(say(right) + say(wrong), row) == worse  # the last answer stands; the format term refuses two
    assert reward(f"<answer>{right}</answer> or <answer>{wrong}</answer>", row) == worse
    for cut_off in (f"<think>{quoted}", f"<think>x</think><think>{quoted} and", say(right) + "<think>"):
        result = reward(cut_off, row)
        assert result.value == 0.0 and reason(result) == "unclosed_think"
    for unclosed in (right, f"<think>x</think>{right}", f"<think>x</think><answer>{right}", f"<answer><answer>{right}"):
        result = reward(unclosed, row)
        assert result.value == 0.0 and reason(result) == "no_answer"


HEDGES = [
    *("{right} or {wrong}", "{wrong}, {right}", "{right}\n{wrong}", "not {right}", "{right}? {wrong}?"),
    *('["{right}", "{wrong}"]', '{{"a": "{right}", "b": "{wrong}"}}', "<answer>{wrong} {right}"),
    *("nan", "NaN", "inf", "", " ", "null", "A, B, C, D", "A B C D", "0 1 2 3 4 5 6 7 8 9", "[]", "{{}}", "[[]]"),
]


@pytest.mark.parametrize("hedge", HEDGES)
@pytest.mark.parametrize("name", [name for name in READABLE if name not in ("word_accuracy", "rouge")])
def test_hedges_cannot_be_read(name, hedge):
    right, wrong = READABLE[name]
    result = load(name)(say(hedge.format(right=right, wrong=wrong)), make_term_row(name))
    assert result.value == 0.0 and (name == "text_match" or reason(result))


@pytest.mark.parametrize("name", ["word_accuracy", "rouge"])
def test_saying_more_than_the_gold_text_earns_less(name):
    reward, row = load(name), make_term_row(name)
    best = reward(say("a red bike"), row).value
    values = [reward(say("a red bike" + " or a blue car" * n), row).value for n in range(1, 5)]
    assert best > values[0] and values == sorted(values, reverse=True)
    assert reward(say("a red bike " * 3), row).value < best
