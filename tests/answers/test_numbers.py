import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed, reason

from videorl.answers.answer import Failure
from videorl.answers.numbers import parse_counts, parse_number


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        *[("5", 5), ("5.", 5), ("+5", 5), ("-5", -5), ("−5", -5), ("0", 0), ("007", 7), ("１２", 12)],
        *[("5.0", 5.0), (".5", 0.5), ("-2.75", -2.75), ("1e3", 1000.0), ("2.5E-1", 0.25)],
        *[("1,234", 1234), ("1,234,567.5", 1234567.5)],
        *[("5 people", 5), ("There are 5.", 5), ("**5**", 5), (r"\boxed{5}", 5), ("$5$", 5), ("n = 5", 5), ("(5)", 5)],
        *[("50%", 50), ("50 percent", 50), ("5s", 5), ("5 seconds", 5), ("Covid has 5", 5)],
    ],
)
def test_number(answer, value):
    number = parse_number(answer)
    assert (number, type(number)) == (value, type(value))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "no_number"),
        ("five", "no_number"),
        ("3 and 4", "several_numbers"),
        ("2 * 3", "several_numbers"),
        ("1_000", "several_numbers"),
        ("NaN 5", "several_numbers"),
        ("1,23", "malformed_number"),
        ("12,5", "malformed_number"),
        ("1.2.3", "malformed_number"),
        ("3-4", "malformed_number"),
        ("3/4", "malformed_number"),
        ("½", "malformed_number"),
        ("3:45", "malformed_number"),
        ("10²", "malformed_number"),
        ("3D", "malformed_number"),
        ("0x1F", "malformed_number"),
        ("<5", "malformed_number"),
        ("- 5", "malformed_number"),
        ("minus 5", "malformed_number"),
        ("5 million", "malformed_number"),
        ("٣", "malformed_number"),
        ("not 5", "negated"),
        ("nan", "not_finite"),
        ("NaN.", "not_finite"),
        ("-inf", "not_finite"),
        ("Infinity", "not_finite"),
        ("∞", "not_finite"),
        ("1e400", "not_finite"),
        ("9" * 400, "not_finite"),
    ],
)
def test_no_number(answer, why):
    assert reason(parse_number(answer)) == why


@fixed
@given(st.one_of(st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False)))
def test_number_reads_what_python_writes(value):
    assert parse_number(str(value)) == value
    assert parse_number(f"{value:,}" if isinstance(value, int) else repr(value)) == value


@fixed
@given(st.text() | st.text("0123456789.,-+eE%s nafi:/²٣½"))
def test_number_never_raises_and_is_finite(answer):
    number = parse_number(answer)
    assert reason(number) if isinstance(number, Failure) else math.isfinite(number)


# --- lists of numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "values"),
    [
        *[
            (text, (3, 1, 2))
            for text in ("3,1,2", "3, 1, 2.", "[3, 1, 2]", "(3;1;2)", "3 1 2", "3\n1\n2", "**3, 1, 2**")
        ],
        *[("３，１，２", (3, 1, 2)), ("The answer is 3, 1, 2", (3, 1, 2)), ("007, +1, 0", (7, 1, 0))],
        ("-3, 1.5, .5", (-3, 1.5, 0.5)),  # a sign and a point belong to their number
        ("1,234", (1, 234)),
        ("5", (5,)),
    ],
)
def test_counts(answer, values):
    read = parse_counts(answer, len(values))
    assert read == parse_counts(answer) == values
    assert [type(value) for value in read] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "no_number"),
        ("three, one, two", "no_number"),
        ("circles: 3, squares: 1, triangles: 2", "no_number"),
        ("3, 1", "wrong_count"),
        ("3, 1, 2, 2", "wrong_count"),
        ("3,,1", "no_number"),
        ("3, 1, 2 or 3", "no_number"),
        ("3, 1, 2x", "malformed_number"),
        ("3-1-2", "malformed_number"),
        ("3/1/2", "malformed_number"),
        ("1e3, 1, 2", "malformed_number"),
        ("3, 1, 2²", "malformed_number"),
        ("٣, 1, 2", "malformed_number"),
        ("nan, 1, 2", "not_finite"),
        ("3, 1, -inf", "not_finite"),
        ("3, 1, " + "9" * 400, "not_finite"),
    ],
)
def test_no_counts(answer, why):
    assert reason(parse_counts(answer, 3)) == why


@fixed
@given(st.lists(st.integers(-(10**20), 10**20) | st.decimals(-1000, 1000, places=3).map(float), min_size=1, max_size=9))
def test_counts_read_what_python_writes(values):
    assert parse_counts(", ".join(map(str, values))) == tuple(values)
    assert parse_counts(str(values), len(values)) == tuple(values)
