import pytest
from responses import make_row, reason, say

from videorl.answers.gold import RowError
from videorl.rewards.result import RewardResult
from videorl.rewards.terms.numbers import counts, number, regression


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
    assert number(say(answer), make_row("numeric", answer=gold)) == RewardResult(value)


@pytest.mark.parametrize(
    ("answer", "gold", "value"),
    [("5.25", 5, 1.0), ("4.75", "5", 1.0), ("5.5", 5, 0.0), ("0.25", 0, 0.0), ("9" * 300, 5, 0.0)],
)
def test_number_within_a_tolerance(answer, gold, value):
    assert number(say(answer), make_row("numeric", answer=gold), tolerance=0.25) == RewardResult(value)


@pytest.mark.parametrize("answer", ["nan", "inf", "-inf", "1e999", "5 or 6", "about five", ""])
def test_what_is_not_one_finite_number_is_wrong_and_says_so(answer):
    result = number(say(answer), make_row("numeric", answer=5), tolerance=1e300)
    assert result.value == 0.0 and result.failure is not None


@pytest.mark.parametrize(
    "gold", [None, True, "five", "3 or 4", "nan", float("nan"), float("inf"), 10**400, [5], {"value": 5}]
)
def test_bad_gold_number_is_an_error(gold):
    with pytest.raises(RowError, match=r"row 'clip-7': answer="):
        number(say("5"), make_row("numeric", answer=gold))


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [
        (10, "10", 1.0),
        (10, "8", 0.8),  # 2 of 10 off
        (10, "12", 0.8),
        (10, "19", 0.1),
        (10, "20", 0.0),
        (10, "1000", 0.0),
        (-4, "-3", 0.75),
        (-4, "4", 0.0),
        ("0.5", "0.25", 0.5),
        (0, "0", 1.0),
        (0, "0.0", 1.0),
        (0, "0.0000001", 0.0),
        (1e308, "-1" + "0" * 308, 0.0),  # their distance is more than a float holds
        (10**308, "1" + "0" * 308, 1.0),
    ],
)
def test_regression(gold, answer, value):
    result = regression(say(answer), make_row("numeric", answer=gold))
    assert result.value == pytest.approx(value, abs=1e-8) and result.failure is None


@pytest.mark.parametrize("answer", ["nan", "inf", "-inf", "9 or 10", "ten", '{"a": 10, "b": 9}', "10%%"])
def test_regression_pays_nothing_for_what_is_no_number(answer):
    result = regression(say(answer), make_row("numeric", answer=10))
    assert result.value == 0.0 and reason(result)


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [
        ("3, 1, 2", "3, 1, 2", 1.0),
        ("3,1,2", "3 1 2", 1.0),
        ("3, 1, 2", "3, 2, 2", (1 + 0 + 1) / 3),
        ("3, 1, 2", "2, 1, 4", (2 / 3 + 1 + 0) / 3),
        ("3, 1, 2", "9, 9, 9", 0.0),  # nothing falls below 0
        ("3, 1, 2", "-3, 1, 2", (0 + 1 + 1) / 3),
        ("3, 1, 2", "1.5, 1, 2", (0.5 + 1 + 1) / 3),
        ("0, 2, 4", "0, 1, 4", (1 + 0.5 + 1) / 3),
        ("0, 2, 4", "1, 2, 4", (0 + 1 + 1) / 3),
        ("0, 0", "0, 0", 1.0),
        (4, "3", 0.75),
    ],
)
def test_counts(gold, answer, value):
    result = counts(say(answer), make_row("custom", answer=gold))
    assert result.value == pytest.approx(value, abs=1e-8) and result.failure is None


@pytest.mark.parametrize("answer", ["3, 1", "3, 1, 2, 0", "3, 1, nan", "3-1-2", "three, one, two", '{"a": 3}'])
def test_counts_that_cannot_be_read_earn_nothing(answer):
    result = counts(say(answer), make_row("custom", answer="3, 1, 2"))
    assert result.value == 0.0 and reason(result)


@pytest.mark.parametrize("gold", [None, "", "three", "3, -1", "3, nan", [3, 1, 2], True])
def test_bad_gold_counts_are_an_error(gold):
    with pytest.raises(RowError, match=r"row 'clip-7': answer=.*must be counts"):
        counts(say("3, 1, 2"), make_row("custom", answer=gold))
