"""The built-in reward terms: pure functions `term(response, row, **params) -> RewardResult`.

`response` is the text the policy wrote, `row` the canonical data row. A response that cannot be read is worth the
term's worst value and carries the parser's `Failure`. A row whose gold answer cannot be read is an error: scoring it
would be silently wrong for every response.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

from videorl.config import NonNegative
from videorl.rewards.parsers import (
    Failure,
    Interval,
    Tags,
    find_answer,
    matches_legacy_format,
    parse_blocks,
    parse_interval,
    parse_letter,
    parse_number,
)
from videorl.types import DataError


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


class RowError(DataError):
    """A row cannot be scored. `reason` is "bad_gold" or "no_scorer"."""


def follows_format(
    response: str,
    row: dict[str, Any],
    *,
    mode: Literal["strict", "legacy"] = "strict",
    tags: Literal["full", "prefilled"] = "full",
) -> RewardResult:
    """1 if the response is one think block and one answer block and nothing else.

    `mode="legacy"` is the looser pattern of Video-R1, for recipes that must reproduce it bit for bit.
    """
    if mode == "legacy":
        matches = matches_legacy_format(response, tags)
        return RewardResult(1.0) if matches else RewardResult(0.0, failure=Failure("wrong_tags"))
    blocks = parse_blocks(response, tags)
    return RewardResult(0.0, failure=blocks) if isinstance(blocks, Failure) else RewardResult(1.0)


def multiple_choice(response: str, row: dict[str, Any], *, tags: Tags = "full") -> RewardResult:
    """1 if the answer names the gold option, by letter or by text."""
    gold = gold_letter(row)
    return _score(response, tags, lambda answer: parse_letter(answer, row["choices"]), lambda letter: letter == gold)


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

    return _score(response, tags, parse_number, is_gold)


def temporal_iou(
    response: str, row: dict[str, Any], *, mode: Literal["plain"] = "plain", tags: Tags = "full"
) -> RewardResult:
    """Intersection over union, in time, of the answered interval and the gold span it fits best.

    An answer names one interval, so with several gold spans each alone is a full match. `mode` is the notation of
    the answer: "plain" is "start to end".
    """
    spans = gold_spans(row)
    return _score(response, tags, parse_interval, lambda interval: max(_iou(interval, span) for span in spans))


def accuracy(
    response: str,
    row: dict[str, Any],
    *,
    tolerance: NonNegative | None = None,
    mode: Literal["plain"] = "plain",
    tags: Tags = "full",
) -> RewardResult:
    """The term that fits the row's task: multiple_choice, number or temporal_iou, with that term's parameters."""
    match row["task"]:
        case "mc" | "next_event":
            return multiple_choice(response, row, tags=tags)
        case "numeric":
            return number(response, row, tolerance=tolerance, tags=tags)
        case "grounding":
            return temporal_iou(response, row, mode=mode, tags=tags)
        case task:
            raise RowError(
                "no_scorer",
                f"row {row['id']!r}: 'accuracy' scores mc, next_event, numeric and grounding, not task {task!r}; "
                "use a reward function of your own: rewards.terms.<name>.target=my_pkg.rewards:function",
            )


def _score(response: str, tags: Tags, parse: Callable[[str], Any], value: Callable[[Any], float]) -> RewardResult:
    answer = find_answer(response, tags)
    parsed = answer if isinstance(answer, Failure) else parse(answer)
    return RewardResult(0.0, failure=parsed) if isinstance(parsed, Failure) else RewardResult(float(value(parsed)))


def _iou(a: Interval, b: Interval) -> float:
    """Where two intervals overlap, their union is their hull; where they do not, the result is 0."""
    overlap = min(a[1], b[1]) - max(a[0], b[0])
    return max(0.0, overlap) / (max(a[1], b[1]) - min(a[0], b[0]))


# --- gold answers, read by the same parsers; data checks call these too -----------------------------------------------


def gold_letter(row: dict[str, Any]) -> str:
    """The letter of the right option, from `answer`: a letter or the text of one of `choices`."""
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list | tuple) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise _bad_gold(row, "choices", "must be a list of option texts")
    letter = parse_letter(answer, choices) if isinstance(answer, str) else Failure("no_letter")
    if isinstance(letter, Failure):
        raise _bad_gold(row, "answer", f"must be a letter or the text of one of choices={choices!r} ({letter.reason})")
    return letter


def gold_number(row: dict[str, Any]) -> float:
    """The right number, from `answer`: a number, or a text that holds one."""
    answer = row.get("answer")
    gold = parse_number(answer) if isinstance(answer, str) else answer
    if not _is_finite_number(gold):
        raise _bad_gold(row, "answer", "must be one finite number")
    return gold


def gold_spans(row: dict[str, Any]) -> list[Interval]:
    """The right intervals, from `spans`: (start, end) in seconds on the clip's own clock."""
    spans = row.get("spans")
    if not isinstance(spans, list | tuple) or not spans or not all(_is_span(span) for span in spans):
        raise _bad_gold(row, "spans", "must be a list of [start, end] in seconds with 0 <= start < end")
    return [(float(start), float(end)) for start, end in spans]


def _is_span(span: Any) -> bool:
    return (
        isinstance(span, list | tuple)
        and len(span) == 2
        and all(_is_finite_number(time) for time in span)
        and 0 <= span[0] < span[1]
    )


def _is_finite_number(value: Any) -> TypeGuard[float]:
    """JSON allows NaN, true and integers that no float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _bad_gold(row: dict[str, Any], key: str, rule: str) -> RowError:
    return RowError(
        "bad_gold", f"row {row.get('id')!r}: {key}={row.get(key)!r} {rule}; correct the row or take it out of the data"
    )
