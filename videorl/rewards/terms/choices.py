"""Answers that are one of several options."""

from __future__ import annotations

from string import ascii_uppercase
from typing import Any, Literal

from videorl.answers.answer import Failure, Tags
from videorl.answers.gold import gold_answer, gold_letter
from videorl.answers.legacy import read_longvila_answer, read_v1_letter, read_video_r1_answer
from videorl.answers.letters import parse_letter
from videorl.answers.verdicts import parse_verdict, parse_yes_no
from videorl.rewards.result import RewardResult, score_answer

_LEGACY = {"v1": read_v1_letter, "video_r1": read_video_r1_answer, "longvila": read_longvila_answer}


def multiple_choice(
    response: str,
    row: dict[str, Any],
    *,
    mode: Literal["strict", "v1", "video_r1", "longvila"] = "strict",
    tags: Tags = "full",
) -> RewardResult:
    """1 if the answer names the gold option, by letter or by text.

    The other modes read as the code of a paper does, which is documented with its defects in
    `videorl.answers.legacy`: they accept the letter alone and do not look at `tags`.
    """
    gold = gold_letter(row)
    if mode == "strict":
        return score_answer(
            response, tags, lambda answer: parse_letter(answer, row["choices"]), lambda said: said == gold
        )
    answer = _LEGACY[mode](response)
    return RewardResult(0.0, failure=answer) if isinstance(answer, Failure) else RewardResult(float(answer == gold))


def verdict(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """1 if the answer is the gold verdict, word for word: one of `choices`, e.g. "Video 1 is better".

    UnifiedReward-Think (2505.03318). A letter, or a verdict inside a sentence, is none.
    """
    gold = ascii_uppercase.index(gold_letter(row))
    return score_answer(
        response, tags, lambda answer: parse_verdict(answer, row["choices"]), lambda said: said == row["choices"][gold]
    )


def yes_no(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """1 if the answer is yes or no as `answer` is."""
    gold = gold_answer(row, parse_yes_no, "must be yes or no")
    return score_answer(response, tags, parse_yes_no, lambda said: said == gold)
