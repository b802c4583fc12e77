"""From the configured reward terms to one score per response.

    total = sum of weight * value over the terms whose `requires` holds

A term with weight 0 is only logged. `requires` names another term that must count and be positive; otherwise this
one counts 0 in the total, and is still logged with its own value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from videorl.config import RewardsConfig
from videorl.rewards.registry import Reward, load, suggest


class RewardError(RuntimeError):
    """A reward function failed. It is not a reward of 0: the caller decides what becomes of the rollout."""

    def __init__(self, term: str, row_id: str, cause: str):
        super().__init__(term, row_id, cause)
        self.term, self.row_id, self.cause = term, row_id, cause

    def __str__(self) -> str:
        return f"reward term {self.term!r} failed on row {self.row_id!r}: {self.cause}"


@dataclass(frozen=True, kw_only=True)
class Score:
    """`terms` holds each term's own value, unweighted, and its parts as `term/part`; `failures` the terms that
    could not read the response, and why."""

    total: float
    terms: dict[str, float]
    failures: dict[str, str]


class Rubric:
    """The terms of a configuration, ready to score. Raises ValueError, naming the key, for terms that do not fit."""

    def __init__(self, config: RewardsConfig):
        self._terms = config.terms
        self._rewards: dict[str, Reward] = {}
        for name, term in config.terms.items():
            try:
                self._rewards[name] = load(term.target, **term.params)
            except ValueError as error:
                raise ValueError(f"rewards.terms.{name}: {error}") from error
            if term.requires is not None and term.requires not in config.terms:
                raise ValueError(
                    f"rewards.terms.{name}.requires: {term.requires!r} is not a term of this rubric; "
                    f"{suggest(term.requires, config.terms)}"
                )
        for name in config.terms:
            chain = self._required_by(name)
            if name in chain:
                raise ValueError(
                    f"rewards.terms.{name}.requires: {' -> '.join([name, *chain])} is a cycle; set one of them to null"
                )

    def _required_by(self, name: str) -> list[str]:
        """What a term requires, what that requires, and so on; ends where it would repeat."""
        chain: list[str] = []
        required = self._terms[name].requires
        while required is not None and required not in chain:
            chain.append(required)
            required = self._terms[required].requires
        return chain

    def score(self, response: str, row: dict[str, Any]) -> Score:
        """Score one response to a canonical row. Raises RewardError where a term fails."""
        values: dict[str, float] = {}
        logged: dict[str, float] = {}
        failures: dict[str, str] = {}
        for name, reward in self._rewards.items():
            try:
                result = reward(response, row)
            except Exception as error:
                raise RewardError(name, row["id"], f"{type(error).__name__}: {error}") from error
            values[name] = logged[name] = float(result.value)
            logged.update({f"{name}/{part}": float(value) for part, value in result.parts.items()})
            if result.failure is not None:
                failures[name] = str(result.failure)

        total = 0.0
        for name, term in self._terms.items():
            if all(values[required] > 0 for required in self._required_by(name)):
                total += term.weight * values[name]
        if not math.isfinite(total):
            raise RewardError("total", row["id"], f"{total} from {values}; declare ranges or lower the weights")
        return Score(total=total, terms=logged, failures=failures)
