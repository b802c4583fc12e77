"""Reading untrusted media files. Imported by decoder processes only (`worker.py`), never by the caller.

`read_index` looks at the header and the packets; `decode` runs one of DECODERS. Frames become RGB, upright (mirroring
and pixel aspect ratios are ignored), and only then are resized, by libswscale's antialiased bicubic filter whichever
the decoder: decoders agree, and pixels are within a level of those of Qwen-VL's own preprocessing on average.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream

from videorl.imports import load_object, require
from videorl.types import VideoError
from videorl.video.frames import DecodeJob, Limits, VideoIndex

# A decoder turns a job into (tick, upright RGB uint8 [H, W, 3]) per wanted frame, in order, or raises VideoError.
Decoder = Callable[[DecodeJob], Iterator[tuple[int, np.ndarray]]]

# Playlists (hls, concat, sdp) are recognised by content and open other files and URLs: only these may be opened.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif"

FILTER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

# FFmpeg's log is read, not shown: only it tells the rotation of a stream and what a demuxer skips.
av.logging.set_level(av.logging.INFO)
logging.getLogger("libav").setLevel(logging.CRITICAL + 1)


def read_index(path: str, limits: Limits) -> VideoIndex:
    """Times, keyframes and frame size of a file, from its header and packets. Raises VideoError."""
    with av.logging.Capture() as logs, _open(path, limits.frame_pixels) as (container, stream):
        codec = stream.codec_context
        if codec.width < 1 or codec.height < 1:
            raise VideoError("corrupt", f"{path}: the header says frames of {codec.width}x{codec.height}; replace it")
        _check_limit(path, "frame_pixels", codec.width * codec.height, limits.frame_pixels)
        _check_limit(path, "duration", (container.duration or 0) / av.time_base, limits.duration)
        quarters = _stored_quarter_turns(container, stream)
        shown: dict[int, int] = {}  # tick -> duration
        keyframes: set[int] = set()
        for number, packet in enumerate(container.demux(stream), start=1):
            if packet.size == 0:  # ends the stream, or repeats the frame before it
                continue
            _check_limit(path, "frames", number, limits.frames)
            if packet.is_corrupt:
                raise VideoError("truncated", f"{path}: packet {number} is incomplete; fetch the file again")
            if packet.pts is None:
                raise VideoError("corrupt", f"{path}: packet {number} has no presentation time; remux it to MP4")
            if packet.is_keyframe:
                keyframes.add(packet.pts)
            if not packet.is_discard:  # an edit list hides the frame
                shown[packet.pts] = packet.duration or 0
        for level, source, text in logs:  # a demuxer passes over what it cannot read, and says so only here
            if level <= av.logging.ERROR and source == container.format.name:
                raise VideoError("corrupt", f"{path}: {text.strip()}; replace the file")
        # Frames before the first keyframe cannot be decoded and no player shows them.
        ticks = np.array(sorted(tick for tick in shown if keyframes and tick >= min(keyframes)), np.int64)
        if not len(ticks):
            raise VideoError("corrupt", f"{path}: no frame can be decoded, {len(keyframes)} keyframes; replace it")
        time_base = stream.time_base or Fraction(1, av.time_base)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        last = shown[int(ticks[-1])] or round(1 / (rate * time_base))
        index = VideoIndex(
            ticks=ticks,
            keyframes=np.array(sorted(keyframes), np.int64),
            end=int(ticks[-1]) + last,
            time_base=time_base,
            rate=rate if _is_constant(ticks, rate * time_base) else None,
            height=codec.width if quarters % 2 else codec.height,
            width=codec.height if quarters % 2 else codec.width,
        )
        _check_limit(path, "duration", index.seconds(index.end - ticks[0]), limits.duration)
        return index


def decode(decoder: Decoder, job: DecodeJob) -> np.ndarray:
    """The frames of a job, uint8 RGB [T, H, W, 3]. Raises VideoError unless they are exactly those of the job."""
    height, width = job.size
    left, top, right, bottom = job.crop
    pixels = np.empty((len(job.indices), height, width, 3), np.uint8)
    frames = decoder(job)
    for row, position in zip(pixels, job.indices, strict=True):
        tick, rgb = next(frames, (None, None))
        if rgb is None or tick != job.ticks[position]:
            raise VideoError(
                "corrupt",
                f"{job.path}: wanted the frame at {job.seconds(position):.6f} s, the decoder gave "
                f"{'no more' if tick is None else f'{float(tick * job.time_base):.6f} s'}; re-encode the file",
            )
        if rgb.shape[:2] != job.source_size:
            raise VideoError(
                "corrupt",
                f"{job.path}: the frame at {job.seconds(position):.6f} s has {rgb.shape[1]}x{rgb.shape[0]} pixels, "
                f"the header says {job.source_size[1]}x{job.source_size[0]}; re-encode the file",
            )
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[top:bottom, left:right]), "rgb24")
        row[:] = frame.reformat(width, height, "rgb24", interpolation=FILTER, threads=1).to_ndarray()
    return pixels


def load_decoder(name: str) -> Decoder:
    """`name` is one of DECODERS, or the import string of a Decoder. Raises ImportError or ValueError."""
    return DECODERS[name]() if name in DECODERS else load_object(name)


def _decode_pyav(job: DecodeJob) -> Iterator[tuple[int, np.ndarray]]:
    with _open(job.path, job.max_frame_pixels) as (container, stream):
        frames = container.decode(stream)
        at = 0  # position of the next frame
        seeked = False
        for number, (position, key) in enumerate(zip(job.indices, job.seeks, strict=True)):
            try:
                if key is not None:
                    container.seek(key, stream=stream)
                    frames = container.decode(stream)
                    at = int(np.searchsorted(job.ticks, key))
                    seeked = True
                frame = _advance(job, frames, at, position, entering=key is not None)
            except (VideoError, av.FFmpegError):
                if not seeked:
                    raise
                # Not every keyframe is a clean entry point, and not every container finds it; the start always is.
                rest = replace(job, indices=job.indices[number:], seeks=(None,) * (len(job.indices) - number))
                yield from _decode_pyav(rest)
                return
            at = position + 1
            rgb = frame.to_ndarray(format="rgb24", threads=1)
            yield int(job.ticks[position]), np.rot90(rgb, _quarter_turns(frame.rotation))


def _advance(job: DecodeJob, frames: Iterator[av.VideoFrame], at: int, position: int, entering: bool) -> av.VideoFrame:
    """Decode from position `at` to `position`. Every frame the index promises on the way must come, in order.

    `entering` after a seek: the first frame must be a keyframe, because some codecs decode any other to grey mud.
    """
    for frame in frames:
        if frame.pts is not None and frame.pts < job.ticks[at]:
            continue  # leads the keyframe of an open group of pictures, and needs frames before it
        if frame.pts != job.ticks[at] or frame.is_corrupt or (entering and not frame.key_frame):
            problem = "a damaged frame" if frame.pts == job.ticks[at] else f"the frame at {frame.time} s"
            raise VideoError("corrupt", f"{job.path}: {problem} came at {job.seconds(at):.6f} s; re-encode the file")
        entering = False
        if at == position:
            return frame
        at += 1
    raise VideoError("corrupt", f"{job.path}: decoding ended before {job.seconds(at):.6f} s; re-encode the file")


def _decord() -> Decoder:
    """decord 0.6 gives frames without their times and skips some after a seek: it reads from the start, and counts.

    It knows no AV1, loses frames of containers other than MP4 and Matroska, and conceals damaged frames.
    """
    decord = require("decord", extra="decord")
    decord.logging.set_level(decord.logging.QUIET)

    def frames(job: DecodeJob) -> Iterator[tuple[int, np.ndarray]]:
        with _open(job.path, job.max_frame_pixels) as (container, _):
            if not {"mp4", "matroska"} & set(container.format.name.split(",")):
                raise _undecodable(job, "decord", ValueError(f"it loses frames of {container.format.name} files"))
        at = 0  # position of the next frame
        try:
            reader = decord.VideoReader(job.path, num_threads=1)
            starts = reader.get_frame_timestamp(list(job.indices))[:, 0]
            for position, seconds in zip(job.indices, starts.tolist(), strict=True):
                _check_time(job, position, seconds, job.seconds(position) - job.seconds(0))
                for _ in range(position - at):
                    reader.next()
                yield int(job.ticks[position]), reader.next().asnumpy()[..., :3]  # rotated frames come as RGBA
                at = position + 1
        except (decord.DECORDError, IndexError, StopIteration) as error:
            raise _undecodable(job, "decord", error) from error

    return frames


def _torchcodec() -> Decoder:
    from torchcodec.decoders import VideoDecoder

    def frames(job: DecodeJob) -> Iterator[tuple[int, np.ndarray]]:
        try:
            decoder = VideoDecoder(job.path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
            for position in job.indices:
                frame = decoder.get_frame_at(position)
                _check_time(job, position, frame.pts_seconds, job.seconds(position))
                yield int(job.ticks[position]), frame.data.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            raise _undecodable(job, "torchcodec", error) from error

    return frames


DECODERS: dict[str, Callable[[], Decoder]] = {
    "pyav": lambda: _decode_pyav,
    "decord": _decord,
    "torchcodec": _torchcodec,
}


def _check_time(job: DecodeJob, position: int, seconds: float, expected: float) -> None:
    """Decoders addressed by position must agree with the container about its time, to float32's precision."""
    if not abs(seconds - expected) < 1e-3 + 1e-6 * abs(expected):
        raise VideoError(
            "corrupt",
            f"{job.path}: frame {position} is at {expected:.6f} s, the decoder says {seconds:.6f} s; use decoder pyav",
        )


def _undecodable(job: DecodeJob, decoder: str, error: Exception) -> VideoError:
    return VideoError("corrupt", f"{job.path}: {decoder} cannot decode it; use decoder pyav ({error})")


@contextmanager
def _open(path: str, max_pixels: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video stream, ready for strict decoding; FFmpeg's errors become VideoErrors."""
    with open(path, "rb") as file:
        known = _check_whole(path, file)
    codec_options = {
        "err_detect": "crccheck+bitstream+buffer+explode",
        "max_pixels": str(4 * max_pixels),  # for streams that belie their header; FFmpeg counts padded rows
        "threads": "1",
    }
    container_options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        container = av.open(
            f"file:{path}", options=codec_options, container_options=container_options, metadata_errors="replace"
        )
    except av.FFmpegError as error:
        raise _unreadable(path, known, str(error)) from error
    with container:
        if not container.streams:
            raise _unreadable(path, known, "no streams")
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = ", ".join(stream.type for stream in container.streams)
            raise VideoError("no_video_stream", f"{path}: holds {kinds} but no video; choose another file")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError("not_a_video", f"{path}: no decoder for its video stream; convert it to H.264")
        stream.codec_context.options = codec_options
        try:
            yield container, stream
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            raise VideoError("corrupt", f"{path}: {error}; re-encode or replace the file") from error


def _unreadable(path: str, known: bool, problem: str) -> VideoError:
    if known:
        return VideoError("corrupt", f"{path}: its header cannot be read ({problem}); replace the file")
    return VideoError("not_a_video", f"{path}: is none of {CONTAINERS} ({problem}); convert it to MP4")


def _check_limit(path: str, name: str, value: float, limit: float) -> None:
    if value > limit:
        excess = f"{name} {value:g} is over limits.{name}={limit:g}"
        raise VideoError("too_large", f"{path}: {excess}; cut the file or raise the limit")


def _is_constant(ticks: np.ndarray, frames_per_tick: Fraction) -> bool:
    """Whether frame i is shown at i / rate, up to the container's rounding of times."""
    even = np.arange(len(ticks)) / float(frames_per_tick)
    return bool(np.abs(ticks - ticks[0] - even).max() <= 1)


def _stored_quarter_turns(container: InputContainer, stream: VideoStream) -> int:
    sections = re.split(r"^  Stream #0:(\d+)", container.dumps_format(), flags=re.MULTILINE)  # type: ignore[attr-defined]
    section = dict(zip(sections[1::2], sections[2::2], strict=True)).get(str(stream.index), "")
    found = re.search(r"^ +Display Matrix: rotation of (-?[\d.]+) degrees", section, flags=re.MULTILINE)
    return _quarter_turns(float(found[1])) if found else 0


def _quarter_turns(degrees: float) -> int:
    """Counter-clockwise quarter turns, as `np.rot90` counts them."""
    return round(degrees / 90) % 4


def _check_whole(path: str, file: BinaryIO) -> bool:
    """Whether the file says it is MP4, Matroska or AVI. Raises `truncated` if it holds less than it promises.

    Demuxers take a missing tail for the end of the file: the rest would pass for a shorter video.
    """
    size = os.fstat(file.fileno()).st_size
    head = file.read(12)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        promised = _mp4_bytes(path, file, size)
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        promised = _matroska_bytes(file)
    elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        promised = 8 + int.from_bytes(head[4:8], "little")
    else:
        return False
    if promised > size:
        raise VideoError("truncated", f"{path}: holds {size} of {promised} bytes; fetch the file again")
    return True


def _mp4_bytes(path: str, file: BinaryIO, size: int) -> int:
    """Where the last box that matters ends (ISO/IEC 14496-12, 4.2)."""
    offset, ends = 0, {}
    while offset + 8 <= size:
        file.seek(offset)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 0:
            length = size - offset
        elif length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:
            break
        ends[header[4:8]] = offset + length
        offset += length
    if b"moov" not in ends:
        raise VideoError("truncated", f"{path}: an MP4 without its index (moov); fetch the file again")
    return max(ends.get(kind, 0) for kind in (b"moov", b"moof", b"mdat"))


def _matroska_bytes(file: BinaryIO) -> int:
    """Where the segment ends (RFC 8794, 5-6); 0 where a live recording left its size open."""
    file.seek(4)
    header = _ebml_size(file)
    file.seek(header or 0, os.SEEK_CUR)
    is_segment = file.read(4) == b"\x18\x53\x80\x67"
    segment = _ebml_size(file)
    return file.tell() + segment if is_segment and segment is not None else 0


def _ebml_size(file: BinaryIO) -> int | None:
    """A variable-length size: as many leading zero bits as further bytes; all ones = unknown."""
    first = int.from_bytes(file.read(1), "big")
    more = 8 - first.bit_length()
    bits = 7 * (more + 1)
    value = int.from_bytes(bytes([first]) + file.read(more), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
