"""JSON in answers, read strictly and within bounds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from itertools import accumulate
from typing import Any, TypeGuard

from pydantic import JsonValue

from videorl.answers.answer import Failure, failure

MAX_JSON_CHARS = 65_536  # a thousand labelled boxes
MAX_JSON_DEPTH = 16  # Python's own parser recurses

_STRING = re.compile(r'"(?:[^"\\]|\\.?)*+(?:"|\Z)', re.DOTALL)  # an open one ends with the text, or time is quadratic
_BRACKET = re.compile(r"[\[\]{}]")


class _Refused(ValueError):
    def __init__(self, reason: str, found: str):
        super().__init__(reason)
        self.failure = failure(reason, found)


def parse_json(answer: str) -> JsonValue | Failure:
    """The one JSON value an answer is, with nothing around it but a Markdown code fence.

    NaN, Infinity, numbers that no float can hold, and repeated keys are failures: the standard reads them in ways
    that let an answer mean two things.
    """
    if len(answer) > MAX_JSON_CHARS:
        return Failure("too_large", f"{len(answer)} characters")
    text = _unfenced(answer.strip())
    if _depth(text) > MAX_JSON_DEPTH:
        return Failure("too_large", f"nested deeper than {MAX_JSON_DEPTH}")
    try:
        return json.loads(
            text,
            parse_int=_finite(int),
            parse_float=_finite(float),
            parse_constant=_finite(float),
            object_pairs_hook=_unique_keys,
        )
    except _Refused as refused:
        return refused.failure
    except ValueError:
        return failure("not_json", answer)


def parse_object(answer: str, *keys: str) -> dict[str, JsonValue] | Failure:
    """A JSON object that has all these keys; it may have others, which nobody reads."""
    value = parse_json(answer)
    if isinstance(value, Failure):
        return value
    if not isinstance(value, dict) or not value.keys() >= set(keys):
        return Failure("wrong_schema", f"an object with {', '.join(keys)} is expected")
    return value


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a parsed JSON value is a number. `true` is none, although Python's bool is an int."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unfenced(text: str) -> str:
    if len(text) < 6 or not (text.startswith("```") and text.endswith("```")):
        return text
    text = text[3:-3]
    return (text[4:] if text[:4].lower() == "json" else text).strip()


def _depth(text: str) -> int:
    brackets = _BRACKET.findall(_STRING.sub("", text))
    return max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0)


def _finite(kind: Callable[[str], int | float]) -> Callable[[str], int | float]:
    def read(digits: str) -> int | float:
        if not math.isfinite(float(digits)):  # also what keeps `int` from numbers of thousands of digits
            raise _Refused("not_finite", digits)
        return kind(digits)

    return read


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _Refused("duplicate_key", ", ".join(key for key, _ in pairs))
    return fields
