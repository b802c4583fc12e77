"""Answers that are boxes on one frame.

Answer and gold (`meta["boxes"]`) are in the same coordinates, those the prompt asks for. A row has at least one gold
box, and an empty list is no answer, so "nothing here" against no gold never has to be scored. A box that is not valid
still counts as a prediction, and fits nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from videorl.answers.answer import Failure, Tags, failure, parse_blocks
from videorl.answers.boxes import MAX_BOXES, Box, parse_boxes, read_box
from videorl.answers.gold_boxes import gold_boxes
from videorl.answers.objects import parse_json
from videorl.config import Fraction
from videorl.rewards.result import RewardResult, score_answer

# --- terms -----------------------------------------------------------------------------------------------------------


def box_iou(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """Intersection over union of the one answered box and the gold box it fits best."""
    gold = gold_boxes(row)
    return score_answer(response, tags, _one_box, lambda box: max(iou(box, other) for other in gold))


def box_giou(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """Generalised IoU (Rezatofighi et al., 1902.09630) of the one answered box and the gold box it fits best.

    It also tells apart boxes that do not overlap. -1, its worst value, where there is no box to read.
    """
    gold = gold_boxes(row)
    result = score_answer(response, tags, _one_box, lambda box: max(generalized_iou(box, other) for other in gold))
    return result if result.failure is None else RewardResult(-1.0, failure=result.failure)


def hungarian_iou(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """Sum of the IoUs of matched boxes / max(number answered, number of gold boxes); Veason-R1's spatial reward."""
    gold = gold_boxes(row)
    return score_answer(response, tags, parse_boxes, lambda boxes: mean_matched_iou(boxes, gold))


def box_recall(
    response: str,
    row: dict[str, Any],
    *,
    xi0: Fraction = 0.5,
    xi1: Fraction = 0.5,
    xi2: Fraction = 0.75,
    tags: Tags = "full",
) -> RewardResult:
    """f(share of gold boxes that are matched with IoU >= xi0); Vision-R1's recall reward.

    f(x) = 0 below xi1, 1 from xi2 on, else x. Stage 1 of the paper is the default, stage 2 is .75, .75, .9. Its code
    keeps xi1 and xi2 of this term at .5 and .75, and measures GIoU.
    """
    gold = gold_boxes(row)

    def value(boxes: list[Box | None]) -> float:
        found = matched_total(boxes, gold, lambda overlap: float(overlap >= xi0))
        return _stepped(found / len(gold), xi1, xi2)

    return score_answer(response, tags, parse_boxes, value)


def box_precision(
    response: str, row: dict[str, Any], *, xi1: Fraction = 0.5, xi2: Fraction = 0.75, tags: Tags = "full"
) -> RewardResult:
    """Mean of f(IoU) over the answered boxes, 0 for those without a match; Vision-R1's precision reward.

    f as in `box_recall`. Spare boxes count, as in the authors' newer code; their older one averages matched boxes.
    """
    gold = gold_boxes(row)

    def value(boxes: list[Box | None]) -> float:
        return matched_total(boxes, gold, lambda overlap: _stepped(overlap, xi1, xi2)) / len(boxes)

    return score_answer(response, tags, parse_boxes, value)


def detection_format(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """1 if tags and content are right: a JSON list of {"bbox_2d": valid box, "label": text}; Vision-R1's dual format.

    With `tags="none"` the whole response must be that list.
    """
    blocks = response if tags == "none" else parse_blocks(response, tags)
    if isinstance(blocks, Failure):
        return RewardResult(0.0, failure=blocks)
    wrong = _not_detections(blocks if isinstance(blocks, str) else blocks.answer)
    return RewardResult(1.0) if wrong is None else RewardResult(0.0, failure=wrong)


def _not_detections(answer: str) -> Failure | None:
    items = parse_json(answer)
    if isinstance(items, Failure):
        return items
    if not isinstance(items, list) or not 0 < len(items) <= MAX_BOXES:
        return failure("no_boxes", answer)
    for item in items:
        label = item.get("label") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not isinstance(label, str) or not label.strip():
            return Failure("wrong_schema", "a list of objects with bbox_2d and label is expected")
        if read_box(item.get("bbox_2d")) is None:
            return failure("invalid_box", repr(item.get("bbox_2d")))
    return None


def _one_box(answer: str) -> Box | Failure:
    boxes = parse_boxes(answer)
    if isinstance(boxes, Failure):
        return boxes
    if len(boxes) > 1:
        return Failure("several_boxes", str(len(boxes)))
    return boxes[0] or failure("invalid_box", answer)


def _stepped(x: float, low: float, high: float) -> float:
    if low > high:
        raise ValueError(f"xi1={low} must be at most xi2={high}; set both for the same stage")
    return 0.0 if x < low else 1.0 if x >= high else x


# --- geometry --------------------------------------------------------------------------------------------------------


def mean_matched_iou(predicted: Sequence[Box | None], gold: Sequence[Box]) -> float:
    """Sum of the IoUs of matched boxes / the larger of the two numbers of boxes, in [0, 1]; 0 without gold boxes."""
    return matched_total(predicted, gold, lambda overlap: overlap) / max(len(predicted), len(gold))


def matched_total(predicted: Sequence[Box | None], gold: Sequence[Box], value: Callable[[float], float]) -> float:
    """The largest sum of value(IoU) over pairs of a predicted and a gold box, each box in one pair at most.

    The pairs are found by the Hungarian method, for the value itself and not for the IoU: then the sum does not
    depend on the order of the boxes, for where two assignments tie both give it. `predicted` is not empty; its None
    fit nothing.
    """
    from scipy.optimize import linear_sum_assignment  # here, because it loads numpy and most rubrics need neither

    if not gold:
        return 0.0
    values = [[0.0 if box is None else value(iou(box, other)) for other in gold] for box in predicted]
    rows, columns = linear_sum_assignment(values, maximize=True)
    return math.fsum(values[row][column] for row, column in zip(rows, columns, strict=True))


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    overlap, union, _ = _areas(a, b)
    return overlap / union


def generalized_iou(a: Box, b: Box) -> float:
    """IoU less the share of the boxes' hull that neither covers, in [-1, 1]."""
    overlap, union, hull = _areas(a, b)
    return overlap / union - (hull - union) / hull


def _areas(a: Box, b: Box) -> tuple[float, float, float]:
    """Of the intersection, the union and the hull."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return overlap, union, max(hull, union)  # rounding may leave the hull of nested boxes below their union
