import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed, reason

from videorl.answers.answer import Failure
from videorl.answers.boxes import (
    MAX_BOXES,
    MAX_COORDINATE,
    Keyframe,
    parse_boxes,
    parse_frame_boxes,
    parse_keyframe,
    read_box,
)

BOX = (1.0, 2.0, 3.0, 4.5)


def is_box(value):
    x1, y1, x2, y2 = value
    return all(abs(number) <= MAX_COORDINATE for number in value) and x1 < x2 and y1 < y2


@pytest.mark.parametrize(
    "value",
    [
        *(None, 1, "1234", {"x1": 1}, [], [1, 2, 3], [1, 2, 3, 4, 5], [[1, 2, 3, 4]], ["1", "2", "3", "4"]),
        *([1, 2, 3, True], [1, 2, 3, None], [3, 2, 1, 4], [1, 4, 3, 2], [1, 2, 1, 4], [1, 2, 3, 2]),
        *([1, 2, 3, float("nan")], [1, 2, float("inf"), 4], [1, 2, 3, 10**400], [1, 2, 3, 1e7], [-1e7, 2, 3, 4]),
        [0, 0, 1e-300, 1e-300],
    ],
)
def test_what_is_no_box(value):
    assert read_box(value) is None


def test_box():
    assert read_box([1, 2, 3, 4.5]) == BOX
    assert read_box([-1, -2, 3, 4]) == (-1.0, -2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("answer", "boxes"),
    [
        ("[1, 2, 3, 4.5]", [BOX]),
        ("[[1, 2, 3, 4.5]]", [BOX]),
        ('{"bbox_2d": [1, 2, 3, 4.5], "label": "cat"}', [BOX]),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4.5]}, {"bbox_2d": [0, 0, 1, 1]}]\n```', [BOX, (0.0, 0.0, 1.0, 1.0)]),
        ("[[3, 2, 1, 4.5], [1, 2, 3, 4.5]]", [None, BOX]),  # it stays, as a prediction that fits nothing
        ("[3, 2, 1, 4.5]", [None]),
        ('{"bbox_2d": "all of it"}', [None]),
        ('[[1, 2, 3, 4.5], 7, "cat", null, {"label": "cat"}]', [BOX, None, None, None, None]),
        ("[[1, 2, 3, 4.5], [1, 2, 3, 1e30]]", [BOX, None]),
    ],
)
def test_boxes(answer, boxes):
    assert parse_boxes(answer) == boxes


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        *[
            (answer, "no_boxes")
            for answer in ("{}", "[]", "1", "true", '"[1, 2, 3, 4]"', "null", '{"box": [1, 2, 3, 4]}')
        ],
        *[(answer, "no_boxes") for answer in ("[1, 2, 3]", "[1, 2, 3, true]", '["cat"]', "[{}]", '[{"label": "cat"}]')],
        ("1, 2, 3, 4", "not_json"),
        ("the box is [1, 2, 3, 4]", "not_json"),
        ("[1, 2, NaN, 4]", "not_finite"),
        (json.dumps([[0, 0, 1, 1]] * (MAX_BOXES + 1)), "too_large"),
    ],
)
def test_no_boxes(answer, why):
    assert reason(parse_boxes(answer)) == why


def test_keyframe():
    answer = '{"keyframe_timestamp": 12, "bbox_2d_list": [[1, 2, 3, 4.5], [3, 2, 1, 4]]}'
    assert parse_keyframe(answer) == Keyframe(12, [BOX, None])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ('{"keyframe_timestamp": 12}', "wrong_schema"),
        ('{"bbox_2d_list": [[1, 2, 3, 4]]}', "wrong_schema"),
        ('{"keyframe_timestamp": true, "bbox_2d_list": [[1, 2, 3, 4]]}', "wrong_schema"),
        ('{"keyframe_timestamp": "12", "bbox_2d_list": [[1, 2, 3, 4]]}', "wrong_schema"),
        ('{"keyframe_timestamp": 12.0, "bbox_2d_list": [[1, 2, 3, 4]]}', "wrong_schema"),
        ('{"keyframe_timestamp": 1, "keyframe_timestamp": 2, "bbox_2d_list": [[1, 2, 3, 4]]}', "duplicate_key"),
        ('{"keyframe_timestamp": 12, "bbox_2d_list": []}', "no_boxes"),
        ('{"keyframe_timestamp": 12, "bbox_2d_list": {"a": [1, 2, 3, 4]}}', "no_boxes"),
        (json.dumps({"keyframe_timestamp": 1, "bbox_2d_list": [[0, 0, 1, 1]] * (MAX_BOXES + 1)}), "too_large"),
    ],
)
def test_no_keyframe(answer, why):
    assert reason(parse_keyframe(answer)) == why


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("12. [1, 2, 3, 4.5]", {12: BOX}),
        (" 0. [1,2,3,4.5]\n1.[1,2,3,4.5], 2. [1,2,3,4.5];", {0: BOX, 1: BOX, 2: BOX}),
        ("3. [3, 2, 1, 4] 4. [nan, 1, 2, 3] 5. [] 6. [1, 2, 3] 7. [a]", dict.fromkeys(range(3, 8))),
    ],
)
def test_frame_boxes(text, boxes):
    assert parse_frame_boxes(text) == boxes


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *[(text, "no_boxes") for text in ("", "none", "[1, 2, 3, 4]", "1 [1, 2, 3, 4]", "-1. [1, 2, 3, 4]")],
        *[(text, "no_boxes") for text in ("1. [1, 2, 3, 4", "1. [[1, 2, 3, 4]]", "1. [1, 2, 3, 4] and so on")],
        *[(text, "no_boxes") for text in ("٣. [1, 2, 3, 4]", "9" * 10 + ". [1, 2, 3, 4]", "1.5. [1, 2, 3, 4]")],
        ("1. [1, 2, 3, 4] 1. [5, 6, 7, 8]", "repeated_frame"),
        ("1. [1, 2, 3, 4] 01. [5, 6, 7, 8]", "repeated_frame"),
        ("".join(f"{i}. [0, 0, 1, 1]" for i in range(MAX_BOXES + 1)), "too_large"),
    ],
)
def test_no_frame_boxes(text, why):
    assert reason(parse_frame_boxes(text)) == why


coordinates = st.lists(st.integers(-9, 9) | st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=4, max_size=4)


@fixed
@given(st.lists(coordinates, min_size=1, max_size=5))
def test_boxes_are_read_as_written(written):
    expected = [tuple(map(float, box)) if is_box(box) else None for box in written]
    assert parse_boxes(json.dumps(written)) == expected
    assert parse_boxes(json.dumps([{"bbox_2d": box, "label": "x"} for box in written])) == expected
    assert parse_frame_boxes("\n".join(f"{i}. {json.dumps(box)}" for i, box in enumerate(written))) == dict(
        enumerate(expected)
    )


@fixed
@given(st.text() | st.text('[]{}",:.0123456789 bx_d2\n'))
def test_boxes_never_raise(text):
    for parsed in (parse_boxes(text), parse_keyframe(text), parse_frame_boxes(text)):
        assert reason(parsed) if isinstance(parsed, Failure) else parsed
