"""A decoder process: reads requests from a socket, answers with an index, pixels or a typed error.

Media parsers are the largest attack surface of a training run, so header and packets are read here too. The parent
trusts nothing but JSON and raw numbers from this process, and kills it at a deadline.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import socket
import sys
from fractions import Fraction
from io import BufferedRWPair
from typing import Any

import numpy as np

from videorl.types import VideoError
from videorl.video.decode import Decoder, decode, load_decoder, read_index
from videorl.video.frames import DecodeJob, Limits


def main(socket_fd: str, decoder_name: str, limits_json: str) -> None:
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    limits = Limits(**json.loads(limits_json))
    with socket.socket(fileno=int(socket_fd)) as connection, connection.makefile("rwb") as stream:
        try:
            decoder = load_decoder(decoder_name)
        except Exception as error:
            _send(stream, {"error": f"{type(error).__name__}: {error}"})
            return
        _limit_memory(limits.memory_gb)
        _send(stream, {})
        while line := stream.readline():
            _answer(stream, json.loads(line), decoder, limits)


def _answer(stream: BufferedRWPair, request: dict[str, Any], decoder: Decoder, limits: Limits) -> None:
    ticks = np.frombuffer(stream.read(request.pop("payload")), np.int64)
    try:
        if "indices" in request:
            _send(stream, {}, decode(decoder, _job(request, ticks, limits)))
        else:
            index = read_index(request["path"], limits)
            header = {
                "keyframes": len(index.keyframes),
                "end": index.end,
                "time_base": index.time_base.as_integer_ratio(),
                "rate": index.rate and index.rate.as_integer_ratio(),
                "height": index.height,
                "width": index.width,
            }
            _send(stream, header, np.concatenate([index.keyframes, index.ticks]))
    except VideoError as error:
        _send(stream, {"reason": error.reason, "error": str(error)})
    except MemoryError:
        message = f"{request['path']}: needs more than limits.memory_gb={limits.memory_gb:g}; cut it or raise the limit"
        _send(stream, {"reason": "too_large", "error": message})
    except Exception as error:  # from a parser fed with hostile bytes: it must not take the other clips down
        _send(stream, {"reason": "crashed", "error": f"{request['path']}: {type(error).__name__}: {error}"})


def _job(request: dict[str, Any], ticks: np.ndarray, limits: Limits) -> DecodeJob:
    return DecodeJob(
        path=request["path"],
        ticks=ticks,
        time_base=Fraction(*request["time_base"]),
        indices=tuple(request["indices"]),
        seeks=tuple(request["seeks"]),
        source_size=tuple(request["source_size"]),
        crop=tuple(request["crop"]),
        size=tuple(request["size"]),
        max_frame_pixels=int(limits.frame_pixels),
    )


def _send(stream: BufferedRWPair, header: dict[str, Any], payload: np.ndarray | None = None) -> None:
    """One line of JSON, then `payload` bytes."""
    size = 0 if payload is None else payload.nbytes
    stream.write(json.dumps({**header, "payload": size}).encode() + b"\n")
    if payload is not None:
        stream.write(payload.data.cast("B"))
    stream.flush()


def _die_with_parent() -> None:
    """Have the kernel end this process when the parent's end of standard input closes, whatever is running here.

    A pipe closes however the parent dies. SIGIO, whose default is to terminate, needs no help from Python, so it works
    inside a decoder that holds the interpreter lock; PR_SET_PDEATHSIG would fire when the parent's *thread* ends.
    """
    fcntl.fcntl(sys.stdin, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(sys.stdin, fcntl.F_SETFL, fcntl.fcntl(sys.stdin, fcntl.F_GETFL) | os.O_ASYNC)


def _limit_memory(gigabytes: float) -> None:
    """Bound the address space, over what Python and the decoder's libraries have mapped already."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    limit = mapped + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
