"""When a service that keeps failing is left alone, and when it is tried again."""

from __future__ import annotations

from videorl.rewards.scorers.breaker import Breaker


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(failures: int = 3, pause: float = 10.0) -> tuple[Breaker, Time]:
    time = Time()
    return Breaker(failures, pause, time), time


def test_it_opens_after_so_many_failures_in_a_row():
    breaker, _ = make(failures=3)
    for failed in (True, True, False, True, True):  # a success between them: never three in a row
        breaker.failed() if failed else breaker.succeeded()
        assert breaker.admit() and not breaker.is_open
    breaker.failed()
    assert breaker.is_open and not breaker.admit()


def test_half_open_it_lets_one_try_in_each_pause():
    breaker, time = make(failures=1, pause=10.0)
    breaker.failed()
    admitted = {}
    for now in (0.0, 9.9, 10.0, 10.1, 19.9, 20.0, 20.1):
        time.now = now
        admitted[now] = breaker.admit()
    assert admitted == {0.0: False, 9.9: False, 10.0: True, 10.1: False, 19.9: False, 20.0: True, 20.1: False}


def test_the_first_success_closes_it_and_forgets_the_failures():
    breaker, time = make(failures=2, pause=10.0)
    breaker.failed(), breaker.failed()
    time.now = 10.0
    assert breaker.admit()
    breaker.succeeded()
    assert breaker.admit() and breaker.admit() and not breaker.is_open
    breaker.failed()
    assert not breaker.is_open


def test_a_failed_try_keeps_it_open_for_another_pause():
    breaker, time = make(failures=2, pause=10.0)
    breaker.failed(), breaker.failed()
    time.now = 14.0
    assert breaker.admit()
    breaker.failed()
    time.now = 23.9
    assert not breaker.admit()
    time.now = 24.0
    assert breaker.admit()
