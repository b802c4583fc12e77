"""Gold boxes of rows. They live in `meta`, in the coordinates that the prompt asks for."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard, TypeVar

from videorl.answers.boxes import Box, read_box
from videorl.answers.gold import RowError, is_finite_number

T = TypeVar("T")

_BOX = "[x1, y1, x2, y2] with x1 < x2 and y1 < y2"
_FRAME = re.compile(r"0|[1-9][0-9]{0,8}")


def gold_boxes(row: dict[str, Any]) -> list[Box]:
    """The right boxes, at least one, from `meta["boxes"]`: [[x1, y1, x2, y2], ...]."""
    boxes = _boxes(_meta(row, "boxes"))
    if not boxes:
        raise _bad_meta(row, "boxes", f"must be a list of {_BOX}, at least one")
    return boxes


class Tube(NamedTuple):
    """Where one object is, frame by frame. Frame i is shown at i / fps seconds of the clip."""

    fps: float
    size: tuple[float, float]  # width, height of the frame
    boxes: dict[int, Box]


def gold_tube(row: dict[str, Any]) -> Tube:
    """The right tube, from `meta["tube"]`: {"fps": 2, "size": [640, 360], "boxes": {"12": [x1, y1, x2, y2], ...}}.

    The keys of `boxes` are frame numbers, counted at `fps` frames per second of the clip. With fps 1, an answer's
    times and frame numbers are the same.
    """
    tube = _meta(row, "tube")
    fields: dict[str, Any] = tube if isinstance(tube, dict) else {}
    fps, size, boxes = fields.get("fps"), fields.get("size"), _by_frame(fields.get("boxes"), read_box)
    if not _is_positive(fps):
        raise _bad_meta(row, "tube", "must have fps: frames per second, above 0")
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(map(_is_positive, size)):
        raise _bad_meta(row, "tube", "must have size: [width, height] of the frame")
    if not boxes:
        raise _bad_meta(row, "tube", f"must have boxes: frame numbers, at least one, with {_BOX}")
    return Tube(float(fps), (float(size[0]), float(size[1])), boxes)


class GoldFrame(NamedTuple):
    """What is on a frame: the area of the objects' masks, in pixels, and the boxes of the objects, if any."""

    area: float
    boxes: list[Box]


def gold_keyframes(row: dict[str, Any]) -> dict[int, GoldFrame]:
    """The shown frames by absolute number, from `meta["keyframes"]`: {"12": {"area": 431, "boxes": [[...]]}, ...}.

    The objects are on at least one of them; where they are not, `area` is 0 and `boxes` is empty.
    """
    frames = _by_frame(_meta(row, "keyframes"), _gold_frame)
    if not frames or not any(frame.area for frame in frames.values()):
        rule = f"must map each shown frame's number to its area >= 0 and boxes: a list of {_BOX}; one area is above 0"
        raise _bad_meta(row, "keyframes", rule)
    return frames


def _by_frame(value: Any, read: Callable[[Any], T | None]) -> dict[int, T] | None:
    """None unless all keys are frame numbers, which in JSON are texts, and all values can be read."""
    if not isinstance(value, dict):
        return None
    frames: dict[int, T] = {}
    for key, item in value.items():
        found = read(item) if isinstance(key, str) and _FRAME.fullmatch(key) else None
        if found is None:
            return None
        frames[int(key)] = found
    return frames


def _boxes(value: Any) -> list[Box] | None:
    if not isinstance(value, list | tuple):
        return None
    boxes = [box for box in map(read_box, value) if box is not None]
    return boxes if len(boxes) == len(value) else None


def _gold_frame(value: Any) -> GoldFrame | None:
    if not isinstance(value, dict):
        return None
    area, boxes = value.get("area"), _boxes(value.get("boxes"))
    if boxes is None or not is_finite_number(area) or area < 0:
        return None
    return GoldFrame(float(area), boxes)


def _is_positive(value: Any) -> TypeGuard[float]:
    return is_finite_number(value) and value > 0


def _meta(row: dict[str, Any], key: str) -> Any:
    return (row.get("meta") or {}).get(key)


def _bad_meta(row: dict[str, Any], key: str, rule: str) -> RowError:
    return RowError(
        "bad_gold",
        f"row {row.get('id')!r}: meta[{key!r}]={reprlib.repr(_meta(row, key))} {rule}; "
        "correct the row or take it out of the data",
    )
