import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed, reason

from videorl.answers.answer import Failure
from videorl.answers.objects import MAX_JSON_CHARS, MAX_JSON_DEPTH, is_number, parse_json, parse_object


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('{"a": [1, 2.5, true, null, "x"]}', {"a": [1, 2.5, True, None, "x"]}),
        (' \n{"a": 1}\n', {"a": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('```JSON {"a": 1}```', {"a": 1}),
        ("```\n[1]\n```", [1]),
        ("5", 5),
        ("[]", []),
        ('"```"', "```"),
        ('{"[": "]]]", "{": "\\"{{{"}', {"[": "]]]", "{": '"{{{'}),  # brackets in strings nest nothing
    ],
)
def test_json(answer, value):
    assert parse_json(answer) == value


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "not_json"),
        ("{'a': 1}", "not_json"),
        ('{"a": 1,}', "not_json"),
        ('{"a": 1} {"a": 2}', "not_json"),
        ('so {"a": 1}', "not_json"),
        ('```json\n{"a": 1}\n``` as asked', "not_json"),
        ('```json\n{"a": 1}\n```\n```json\n{"a": 2}\n```', "not_json"),
        ("``````", "not_json"),
        ("```", "not_json"),
        ('{"a": NaN}', "not_finite"),
        ("[Infinity]", "not_finite"),
        ("[-Infinity]", "not_finite"),
        ("[1e400]", "not_finite"),
        ("[" + "9" * 5000 + "]", "not_finite"),  # Python refuses to read such an int at all
        ('{"a": 1, "a": 2}', "duplicate_key"),
        ('[{"b": {"a": 1, "a": 1}}]', "duplicate_key"),
        ("[" * 100_000, "too_large"),
        ("[" * (MAX_JSON_DEPTH + 1) + "]" * (MAX_JSON_DEPTH + 1), "too_large"),
        ('{"a":' * 1000 + "1" + "}" * 1000, "too_large"),
        ("[" + "1," * MAX_JSON_CHARS + "1]", "too_large"),
    ],
)
def test_no_json(answer, why):
    assert reason(parse_json(answer)) == why


def test_the_bounds_themselves_are_allowed():
    assert parse_json("[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH) != []
    assert isinstance(parse_json(json.dumps("x" * (MAX_JSON_CHARS - 2))), str)


def test_object():
    assert parse_object('{"a": 1, "b": 2}', "a") == {"a": 1, "b": 2}
    for answer in ("{}", "[]", "[1]", "1", '"a"', "null", '{"b": 1}', '[{"a": 1}]'):
        assert reason(parse_object(answer, "a")) == "wrong_schema"
    assert reason(parse_object("{", "a")) == "not_json"


def test_true_is_no_number():
    assert [is_number(value) for value in (1, 1.5, True, False, None, "1", [1])] == [True, True] + 5 * [False]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


@fixed
@given(values.filter(lambda value: json.dumps(value).count("[") + json.dumps(value).count("{") <= MAX_JSON_DEPTH))
def test_json_reads_what_python_writes(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(f"```json\n{json.dumps(value, indent=2)}\n```") == value


@fixed
@given(st.text() | st.text('[]{}",:\\0123456789.eE+-NaInfty`\n '))
def test_json_never_raises(answer):
    value = parse_json(answer)
    if isinstance(value, Failure):
        assert reason(value)
