"""What a reward term is asked and what it answers: `Sample` in, `RewardResult` out, or `Abstained`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from videorl.answers.answer import Failure, Tags, find_answer
from videorl.types import Media, Rollout

if TYPE_CHECKING:
    from videorl.config import Config


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One response to score and what a scorer may look at. `id` names it in errors: "row-7#3" is its 4th response."""

    id: str
    response: str
    row: dict[str, Any]
    media: tuple[Media, ...] = ()

    @classmethod
    def of(cls, rollout: Rollout) -> Sample:
        prompt = rollout.prompt.prompt
        return cls(id=f"{prompt.id}#{rollout.index}", response=rollout.text, row=prompt.row, media=rollout.prompt.media)


@dataclass(frozen=True)
class RewardResult:
    """What a term gives one response. `parts` are further numbers to log, as `term/part`; all must be finite."""

    value: float
    parts: dict[str, float] = field(default_factory=dict)
    failure: Failure | None = None

    def __post_init__(self):
        for name, value in [("value", self.value), *self.parts.items()]:
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}; a reward must be finite")


class Abstained(Exception):
    """Nobody can say what this response is worth: a service is down, a function failed. Not a reward of 0.

    `reason` is for programs and metrics (`timeout`, `crashed`, `raised`, `unavailable`, `garbage`, ...).
    """

    def __init__(self, reason: str, message: str):
        super().__init__(reason, message)
        self.reason, self.message = reason, message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class Scorer(Protocol):
    """A term that asks something outside the process: a judge, a reward model, a text or video encoder.

    Made once as `SomeScorer(config, **params)` in a process of its own; called for many samples at a time. One that
    compares responses has `compare(row, first, second) -> float` in place of `__call__`: as a term it plays a
    tournament in each group. A pydantic model `Params` on the class, where there is one, checks `params`.
    """

    def __init__(self, config: Config | None, **params: Any): ...

    async def __call__(self, sample: Sample) -> RewardResult:
        """Score one sample. Raises `Abstained` where that is impossible now, never answers 0 in its place."""
        ...

    async def check(self) -> dict[str, float]:
        """Ask what must score low (canaries) and say how many did not: {"canaries": 4, "canaries_failed": 0}."""
        ...

    def take_counts(self) -> dict[str, float]:
        """What happened since the last call, for the metrics `scorer/<term>/*`: calls, cache hits, latency, ..."""
        ...


def score_answer(response: str, tags: Tags, parse: Callable[[str], Any], value: Callable[[Any], float]) -> RewardResult:
    """`value` of the parsed answer; 0 with the reason where there is no answer or it cannot be parsed."""
    answer = find_answer(response, tags)
    parsed = answer if isinstance(answer, Failure) else parse(answer)
    return RewardResult(0.0, failure=parsed) if isinstance(parsed, Failure) else RewardResult(float(value(parsed)))
