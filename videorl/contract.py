"""The alignment contract: the trainer trains on what the rollout saw, or not at all.

Each rollout carries a fingerprint of its tokens, their positions and its videos. The engine's side makes it from the
ids that vLLM was run on, the trainer's side again from the tensors that it is about to train on. What no fingerprint
can show, because both sides read the same thing but compute with another, shows in the log-probs: they are compared at
every step, and at a run's first step with a control in which the videos are blank.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from videorl.types import Media

if TYPE_CHECKING:
    import torch


class AlignmentError(RuntimeError):
    """The trainer is about to train on something else than what the rollout saw."""


def fingerprint(token_ids: Sequence[int] | np.ndarray, positions: np.ndarray, media: Sequence[Media]) -> str:
    """Hash of all tokens of a rollout, of their positions `[3, n]`, and of key, grid and time step of every video.

    The key covers the file's bytes, the frame times, the frame size, the processor and the tower's weights.
    """
    digest = blake2b(f"{len(token_ids)}|".encode(), digest_size=16)
    for numbers in (token_ids, positions):
        digest.update(np.ascontiguousarray(numbers, dtype=np.int64).tobytes())
    for item in media:
        digest.update(f"|{item.key}|{tuple(item.grid)}|{item.seconds_per_grid!r}".encode())
    return digest.hexdigest()


def verify(
    sample_id: str,
    seen: str,
    token_ids: Sequence[int] | np.ndarray,  # [n]
    positions: np.ndarray,  # [3, n]
    media: Sequence[Media],
) -> None:
    """Raise `AlignmentError` unless `seen`, recorded by the engine, is the fingerprint of this row."""
    expected = fingerprint(token_ids, positions, media)
    if seen != expected:
        raise AlignmentError(
            f"sample {sample_id}: the engine saw {seen}, the trainer is about to train on {expected} "
            f"({len(token_ids)} tokens, media {[item.key[:12] for item in media]}). "
            "The two must see the same tokens, frames and times; nothing was trained on this batch."
        )


def check_log_probs(
    sample_ids: Sequence[str],
    rollout_log_probs: torch.Tensor,  # [B, T] of the engine
    old_log_probs: torch.Tensor,  # [B, T] of the trainer, before the update
    response_mask: torch.Tensor,  # [B, T]
    tolerance: float | None,
    blank_log_probs: torch.Tensor | None = None,  # [B, T] of the trainer with blank videos
    with_video: torch.Tensor | None = None,  # [B] bool: rows that show any
) -> dict[str, float]:
    """How far engine and trainer are apart on the sampled tokens, as metrics.

    Raises AlignmentError where that is over `tolerance` on average (None: never), naming the samples that are farthest
    apart; and where the trainer's log-probs do not depend on the videos: blank ones change them by less than that.
    """
    hidden = ~response_mask.bool()
    tokens = (~hidden).sum(1).clamp(min=1)
    diff = (rollout_log_probs - old_log_probs).abs().masked_fill(hidden, 0)
    mean = float(diff[~hidden].mean())
    metrics = {"max_log_prob_diff": float(diff.max()), "mean_log_prob_diff": mean}
    if tolerance is not None and not mean <= tolerance:  # a NaN is an alarm too
        of_row = (diff.sum(1) / tokens).nan_to_num(nan=float("inf"))
        worst = [f"{sample_ids[i]} ({of_row[i]:.3g})" for i in of_row.argsort(descending=True)[:3].tolist()]
        raise AlignmentError(
            f"engine and trainer differ by {mean:.3g} in log-probability per token, "
            f"rollout.parity_tolerance={tolerance:g}; farthest apart: {', '.join(worst)}. "
            "They must compute the same policy on the same videos; "
            "nothing was trained on this batch. Raise the tolerance if it is below the rounding of model.dtype."
        )
    if blank_log_probs is not None:
        shown = ~hidden & (True if with_video is None else with_video[:, None])
        changed = (blank_log_probs - old_log_probs).abs()[shown]
        metrics["blank_video_diff"], mean = float(changed.mean()), float(diff[shown].mean())
        if not metrics["blank_video_diff"] > mean:
            raise AlignmentError(
                f"blank videos change the log-probabilities by {metrics['blank_video_diff']:.3g} per token, no more "
                f"than the {mean:.3g} between engine and trainer: the trainer does not look at the videos, or none are "
                "shown. With rollout.parity_tolerance=null neither is checked."
            )
    return metrics
