"""What the rewards of a first batch say about the set-up, in plain words.

A run whose rewards are all 0 looks healthy in every other respect. These few lines tell an answer format that nobody
follows from a response budget that is too short, from a data set that is too hard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from videorl.answers.answer import REASONS
from videorl.types import Rollout, RolloutGroup


def describe_batch(groups: Sequence[RolloutGroup], worst: int = 5) -> list[str]:
    """Lines: the rewards, what could not be read per term, the truncated and zero-variance shares, the worst samples.

    `groups` holds at least one. Model output is quoted without control characters, in part.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [rollout.reward for rollout in rollouts]
    lines = [
        f"{len(rollouts)} responses to {len(groups)} prompts; "
        f"reward {sum(rewards) / len(rewards):.3f} on average, {min(rewards):.3f} to {max(rewards):.3f}"
    ]
    for term in dict.fromkeys(name for rollout in rollouts for name in rollout.terms if "/" not in name):
        lines += _failures(term, [rollout for rollout in rollouts if term in rollout.terms])
    truncated = sum(rollout.finish_reason == "length" for rollout in rollouts)
    lines.append(f"{_share(truncated, len(rollouts))} of the responses were cut off at the token limit")
    flat = sum(group.zero_variance for group in groups)
    lines.append(
        f"{_share(flat, len(groups))} of the prompts have equal rewards in all responses: nothing to learn from them"
    )
    lines.append(f"the {min(worst, len(rollouts))} worst responses:")
    return lines + [_describe(rollout) for rollout in sorted(rollouts, key=lambda rollout: rollout.reward)[:worst]]


def _failures(term: str, rollouts: Sequence[Rollout]) -> list[str]:
    reasons = Counter(
        rollout.failures[term].partition(":")[0] for rollout in rollouts if term in rollout.failures
    ).most_common()
    head = f"{_share(sum(count for _, count in reasons), len(rollouts))} of the responses cannot be read by {term!r}"
    return [head] + [f"    {count} x {REASONS.get(reason, reason)} ({reason})" for reason, count in reasons]


def _describe(rollout: Rollout) -> str:
    prompt = rollout.prompt.prompt
    gold = prompt.row.get("spans") if prompt.row.get("answer") is None else prompt.row["answer"]
    terms = ", ".join(f"{name} {value:.3f}" for name, value in rollout.terms.items())
    return f"    {prompt.id!r}: reward {rollout.reward:.3f} ({terms}); gold {gold!r}; wrote {_quote(rollout.text)}"


def _quote(text: str, length: int = 160) -> str:
    """The two ends of a text: what it opens with shows the format, what it closes with the answer."""
    if len(text) > length:
        text = f"{text[: length // 2]} … {text[-length // 2 :]}"
    return repr(text)


def _share(count: int, total: int) -> str:
    return f"{count / total:.0%} ({count} of {total})"
