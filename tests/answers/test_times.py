import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed, reason

from videorl.answers.answer import Failure
from videorl.answers.times import parse_interval


@pytest.mark.parametrize(
    ("answer", "interval"),
    [
        *[(f"2{separator}5", (2.0, 5.0)) for separator in ("-", "–", "—", "~", " to ", " - ", " ~ ", "−")],
        *[("2s to 5s", (2.0, 5.0)), ("2 sec - 5 seconds", (2.0, 5.0)), ("2.25 to 5.5 s", (2.25, 5.5))],
        *[("from 2 to 5 seconds.", (2.0, 5.0)), ("The answer is 2 TO 5", (2.0, 5.0)), ("(2 - 5)", (2.0, 5.0))],
        *[("**2 to 5**", (2.0, 5.0)), ("２～５", (2.0, 5.0)), ("0 to 1000000", (0.0, 1000000.0))],
        *[("01:15 to 02:05.5", (75.0, 125.5)), ("1:00:00 - 1:02:03", (3600.0, 3723.0)), ("30 to 1:15", (30.0, 75.0))],
    ],
)
def test_interval(answer, interval):
    assert parse_interval(answer) == interval


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "no_interval"),
        ("2", "no_interval"),
        ("2 5", "no_interval"),
        ("2, 5", "no_interval"),
        ("20% to 50%", "no_interval"),
        ("2 to 5 or 7 to 9", "no_interval"),
        ("2 to 5 to 7", "no_interval"),
        ("1:75 to 2:00", "no_interval"),
        ("1:2 to 3:4", "no_interval"),
        (".5 to 9", "no_interval"),
        ("1e1 to 1e2", "no_interval"),
        ("10² to 200", "no_interval"),
        ("2 min to 5 min", "no_interval"),
        ("nan to 5", "no_interval"),
        ("2 to inf", "no_interval"),
        ("٢ to ٥", "no_interval"),
        ("-2 to 5", "negative"),
        ("2 - -5", "negative"),
        ("5 to 2", "reversed"),
        ("2 to 2.0", "zero_length"),
        ("2 to " + "9" * 400, "not_finite"),
        ("9" * 400 + ":00 to " + "9" * 401 + ":00", "not_finite"),
    ],
)
def test_no_interval(answer, why):
    assert reason(parse_interval(answer)) == why


@fixed
@given(st.text() | st.text("0123456789:.-~–to s%"))
def test_interval_never_raises_and_is_ordered(answer):
    interval = parse_interval(answer)
    assert reason(interval) if isinstance(interval, Failure) else 0 <= interval[0] < interval[1] < math.inf


# --- other notations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "interval"),
    [
        ('{"start_time": "2", "end_time": "5.5"}', (2.0, 5.5)),
        ('{"end_time": 5.5, "start_time": 2}', (2.0, 5.5)),
        ('```json\n{"start_time": "0:02", "end_time": " 1:00:05 s "}\n```', (2.0, 3605.0)),
        ('{"start_time": "2", "end_time": "5", "why": "7 to 9"}', (2.0, 5.0)),
    ],
)
def test_interval_in_json(answer, interval):
    assert parse_interval(answer, "json") == interval


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("2 to 5", "not_json"),
        ("[2, 5]", "wrong_schema"),
        ('{"start_time": "2"}', "wrong_schema"),
        ('{"start_time": "2", "end_time": "5", "end_time": "9"}', "duplicate_key"),
        ('{"start_time": NaN, "end_time": 5}', "not_finite"),
        ('{"start_time": "2", "end_time": "' + "9" * 400 + '"}', "not_finite"),
        ('{"start_time": "nan", "end_time": "5"}', "no_interval"),
        ('{"start_time": "10%", "end_time": "50%"}', "no_interval"),
        ('{"start_time": true, "end_time": "5"}', "no_interval"),
        ('{"start_time": ["2"], "end_time": "5"}', "no_interval"),
        ('{"start_time": "2 to 3", "end_time": "5"}', "no_interval"),
        ('{"start_time": "-2", "end_time": "5"}', "negative"),
        ('{"start_time": "-0:30", "end_time": "5"}', "negative"),
        ('{"start_time": -0.0, "end_time": 5}', "negative"),
        ('{"start_time": "5", "end_time": "2"}', "reversed"),
        ('{"start_time": "2", "end_time": 2.0}', "zero_length"),
    ],
)
def test_no_interval_in_json(answer, why):
    assert reason(parse_interval(answer, "json")) == why


def test_interval_in_a_tag():
    assert parse_interval("it is <time> 2.5 - 5 </time><pred_bbox>" + "x" * 10_000, "tag") == (2.5, 5.0)
    assert parse_interval("<time>0:02 to 0:05</time>", "tag") == (2.0, 5.0)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("2 - 5", "wrong_block"),
        ("<time>2 - 5", "wrong_block"),
        ("<time>2 - 5</time><time>2 - 6</time>", "wrong_block"),
        ("<time>2 - 5 or 7 - 9</time>", "no_interval"),
        ("<time>{}</time>", "no_interval"),
        ("<time>5 - 2</time>", "reversed"),
        ("<time>" + "2" * 5000 + "</time>", "too_long"),
    ],
)
def test_no_interval_in_a_tag(answer, why):
    assert reason(parse_interval(answer, "tag")) == why


@fixed
@given(st.text() | st.text('{}"start_ime:nd,0123456789.- <>/'), st.sampled_from(["json", "tag"]))
def test_other_notations_never_raise(answer, mode):
    for text in (answer, f"<time>{answer}</time>", f'{{"start_time": "{answer}", "end_time": "9"}}'):
        interval = parse_interval(text, mode)
        assert reason(interval) if isinstance(interval, Failure) else 0 <= interval[0] < interval[1] < math.inf
