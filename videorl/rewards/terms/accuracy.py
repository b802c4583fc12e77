"""The term that fits a row's task."""

from __future__ import annotations

from typing import Any, Literal

from videorl.answers.answer import Tags
from videorl.answers.gold import RowError
from videorl.config import NonNegative
from videorl.rewards.result import RewardResult
from videorl.rewards.terms.choices import multiple_choice
from videorl.rewards.terms.numbers import number
from videorl.rewards.terms.times import temporal_iou

SCORED_TASKS = ("mc", "next_event", "numeric", "grounding")


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
