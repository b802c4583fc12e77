"""Reward shaping of DAPO (arXiv 2503.14476), on plain numbers."""

from __future__ import annotations

from videorl.config import OverlongConfig


def compute_overlong_penalty(num_tokens: int, max_tokens: int, overlong: OverlongConfig) -> float:
    """DAPO's soft overlong punishment (eq. 13), scaled: a reward in [-penalty, 0] for a response of `num_tokens`.

    0 up to `max_tokens - buffer`, from there linear down to `-penalty` at `max_tokens` and beyond.
    """
    excess = num_tokens - (max_tokens - overlong.buffer)
    return -overlong.penalty * min(max(excess / overlong.buffer, 0.0), 1.0)
