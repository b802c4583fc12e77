"""Writing a clip: an MP4 whose timestamps are the times its frames are meant to appear."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np

from videorl.data.synth.footage import Take

TICK = Fraction(1, 90_000)  # seconds


def write_mp4(path: Path, take: Take) -> None:
    """Write a take as H.264. Its sides must be even. Each frame stays until the next appears, the last until `end`."""
    write_frames(path, take.frames, [take.at(index) for index in range(len(take.times) + 1)])


def write_frames(
    path: Path, frames: Iterable[np.ndarray], times: Sequence[float], encoding: Mapping[str, str] | None = None
) -> None:
    """The same for frames that come one by one, uint8 [H, W, 3]: frame i is on screen from times[i] to times[i + 1].

    `times` [T + 1] are seconds, strictly increasing, times[0] = 0. `encoding` are options of x264 in place of ours.

    Raises:
        ValueError: there are more or fewer frames than T.
    """
    frames = iter(frames)
    first = next(frames)
    with av.open(str(path), "w") as container:
        # One thread: the bytes do not depend on the number of cores. No B-frames: packets come in order of time.
        options = {"crf": "18", "preset": "veryfast", "threads": "1", "bf": "0"}
        rate = Fraction((len(times) - 1) / times[-1]).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={**options, **(encoding or {})})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = TICK
        ticks = [round(time / TICK) for time in times]
        packets = []
        for pixels, tick in zip(chain([first], frames), ticks[:-1], strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.time_base, frame.pts = TICK, tick
            packets += stream.encode(frame)
        for packet, (start, end) in zip([*packets, *stream.encode()], pairwise(ticks), strict=True):
            packet.duration = end - start  # the encoder says 1 / rate of the last one
            container.mux(packet)
