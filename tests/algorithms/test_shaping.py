import pytest
from hypothesis import given
from hypothesis import strategies as st

from videorl.algorithms.shaping import compute_overlong_penalty
from videorl.config import OverlongConfig


@pytest.mark.parametrize(
    ("num_tokens", "expected"), [(1, 0.0), (80, 0.0), (85, -0.125), (90, -0.25), (100, -0.5), (130, -0.5)]
)
def test_overlong_penalty(num_tokens, expected):
    # budget 100, buffer 20: from 80 on, 5 of 20 tokens cost a quarter of 0.5
    penalty = compute_overlong_penalty(num_tokens, 100, OverlongConfig(buffer=20, penalty=0.5))
    assert penalty == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 300), st.integers(1, 200))
def test_overlong_penalty_never_rises_with_length(num_tokens, buffer):
    overlong = OverlongConfig(buffer=buffer, penalty=1.0)
    shorter, longer = (compute_overlong_penalty(num_tokens + extra, 200, overlong) for extra in (0, 1))
    assert -1.0 <= longer <= shorter <= 0.0
