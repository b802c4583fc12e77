import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.data.synth.perturb import PERTURBATIONS, fit, permute

FAMILIES = 13


def make_frames(num_frames=8, height=12, width=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), np.uint8)


def apply(name, frames, other=None, seed=0):
    return PERTURBATIONS[name].apply(
        frames, make_frames(seed=9) if other is None else other, np.random.default_rng(seed)
    )


def test_there_are_thirteen_families():
    assert len({name.rstrip("0123456789") for name in PERTURBATIONS}) == FAMILIES
    assert len({perturbation.phrase for perturbation in PERTURBATIONS.values()}) == len(PERTURBATIONS)


@pytest.mark.parametrize("name", PERTURBATIONS)
@settings(derandomize=True, deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32), num_frames=st.integers(2, 9), height=st.integers(8, 30), width=st.integers(8, 30))
def test_every_perturbation_changes_frames_of_the_same_shape(name, seed, num_frames, height, width):
    frames = make_frames(num_frames, height, width, seed)
    before, other = frames.copy(), make_frames(num_frames, height, width, seed + 1)
    changed, _ = apply(name, frames, other, seed)
    assert changed.shape == frames.shape and changed.dtype == np.uint8
    assert (changed != frames).any()
    assert (frames == before).all()  # what it was given stays
    again, _ = apply(name, frames, other, seed)
    assert (again == changed).all()


def test_grayscale():
    # 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 59.8 + 58.7 + 5.7 = 124.2
    assert apply("grayscale", np.full((1, 1, 1, 3), (200, 100, 50), np.uint8))[0].tolist() == [[[[124, 124, 124]]]]


def test_invert():
    assert apply("invert", np.full((1, 1, 1, 3), (200, 100, 50), np.uint8))[0].tolist() == [[[[55, 155, 205]]]]


def test_channel_swap():
    assert apply("channel_swap", np.full((1, 1, 1, 3), (200, 100, 50), np.uint8))[0].tolist() == [[[[50, 100, 200]]]]


def test_saturation():
    # Grey is 124.2: red goes to 124.2 + 2 * 75.8 = 275.8, cut to 255; green to 75.8; blue to -24.2, cut to 0.
    assert apply("saturation", np.full((1, 1, 1, 3), (200, 100, 50), np.uint8))[0].tolist() == [[[[255, 76, 0]]]]


def test_mirror_and_rotation():
    square = np.zeros((1, 3, 3, 3), np.uint8)
    square[0, 0, 2] = 255  # top right
    corners = {"mirror": (0, 0), "rotate90": (2, 2), "rotate180": (2, 0), "rotate270": (0, 0)}
    for name, (row, column) in corners.items():
        changed, _ = apply(name, square)
        assert np.argwhere(changed[0, :, :, 0]).tolist() == [[row, column]], name


def test_a_quarter_turn_fits_into_the_frame():
    changed, _ = apply("rotate90", np.full((2, 20, 40, 3), 255, np.uint8))
    # 40x20 turned is 20x40, scaled by 1/2 it is 10x20: columns 15..24 of 40.
    assert (changed[:, :, 15:25] == 255).all() and not changed[:, :, :15].any() and not changed[:, :, 25:].any()


def test_noise():
    frames = np.full((4, 40, 40, 3), 128, np.uint8)
    changed, drawn = apply("noise", frames)
    assert 35 <= drawn["sigma"] <= 70
    assert (changed.astype(float) - 128).std() == pytest.approx(drawn["sigma"], rel=0.1)


def test_zoom():
    frames = np.zeros((1, 60, 60, 3), np.uint8)
    frames[:, 20:40, 20:40] = 255  # the middle 20 pixels
    for name, sign in (("zoom_in", 1), ("zoom_out", -1)):
        changed, drawn = apply(name, frames)
        assert (1.3 <= drawn["factor"] <= 1.5) if sign > 0 else (1.2 <= drawn["factor"] <= 1.4)
        width = (changed[0, 30, :, 0] > 127).sum()
        assert width == pytest.approx(20 * drawn["factor"] ** sign, abs=2)
    white = np.full((1, 60, 60, 3), 255, np.uint8)
    changed, drawn = apply("zoom_out", white)
    assert (changed[0, 30, :, 0] > 0).sum() == round(60 / drawn["factor"])  # black around


def test_swap_shows_the_other_video():
    other = make_frames(seed=5)
    assert (apply("swap", make_frames(), other)[0] == other).all()


def test_shuffle_keeps_the_frames_and_tells_their_order():
    frames = make_frames()
    changed, drawn = apply("shuffle", frames)
    assert sorted(drawn["order"]) == list(range(8)) and drawn["order"] != list(range(8))
    assert (changed == frames[drawn["order"]]).all()


def test_stutter_holds_frames():
    frames = make_frames(10)
    frames[:, 0, 0, 0] = np.arange(10)
    # holds: frames linspace(0, 9, holds), the first ones a frame longer where 10 is not a multiple
    expected = {
        2: [0, 0, 0, 0, 0, 9, 9, 9, 9, 9],
        3: [0, 0, 0, 0, 4, 4, 4, 9, 9, 9],
        4: [0, 0, 0, 3, 3, 3, 6, 6, 9, 9],
        5: [0, 0, 2, 2, 4, 4, 7, 7, 9, 9],
    }
    seen = set()
    for seed in range(30):
        changed, drawn = apply("stutter", frames, seed=seed)
        assert changed[:, 0, 0, 0].tolist() == expected[drawn["holds"]]
        seen.add(drawn["holds"])
    assert seen == {2, 3, 4, 5}


def test_permute_is_never_the_identity_and_gives_every_other_order():
    rng = np.random.default_rng(0)
    orders = [tuple(permute(3, rng)) for _ in range(500)]
    assert set(orders) == {(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}
    # 100 of each are expected; five standard deviations are 5 * sqrt(500 * 0.2 * 0.8) = 45.
    assert all(abs(orders.count(order) - 100) < 45 for order in set(orders))


def test_fit():
    assert fit(np.full((1, 4, 8, 3), 255, np.uint8), 8, 8)[0, :, 0, 0].tolist() == [0, 0, 255, 255, 255, 255, 0, 0]
