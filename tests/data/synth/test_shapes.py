from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.data.synth.shapes import SHAPES, VIVID, Shape, ShapeRule, draw_shapes, paint

PUBLISHED = ShapeRule(
    shapes=SHAPES, frames=(1, 3), per_frame=(1, 3), gap=8, size=(0.2, 0.4), area=0.7, stay=False, vivid=False
)
SMALL = ShapeRule(
    shapes=("square",), frames=(1, 4), per_frame=(1, 1), gap=0, size=(0.36, 0.36), area=1.0, stay=True, vivid=True
)
seeds = given(seed=st.integers(0, 2**32))
few = settings(derandomize=True, deadline=None, max_examples=30)


@few
@seeds
def test_the_published_geometry(seed):
    shapes = draw_shapes(48, 180, 320, PUBLISHED, np.random.default_rng(seed))
    for name in SHAPES:
        frames = Counter(shape.frame for shape in shapes if shape.name == name)
        assert 1 <= len(frames) <= 3 and all(1 <= number <= 3 for number in frames.values())
        assert all(abs(a - b) > 8 for a in frames for b in frames if a != b)
    assert len({(shape.frame, shape.name) for shape in shapes}) == len({shape.frame for shape in shapes})
    for shape in shapes:
        left, top, right, bottom = shape.box
        assert min(left / 320, top / 180) >= 0.15 and max(right / 320, bottom / 180) <= 0.85
        assert 36 <= shape.size <= 72  # 0.2 and 0.4 of 180
        assert all(50 <= channel <= 255 for channel in shape.colour)


@few
@seeds
def test_as_many_shapes_are_seen_as_were_drawn(seed):
    """Each is a connected area of its own on a black frame."""
    for rule, size in ((PUBLISHED, (180, 320)), (SMALL, (56, 56))):
        shapes = draw_shapes(48, *size, rule, np.random.default_rng(seed))
        painted = paint(np.zeros((48, *size, 3), np.uint8), shapes, rule.stay)
        for frame in {shape.frame for shape in shapes}:
            shown = [s for s in shapes if (s.frame <= frame if rule.stay else s.frame == frame)]
            assert count_areas(painted[frame].any(-1)) == len(shown)


def count_areas(mask):
    """Connected areas of a bool [H, W] array, by flood fill; corners connect."""
    left = {tuple(point) for point in np.argwhere(mask).tolist()}
    areas = 0
    while left:
        areas += 1
        edge = [left.pop()]
        while edge:
            y, x = edge.pop()
            for near in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                if near in left:
                    left.remove(near)
                    edge.append(near)
    return areas


def test_counts_are_as_likely_as_the_rule_says():
    """Four squares are hard to place in 56 pixels, and yet no rarer than one."""
    numbers = Counter(len(draw_shapes(16, 56, 56, SMALL, np.random.default_rng(seed))) for seed in range(400))
    assert set(numbers) == {1, 2, 3, 4}
    # 100 of each are expected; five standard deviations are 5 * sqrt(400 / 4 * 3 / 4) = 43.
    assert all(abs(number - 100) < 44 for number in numbers.values())


def test_vivid_shapes_of_a_clip_share_their_colour():
    colours = [{shape.colour for shape in draw_shapes(16, 56, 56, SMALL, np.random.default_rng(s))} for s in range(20)]
    assert all(len(found) == 1 for found in colours) and set().union(*colours) == set(VIVID)


def test_a_square_is_painted_from_its_frame_on():
    frames = np.zeros((4, 20, 20, 3), np.uint8)
    square = Shape("square", 2, 9.5, 9.5, 10, 0.0, (255, 255, 0))  # pixels 5 to 14
    for stay, last in ((True, 4), (False, 3)):
        painted = paint(frames, [square], stay)
        assert not painted[:2].any() and not painted[last:].any()
        assert (painted[2, 5:14, 5:14] == (255, 255, 0)).all()
        assert painted[2].any(-1).sum() == pytest.approx(100, abs=21)  # its outline may count twice
    assert not frames.any()


def test_areas_of_the_shapes():
    # Of size 40: circle pi * 20^2 = 1257, square 40^2 = 1600, equilateral triangle sqrt(3) / 4 * 40^2 = 693; their
    # outlines are pi * 40 = 126, 160 and 120 pixels long, about half of which are painted outside of them.
    for name, area, outline in (("circle", 1257, 126), ("square", 1600, 160), ("triangle", 693, 120)):
        for angle in (0.0, 25.0, 90.0):
            shape = Shape(name, 0, 50.0, 50.0, 40, angle, (0, 255, 0))
            found = paint(np.zeros((1, 100, 100, 3), np.uint8), [shape], stay=False).any(-1).sum()
            assert 0.98 * area <= found <= area + 0.7 * outline, (name, angle)
    assert Shape("square", 0, 50.0, 50.0, 40, 45.0, (0, 0, 0)).box == pytest.approx((21.7, 21.7, 78.3, 78.3), abs=0.1)


@pytest.mark.parametrize(
    ("change", "room"),
    [
        ({"size": (0.9, 0.9), "per_frame": (2, 2)}, "frames of 320x180"),
        ({"frames": (3, 3), "gap": 30}, "48 frames"),
        ({"area": 0.1}, "frames of 320x180"),
    ],
)
def test_what_does_not_fit(change, room):
    with pytest.raises(ValueError, match=f"does not fit into {room}; draw fewer or smaller"):
        draw_shapes(48, 180, 320, replace(PUBLISHED, **change), np.random.default_rng(0))
