"""Video-R1's accuracy: one data set, five types of answer."""

from __future__ import annotations

import math
from typing import Any, Literal

from videorl.answers.answer import Failure, Tags
from videorl.answers.gold import RowError, gold_answer, gold_letter, gold_number
from videorl.answers.legacy import read_video_r1_answer
from videorl.answers.text import parse_text
from videorl.rewards.result import RewardResult
from videorl.rewards.terms.choices import multiple_choice
from videorl.rewards.terms.numbers import number, regression
from videorl.rewards.terms.text import compute_rouge, compute_word_accuracy, rouge, word_accuracy

_TERMS = {
    "multiple choice": multiple_choice,
    "numerical": number,
    "OCR": word_accuracy,
    "free-form": rouge,
    "regression": regression,
}


def video_r1_accuracy(
    response: str, row: dict[str, Any], *, mode: Literal["strict", "legacy"] = "strict", tags: Tags = "full"
) -> RewardResult:
    """The term for `meta.problem_type`: multiple choice, numerical, OCR, free-form or regression.

    `mode="legacy"` compares as the paper's code does, for recipes that must reproduce it, and does not look at `tags`.
    Its defects: it reads the first answer, even one quoted in the reasoning; a "regression" answer of NaN earns 1,
    and the exact answer to a gold of 0 earns 0; numbers are what `float` reads, "1_0" included. (One more, the first
    row's type applied to its whole batch, is not reproduced.)
    """
    kind = (row.get("meta") or {}).get("problem_type")
    if kind not in _TERMS:
        raise RowError(
            "no_scorer", f"row {row.get('id')!r}: meta.problem_type={kind!r} must be one of {', '.join(_TERMS)}"
        )
    if mode == "strict":
        return _TERMS[kind](response, row, tags=tags)
    gold = _legacy_gold(kind, row)
    answer = read_video_r1_answer(response)
    if isinstance(answer, Failure):
        return RewardResult(0.0, failure=answer)
    match kind:
        case "multiple choice":
            return RewardResult(float(answer == gold))
        case "OCR":
            return RewardResult(compute_word_accuracy(gold.split(), answer.split()))
        case "free-form":
            return RewardResult(compute_rouge(gold, answer))
    try:
        value, right = float(answer.replace(",", "")), float(gold.replace(",", ""))
    except ValueError:
        return RewardResult(0.0, failure=Failure("no_number"))
    if kind == "regression":
        error = (abs(value - right) + 1e-9) / (abs(right) + 1e-9)
        return RewardResult(1.0 if math.isnan(error) else 1 - min(1.0, error))
    same_form = any(mark in answer for mark in ".,") == any(mark in gold for mark in ".,")
    return RewardResult(float(same_form and round(value, 2) == round(right, 2)))


def _legacy_gold(kind: str, row: dict[str, Any]) -> str:
    """The gold answer as text. A row the strict parsers cannot read stays an error."""
    if kind == "multiple choice":
        return gold_letter(row)
    if kind in ("OCR", "free-form"):
        gold_answer(row, parse_text, "must be a text with at least one word")
    else:
        gold_number(row)
    return str(row["answer"]).strip()
