"""`load_frames` and `plan_frames`: from a clip to its frames.

    with VideoReader(limits, workers=2) as reader:
        plan = reader.plan(clip)      # header and packets only: sizes, times, token count
        frames = reader.load(clip)    # exactly the frames of the plan

Files are read in processes that can be killed; nothing here imports a decoder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import queue
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from videorl.types import Clip, VideoError
from videorl.video.frames import FramePlan, Frames, Limits, VideoIndex
from videorl.video.sampling import plan_clip, plan_seeks

START_TIMEOUT = 120.0  # seconds; a decoder process starts within one, torchcodec takes several
MAX_HEADER = 1 << 24  # bytes of one line of JSON

Answer = TypeVar("Answer")

_BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from videorl.video.worker import main
main(*sys.argv[2:])
"""


@dataclass(frozen=True)
class _File:
    """One version of a file; what is cached about it is forgotten when it changes."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def stat(cls, path: str) -> _File:
        path = os.path.abspath(path)
        try:
            found = os.stat(path)
        except OSError as error:
            raise VideoError("missing", f"{path}: {error.strerror}; check the path and data.media_root") from error
        if not stat.S_ISREG(found.st_mode):
            raise VideoError("not_a_video", f"{path}: not a regular file; name a video file")
        if found.st_size == 0:
            raise VideoError("empty", f"{path}: holds zero bytes; fetch the file again")
        return cls(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _sha256(file: _File) -> str:
    with open(file.path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class VideoReader:
    """Plans and decodes clips in up to `workers` processes, started when first needed. Threads may share a reader.

    `decoder` is pyav, decord, torchcodec, or the import string of a `videorl.video.decode.Decoder`. A worker that hangs
    or dies costs the clip it worked on (VideoError `timeout` or `crashed`) and is replaced. Workers end with the
    reader, and with the process that made it, however that ends. After a fork the child needs a reader of its own.
    """

    def __init__(self, limits: Limits | None = None, decoder: str = "pyav", workers: int = 1):
        if workers < 1:
            raise ValueError(f"VideoReader: workers={workers} must be at least 1")
        self.limits = limits or Limits()
        self.decoder = decoder
        self.decodes = 0  # clips sent to a decoder so far
        self._pid = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._workers: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None = not started
        self._num_workers = workers
        for _ in range(workers):
            self._workers.put(None)
        # Plan, then load, then other spans or frames of the same video, for all videos of a step and of the next
        self._index = lru_cache(maxsize=256)(self._read_index)

    def plan(self, clip: Clip) -> FramePlan:
        """Which frames the clip shows, without decoding. Raises VideoError."""
        return self._plan(clip, _File.stat(clip.path))

    def load(self, clip: Clip, part: slice = slice(None)) -> Frames:
        """The frames of `plan(clip)`, or those of a part of it: all of them or VideoError."""
        file = _File.stat(clip.path)
        plan = self._plan(clip, file)
        return Frames(pixels=self._decode(file, plan, plan.indices[part]), pts=plan.pts[part])

    def load_together(self, clips: Sequence[Clip]) -> list[Frames]:
        """The frames of clips that differ in their frames alone, as picks of one video do, decoded in one pass."""
        file = _File.stat(clips[0].path)
        plans = [self._plan(clip, file) for clip in clips]
        if len({(plan.media_sha256, plan.crop, plan.height, plan.width) for plan in plans}) > 1:
            raise ValueError(f"{file.path}: clips of different files, boxes or sizes cannot be decoded together")
        union = tuple(sorted({index for plan in plans for index in plan.indices}))
        place = {index: at for at, index in enumerate(union)}
        pixels = self._decode(file, plans[0], union)
        return [Frames(pixels=pixels[[place[index] for index in plan.indices]], pts=plan.pts) for plan in plans]

    def _decode(self, file: _File, plan: FramePlan, indices: tuple[int, ...]) -> np.ndarray:
        """Frames of a file in the box and size of a plan, `[T, H, W, 3]`."""
        index = self._index(file)
        with self._lock:
            self.decodes += 1
        request = {
            "path": file.path,
            "time_base": index.time_base.as_integer_ratio(),
            "indices": indices,
            "seeks": plan_seeks(index, indices),
            "source_size": (index.height, index.width),
            "crop": plan.crop,
            "size": (plan.height, plan.width),
        }
        shape = (len(indices), plan.height, plan.width, 3)
        _, content = self._ask(request, index.ticks.tobytes(), math.prod(shape))
        if _File.stat(file.path) != file:
            raise VideoError("digest_mismatch", f"{file.path}: changed while it was read; leave media files alone")
        return content.reshape(shape)

    def close(self) -> None:
        """End the workers, after the calls that are under way."""
        self._closed = True
        for worker in [self._workers.get() for _ in range(self._num_workers)]:
            if worker is not None:
                worker.stop()
            self._workers.put(None)  # lets calls that wait for a worker see that the reader is closed

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _plan(self, clip: Clip, file: _File) -> FramePlan:
        digest = _sha256(file)
        if clip.sha256 is not None and digest != clip.sha256.lower():
            raise VideoError("digest_mismatch", f"{file.path}: SHA-256 is {digest}, the row says {clip.sha256}")
        return plan_clip(clip, self._index(file), digest)

    def _read_index(self, file: _File) -> VideoIndex:
        header, content = self._ask({"path": file.path}, b"", most=2 * 8 * int(self.limits.frames))
        keyframes, ticks = np.split(content.view(np.int64), [header["keyframes"]])
        return VideoIndex(
            ticks=ticks,
            keyframes=keyframes,
            end=header["end"],
            time_base=Fraction(*header["time_base"]),
            rate=header["rate"] and Fraction(*header["rate"]),
            height=header["height"],
            width=header["width"],
        )

    def _ask(self, request: dict[str, Any], payload: bytes, most: int) -> tuple[dict[str, Any], np.ndarray]:
        if os.getpid() != self._pid:
            raise RuntimeError("this VideoReader was made before a fork; make another in this process")
        worker, done = self._workers.get(), False
        try:
            if self._closed:
                raise RuntimeError("this VideoReader is closed; make another")
            if worker is None or not worker.alive:
                worker = _Worker(self.decoder, self.limits)
            header, content = worker.ask(request, payload, most)
            done = True
        finally:
            if worker is not None and not done:
                worker.stop()  # what it would still say belongs to a request that nobody waits for
            self._workers.put(worker if done else None)
        if "error" in header:
            raise VideoError(header["reason"], header["error"])
        return header, content


class _Worker:
    """The parent's end of one decoder process (`worker.py`)."""

    def __init__(self, decoder: str, limits: Limits):
        self._deadline = limits.deadline
        self._socket, theirs = socket.socketpair()
        with theirs:
            arguments = [json.dumps(sys.path), str(theirs.fileno()), decoder, json.dumps(asdict(limits))]
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *arguments],
                stdin=subprocess.PIPE,  # never written to: when it closes, the process knows that we are gone
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._replies = self._socket.makefile("rb")
        try:
            header, _ = self._within(START_TIMEOUT, lambda: self._receive(0))
        except (TimeoutError, EOFError) as error:
            self.stop()
            raise RuntimeError(f"the process of decoder {decoder} did not start: {error}") from error
        if "error" in header:
            self.stop()
            raise ImportError(f"decoder {decoder} cannot be loaded: {header['error']}; choose another data.decoder")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], payload: bytes, most: int) -> tuple[dict[str, Any], np.ndarray]:
        """Send a request and wait for the answer. Raises VideoError `timeout` or `crashed`: stop the worker then."""

        def exchange() -> tuple[dict[str, Any], np.ndarray]:
            self._socket.sendall(json.dumps({**request, "payload": len(payload)}).encode() + b"\n" + payload)
            return self._receive(most)

        try:
            return self._within(self._deadline, exchange)
        except TimeoutError as error:
            remedy = f"cut it or raise limits.deadline={self._deadline:g}"
            raise VideoError("timeout", f"{request['path']}: {error}; {remedy}") from error
        except EOFError as error:
            raise VideoError("crashed", f"{request['path']}: {error}; re-encode or replace the file") from error

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._replies.close()
        self._socket.close()

    def _receive(self, most: int) -> tuple[dict[str, Any], np.ndarray]:
        line = self._replies.readline(MAX_HEADER)
        header = json.loads(line) if line.endswith(b"\n") else {"payload": -1}
        if not 0 <= header["payload"] <= most:
            raise EOFError
        content = np.empty(header["payload"], np.uint8)
        if self._replies.readinto(content.data) != len(content):
            raise EOFError
        return header, content

    def _within(self, seconds: float, exchange: Callable[[], Answer]) -> Answer:
        """Run an exchange with the process, which is killed after so many seconds. Raises TimeoutError or EOFError."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            answer = exchange()
        except (EOFError, OSError) as error:
            if expired.is_set():
                raise TimeoutError(f"the decoder was killed after {seconds:g} s") from error
            raise EOFError(f"the decoder process ended ({self._status()})") from error
        finally:
            timer.cancel()
            timer.join()
        if expired.is_set():  # too late to matter for the answer, but the process is going
            self._process.wait()
        return answer

    def _status(self) -> str:
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


_settings: tuple[Limits | None, str, int] = (None, "pyav", 1)


def configure(limits: Limits | None = None, decoder: str = "pyav", workers: int = 1) -> None:
    """Set how `load_frames` and `plan_frames` read in this process; the defaults are those of `VideoReader`."""
    global _settings
    _settings = (limits, decoder, workers)


@lru_cache(maxsize=1)
def _default_reader(pid: int, settings: tuple[Limits | None, str, int]) -> VideoReader:
    return VideoReader(*settings)


def plan_frames(clip: Clip) -> FramePlan:
    """Which frames the clip shows, from the file's header and packets alone. Raises VideoError."""
    return _default_reader(os.getpid(), _settings).plan(clip)


def load_frames(clip: Clip) -> Frames:
    """The frames of `plan_frames(clip)`, decoded and resized: all of them, at their times, or VideoError."""
    return _default_reader(os.getpid(), _settings).load(clip)
