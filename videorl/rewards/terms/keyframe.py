"""Answers that choose a frame and mark objects on it, as in Veason-R1 (2508.11538).

The answer is {"keyframe_timestamp": 12, "bbox_2d_list": [[x1, y1, x2, y2], ...]}; the frame is named by its absolute
number. `meta["keyframes"]` has the shown frames, each with the area of the objects' masks and their boxes.
The paper's fourth term compares masks that a segmentation model propagates from these boxes; it is not built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from videorl.answers.answer import Failure, Tags, find_answer, parse_blocks
from videorl.answers.boxes import Keyframe, parse_keyframe
from videorl.answers.gold_boxes import GoldFrame, gold_keyframes
from videorl.rewards.result import RewardResult, score_answer
from videorl.rewards.terms.boxes import mean_matched_iou


def keyframe_format(response: str, row: dict[str, Any], *, tags: Literal["full", "prefilled"] = "full") -> RewardResult:
    """1 for the tags + the share of valid boxes in an answer that has an integer frame and a list of boxes.

    Both are logged as parts. Without boxes the share is 0. Nothing but the two blocks may be written.
    """
    blocks = parse_blocks(response, tags)
    answer = find_answer(response, tags)
    keyframe = answer if isinstance(answer, Failure) else parse_keyframe(answer)
    schema = 0.0
    if not isinstance(keyframe, Failure):
        schema = sum(box is not None for box in keyframe.boxes) / len(keyframe.boxes)
    tagged = float(not isinstance(blocks, Failure))
    failures = [found for found in (blocks, keyframe) if isinstance(found, Failure)]
    return RewardResult(tagged + schema, {"tags": tagged, "schema": schema}, failures[0] if failures else None)


def keyframe_area(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """Area of the objects' masks on the chosen frame / the largest area on any shown frame; 0 for other frames."""
    frames = gold_keyframes(row)
    largest = max(frame.area for frame in frames.values())
    return _score(response, tags, frames, lambda keyframe, gold: gold.area / largest)


def keyframe_boxes(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """Sum of the IoUs of matched boxes on the chosen frame / max(number answered, number of gold boxes there).

    0 for a frame that was not shown, and for one without gold boxes: an empty list is no answer, and any box is spare.
    Boxes are continuous; the authors' code adds a pixel to each side.
    """
    return _score(
        response, tags, gold_keyframes(row), lambda keyframe, gold: mean_matched_iou(keyframe.boxes, gold.boxes)
    )


def _score(
    response: str, tags: Tags, frames: dict[int, GoldFrame], value: Callable[[Keyframe, GoldFrame], float]
) -> RewardResult:
    def parse(answer: str) -> Keyframe | Failure:
        keyframe = parse_keyframe(answer)
        if isinstance(keyframe, Failure) or keyframe.frame in frames:
            return keyframe
        return Failure("unknown_frame", str(keyframe.frame))

    return score_answer(response, tags, parse, lambda keyframe: value(keyframe, frames[keyframe.frame]))
