import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed, make_row, reason, say

from videorl.rewards.registry import load
from videorl.rewards.terms.boxes import (
    box_giou,
    box_iou,
    box_precision,
    box_recall,
    detection_format,
    generalized_iou,
    hungarian_iou,
    iou,
    matched_total,
)

SQUARE = [0, 0, 2, 2]
SPARE = [500, 500, 510, 510]


def boxes_row(*boxes):
    return make_row("custom", meta={"boxes": list(boxes)})


def answer(*boxes):
    return say(json.dumps(boxes))


@pytest.mark.parametrize(
    ("box", "overlap", "generalized"),
    [
        ([0, 0, 2, 2], 1.0, 1.0),
        ([1, 1, 3, 3], 1 / 7, -5 / 63),  # 1 / (4 + 4 - 1); hull 9 has 2 outside both: 1/7 - 2/9
        ([0, 0, 2, 1], 1 / 2, 1 / 2),  # within: the hull is the union
        ([-1, -1, 3, 3], 1 / 4, 1 / 4),
        ([2, 0, 4, 2], 0.0, 0.0),  # they touch: hull 8 = union 8
        ([4, 0, 6, 2], 0.0, -1 / 3),  # hull 12, union 8
        ([98, 98, 100, 100], 0.0, -(1 - 8 / 10_000)),
    ],
)
def test_one_box(box, overlap, generalized):
    row = boxes_row(SQUARE)
    assert box_iou(answer(box), row).value == pytest.approx(overlap, abs=1e-12)
    assert box_giou(answer(box), row).value == pytest.approx(generalized, abs=1e-12)


def test_of_several_gold_boxes_the_best_counts():
    row = boxes_row([10, 10, 12, 12], SQUARE)
    assert box_iou(answer(SQUARE), row).value == box_giou(answer(SQUARE), row).value == 1.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (json.dumps([SQUARE, SPARE]), "several_boxes"),  # hedging
        ("[2, 0, 0, 2]", "invalid_box"),
        ("[]", "no_boxes"),
        ("[0, 0, 2, NaN]", "not_finite"),
        ("0, 0, 2, 2", "not_json"),
    ],
)
def test_what_is_not_one_box_is_worth_the_least(text, why):
    for term, worst in ((box_iou, 0.0), (box_giou, -1.0)):
        result = term(say(text), boxes_row(SQUARE))
        assert (result.value, reason(result)) == (worst, why)
    assert reason(box_giou(text, boxes_row(SQUARE))) == "no_answer"


# --- matching --------------------------------------------------------------------------------------------------------


def strip(i, width):
    """Of height 1; its IoU with strip(i, w) is the smaller width over the larger one, and 0 with any other i."""
    return [0, 10 * i, width, 10 * i + 1]


GOLD = [strip(i, 10) for i in range(4)]


def test_hungarian_iou():
    row = boxes_row(*GOLD[:2])
    assert hungarian_iou(answer(strip(1, 10), strip(0, 5)), row).value == (1 + 0.5) / 2
    assert hungarian_iou(answer(strip(1, 10), strip(0, 5), SPARE), row).value == (1 + 0.5) / 3
    assert hungarian_iou(answer(strip(1, 10)), row).value == 1 / 2
    assert hungarian_iou(answer(strip(1, 10), strip(1, 10), strip(1, 10)), row).value == 1 / 3  # copies are spare
    assert hungarian_iou(answer(strip(1, 10), [3, 2, 1, 0]), row).value == 1 / 2  # an invalid box is a prediction
    assert hungarian_iou(answer([3, 2, 1, 0], [5]), row).value == 0.0
    assert reason(hungarian_iou(say("[]"), row)) == "no_boxes"


def test_the_best_assignment_and_not_the_first():
    # widths 8 and 9 against 10 and 4: .8 + 4/9 = 1.24 in order, 4/8 + .9 = 1.4 crossed
    gold = [(0, 0, 10, 1), (0, 0, 4, 1)]
    assert matched_total([(0, 0, 8, 1), (0, 0, 9, 1)], gold, lambda x: x) == pytest.approx(1.4, abs=1e-12)
    row = boxes_row(*gold)
    assert hungarian_iou(answer([0, 0, 8, 1], [0, 0, 9, 1]), row).value == pytest.approx(0.7, abs=1e-12)


@pytest.mark.parametrize(
    ("widths", "stage_1", "stage_2"),
    [
        # of 4 gold boxes. Stage 1 counts IoU >= .5, stage 2 IoU >= .75; f cuts at .5/.75 and .75/.9
        ((10, 10, 10, 10), 1.0, 1.0),
        ((8, 7.5, 7.5, 6), 1.0, 0.75),  # 4/4; 3/4 = xi1 of stage 2, so x itself
        ((8, 8, 6), 1.0, 0.0),  # 3/4 = xi2 of stage 1; 2/4 < .75
        ((6, 5, 4), 0.5, 0.0),  # 2/4 = xi1 of stage 1
        ((6, 4, 4), 0.0, 0.0),  # 1/4
    ],
)
def test_recall_of_vision_r1(widths, stage_1, stage_2):
    response = answer(*(strip(i, width) for i, width in enumerate(widths)))
    assert box_recall(response, boxes_row(*GOLD)).value == stage_1
    assert box_recall(response, boxes_row(*GOLD), xi0=0.75, xi1=0.75, xi2=0.9).value == stage_2


@pytest.mark.parametrize(
    ("boxes", "stage_1", "stage_2"),
    [
        (GOLD, 1.0, 1.0),
        # .8 -> 1, .6 -> .6, .4 -> 0 and a spare box: 1.6 / 4; stage 2: .8 -> .8, the rest 0: .8 / 4
        ([strip(0, 8), strip(1, 6), strip(2, 4), SPARE], 0.4, 0.2),
        ([strip(0, 7.5), strip(1, 5)], (1 + 0.5) / 2, 0.75 / 2),  # on the thresholds
        ([strip(0, 9), [9, 9, 1, 1]], 1 / 2, 1 / 2),  # .9 = xi2 of stage 2, and an invalid box
        ([strip(0, 10)], 1.0, 1.0),  # what is missing is the recall term's business
    ],
)
def test_precision_of_vision_r1(boxes, stage_1, stage_2):
    row = boxes_row(*GOLD)
    assert box_precision(answer(*boxes), row).value == pytest.approx(stage_1, abs=1e-12)
    assert box_precision(answer(*boxes), row, xi1=0.75, xi2=0.9).value == pytest.approx(stage_2, abs=1e-12)


def test_thresholds_of_different_stages_are_refused():
    for term in (box_recall, box_precision):
        with pytest.raises(ValueError, match=r"xi1=0\.9 must be at most xi2=0\.75"):
            term(answer(SQUARE), boxes_row(SQUARE), xi1=0.9)
    with pytest.raises(ValueError, match=r"params\.xi0: 1\.5"):
        load("box_recall", xi0=1.5)


# --- format ----------------------------------------------------------------------------------------------------------


def test_dual_format():
    good = '[{"bbox_2d": [0, 0, 2, 2], "label": "cat"}, {"bbox_2d": [1, 1, 2, 2], "label": "dog"}]'
    row = boxes_row(SQUARE)
    assert detection_format(say(good), row).value == 1.0
    assert detection_format(say(f"```json\n{good}\n```"), row).value == 1.0
    assert detection_format(f"because</think><answer>{good}</answer>", row, tags="prefilled").value == 1.0
    assert detection_format(good, row, tags="none").value == 1.0
    assert reason(detection_format(good, row)) == "wrong_tags"
    assert reason(detection_format(say(good), row, tags="none")) == "not_json"
    assert reason(detection_format(say(good) + "x", row)) == "text_outside"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *[(text, "no_boxes") for text in ("5", "{}", "[]", "null", '{"bbox_2d": [0, 0, 2, 2], "label": "cat"}')],
        ("[[0, 0, 2, 2]]", "wrong_schema"),
        ('[{"bbox_2d": [0, 0, 2, 2]}]', "wrong_schema"),
        ('[{"bbox_2d": [0, 0, 2, 2], "label": " "}]', "wrong_schema"),
        ('[{"bbox_2d": [0, 0, 2, 2], "label": "cat"}, 5]', "wrong_schema"),
        ('[{"label": "cat"}]', "invalid_box"),
        ('[{"bbox_2d": [2, 0, 0, 2], "label": "cat"}]', "invalid_box"),
        ('[{"bbox_2d": [0, 0, 2, true], "label": "cat"}]', "invalid_box"),
        ('[{"bbox_2d": [0, 0, 2, 2], "label": "cat"}] [1]', "not_json"),
    ],
)
def test_not_the_dual_format(text, why):
    result = detection_format(say(text), boxes_row(SQUARE))
    assert (result.value, reason(result)) == (0.0, why)


# --- properties ------------------------------------------------------------------------------------------------------

places = st.integers(-20, 20) | st.floats(-50, 50)
sides = st.integers(1, 30) | st.floats(0.01, 60)
any_box = st.tuples(places, places, sides, sides).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
some_boxes = st.lists(any_box, min_size=1, max_size=5)
MATCHED = (hungarian_iou, box_recall, box_precision)


@fixed
@given(any_box, any_box)
def test_ious_are_symmetric_and_in_range(a, b):
    assert iou(a, b) == iou(b, a) and generalized_iou(a, b) == generalized_iou(b, a)
    assert 0.0 <= iou(a, b) <= 1.0 and -1.0 <= generalized_iou(a, b) <= iou(a, b)
    assert iou(a, a) == generalized_iou(a, a) == 1.0


@fixed
@given(any_box, any_box, st.integers(-30, 30), st.sampled_from([0.5, 2.0, 4.0]))
def test_ious_do_not_change_with_the_coordinates(a, b, shift, scale):
    moved_a, moved_b = (tuple(scale * (x + shift) for x in box) for box in (a, b))
    assert iou(moved_a, moved_b) == pytest.approx(iou(a, b), abs=1e-6)
    assert generalized_iou(moved_a, moved_b) == pytest.approx(generalized_iou(a, b), abs=1e-6)


@fixed
@given(some_boxes, some_boxes, st.randoms(use_true_random=False))
def test_order_does_not_matter(predicted, gold, random):
    shuffled = random.sample(predicted, len(predicted))
    for term in MATCHED:
        value = term(answer(*predicted), boxes_row(*gold)).value
        assert 0.0 <= value <= 1.0
        assert term(answer(*shuffled), boxes_row(*gold)).value == pytest.approx(value, abs=1e-9)
        assert term(answer(*predicted), boxes_row(*gold[::-1])).value == pytest.approx(value, abs=1e-9)


@fixed
@given(some_boxes, some_boxes, st.sampled_from([SPARE, [3, 2, 1, 0], [0, 0, 1], "box", None]))
def test_a_spare_box_never_pays(predicted, gold, spare):
    row = boxes_row(*gold)
    for term in MATCHED:
        value = term(answer(*predicted), row).value
        assert term(answer(*predicted, spare), row).value <= value + 1e-12
    precision = box_precision(answer(*predicted), row).value
    if precision > 0:
        assert box_precision(answer(*predicted, spare), row).value < precision


@fixed
@given(some_boxes)
def test_repeating_the_whole_answer_halves_it(gold):
    row = boxes_row(*gold)
    assert math.isclose(hungarian_iou(answer(*gold), row).value, 1.0)
    assert hungarian_iou(answer(*gold, *gold), row).value == pytest.approx(0.5, abs=1e-9)
    assert box_precision(answer(*gold, *gold), row).value == pytest.approx(0.5, abs=1e-9)


NAMES = ("box_iou", "box_giou", "hungarian_iou", "box_recall", "box_precision", "detection_format")
LOADED = [load(name) for name in NAMES]  # loaded terms check their declared range


@fixed
@given(st.text() | st.text('[]{}",:0123456789.'))
def test_no_response_raises_or_leaves_the_range(text):
    for response in (text, say(text)):
        for term in LOADED:
            term(response, boxes_row(SQUARE))
