"""Answers that are spans of time."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from videorl.answers.answer import Failure, Tags, failure, parse_blocks
from videorl.answers.gold import TimeUnit, gold_spans
from videorl.answers.times import Interval, Mode, parse_interval
from videorl.rewards.result import RewardResult, score_answer

Threshold = Annotated[float, Field(gt=0, le=1)]


def temporal_iou(
    response: str,
    row: dict[str, Any],
    *,
    mode: Mode = "plain",
    unit: TimeUnit = "seconds",
    tags: Tags = "full",
) -> RewardResult:
    """Intersection over union, in time, of the answered interval and the gold span it fits best.

    An answer names one interval, in seconds, so with several gold spans each alone is a full match. `mode` is the
    notation of the answer, `unit` that of the row's `spans`.
    """
    spans = gold_spans(row, unit)
    return score_answer(
        response, tags, lambda answer: parse_interval(answer, mode), lambda interval: best_iou(interval, spans)
    )


def temporal_recall(
    response: str,
    row: dict[str, Any],
    *,
    threshold: Threshold = 0.5,
    mode: Mode = "plain",
    unit: TimeUnit = "seconds",
    tags: Tags = "full",
) -> RewardResult:
    """1 if the temporal IoU is at least `threshold`: averaged over rows, R1@threshold as reported on Charades-STA."""
    result = temporal_iou(response, row, mode=mode, unit=unit, tags=tags)
    return RewardResult(float(result.value >= threshold), failure=result.failure)


_QUOTED_TIMES = re.compile(
    r'\{\s*"start_time"\s*:\s*"[0-9]+(?:\.[0-9]+)?"\s*,\s*"end_time"\s*:\s*"[0-9]+(?:\.[0-9]+)?"\s*\}'
)


def temporal_r1_format(
    response: str, row: dict[str, Any], *, tags: Literal["full", "prefilled"] = "full"
) -> RewardResult:
    """1 if the response is one think block and one answer block, which is {"start_time": "s", "end_time": "e"}.

    As in Temporal-R1 the keys have this order and the numbers are quoted. Its pattern also lets tags repeat and
    takes "1.2.3" for a number; this one does not.
    """
    blocks = parse_blocks(response, tags)
    if isinstance(blocks, Failure):
        return RewardResult(0.0, failure=blocks)
    if not _QUOTED_TIMES.fullmatch(blocks.answer.strip()):
        return RewardResult(0.0, failure=failure("wrong_schema", blocks.answer))
    return RewardResult(1.0)


def best_iou(interval: Interval, spans: list[Interval]) -> float:
    return max(iou(interval, span) for span in spans)


def iou(a: Interval, b: Interval) -> float:
    """Where two intervals overlap, their union is their hull; where they do not, the result is 0."""
    overlap = min(a[1], b[1]) - max(a[0], b[0])
    return max(0.0, overlap) / (max(a[1], b[1]) - min(a[0], b[0]))
