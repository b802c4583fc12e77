"""The alignment contract: a fingerprint of what a model was shown, made by the engine and again by the trainer.

Both sides compute it from what they are about to use, never from what they were told: the engine from the token ids
that vLLM expanded and the entries it read from the store, the trainer from its own expansion and its own read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from videorl.types import Media


class AlignmentError(RuntimeError):
    """The trainer is about to train on something else than what the rollout saw."""


def fingerprint(expanded_ids: Sequence[int], media: Sequence[Media]) -> str:
    """Hash of the expanded prompt ids, and of key, grid and seconds per grid step of every video, in order.

    The key covers the file's bytes, the frame times, the frame size, the processor and the tower's weights.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(list(expanded_ids)).encode())
    for item in media:
        digest.update(f"|{item.key}|{tuple(item.grid)}|{item.seconds_per_grid!r}".encode())
    return digest.hexdigest()


def verify(sample_id: str, seen: str, expanded_ids: Sequence[int], media: Sequence[Media]) -> None:
    """Raise `AlignmentError` unless `seen`, recorded by the engine, is the fingerprint of this prompt."""
    expected = fingerprint(expanded_ids, media)
    if seen != expected:
        raise AlignmentError(
            f"sample {sample_id}: the engine saw {seen}, the trainer is about to train on {expected} "
            f"({len(expanded_ids)} prompt tokens, media {[item.key[:12] for item in media]}). "
            "The two must see the same tokens, frames and times; nothing was trained on this batch."
        )
