import numpy as np
import pytest
from clips import draw_index, make_sampling, read_index

from videorl.data.synth.footage import Take
from videorl.data.synth.mp4 import write_mp4
from videorl.types import Clip
from videorl.video.reader import VideoReader

FRAMES = np.stack([draw_index(index, 56, 56) for index in range(6)])


@pytest.mark.parametrize(
    ("times", "end"),
    [
        ([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], 3.0),
        ([0.0, 0.04, 0.5, 0.54, 7.0, 7.25], 60.0),  # uneven, and the last frame stays long
        ([0.0, 40.0, 80.0, 120.0, 160.0, 200.0], 240.0),  # a long video in few frames
    ],
)
def test_the_file_has_the_times_of_the_take(times, end, tmp_path):
    path = tmp_path / "clip.mp4"
    write_mp4(path, Take(frames=FRAMES, times=np.array(times), end=end))
    shown = make_sampling(fps=None, num_frames=6, temporal_factor=1)
    whole = Clip(path=str(path), sampling=shown)
    with VideoReader() as reader:
        plan = reader.plan(whole)
        assert plan.duration == pytest.approx(end, abs=1e-4)
        for index, (start, stop) in enumerate(zip(times, [*times[1:], end], strict=True)):
            one = Clip(path=str(path), sampling=shown, start=start, end=(start + stop) / 2)
            frames = reader.load(one)
            assert frames.pts == pytest.approx([start], abs=1e-4)
            assert [read_index(frame) for frame in frames.pixels] == [index]


def test_the_same_take_gives_the_same_bytes(tmp_path):
    take = Take(frames=FRAMES, times=np.arange(6) / 2, end=3.0)
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, take)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
