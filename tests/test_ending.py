"""SIGTERM, with SIGINT as a terminal has it and as a shell leaves it to what it starts in the background."""

from __future__ import annotations

import asyncio
import signal

import pytest

from videorl import ending


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def handlers(request, monkeypatch):
    monkeypatch.setattr(ending, "_asked", False)
    before = signal.signal(signal.SIGINT, request.param), signal.getsignal(signal.SIGTERM)
    ending.end_on_sigterm()
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


def test_a_request_interrupts_the_main_thread(handlers):
    assert not ending.asked()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert ending.asked()


def test_a_request_cancels_what_an_event_loop_runs(handlers):
    """Each task sees its cancellation, and none is left to complain that it was destroyed."""
    seen: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(name)
            raise

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            for name in "ab":
                tasks.create_task(work(name))
            await asyncio.sleep(0.01)
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(60)

    with pytest.raises((KeyboardInterrupt, asyncio.CancelledError)):
        asyncio.run(run())
    assert sorted(seen) == ["a", "b"] and ending.asked()
