"""Writing a clip: an MP4 whose timestamps are the times its frames are meant to appear."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from videorl.data.synth.footage import Take

TICK = Fraction(1, 90_000)  # seconds


def write_mp4(path: Path, take: Take) -> None:
    """Write a take as H.264. Its sides must be even. Each frame stays until the next appears, the last until `end`."""
    with av.open(str(path), "w") as container:
        # One thread: the bytes do not depend on the number of cores. No B-frames: packets come in order of time.
        options = {"crf": "18", "preset": "veryfast", "threads": "1", "bf": "0"}
        rate = Fraction(len(take.times) / take.end).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = take.frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = TICK
        ticks = [round(take.at(index) / TICK) for index in range(len(take.times) + 1)]
        packets = []
        for pixels, tick in zip(take.frames, ticks, strict=False):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.time_base, frame.pts = TICK, tick
            packets += stream.encode(frame)
        for packet, (start, end) in zip([*packets, *stream.encode()], pairwise(ticks), strict=True):
            packet.duration = end - start  # the encoder says 1 / rate of the last one
            container.mux(packet)
