"""Times and intervals, in seconds."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import JsonValue

from videorl.answers.answer import MAX_ANSWER_CHARS, Failure, failure
from videorl.answers.blocks import find_block
from videorl.answers.cleaning import LEAD_IN, NO_SUPERSCRIPTS, clean, option_key, trim
from videorl.answers.objects import is_number, parse_object

Interval = tuple[float, float]

Mode = Literal["plain", "json", "tag"]
"""How an interval is written: `plain` = 2 to 5; `json` = {"start_time": "2", "end_time": "5"}, as in Temporal-R1;
`tag` = <time> 2 - 5 </time> among other text, as in STVG-o1."""

_CLOCK = r"[0-9]+:[0-5][0-9](?::[0-5][0-9])?(?:\.[0-9]+)?"
_SECONDS = r"[0-9]+(?:\.[0-9]+)?"
_TIME_PATTERN = rf"(-?(?:{_CLOCK}|{_SECONDS}))(?: ?(?:s|secs?|seconds?)\b)?"
_TIME = re.compile(_TIME_PATTERN)
_INTERVAL = re.compile(rf"(?:from )?{_TIME_PATTERN} ?(?:[-–—~]|to\b) ?{_TIME_PATTERN}")


def parse_interval(answer: str, mode: Mode = "plain") -> Interval | Failure:
    """(start, end) in seconds, 0 <= start < end, from "2 to 5", "2.0s - 5.5s" or "0:02 ~ 1:00:05".

    A time is a number of seconds, mm:ss or hh:mm:ss; the separator is -, –, —, ~ or "to". Nothing is clamped, swapped
    or scaled: a reversed interval or a percentage is a failure. In JSON the times may also be numbers.
    """
    if mode == "tag":
        block = find_block(answer, "time")
        if isinstance(block, Failure):
            return block
        answer = block
    times = _json_times(answer) if mode == "json" else _plain_times(answer)
    if isinstance(times, Failure):
        return times
    start, end = times
    if math.copysign(1, start) < 0 or math.copysign(1, end) < 0:
        return failure("negative", answer)
    if not (math.isfinite(start) and math.isfinite(end)):
        return failure("not_finite", answer)
    if start >= end:
        return failure("zero_length" if start == end else "reversed", answer)
    return start, end


def _plain_times(answer: str) -> tuple[float, float] | Failure:
    if len(answer) > MAX_ANSWER_CHARS:
        return Failure("too_long", f"{len(answer)} characters")
    text = trim(clean(answer.translate(NO_SUPERSCRIPTS)))
    match = _INTERVAL.fullmatch(option_key(LEAD_IN.sub("", text, count=1)))
    return (_seconds(match[1]), _seconds(match[2])) if match else failure("no_interval", answer)


def _json_times(answer: str) -> tuple[float, float] | Failure:
    fields = parse_object(answer, "start_time", "end_time")
    if isinstance(fields, Failure):
        return fields
    start, end = _json_time(fields["start_time"]), _json_time(fields["end_time"])
    return failure("no_interval", answer) if start is None or end is None else (start, end)


def _json_time(value: JsonValue) -> float | None:
    if isinstance(value, str):
        match = _TIME.fullmatch(value.strip().casefold())
        return _seconds(match[1]) if match else None
    return float(value) if is_number(value) else None


def _seconds(time: str) -> float:
    """Seconds of "75", "01:15" or "00:01:15", with their sign."""
    total = 0.0
    for part in time.removeprefix("-").split(":"):
        total = 60 * total + float(part)
    return -total if time.startswith("-") else total
