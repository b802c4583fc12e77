"""Processes: deadlines, crashes, limits, threads, and the end of the parent."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clips import read_index, write_clip

from videorl.types import VideoError
from videorl.video import reader as reader_module
from videorl.video.frames import Limits
from videorl.video.reader import VideoReader, configure, load_frames, plan_frames


def bad(clip):
    return replace(clip, path=shutil.copy(clip.path, str(Path(clip.path).with_name("bad.mp4"))))


def test_plan_decodes_nothing_and_load_gives_the_plan(clip):
    with VideoReader() as reader:
        plan = reader.plan(clip)
        assert reader.decodes == 0
        frames = reader.load(clip)
        assert reader.decodes == 1
    assert frames.pts == plan.pts
    assert frames.pixels.shape == (len(plan.pts), plan.height, plan.width, 3)
    assert [read_index(pixels) for pixels in frames.pixels] == list(plan.indices)


def test_picks_and_boxes_are_of_the_frames_they_name(clip, pyav):
    """The cell at the upper left of a test frame says whether its index is odd."""
    whole = pyav.plan(clip)
    for place in (0, 3):
        cell = replace(clip, pick=(place, place + 1), box=(0.02, 0.03, 0.23, 0.3))
        pixels = pyav.load(cell).pixels
        assert [frame.mean() > 127.5 for frame in pixels] == [i % 2 == 1 for i in whole.indices[place : place + 2]]
    picked = pyav.load(replace(clip, pick=(1, 4)))
    assert [read_index(pixels) for pixels in picked.pixels] == [whole.indices[1], whole.indices[4]]


def test_a_part_is_loaded_as_it_stands_in_the_whole(clip, pyav):
    whole, part = pyav.load(clip), pyav.load(clip, slice(2, 5))
    assert part.pts == whole.pts[2:5]
    assert np.array_equal(part.pixels, whole.pixels[2:5])


def test_digest_is_that_of_pixels_and_times(clip, pyav):
    frames = pyav.load(clip)
    assert frames.digest == pyav.load(clip).digest
    changed = frames.pixels.copy()
    changed[-1, -1, -1, -1] ^= 1
    assert replace(frames, pixels=changed).digest != frames.digest
    assert replace(frames, pts=(*frames.pts[:-1], frames.pts[-1] + 1e-6)).digest != frames.digest


@pytest.mark.parametrize(
    ("fake", "reason", "text"),
    [
        ("hang", "timeout", "limits.deadline=2"),
        ("segfault", "crashed", "SIGSEGV"),
        ("leave", "crashed", "exit status 3"),
        ("devour_memory", "too_large", "limits.memory_gb=2"),
        ("raise_unexpectedly", "crashed", "KeyError: 'nobody catches this'"),
        ("stop_early", "corrupt", "no more"),
        ("repeat_first", "corrupt", "wanted the frame at"),
        ("shrink", "corrupt", "96x32 pixels"),
        ("touch", "digest_mismatch", "changed while it was read"),
    ],
)
def test_a_bad_decode_costs_one_clip(clip, fake, reason, text):
    with VideoReader(Limits(deadline=2, memory_gb=2), decoder=f"video.fake_decoders:{fake}") as reader:
        with pytest.raises(VideoError) as caught:
            reader.load(bad(clip))
        assert caught.value.reason == reason
        assert text in str(caught.value) and "bad.mp4" in str(caught.value)
        frames = reader.load(clip)  # the same reader goes on
        assert read_index(frames.pixels[-1]) == 49


def test_a_worker_that_dies_between_calls_is_replaced(clip):
    with VideoReader(decoder="video.fake_decoders:leave") as reader:
        reader.load(clip)
        first = int(Path(f"{clip.path}.pid").read_text())
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not running(first))
        reader.load(clip)
        assert int(Path(f"{clip.path}.pid").read_text()) != first


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Limits(frames=49), "frames"),
        (Limits(duration=1.9), "duration"),
        (Limits(frame_pixels=96 * 64 - 1), "frame_pixels"),
    ],
)
def test_limits_hold_before_decoding(clip, limits, name):
    with VideoReader(limits) as reader:
        for call in (reader.plan, reader.load):
            with pytest.raises(VideoError, match=f"limits.{name}=") as caught:
                call(clip)
            assert caught.value.reason == "too_large"
        assert reader.decodes == 0


def test_limits_allow_what_they_say(clip):
    with VideoReader(Limits(frames=50, duration=2.0, frame_pixels=96 * 64)) as reader:
        assert reader.load(clip).pts[-1] == pytest.approx(1.96, abs=1e-9)


def test_threads_share_a_reader(clip):
    clips = [replace(clip, start=start) for start in (0.0, 0.4, 0.8, 1.2)]
    with VideoReader(workers=2) as reader, ThreadPoolExecutor(8) as threads:
        results = list(threads.map(reader.load, clips * 6))
        assert reader.decodes == 24
        for wanted, frames in zip(clips * 6, results, strict=True):
            assert [read_index(pixels) for pixels in frames.pixels] == list(reader.plan(wanted).indices)
            assert frames.pts[0] == pytest.approx(wanted.start, abs=1e-9)


@pytest.mark.parametrize("name", ["clip", "bad"])
def test_no_worker_outlives_a_killed_parent(clip, name):
    """`clip`: the worker waits for work. `bad`: it hangs in native code that holds the interpreter lock."""
    wanted = bad(clip) if name == "bad" else clip
    script = textwrap.dedent(f"""
        import sys, time
        sys.path[:] = {sys.path!r}
        from videorl.types import Clip, Sampling
        from videorl.video.reader import VideoReader
        VideoReader(decoder="video.fake_decoders:hang").load({wanted!r})
        time.sleep(3600)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script])
    pid_file = Path(f"{wanted.path}.pid")
    try:
        wait_until(lambda: parent.poll() is None and pid_file.exists() and pid_file.read_text())
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not running(int(pid_file.read_text())))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_close_ends_the_workers(clip):
    reader = VideoReader(decoder="video.fake_decoders:leave")
    reader.load(clip)
    reader.close()
    reader.close()
    assert not running(int(Path(f"{clip.path}.pid").read_text()))
    with pytest.raises(RuntimeError, match="closed"):
        reader.load(replace(clip, start=0.1))


def test_a_reader_does_not_survive_a_fork(clip, pyav, monkeypatch):
    monkeypatch.setattr(reader_module.os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="before a fork"):
        pyav.load(clip)


def test_an_unknown_decoder_is_a_plain_error(clip):
    with VideoReader(decoder="opencv") as reader, pytest.raises(ImportError, match=r"opencv.*data\.decoder"):
        reader.plan(clip)
    with pytest.raises(ValueError, match="workers=0"):
        VideoReader(workers=0)
    with pytest.raises(ValueError, match="deadline=0"):
        Limits(deadline=0)


def test_default_reader_follows_configure(clip):
    configure(limits=Limits(frames=49))
    with pytest.raises(VideoError, match=r"limits\.frames=49"):
        plan_frames(clip)
    configure()
    assert load_frames(clip).pts == plan_frames(clip).pts


def test_a_changed_file_is_planned_anew(clip, pyav):
    before = pyav.plan(clip)
    write_clip(clip.path, num_frames=30)
    after = pyav.plan(clip)
    assert (before.indices[-1], after.indices[-1]) == (49, 29)
    assert before.media_sha256 != after.media_sha256


@pytest.mark.parametrize(("module", "decoders"), [("reader", []), ("paths", []), ("worker", ["av"])])
def test_neither_end_imports_torch_and_the_parent_imports_no_decoder(module, decoders):
    heavy = "av", "decord", "torch", "torchcodec"
    script = f"import sys; import videorl.video.{module}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == str(decoders)


def test_pixels_are_those_of_a_bicubic_filter(clip, pyav):
    """Of torchvision's, which Qwen-VL uses: filters of the two libraries differ by rounding."""
    import av
    import torch
    from torch.nn.functional import interpolate

    frames = pyav.load(clip)
    with av.open(clip.path) as container:
        rgb = next(container.decode(video=0)).to_ndarray(format="rgb24")
    video = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()  # [1, 3, H, W]
    size = frames.pixels.shape[1:3]
    expected = interpolate(video, size, mode="bicubic", antialias=True).clamp(0, 255)[0].permute(1, 2, 0).numpy()
    difference = np.abs(frames.pixels[0] - expected)
    assert difference.mean() < 0.5 and difference.max() < 4
