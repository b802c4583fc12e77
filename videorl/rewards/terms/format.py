"""Whether a response has the form that was asked for."""

from __future__ import annotations

from typing import Any, Literal

from videorl.answers.answer import (
    END_THINK,
    THINK,
    Failure,
    matches_legacy_format,
    parse_blocks,
    split_blocks,
    starts_with_legacy_format,
)
from videorl.rewards.result import RewardResult


def follows_format(
    response: str,
    row: dict[str, Any],
    *,
    mode: Literal["strict", "answer_only", "legacy", "legacy_prefix"] = "strict",
    tags: Literal["full", "prefilled"] = "full",
) -> RewardResult:
    """1 if the response has the form that `mode` names.

    strict          one think block and one answer block, neither blank, and nothing else
    answer_only     one answer block, not blank, and nothing else; `tags` does not matter
    legacy          the looser pattern of Video-R1, for recipes that must reproduce it bit for bit
    legacy_prefix   as UnifiedReward-Think: the same, with anything after it
    """
    found: Failure | object
    match mode:
        case "strict":
            found = parse_blocks(response, tags)
        case "answer_only":
            thinks = THINK in response or END_THINK in response
            found = Failure("wrong_tags") if thinks else split_blocks(response, "answer")
        case "legacy":
            found = matches_legacy_format(response, tags) or Failure("wrong_tags")
        case "legacy_prefix":
            found = starts_with_legacy_format(response, tags) or Failure("wrong_tags")
    return RewardResult(0.0, failure=found) if isinstance(found, Failure) else RewardResult(1.0)
