"""On constant-rate files the plan is what `qwen_vl_utils` would show, and on real files too."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from clips import make_sampling, write_clip
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from videorl.imports import fix_imports
from videorl.types import Clip
from videorl.video.frames import VideoIndex
from videorl.video.sampling import frame_size, plan_clip

fix_imports()
torch = pytest.importorskip("torch")
qwen = pytest.importorskip("qwen_vl_utils.vision_process")

fixed = settings(derandomize=True, deadline=None, max_examples=200)

RATES = [Fraction(24), Fraction(25), Fraction(30), Fraction(60), Fraction(24_000, 1001), Fraction(30_000, 1001)]


def rules():
    frames = st.integers(2, 64)
    by_fps = st.builds(
        lambda fps, a, b: {"fps": fps, "min_frames": min(a, b), "max_frames": max(a, b)},
        st.one_of(st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.floats(0.05, 40)),
        frames,
        frames,
    )
    by_count = st.builds(lambda count: {"fps": None, "num_frames": count, "max_frames": 64}, st.integers(2, 63))
    return st.one_of(by_fps, by_count)


def qwen_rule(rule):
    if rule["fps"] is None:
        return {"nframes": rule["num_frames"]}
    return {"fps": rule["fps"], "min_frames": rule["min_frames"], "max_frames": rule["max_frames"]}


def qwen_indices(rule, total, rate, span):
    """As `_read_video_decord`: count by `smart_nframes`, choice by a float32 linspace."""
    start, end, count = qwen.calculate_video_frame_range(span, total, float(rate))
    frames = qwen.smart_nframes(qwen_rule(rule), count, float(rate))
    return start, end, torch.linspace(start, end, frames).round().long().numpy()


def same_choice(ours, theirs, start, end):
    """Equal, but for exact ties between two frames, which float32 breaks by its rounding errors."""
    steps = len(theirs) - 1
    ties = 2 * np.arange(steps + 1) * (end - start) % (2 * steps) == steps
    return len(ours) == len(theirs) and ((ours == theirs) | (ties & (abs(ours - theirs) == 1))).all()


@fixed
@given(
    total=st.integers(2, 600),
    rate=st.sampled_from(RATES),
    milliseconds=st.booleans(),
    rule=rules(),
    quarters=st.one_of(st.none(), st.tuples(st.integers(0, 40), st.integers(1, 40))),
)
def test_same_frames_as_qwen(total, rate, milliseconds, rule, quarters):
    """Times in milliseconds, as in Matroska, or exact; spans in quarters of a second."""
    time_base = Fraction(1, 1000) if milliseconds else 1 / rate
    index = VideoIndex(
        ticks=np.array([round(i / rate / time_base) for i in range(total)], np.int64),
        keyframes=np.zeros(1, np.int64),
        end=round(total / rate / time_base),
        time_base=time_base,
        rate=rate,
        height=64,
        width=64,
    )
    span = (None, None) if quarters is None else (quarters[0] / 4, (quarters[0] + quarters[1]) / 4)
    try:
        start, end, theirs = qwen_indices(rule, total, rate, {"video_start": span[0], "video_end": span[1]})
    except ValueError:
        assume(False)  # Qwen shows nothing of fewer than two frames
    shown = plan_clip(Clip(path="a", sampling=make_sampling(**rule), start=span[0], end=span[1]), index, "")
    assert same_choice(np.array(shown.indices), theirs, start, end)


@fixed
@given(
    frames=st.integers(1, 384).map(lambda pairs: 2 * pairs),
    height=st.integers(16, 2_500),
    width=st.integers(16, 2_500),
    budget=st.tuples(st.integers(1, 768 * 784), st.integers(1, 768 * 784), st.integers(768 * 784, 10**8)),
)
def test_same_size_as_qwen(frames, height, width, budget):
    low, high, total = sorted(budget)
    sizes = []

    def resize(video, size, **_):
        sizes.append(tuple(size))
        return torch.zeros(1)

    video = SimpleNamespace(shape=(frames, 3, height, width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen, "get_video_reader_backend", lambda: "given")
        patch.setitem(qwen.VIDEO_READER_BACKENDS, "given", lambda _: (video, {}, 2.0))
        patch.setattr(qwen.transforms.functional, "resize", resize)
        qwen.fetch_video({"video": "a", "min_pixels": low, "max_pixels": high, "total_pixels": total})
    assume(0 not in sizes[0])  # Qwen's own bug on very thin frames
    sampling = make_sampling(min_pixels=low, max_pixels=high, total_pixels=total)
    assert frame_size(sampling, frames, height, width) == sizes[0]


@pytest.mark.parametrize(
    ("name", "codec", "rate", "total"),
    [
        ("a.mp4", "libx264", Fraction(30_000, 1001), 77),
        ("b.mp4", "libx264", Fraction(24), 48),
        ("c.webm", "libvpx-vp9", Fraction(30), 89),
        ("d.mkv", "libx264", Fraction(60), 100),
    ],
)
def test_same_frames_as_qwen_on_files(pyav, tmp_path, name, codec, rate, total):
    path = write_clip(tmp_path / name, codec=codec, fps=rate, num_frames=total)
    for rule in ({"fps": 2.0, "min_frames": 2, "max_frames": 64}, {"fps": None, "num_frames": 12}):
        start, end, theirs = qwen_indices(rule, total, rate, {})
        shown = pyav.plan(Clip(path=path, sampling=make_sampling(**rule)))
        assert same_choice(np.array(shown.indices), theirs, start, end)
