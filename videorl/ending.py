"""Ending a run from outside: SIGTERM, as of a scheduler that takes the machine away, ends it as Ctrl-C does."""

from __future__ import annotations

import asyncio
import signal

_asked = False


def asked() -> bool:
    """Whether an end was asked for.

    What is raised after that follows from it, whatever it is: out of a library an exception from a signal can come as
    another one.
    """
    return _asked


def end_on_sigterm() -> None:
    """From now on SIGTERM interrupts the main thread. `with` blocks close, and the last checkpoint stands."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    global _asked
    _asked = True
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.raise_signal(signal.SIGINT)
        return
    # A shell has the programs ignore SIGINT that it starts in the background, and then no event loop expects it
    loop = asyncio._get_running_loop()
    if loop is None:
        raise KeyboardInterrupt
    for task in asyncio.all_tasks(loop):
        loop.call_soon_threadsafe(task.cancel)
