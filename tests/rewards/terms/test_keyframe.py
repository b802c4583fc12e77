import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed, make_row, reason, say

from videorl.rewards.registry import load
from videorl.rewards.terms.keyframe import keyframe_area, keyframe_boxes, keyframe_format

A, B = [0, 0, 10, 1], [0, 20, 10, 21]
ROW = make_row(
    "custom",
    meta={
        "keyframes": {
            "3": {"area": 0, "boxes": []},
            "17": {"area": 50, "boxes": [A]},
            "40": {"area": 200, "boxes": [A, B]},
        }
    },
)


def answer(frame, *boxes):
    return say(json.dumps({"keyframe_timestamp": frame, "bbox_2d_list": boxes}))


@pytest.mark.parametrize(
    ("response", "area", "boxes"),
    [
        (answer(40, A, B), 1.0, 1.0),
        (answer(40, B, A), 1.0, 1.0),
        (answer(40, A), 1.0, 1 / 2),
        (answer(40, [0, 0, 5, 1], B, [50, 50, 60, 60]), 1.0, (0.5 + 1) / 3),
        (answer(17, A), 50 / 200, 1.0),
        (answer(17, A, B), 50 / 200, 1 / 2),  # B is not on this frame
        (answer(17, [5]), 50 / 200, 0.0),
        (answer(3, A), 0.0, 0.0),  # shown, without an object: any box is spare
    ],
)
def test_keyframe_and_boxes(response, area, boxes):
    assert keyframe_area(response, ROW).value == area
    assert keyframe_boxes(response, ROW).value == boxes
    assert keyframe_boxes(response, ROW).failure is None


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (answer(2, A), "unknown_frame"),  # the third of the shown frames, but not its absolute number
        (answer(-1, A), "unknown_frame"),
        (answer(10**30, A), "unknown_frame"),
        (answer(40), "no_boxes"),  # an empty list is no answer, whatever the frame
        (answer(3), "no_boxes"),
        (answer(40.0, A), "wrong_schema"),
        (answer(True, A), "wrong_schema"),
        (say("40"), "wrong_schema"),
        (say("[]"), "wrong_schema"),
        (answer(40, A).removesuffix("</answer>"), "no_answer"),
        (say('{"keyframe_timestamp": 3, "keyframe_timestamp": 40, "bbox_2d_list": [[0, 0, 10, 1]]}'), "duplicate_key"),
    ],
)
def test_unreadable_answers_earn_nothing(response, why):
    for term in (keyframe_area, keyframe_boxes):
        result = term(response, ROW)
        assert (result.value, reason(result)) == (0.0, why)


@pytest.mark.parametrize(
    ("response", "tags", "schema", "why"),
    [
        (answer(40, A, B), 1.0, 1.0, None),
        (answer(99, A), 1.0, 1.0, None),  # form alone
        (answer(40, A, [3, 2, 1, 0], B, [1, 2, 3, True]), 1.0, 2 / 4, None),
        (answer(40), 1.0, 0.0, "no_boxes"),
        (say("{}"), 1.0, 0.0, "wrong_schema"),
        (say("40"), 1.0, 0.0, "wrong_schema"),
        ("so " + answer(40, A), 0.0, 1.0, "text_outside"),
        (answer(40, A) + answer(40, A), 0.0, 1.0, "wrong_tags"),
        ("no idea", 0.0, 0.0, "wrong_tags"),
    ],
)
def test_format(response, tags, schema, why):
    result = keyframe_format(response, ROW)
    assert (result.value, result.parts) == (tags + schema, {"tags": tags, "schema": schema})
    assert (result.failure and result.failure.reason) == why


def test_format_of_a_prefilled_response():
    response = answer(40, A).removeprefix("<think>")
    assert keyframe_format(response, ROW, tags="prefilled").value == 2.0
    assert keyframe_format(response, ROW).value == 1.0


LOADED = [load(name) for name in ("keyframe_format", "keyframe_area", "keyframe_boxes")]


@fixed
@given(st.text() | st.text('{}"keyframe_timestamp:bbox_2d_list[],0123456789.'))
def test_no_response_raises_or_leaves_the_range(text):
    for response in (text, say(text), say(f'{{"keyframe_timestamp": 40, "bbox_2d_list": [{text}]}}')):
        for term in LOADED:
            term(response, ROW)
