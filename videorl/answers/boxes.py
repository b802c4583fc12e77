"""Boxes (x1, y1, x2, y2), in whatever coordinates the prompt asks for."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, TypeGuard

from videorl.answers.answer import Failure, failure
from videorl.answers.objects import is_number, parse_json, parse_object

Box = tuple[float, float, float, float]

MAX_COORDINATE = 1e6  # no frame is larger; products of such numbers neither overflow nor lose their sign
MAX_BOXES = 512  # matching takes cubic time in their number


def read_box(value: Any) -> Box | None:
    """A box from a list of four numbers; None where they are not, or where not x1 < x2 and y1 < y2.

    A caller keeps the None: a box that is none stays a prediction that fits nothing.
    """
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    if not all(is_number(number) and abs(number) <= MAX_COORDINATE for number in value):
        return None
    x1, y1, x2, y2 = map(float, value)
    ordered = x1 < x2 and y1 < y2
    return (x1, y1, x2, y2) if ordered and (x2 - x1) * (y2 - y1) > 0 else None  # the area of 1e-300 x 1e-300 is 0


def parse_boxes(answer: str) -> list[Box | None] | Failure:
    """The boxes of a JSON answer, at least one; None for each that is not valid.

    Read are [x1, y1, x2, y2], {"bbox_2d": [x1, y1, x2, y2]} and lists of either. A scalar, an object without boxes
    and an empty list are no detections.
    """
    value = parse_json(answer)
    if isinstance(value, Failure):
        return value
    if isinstance(value, dict) or _is_one_box(value):
        value = [value]
    if not isinstance(value, list) or not any(isinstance(item, list) or _has_box(item) for item in value):
        return failure("no_boxes", answer)
    if len(value) > MAX_BOXES:
        return Failure("too_large", f"{len(value)} boxes")
    return [read_box(item["bbox_2d"] if _has_box(item) else item) for item in value]


def _is_one_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(is_number(item) for item in value)


def _has_box(item: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(item, dict) and "bbox_2d" in item


class Keyframe(NamedTuple):
    """An answer of Veason-R1: a frame, by its absolute number, and the boxes on it."""

    frame: int
    boxes: list[Box | None]


def parse_keyframe(answer: str) -> Keyframe | Failure:
    """A frame and the boxes on it, at least one, from {"keyframe_timestamp": 12, "bbox_2d_list": [[...], ...]}."""
    fields = parse_object(answer, "keyframe_timestamp", "bbox_2d_list")
    if isinstance(fields, Failure):
        return fields
    frame, boxes = fields["keyframe_timestamp"], fields["bbox_2d_list"]
    if not isinstance(frame, int) or isinstance(frame, bool):
        return Failure("wrong_schema", f"keyframe_timestamp is {type(frame).__name__}, not an integer")
    if not isinstance(boxes, list) or not boxes:
        return failure("no_boxes", answer)
    if len(boxes) > MAX_BOXES:
        return Failure("too_large", f"{len(boxes)} boxes")
    return Keyframe(frame, [read_box(box) for box in boxes])


_FRAME_BOX = re.compile(r"([0-9]{1,9})\.\s*(\[[^\[\]]*\])[\s,;]*")


def parse_frame_boxes(text: str) -> dict[int, Box | None] | Failure:
    """Boxes by frame number from STVG-o1's list "12. [x1, y1, x2, y2] 13. [...]"; None for each that is not valid.

    Nothing else may stand in the text, and no frame may be listed twice.
    """
    boxes: dict[int, Box | None] = {}
    text = text.strip()
    place = 0
    while place < len(text):
        entry = _FRAME_BOX.match(text, place)
        if not entry:
            return failure("no_boxes", text[place:])
        frame = int(entry[1])
        if frame in boxes:
            return Failure("repeated_frame", str(frame))
        if len(boxes) == MAX_BOXES:
            return Failure("too_large", f"more than {MAX_BOXES} boxes")
        boxes[frame] = read_box(parse_json(entry[2]))
        place = entry.end()
    return boxes or failure("no_boxes", text)
