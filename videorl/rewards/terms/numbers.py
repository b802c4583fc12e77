"""Answers that are numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from videorl.answers.answer import Failure, Tags
from videorl.answers.gold import gold_answer, gold_number
from videorl.answers.numbers import parse_counts, parse_number
from videorl.config import NonNegative
from videorl.rewards.result import RewardResult, score_answer


def number(
    response: str, row: dict[str, Any], *, tolerance: NonNegative | None = None, tags: Tags = "full"
) -> RewardResult:
    """1 if the answer is the gold number.

    By default as Video-R1's "numerical": equal after rounding to two decimals, and both or neither written with a
    decimal point. A float gold that is whole may come from a table that has only floats, so it says nothing about
    the point. With `tolerance`, |answer - gold| <= tolerance instead. A gold of 0 is matched by exactly 0 alone.
    """
    gold = gold_number(row)

    def is_gold(value: float) -> bool:
        if gold == 0:
            return value == 0
        if tolerance is not None:
            return abs(value - gold) <= tolerance
        any_form = isinstance(row["answer"], float) and row["answer"].is_integer()
        return round(value, 2) == round(gold, 2) and (any_form or isinstance(value, int) == isinstance(gold, int))

    return score_answer(response, tags, parse_number, is_gold)


def regression(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """1 - min(1, relative error), with relative error = (|p - g| + 1e-9) / (|g| + 1e-9): "regression" of Video-R1.

    A gold of 0 is matched by exactly 0 alone, which is then worth 1.
    """
    gold = float(gold_number(row))

    def closeness(value: float) -> float:
        if gold == 0:
            return float(value == 0)
        return 1 - min(1.0, (abs(value - gold) + 1e-9) / (abs(gold) + 1e-9))

    return score_answer(response, tags, parse_number, closeness)


def counts(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """The mean over the gold counts g ("3, 1, 2") of max(0, 1 - |p - g| / (g + 1e-9)), as VideoSSR has it.

    A gold count of 0 is matched by exactly 0 alone. An answer with more or fewer values is worth 0.
    """
    gold = gold_answer(row, _parse_gold_counts, "must be counts such as '3, 1, 2', each 0 or more")

    def closeness(values: Sequence[float]) -> float:
        return sum(
            max(0.0, 1 - abs(value - count) / (count + 1e-9)) if count else float(value == 0)
            for value, count in zip(values, gold, strict=True)
        ) / len(gold)

    return score_answer(response, tags, lambda answer: parse_counts(answer, len(gold)), closeness)


def _parse_gold_counts(answer: str) -> tuple[float, ...] | Failure:
    counts = parse_counts(answer)
    return Failure("negative") if isinstance(counts, tuple) and min(counts) < 0 else counts
