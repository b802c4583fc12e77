"""Answers that follow one object through time and space, as in STVG-o1 (2511.21375):

    <time> s - e </time><think_bbox> i. [x1,y1,x2,y2] … </think_bbox><pred_bbox> … </pred_bbox>

s and e are seconds, i is a frame number; the row's `meta["tube"]` has the boxes, the frame rate that links the two, and
the frame's size. The paper's temporal reward is `temporal_iou` with mode "tag" and tags "none".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from videorl.answers.answer import Failure, failure
from videorl.answers.blocks import find_block
from videorl.answers.boxes import Box, parse_frame_boxes
from videorl.answers.gold_boxes import Tube, gold_tube
from videorl.answers.times import Interval, parse_interval
from videorl.rewards.result import RewardResult
from videorl.rewards.terms.boxes import generalized_iou

L1 = Literal["sum", "mean"]
"""How the four distances between two boxes' coordinates become one."""

BLOCKS = ("time", "think_bbox", "pred_bbox")


def tube_format(response: str, row: dict[str, Any]) -> RewardResult:
    """1 if the response is the three blocks in order and nothing else, and all of them can be read (R_f)."""
    answer = _parse(response)
    if isinstance(answer, Failure):
        return RewardResult(0.0, failure=answer)
    if None in answer.think.values() or None in answer.pred.values():
        return RewardResult(0.0, failure=Failure("invalid_box"))
    rest = response.strip()
    for name in BLOCKS:
        before, _, rest = rest.partition(f"<{name}>")
        rest = rest.partition(f"</{name}>")[2].lstrip()
        if before:
            return RewardResult(0.0, failure=failure("text_outside", before))
    return RewardResult(0.0, failure=failure("text_outside", rest)) if rest else RewardResult(1.0)


def tube_coverage(response: str, row: dict[str, Any]) -> RewardResult:
    """1 if the draft and the final list both have a valid box on every frame of the answered interval (R_c)."""
    tube, answer = gold_tube(row), _parse(response)
    if isinstance(answer, Failure):
        return RewardResult(0.0, failure=answer)
    frames = _frames(answer.interval, tube.fps)
    return RewardResult(float(bool(frames) and all(answer.think.get(i) and answer.pred.get(i) for i in frames)))


def tube_spatial(response: str, row: dict[str, Any], *, l1: L1 = "sum") -> RewardResult:
    """R_spa of the draft + R_spa of the final list (R_s); both are logged as parts.

    R_spa = mean of GIoU - L1 over the common frames: those of the answered interval on which the list and the gold
    tube have a box. It is 0 without any, as in the paper, and so also where a block cannot be read. L1 is taken of
    coordinates divided by the frame's size, each distance capped at 1 so that the range is known; the paper says
    neither this nor whether it is a sum. A box that is not valid counts as the worst value of both parts.
    """
    tube, answer = gold_tube(row), _parse(response)
    if isinstance(answer, Failure):
        return RewardResult(0.0, failure=answer)
    think, pred = (_spatial(boxes, answer.interval, tube, l1) for boxes in (answer.think, answer.pred))
    return RewardResult(think + pred, {"think": think, "pred": pred})


def tube_gain(response: str, row: dict[str, Any], *, l1: L1 = "sum") -> RewardResult:
    """max(R_spa of the final list - R_spa of the draft, 0), with R_spa as in `tube_spatial` (R_k).

    0 where a block cannot be read, the draft included: leaving it out is no way to gain on it.
    """
    result = tube_spatial(response, row, l1=l1)
    if result.failure is not None:
        return RewardResult(0.0, failure=result.failure)
    return RewardResult(max(result.parts["pred"] - result.parts["think"], 0.0))


class _Answer(NamedTuple):
    interval: Interval
    think: dict[int, Box | None]
    pred: dict[int, Box | None]


def _parse(response: str) -> _Answer | Failure:
    """The three blocks, each of which occurs once, wherever they stand."""
    interval = parse_interval(response, "tag")
    if isinstance(interval, Failure):
        return interval
    lists: list[dict[int, Box | None]] = []
    for name in BLOCKS[1:]:
        block = find_block(response, name)
        boxes = block if isinstance(block, Failure) else parse_frame_boxes(block)
        if isinstance(boxes, Failure):
            return boxes
        lists.append(boxes)
    return _Answer(interval, *lists)


def _frames(interval: Interval, fps: float) -> range:
    """The numbers of the frames within an interval, both ends included, as far as rounding can tell."""
    start, end = (min(time * fps, 1e9) for time in interval)  # no list can name a frame of ten digits
    return range(math.ceil(start - 1e-6), math.floor(end + 1e-6) + 1)


def _spatial(boxes: Mapping[int, Box | None], interval: Interval, tube: Tube, l1: L1) -> float:
    answered = _frames(interval, tube.fps)
    common = sorted(frame for frame in boxes.keys() & tube.boxes.keys() if frame in answered)
    scores = [_frame_score(boxes[frame], tube.boxes[frame], tube.size, l1) for frame in common]
    return math.fsum(scores) / len(scores) if scores else 0.0


def _frame_score(box: Box | None, gold: Box, size: tuple[float, float], l1: L1) -> float:
    """GIoU - L1, in [-5, 1] for the sum and [-2, 1] for the mean."""
    share = 1.0 if l1 == "sum" else 0.25
    if box is None:
        return -1.0 - 4 * share
    sides = size * 2  # x1, y1, x2, y2
    distances = [min(abs(a - b) / side, 1.0) for a, b, side in zip(box, gold, sides, strict=True)]
    return generalized_iou(box, gold) - share * math.fsum(distances)
