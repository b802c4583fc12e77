import hashlib
from dataclasses import replace

import numpy as np
import pytest
from clips import draw_index, read_index, write_clip

from videorl.data.synth.footage import (
    Footage,
    Part,
    Take,
    TakeRule,
    check_part,
    choose_held_out,
    draw_take,
    duration_of,
    find_videos,
    load_footage,
    split_in_time,
)
from videorl.types import VideoError
from videorl.video.reader import VideoReader

RULE = TakeRule(num_frames=8, step=(0.1, 0.2), fps=None, side=None, crop=(1.0, 1.0))
WHOLE = Part("a.mp4", 0.0, 2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a.mp4: 50 frames at 25 fps, so that frame i begins at i / 25 s."""
    folder = tmp_path_factory.mktemp("footage")
    write_clip(folder / "a.mp4", num_frames=50, fps=25)
    return folder


@pytest.fixture(scope="module")
def reader():
    with VideoReader() as reader:
        yield reader


def make_footage(num_frames=50, fps=25.0):
    frames = np.stack([draw_index(index, 96, 64) for index in range(num_frames)])
    return Footage(part=WHOLE, sha256="0" * 64, frames=frames, times=np.arange(num_frames) / fps)


def test_find_videos(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.MP4", "a.mkv", "notes.txt", "sub/c.webm"):
        (tmp_path / name).touch()
    (tmp_path / "d.mp4").mkdir()
    assert find_videos(tmp_path) == ["a.mkv", "b.MP4", "sub/c.webm"]
    with pytest.raises(ValueError, match="holds no video file"):
        find_videos(tmp_path / "d.mp4")
    with pytest.raises(ValueError, match="is not a folder"):
        find_videos(tmp_path / "notes.txt")


def test_choose_held_out():
    ten = [f"{number}.mp4" for number in range(10)]
    assert choose_held_out(ten, ()) == {"9.mp4"}
    assert choose_held_out(ten * 3, ()) == {"7.mp4", "8.mp4", "9.mp4"}
    assert choose_held_out(["only.mp4"], ()) == set()
    assert choose_held_out([*ten, "x/y.mp4"], ["x/*", "[23].mp4"]) == {"x/y.mp4", "2.mp4", "3.mp4"}
    with pytest.raises(ValueError, match=r"'q\*' matches none of the videos, such as '0.mp4'"):
        choose_held_out(ten, ["q*"])
    with pytest.raises(ValueError, match="leaves no video to train on"):
        choose_held_out(ten, ["*.mp4"])


def test_split_in_time():
    # The middle 90 % of 100 s is 5..95 s; its last fifth 77..95 s; 5 % of 90 s before it, 72.5..77 s, nobody uses.
    train, later = split_in_time("a.mp4", 100.0, keep=0.9, share=0.2)
    assert (train.start, train.end) == pytest.approx((5.0, 72.5))
    assert later and (later.start, later.end) == pytest.approx((77.0, 95.0))
    train, later = split_in_time("a.mp4", 100.0, keep=0.9, share=0.0)
    assert (train.start, train.end) == pytest.approx((5.0, 95.0)) and later is None


def test_footage_has_the_times_of_the_file(folder, reader):
    assert duration_of(reader, folder, "a.mp4") == pytest.approx(2.0)
    part = Part("a.mp4", 0.5, 1.5)
    footage = load_footage(reader, folder, part, num_frames=1000, max_pixels=96 * 64)
    assert footage.frames.shape == (25, 64, 96, 3)  # 0.52, 0.56, ..., 1.48: the frames that begin within the part
    assert footage.times.tolist() == pytest.approx([0.52 + 0.04 * i for i in range(25)])
    assert [read_index(frame) for frame in footage.frames] == list(range(13, 38))
    assert footage.sha256 == hashlib.sha256((folder / "a.mp4").read_bytes()).hexdigest()

    few = load_footage(reader, folder, part, num_frames=5, max_pixels=96 * 64)
    assert [read_index(frame) for frame in few.frames] == [13, 19, 25, 31, 37]
    assert few.times.tolist() == pytest.approx([13 / 25, 19 / 25, 25 / 25, 31 / 25, 37 / 25])


def test_footage_keeps_its_shape_within_the_pixels(folder, reader):
    footage = load_footage(reader, folder, WHOLE, num_frames=2, max_pixels=48 * 32)
    assert footage.frames.shape == (2, 32, 48, 3)


def test_a_take_shows_frames_at_their_real_times():
    footage, rng = make_footage(), np.random.default_rng(0)
    steps = set()
    for _ in range(50):
        take, how = draw_take(footage, RULE, rng)
        indices = [read_index(frame) for frame in take.frames]
        assert len(indices) == 8 and indices == sorted(set(indices))
        assert take.times.tolist() == pytest.approx([(index - indices[0]) / 25 for index in indices])
        start, end = how["span"]
        assert start == pytest.approx(indices[0] / 25)
        assert take.end == pytest.approx(end - start)
        # 7 steps, each end within half a frame (0.02 s) of where it was asked for
        assert 0.1 - 0.04 / 7 <= (indices[-1] - indices[0]) / 25 / 7 <= 0.2 + 0.04 / 7
        steps.add(indices[-1] - indices[0])
    assert len(steps) > 5


def test_a_take_may_be_shown_at_another_rate():
    take, how = draw_take(make_footage(), replace(RULE, fps=2.0), np.random.default_rng(0))
    assert take.times.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5] and take.end == 4.0
    assert how["span"][1] - how["span"][0] < 2.0  # of the file


def test_without_a_step_a_take_covers_the_part():
    take, _ = draw_take(make_footage(), replace(RULE, step=None), np.random.default_rng(0))
    # 49 / 7 = 7 frames apart
    assert [read_index(frame) for frame in take.frames] == [0, 7, 14, 21, 28, 35, 42, 49]
    assert take.end == pytest.approx(49 / 25 + 7 / 25)


def test_a_square_view():
    footage, rng = make_footage(), np.random.default_rng(0)
    marked = footage.frames.copy()
    marked[..., 0] = np.arange(96)  # red tells the column
    footage = replace(footage, frames=marked)
    views = [draw_take(footage, replace(RULE, side=32, crop=(0.5, 1.0)), rng) for _ in range(40)]
    for take, how in views:
        view = how["view"]
        assert take.frames.shape == (8, 32, 32, 3) and view["of"] == [96, 64]
        assert 32 <= view["size"] <= 64 and view["x"] + view["size"] <= 96 and view["y"] + view["size"] <= 64
        red = take.frames[0, 16, :, 0].astype(float)
        assert (red[0] > red[-1]) == view["mirrored"]
        assert min(red) == pytest.approx(view["x"], abs=2)
        assert max(red) == pytest.approx(view["x"] + view["size"] - 1, abs=2)
    assert 8 < sum(how["view"]["mirrored"] for _, how in views) < 32


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_frames": 51}, "50 frames, fewer than num_frames=51"),
        ({"step": (0.3, 0.4)}, "too short for num_frames=8 that are 0.3 s apart"),  # 7 * 0.3 = 2.1 s
        ({"step": (0.03, 0.4)}, "frames up to 0.040 s apart, coarser than the step of 0.03 to 0.4 s"),
    ],
)
def test_what_is_not_enough_for_a_take(change, named, folder, reader):
    rule = replace(RULE, **change)
    with pytest.raises(VideoError, match=named) as error:
        draw_take(make_footage(), rule, np.random.default_rng(0))
    assert error.value.reason == "bad_span"
    with pytest.raises(VideoError, match=named):  # known from the header, without decoding
        check_part(reader, folder, WHOLE, 1000, rule)
    check_part(reader, folder, WHOLE, 1000, RULE)


def test_a_piece_has_a_clock_of_its_own():
    take = Take(frames=np.zeros((4, 2, 2, 3), np.uint8), times=np.array([0.0, 1.0, 3.0, 6.0]), end=7.5)
    piece = take.cut(1, 3)
    assert piece.times.tolist() == [0.0, 2.0] and piece.end == 5.0  # until the frame at 6 s, which is 5 s later
    assert take.cut(2, 4).end == 4.5
    assert [take.at(index) for index in (0, 3, 4)] == [0.0, 6.0, 7.5]
