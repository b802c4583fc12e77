"""Answers that are scores on a scale."""

from __future__ import annotations

from typing import Any

from videorl.answers.answer import Failure, Tags
from videorl.answers.gold import gold_answer
from videorl.answers.scores import parse_scores
from videorl.config import Fraction
from videorl.rewards.result import RewardResult, score_answer


def scores(
    response: str,
    row: dict[str, Any],
    *,
    names: tuple[str, ...] = ("visual quality", "text alignment", "physical consistency"),
    low: int = 1,
    high: int = 5,
    table: tuple[Fraction, ...] = (1.0, 0.7, 0.4, 0.1),
    tags: Tags = "full",
) -> RewardResult:
    """`table[k]` where k scores are off by one and the others right; 0 where a score is off by more.

    The range and table are VideoScore2's (2509.22799); how its prompt spells the `names` is the recipe's to say.
    """
    if len(table) != len(names) + 1:
        raise ValueError(f"table={table} has {len(table)} entries for {len(names)} names; give 0 to {len(names)} off")

    def parse(answer: str) -> tuple[int, ...] | Failure:
        return parse_scores(answer, names, low, high)

    gold = gold_answer(row, parse, f"must be {len(names)} integers from {low} to {high}, such as '4, 3, 5'")

    def value(said: tuple[int, ...]) -> float:
        off = [abs(score - right) for score, right in zip(said, gold, strict=True)]
        return table[sum(off)] if max(off) <= 1 else 0.0

    return score_answer(response, tags, parse, value)
