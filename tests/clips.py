"""Small video files for tests. Every frame carries its own index in its pixels, so that a test sees which one came.

    path = write_clip(tmp_path / "a.mp4", num_frames=50, fps=25)
    ...
    assert read_index(frames.pixels[0]) == 0

`truncate` and `flip_bytes` damage a file in place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videorl.types import Sampling

os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder talks

BITS = 10  # indices 0..1023
COLUMNS, ROWS = 4, 3  # BITS cells, then a white and a black one that show which way is up
DARK, LIGHT = 40, 215


def make_sampling(**changes) -> Sampling:
    """A sampling rule for small clips: 5 fps, up to 64 frames of up to 64 patches of 28x28."""
    values = {
        "fps": 5.0,
        "num_frames": None,
        "min_frames": 2,
        "max_frames": 64,
        "min_pixels": 4 * 28 * 28,
        "max_pixels": 64 * 28 * 28,
        "total_pixels": 64 * 64 * 28 * 28,
    }
    return Sampling(**{**values, **changes})


def draw_index(index: int, width: int, height: int) -> np.ndarray:
    """A frame whose cells are the bits of `index`, least significant first, then 1 and 0. uint8 [H, W, 3]."""
    bits = [*((index >> bit) & 1 for bit in range(BITS)), 1, 0]
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    cells = np.where(np.array(bits).reshape(ROWS, COLUMNS), LIGHT, DARK).astype(np.uint8)
    return np.repeat(cells[rows][:, columns, None], 3, axis=2)


def read_index(pixels: np.ndarray) -> int:
    """The index in a frame [H, W, 3], whatever its size. Fails on a frame that is blended, damaged or not upright."""
    height, width = pixels.shape[:2]
    bits = []
    for row in range(ROWS):
        for column in range(COLUMNS):
            top, left = (2 * row + 1) * height // (2 * ROWS), (2 * column + 1) * width // (2 * COLUMNS)
            value = pixels[top - 2 : top + 3, left - 2 : left + 3].mean()
            assert abs(value - 127.5) > 48, f"cell {row},{column} is {value:.0f}, neither dark nor light"
            bits.append(int(value > 127.5))
    assert bits[BITS:] == [1, 0], "the frame is not upright"
    return sum(bit << place for place, bit in enumerate(bits[:BITS]))


def write_clip(
    path: str | Path,
    *,
    num_frames: int = 50,
    fps: float | Fraction = 25,
    size: tuple[int, int] = (96, 64),
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    gop: int = 12,
    bframes: int = 0,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> str:
    """Write frames 0..num_frames-1 and return the path. The container follows the suffix.

    `size` is (width, height) as displayed; `times` in seconds, one per frame, replaces the constant rate `fps`;
    `rotation` in degrees counter-clockwise is what the container asks of a player: frames are stored turned back.
    """
    rate = Fraction(fps).limit_denominator(1001)
    tick = 1 / rate if times is None else Fraction(1, 90_000)
    turns = rotation // 90 % 4
    width, height = size
    codec_options = {"g": str(gop), "bf": str(bframes), **_CODEC_OPTIONS.get(codec, {}), **(options or {})}
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=codec_options)
        stream.width, stream.height = (height, width) if turns % 2 else (width, height)
        stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        stream.codec_context.time_base = tick
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(num_frames):
            stored = np.ascontiguousarray(np.rot90(draw_index(index, width, height), -turns))
            frame = av.VideoFrame.from_ndarray(stored, "rgb24")
            frame.time_base = tick
            frame.pts = index if times is None else round(times[index] / tick)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


_CODEC_OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "18"},
    "libx265": {"preset": "ultrafast", "crf": "18", "x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "b": "1M"},
    "libsvtav1": {"preset": "10", "crf": "8"},
}


def write_audio(path: str | Path, seconds: float = 1.0) -> str:
    """A file whose only stream is silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        for start in range(0, round(seconds * 16_000), 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def truncate(path: str | Path, fraction: float) -> str:
    """Keep the first `fraction` of a file."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(len(content) * fraction)])
    return str(path)


def flip_bytes(path: str | Path, fraction: float, count: int = 64) -> str:
    """Invert `count` bytes that begin at `fraction` of a file."""
    content = bytearray(Path(path).read_bytes())
    start = int(len(content) * fraction)
    content[start : start + count] = bytes(255 - byte for byte in content[start : start + count])
    Path(path).write_bytes(content)
    return str(path)
