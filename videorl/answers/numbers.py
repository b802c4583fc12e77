"""One finite number, or a list of them."""

from __future__ import annotations

import math
import re

from videorl.answers.answer import MAX_ANSWER_CHARS, Failure, failure
from videorl.answers.cleaning import NEGATION, NO_SUPERSCRIPTS, bare, clean, trim

_NUMBER = re.compile(
    r"([+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?)(?:%|s|secs?|seconds?)?"
)
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity|∞)")
_CHANGES_VALUE = re.compile(
    r"\b(?:minus|negative|half|dozen|hundred|thousand|million|billion)\b|(?:^|\s)[+-]\s", re.IGNORECASE
)
_COUNT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_BETWEEN_COUNTS = re.compile(r"\s?[,;]\s?|\s")


def parse_number(answer: str) -> int | float | Failure:
    """The one number of an answer: an int if it is written without point and exponent, else a float.

    Words may stand around it, but none that change it (not, minus, half, million). Thousands commas are read, "%"
    and seconds are ignored: "50%" is 50. Ranges, fractions, clock times and superscripts are not numbers.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return Failure("too_long", f"{len(answer)} characters")
    text = clean(answer.translate(NO_SUPERSCRIPTS)).replace("=", " ").casefold()
    tokens = [trim(token) for token in text.split()]
    numbers = [token for token in tokens if any(map(str.isdigit, token)) or _NOT_FINITE.fullmatch(token)]
    if len(numbers) != 1:
        return failure("several_numbers" if numbers else "no_number", answer)
    if _NOT_FINITE.fullmatch(numbers[0]):
        return failure("not_finite", answer)
    match = _NUMBER.fullmatch(numbers[0])
    if not match or _CHANGES_VALUE.search(text):
        return failure("malformed_number", answer)
    if NEGATION.search(text):
        return failure("negated", answer)
    value = _value(match[1].replace(",", ""))
    return failure("not_finite", answer) if value is None else value


def parse_counts(answer: str, size: int | None = None) -> tuple[int | float, ...] | Failure:
    """The numbers of a list such as "3, 1, 2" or "[3 1 2]", in order; `size` of them, if given.

    Nothing else may stand in the list. A sign and a point belong to their number: "-3" and "2.5" are one each.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return Failure("too_long", f"{len(answer)} characters")
    values: list[int | float] = []
    for token in _BETWEEN_COUNTS.split(bare(answer.translate(NO_SUPERSCRIPTS)).casefold()):
        value = _value(token) if _COUNT.fullmatch(token) else None
        if value is None:
            if _COUNT.fullmatch(token) or _NOT_FINITE.fullmatch(token):
                return failure("not_finite", answer)
            return failure("malformed_number" if any(map(str.isdigit, token)) else "no_number", answer)
        values.append(value)
    return tuple(values) if size is None or len(values) == size else failure("wrong_count", answer)


def _value(digits: str) -> int | float | None:
    """An int if it is written without point and exponent, else a float; None if no float can hold it."""
    value = float(digits)
    if not math.isfinite(value):
        return None
    return int(digits) if digits.lstrip("+-").isdecimal() else value
