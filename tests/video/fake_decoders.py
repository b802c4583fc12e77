"""Fakes: decoders that misbehave on files named bad*, and read all others as the real one does.

Named by import string, as a user's own decoder would be; each writes the id of its process beside the file.
"""

import ctypes
import os
import signal
from pathlib import Path

import numpy as np

from videorl.video.decode import load_decoder


def _fake(misbehave):
    def decoder(job):
        Path(f"{job.path}.pid").write_text(str(os.getpid()))
        if Path(job.path).name.startswith("bad"):
            yield from misbehave(job)
        else:
            yield from load_decoder("pyav")(job)

    return decoder


def _real(job):
    return load_decoder("pyav")(job)


@_fake
def hang(job):
    ctypes.PyDLL(None).sleep(3600)  # holds the interpreter lock, as a native library may
    yield


@_fake
def segfault(job):
    os.kill(os.getpid(), signal.SIGSEGV)
    yield


@_fake
def leave(job):
    os._exit(3)
    yield


@_fake
def devour_memory(job):
    yield 0, np.ones((1 << 40, 1, 3), np.uint8)


@_fake
def raise_unexpectedly(job):
    raise KeyError("nobody catches this")
    yield


@_fake
def stop_early(job):
    yield from list(_real(job))[:-1]


@_fake
def repeat_first(job):
    first = next(_real(job))
    for _ in job.indices:
        yield first


@_fake
def shrink(job):
    for tick, rgb in _real(job):
        yield tick, rgb[::2]


@_fake
def touch(job):
    os.utime(job.path, ns=(0, 0))
    yield from _real(job)
