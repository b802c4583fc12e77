"""A circuit breaker: leaves a service alone that keeps failing."""

from __future__ import annotations

from collections.abc import Callable


class Breaker:
    """Closed, it lets every call pass. After `failures` failed calls in a row it opens: nobody passes for `pause`
    seconds, then one call in every `pause` seconds may try (half-open). The first that succeeds closes it."""

    def __init__(self, failures: int, pause: float, clock: Callable[[], float]):
        self._limit, self._pause, self._clock = failures, pause, clock
        self._failures = 0
        self._next_try: float | None = None  # None while closed

    @property
    def is_open(self) -> bool:
        """Half-open included."""
        return self._next_try is not None

    def admit(self) -> bool:
        """Whether a call may be made now."""
        if self._next_try is None:
            return True
        now = self._clock()
        if now < self._next_try:
            return False
        self._next_try = now + self._pause  # not a flag: a try that is never reported does not lock the others out
        return True

    def succeeded(self) -> None:
        self._failures, self._next_try = 0, None

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= self._limit:
            self._next_try = self._clock() + self._pause
