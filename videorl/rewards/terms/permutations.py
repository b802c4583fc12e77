"""Answers that put symbols in order."""

from __future__ import annotations

from typing import Any

from videorl.answers.answer import Tags
from videorl.answers.gold import gold_answer
from videorl.answers.permutations import parse_permutation
from videorl.rewards.result import RewardResult, score_answer


def permutation(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """VideoSSR's jigsaw: 1 - (sum over the n symbols of how many places each is off) / floor(n^2 / 2).

    The divisor is the greatest such sum, so the reversed order earns 0. What is no permutation of the gold symbols
    earns 0.
    """
    gold = gold_answer(row, parse_permutation, "must be an order of different symbols, such as '312'")

    def closeness(order: str) -> float:
        moved = sum(abs(order.index(symbol) - place) for place, symbol in enumerate(gold))
        return 1 - moved / (len(gold) ** 2 // 2)

    return score_answer(response, tags, lambda answer: parse_permutation(answer, gold), closeness)
