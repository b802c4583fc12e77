import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.config import RewardsConfig
from videorl.rewards.rubric import RewardError, Rubric, Score

fixed = settings(derandomize=True, deadline=None, max_examples=200)
MC = {
    "id": "clip-7",
    "task": "mc",
    "prompt": "?",
    "choices": ["red", "green"],
    "answer": "B",
    "spans": None,
    "meta": {},
}
GROUNDING = {**MC, "task": "grounding", "answer": None, "choices": None, "spans": [[2, 6]]}


def make(**terms):
    """name = (target, weight, requires, params)"""
    keys = ("target", "weight", "requires", "params")
    return Rubric(
        RewardsConfig.model_validate({"terms": {n: dict(zip(keys, t, strict=True)) for n, t in terms.items()}})
    )


def default():
    return make(format=("format", 0.1, None, {}), accuracy=("accuracy", 0.9, "format", {}))


def constant(response, row, value):
    return value


def with_parts(response, row):
    from videorl.rewards.terms import RewardResult

    return RewardResult(0.5, {"speed": 2.0})


def broken(response, row):
    raise KeyError("speed")


def fixed_value(value):
    return f"{__name__}:constant", {"value": value}


def gated(weight, requires, value):
    target, params = fixed_value(value)
    return target, weight, requires, params


@pytest.mark.parametrize(
    ("row", "response", "total", "terms", "failures"),
    [
        (MC, "<think>x</think><answer>B</answer>", 1.0, (1.0, 1.0), {}),
        (MC, "<think>x</think><answer>A</answer>", 0.1, (1.0, 0.0), {}),
        (MC, "<answer>B</answer>", 0.0, (0.0, 1.0), {"format": "wrong_tags"}),  # right, but not in the format
        (MC, "B", 0.0, (0.0, 0.0), {"format": "wrong_tags", "accuracy": "no_answer"}),
        (MC, "<think>x</think><answer>?</answer>", 0.1, (1.0, 0.0), {"accuracy": "no_letter: '?'"}),
        (GROUNDING, "<think>x</think><answer>3 to 5</answer>", 0.1 + 0.9 * 0.5, (1.0, 0.5), {}),
        (GROUNDING, "<think>x</think><answer>0 to 20</answer>", 0.1 + 0.9 * 0.2, (1.0, 0.2), {}),
    ],
)
def test_default_composition(row, response, total, terms, failures):
    score = default().score(response, row)
    assert score.total == pytest.approx(total, abs=1e-12)
    assert score.terms == dict(zip(("format", "accuracy"), terms, strict=True))
    assert score.failures == failures


def test_a_right_answer_in_the_right_format_is_worth_exactly_one():
    assert default().score("<think>x</think><answer>B</answer>", MC).total == 1.0


def test_weights_signs_and_logging_only():
    rubric = make(a=gated(2.0, None, 0.5), b=gated(-1.0, None, 0.25), c=gated(0, None, 7.0))
    assert rubric.score("", MC) == Score(total=0.75, terms={"a": 0.5, "b": 0.25, "c": 7.0}, failures={})


def test_requires_gates_the_total_and_not_the_log():
    for value, total in ((1.0, 3.0), (0.0, 0.0), (-1.0, -1.0)):
        rubric = make(bonus=gated(2.0, "base", 1.0), base=gated(1.0, None, value))
        assert rubric.score("", MC) == Score(total=total, terms={"bonus": 1.0, "base": value}, failures={})


def test_requires_is_transitive():
    rubric = make(a=gated(1.0, None, 0.0), b=gated(1.0, "a", 1.0), c=gated(1.0, "b", 1.0))
    assert rubric.score("", MC).total == 0.0


def test_a_gate_may_have_weight_0():
    assert make(a=gated(0, None, 1.0), b=gated(1.0, "a", 1.0)).score("", MC).total == 1.0
    assert make(a=gated(0, None, 0.0), b=gated(1.0, "a", 1.0)).score("", MC).total == 0.0


def test_parts_are_logged_and_do_not_count():
    rubric = make(mine=(f"{__name__}:with_parts", 1.0, None, {}))
    assert rubric.score("", MC) == Score(total=0.5, terms={"mine": 0.5, "mine/speed": 2.0}, failures={})


values = st.floats(-10, 10)


@fixed
@given(values, values, values, values)
def test_total_is_the_weighted_sum_of_what_counts(a, b, weight_a, weight_b):
    score = make(a=gated(weight_a, None, a), b=gated(weight_b, "a", b)).score("", MC)
    assert score.total == pytest.approx(weight_a * a + (weight_b * b if a > 0 else 0.0), abs=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None])
def test_what_is_not_a_finite_number_is_an_error_and_not_a_zero(value):
    with pytest.raises(RewardError, match="reward term 'mine' failed on row 'clip-7': "):
        make(mine=gated(0, None, value)).score("", MC)


def test_an_exception_names_term_row_and_cause():
    rubric = make(mine=(f"{__name__}:broken", 1.0, None, {}))
    with pytest.raises(RewardError) as caught:
        rubric.score("", MC)
    error = caught.value
    assert str(error) == "reward term 'mine' failed on row 'clip-7': KeyError: 'speed'"
    assert isinstance(error.__cause__, KeyError)
    again = pickle.loads(pickle.dumps(error))  # it crosses processes
    assert (str(again), again.term, again.row_id) == (str(error), "mine", "clip-7")


def test_bad_gold_and_unscorable_tasks_stop_the_caller():
    with pytest.raises(RewardError, match=r"'accuracy' failed on row 'clip-7': RowError: .*answer='Z'"):
        default().score("", {**MC, "answer": "Z"})
    with pytest.raises(RewardError, match=r"'accuracy' failed on row 'clip-7': RowError: .*task 'open'"):
        default().score("", {**MC, "task": "open"})


def test_a_total_that_overflows_is_an_error():
    with pytest.raises(RewardError, match=r"reward term 'total'.*inf"):
        make(a=gated(1e300, None, 1e300)).score("", MC)
    assert math.isfinite(make(a=gated(1e100, None, 1e100)).score("", MC).total)


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"a": ("formatt", 1, None, {})}, r"rewards\.terms\.a: 'formatt' is not .* did you mean 'format'"),
        ({"a": ("format", 1, None, {"strict": True})}, r"rewards\.terms\.a: params\.strict is not a parameter"),
        (
            {"format": ("format", 1, None, {}), "acc": ("accuracy", 1, "fromat", {})},
            r"rewards\.terms\.acc\.requires: 'fromat' is not .* did you mean 'format'",
        ),
        ({"a": ("format", 1, "a", {})}, r"rewards\.terms\.a\.requires: a -> a is a cycle"),
        (
            {"a": ("format", 1, "b", {}), "b": ("format", 1, "c", {}), "c": ("format", 1, "b", {})},
            r"rewards\.terms\.b\.requires: b -> c -> b is a cycle",
        ),
    ],
)
def test_terms_that_do_not_fit_are_refused_at_construction(terms, says):
    with pytest.raises(ValueError, match=says):
        make(**terms)
