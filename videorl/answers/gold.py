"""Gold answers of rows, read by the parsers that read responses; data checks call these too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal, TypeGuard, TypeVar

from videorl.answers.answer import Failure
from videorl.answers.letters import parse_letter
from videorl.answers.numbers import parse_number
from videorl.answers.times import Interval
from videorl.types import DataError

Parsed = TypeVar("Parsed")


class RowError(DataError):
    """A row cannot be scored. `reason` is "bad_gold" or "no_scorer"."""


def gold_letter(row: dict[str, Any]) -> str:
    """The letter of the right option, from `answer`: a letter or the text of one of `choices`."""
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list | tuple) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise bad_gold(row, "choices", "must be a list of option texts")
    letter = parse_letter(answer, choices) if isinstance(answer, str) else Failure("no_letter")
    if isinstance(letter, Failure):
        raise bad_gold(row, "answer", f"must be a letter or the text of one of choices={choices!r} ({letter.reason})")
    return letter


def gold_number(row: dict[str, Any]) -> float:
    """The right number, from `answer`: a number, or a text that holds one."""
    answer = row.get("answer")
    gold = parse_number(answer) if isinstance(answer, str) else answer
    if not is_finite_number(gold):
        raise bad_gold(row, "answer", "must be one finite number")
    return gold


TimeUnit = Literal["seconds", "fraction"]
"""What a row's `spans` count: seconds, or fractions of `meta["video_length"]` as in Temporal-R1's data."""


def gold_spans(row: dict[str, Any], unit: TimeUnit = "seconds") -> list[Interval]:
    """The right intervals, from `spans`: (start, end) in seconds on the clip's own clock.

    With `unit="fraction"`, spans are fractions of `meta["video_length"]` (seconds > 0), and are multiplied by it.
    """
    spans = row.get("spans")
    if not isinstance(spans, list | tuple) or not spans or not all(_is_span(span) for span in spans):
        raise bad_gold(row, "spans", "must be a list of [start, end] in seconds with 0 <= start < end")
    length = 1.0
    if unit == "fraction":
        length = (row.get("meta") or {}).get("video_length")
        if not is_finite_number(length) or length <= 0:
            raise bad_gold(row, "meta", 'must have "video_length", in seconds')
        if any(end > 1 for _, end in spans):
            raise bad_gold(row, "spans", "must be fractions of the video's length, 0 <= start < end <= 1")
    return [(float(start) * length, float(end) * length) for start, end in spans]


def gold_answer(row: dict[str, Any], parse: Callable[[str], Parsed | Failure], rule: str) -> Parsed:
    """`answer` as the parser of the responses reads it. `rule` says what it must be, for the error where it is not."""
    answer = row.get("answer")
    gold = parse(str(answer)) if isinstance(answer, str | int | float) else Failure("no_answer")
    if isinstance(gold, Failure):
        raise bad_gold(row, "answer", f"{rule} ({gold.reason})")
    return gold


def _is_span(span: Any) -> bool:
    return (
        isinstance(span, list | tuple)
        and len(span) == 2
        and all(is_finite_number(time) for time in span)
        and 0 <= span[0] < span[1]
    )


def is_finite_number(value: Any) -> TypeGuard[float]:
    """JSON allows NaN, true and integers that no float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def bad_gold(row: dict[str, Any], key: str, rule: str) -> RowError:
    return RowError(
        "bad_gold", f"row {row.get('id')!r}: {key}={row.get(key)!r} {rule}; correct the row or take it out of the data"
    )
