"""Context policies: what of an episode stands in the model's context when a turn begins.

They compose token ids that are there already, and never encode again what was sampled. Where a view continues the one
before it, with that turn's response behind it, both are one training row; where it does not, a new row begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from videorl.config import TargetConfig
from videorl.imports import load_object
from videorl.types import Media


@dataclass(frozen=True)
class Piece:
    """Token ids with one placeholder for each of `media`."""

    token_ids: tuple[int, ...] = ()
    media: tuple[Media, ...] = ()

    @property
    def num_tokens(self) -> int:
        """With every placeholder repeated for its clip."""
        return len(self.token_ids) + sum(item.num_tokens - 1 for item in self.media)

    def __add__(self, other: Piece) -> Piece:
        return Piece(self.token_ids + other.token_ids, self.media + other.media)


@dataclass(frozen=True)
class Observed:
    """What a turn was shown, from the user's message to the head of the response; and the same without its frames."""

    shown: Piece
    text: Piece


@dataclass(frozen=True)
class Past:
    """A turn that is over. `said` is its response, up to where the next message begins."""

    observed: Observed
    said: Piece


class Context(Protocol):
    """`splits`: some view does not continue the one before it, so that an episode becomes several training rows."""

    splits: bool

    def view(self, head: Piece, past: Sequence[Past], now: Observed) -> Piece:
        """What the model sees: `head` is what stands before the first user message."""
        ...


class Concat:
    """Everything, one row per episode, and prefix-cache hits at every turn."""

    splits = False

    def view(self, head: Piece, past: Sequence[Past], now: Observed) -> Piece:
        return sum((turn.observed.shown + turn.said for turn in past), head) + now.shown


class Window:
    """The last `turns` turns with their observations."""

    splits = True

    def __init__(self, turns: int):
        if turns < 1:
            raise ValueError(f"params.turns: {turns}, must be at least 1")
        self.turns = turns

    def view(self, head: Piece, past: Sequence[Past], now: Observed) -> Piece:
        return sum((turn.observed.shown + turn.said for turn in past[-self.turns :]), head) + now.shown


class VisualWindow:
    """All text; the frames of an observation live for `rounds` turns, those of the first one for ever (VR-Thinker)."""

    splits = True

    def __init__(self, rounds: int = 1):
        if rounds < 1:
            raise ValueError(f"params.rounds: {rounds}, must be at least 1")
        self.rounds = rounds

    def view(self, head: Piece, past: Sequence[Past], now: Observed) -> Piece:
        live = len(past) - self.rounds + 1
        turns = [
            (turn.observed.shown if place in (0, *range(live, len(past))) else turn.observed.text) + turn.said
            for place, turn in enumerate(past)
        ]
        return sum(turns, head) + now.shown


BUILT_IN = {"concat": Concat, "window": Window, "visual_window": VisualWindow}


def load_context(config: TargetConfig) -> Context:
    """Raises ValueError where the name or a parameter does not fit."""
    if config.target not in BUILT_IN and ":" not in config.target:
        raise ValueError(f"target: {config.target!r}, choose one of {', '.join(BUILT_IN)}, or give 'my_pkg:MyContext'")
    try:
        return (BUILT_IN.get(config.target) or load_object(config.target))(**config.params)
    except TypeError as error:
        raise ValueError(f"params: {config.params}, {error}") from error
