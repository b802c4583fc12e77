"""Circles, squares and triangles drawn into frames, to be counted.

The geometry is that of VideoSSR's public code (lcqysl/VideoSSR, pretext_tasks/counting.py): each kind of shape on a
few frames that are more than `gap` apart, no frame with two kinds, up to `per_frame` of them, `size` times the shorter
side, at any angle, inside the central `area`. There shapes may overlap where a frame is crowded; here their bounding
boxes never touch, so that the count can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle")
VIVID = ((255, 0, 255), (0, 255, 255), (255, 255, 0))
TRIES = 2000  # scenes drawn before giving up
PLACES = 64  # drawn for a shape before its scene is drawn anew

Box = tuple[float, float, float, float]  # left, top, right, bottom
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ShapeRule:
    """`frames` and `per_frame` are inclusive ranges of counts, `size` is a range of shares of the shorter side.

    With `stay` a shape remains from its frame to the end of the clip. With `vivid` all shapes of a clip have one of
    `VIVID`'s colours and stand upright; without it each has its own colour (50 to 255 in each channel) and angle.
    """

    shapes: tuple[str, ...]
    frames: tuple[int, int]
    per_frame: tuple[int, int]
    gap: int
    size: tuple[float, float]
    area: float
    stay: bool
    vivid: bool


@dataclass(frozen=True)
class Shape:
    """A shape first drawn on `frame`, centred at (x, y), `size` pixels wide before it is turned by `angle` degrees."""

    name: str
    frame: int
    x: float
    y: float
    size: int
    angle: float
    colour: tuple[int, int, int]

    @property
    def outline(self) -> np.ndarray:
        """Corners [K, 2]; of a circle, those of its bounding box. A triangle is equilateral."""
        half = self.size / 2
        if self.name == "triangle":
            rise = self.size * math.sqrt(3) / 4
            corners = np.array([[0, -rise], [-half, rise], [half, rise]])
        else:
            corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
        turn = 0.0 if self.name == "circle" else math.radians(self.angle)
        matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        return corners @ matrix + [self.x, self.y]

    @property
    def box(self) -> Box:
        (left, top), (right, bottom) = self.outline.min(0).tolist(), self.outline.max(0).tolist()
        return left, top, right, bottom


def draw_shapes(num_frames: int, height: int, width: int, rule: ShapeRule, rng: np.random.Generator) -> list[Shape]:
    """Draw which shapes appear where. Raises ValueError where the rule asks for more than fits.

    How many there are is drawn first and then kept, whatever the room: the counts are as likely as the rule says.
    """
    frames = {name: int(rng.integers(*rule.frames, endpoint=True)) for name in rule.shapes}
    schedule = _first(lambda: _try_schedule(frames, num_frames, rule.gap, rng), f"{num_frames} frames", rule)
    vivid = VIVID[rng.integers(len(VIVID))]
    named = [(name, frame) for frame, name in schedule for _ in range(rng.integers(*rule.per_frame, endpoint=True))]
    scenes = [named] if rule.stay else [[item for item in named if item[1] == frame] for frame, _ in schedule]
    place = f"frames of {width}x{height}"
    return [
        shape
        for scene in scenes
        for shape in _first(lambda scene=scene: _try_scene(scene, height, width, rule, vivid, rng), place, rule)
    ]


def _first(attempt: Callable[[], list[T] | None], room: str, rule: ShapeRule) -> list[T]:
    for _ in range(TRIES):
        if (found := attempt()) is not None:
            return found
    raise ValueError(f"{rule} does not fit into {room}; draw fewer or smaller shapes, or lower the gap")


def _try_schedule(
    frames: dict[str, int], num_frames: int, gap: int, rng: np.random.Generator
) -> list[tuple[int, str]] | None:
    """(frame, shape) in order of time: `frames[shape]` of them for each shape, more than `gap` apart."""
    order = rng.permutation(num_frames).tolist()
    schedule: list[tuple[int, str]] = []
    for name, wanted in frames.items():
        chosen: list[int] = []
        for frame in order:
            if len(chosen) < wanted and all(abs(frame - other) > gap for other in chosen):
                chosen.append(frame)
        if len(chosen) < wanted:
            return None
        order = [frame for frame in order if frame not in chosen]
        schedule += [(frame, name) for frame in chosen]
    return sorted(schedule)


def _try_scene(
    named: list[tuple[str, int]],
    height: int,
    width: int,
    rule: ShapeRule,
    vivid: tuple[int, int, int],
    rng: np.random.Generator,
) -> list[Shape] | None:
    """One shape for each (name, frame), all seen together and none touching another."""
    shapes: list[Shape] = []
    for name, frame in named:
        size = round(rng.uniform(*rule.size) * min(height, width))
        angle = 0.0 if rule.vivid else float(rng.uniform(0, 360))
        red, green, blue = vivid if rule.vivid else rng.integers(50, 256, 3).tolist()
        shape = Shape(name, frame, 0.0, 0.0, size, angle, (red, green, blue))
        left, top, right, bottom = shape.box
        low = np.array([(1 - rule.area) / 2 * width - left, (1 - rule.area) / 2 * height - top])
        high = np.array([(1 + rule.area) / 2 * width - 1 - right, (1 + rule.area) / 2 * height - 1 - bottom])
        if (low > high).any():
            return None
        centres = rng.uniform(low, high, (PLACES, 2))
        free = np.ones(PLACES, bool)
        for other in shapes:
            free &= ~_touches(centres, shape.box, other.box)
        if not free.any():
            return None
        x, y = centres[free.argmax()].tolist()
        shapes.append(replace(shape, x=x, y=y))
    return shapes


def _touches(centres: np.ndarray, box: Box, other: Box) -> np.ndarray:
    """Whether less than a pixel would lie between `other` and `box` moved to each of the centres [K, 2]: bool [K].

    A drawn shape includes the pixels on its outline.
    """
    x, y = centres.T
    return (
        (x + box[0] <= other[2] + 2) & (other[0] <= x + box[2] + 2)
        & (y + box[1] <= other[3] + 2) & (other[1] <= y + box[3] + 2)
    )  # fmt: skip


def paint(frames: np.ndarray, shapes: list[Shape], stay: bool) -> np.ndarray:
    """A copy of the frames, uint8 [T, H, W, 3], with the shapes drawn."""
    painted = frames.copy()
    for shape in shapes:
        for index in range(shape.frame, len(frames) if stay else shape.frame + 1):
            image = Image.fromarray(painted[index])
            canvas = ImageDraw.Draw(image)
            if shape.name == "circle":
                canvas.ellipse(shape.box, fill=shape.colour)
            else:
                canvas.polygon([tuple(corner) for corner in shape.outline.tolist()], fill=shape.colour)
            painted[index] = np.asarray(image)
    return painted
