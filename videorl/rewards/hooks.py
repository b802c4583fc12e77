"""Group hooks: functions that see all rollouts of a prompt, and those of its second passes, and adjust rewards.

    hook(group: RolloutGroup, **params) -> one number for each of `group.rollouts`

A hook is a reward term: its values are logged and weighted as any other's. It reads `rollout.terms` (what each other
term gave, unweighted); rewards are not known yet. `term` names the term that it compares, `side` the second pass
(`rollout.passes`) whose group it needs. It may be a coroutine, and raises `Abstained` where it cannot say anything.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from videorl.config import Fraction, NonNegative, Positive, PositiveFloat
from videorl.imports import load_object
from videorl.rewards.result import Abstained, Sample
from videorl.rewards.term import suggest, validated
from videorl.types import Rollout, RolloutGroup

Hook = Callable[[RolloutGroup], Any]  # one number for each rollout, or a coroutine of it


def _values(rollouts: Sequence[Rollout], term: str) -> list[float]:
    """A term's values; Abstained where one of them is unknown."""
    missing = [rollout for rollout in rollouts if term not in rollout.terms]
    if missing:
        why = missing[0].abstained.get(term, "it does not apply to this task")
        raise Abstained("unknown_term", f"{term!r} has no value for {len(missing)} rollouts: {why}")
    return [rollout.terms[term] for rollout in rollouts]


def _side(group: RolloutGroup, side: str) -> RolloutGroup | None:
    """The group of a second pass; None where the pass had nothing to do for this prompt."""
    found = group.sides.get(side)
    if found is not None and not found.rollouts:
        raise Abstained("lost_side", f"no rollout of {side!r} could be scored")
    return found


def temporal_bonus(
    group: RolloutGroup,
    *,
    side: str,
    term: str = "accuracy",
    bonus: NonNegative = 0.3,
    ratio: PositiveFloat = 0.8,
    above: NonNegative = 0.1,
) -> list[float]:
    """T-GRPO (Video-R1, arXiv 2503.21776, section 3.2 and its code): `bonus` to each rollout whose term is over
    `above`, if the mean over ordered frames is at least `ratio` times the mean over shuffled ones."""
    shuffled = _side(group, side)
    values = _values(group.rollouts, term)
    if shuffled is None or fmean(values) < ratio * fmean(_values(shuffled.rollouts, term)):
        return [0.0] * len(values)
    return [bonus if value > above else 0.0 for value in values]


def temporal_bonus_nep(
    group: RolloutGroup,
    *,
    side: str,
    term: str = "accuracy",
    bonus: NonNegative = 0.3,
    ratio: PositiveFloat = 0.8,
    least: Fraction = 0.3,
    above: NonNegative = 0.1,
) -> list[float]:
    """The variant in the code of next-event prediction (arXiv 2505.22457), p ordered and q shuffled mean of the term:

    ratio * p > q and p > least: `bonus` to each rollout over `above`; else p < least: nothing; else: the term is taken
    back from all. The release means the last branch to zero rewards and fails in it; here it subtracts the value.
    """
    shuffled = _side(group, side)
    values = _values(group.rollouts, term)
    if shuffled is None:
        return [0.0] * len(values)
    p, q = fmean(values), fmean(_values(shuffled.rollouts, term))
    if ratio * p > q and p > least:
        return [bonus if value > above else 0.0 for value in values]
    return [0.0 if p < least else -value for value in values]


def length_window(
    group: RolloutGroup,
    *,
    term: str = "accuracy",
    bonus: NonNegative = 0.2,
    least: Positive = 320,
    most: Positive = 512,
    above: NonNegative = 0.1,
    min_correct: Positive = 2,
) -> list[float]:
    """Video-R1's length reward (arXiv 2503.21776, eq. 4, and its code): if at least `min_correct` rollouts are over
    `above`, `bonus` to those of them with `least` to `most` tokens."""
    correct = [value > above for value in _values(group.rollouts, term)]
    lengths = [len(rollout.response_ids) for rollout in group.rollouts]
    enough = sum(correct) >= min_correct
    return [
        bonus if enough and right and least <= length <= most else 0.0
        for right, length in zip(correct, lengths, strict=True)
    ]


def length_penalty(
    group: RolloutGroup,
    *,
    term: str = "accuracy",
    most: NonNegative = 0.5,
    scale: PositiveFloat = 1.0,
    above: NonNegative = 0.5,
) -> list[float]:
    """HARMO's penalty on length relative to the group's correct rollouts (arXiv 2510.05283).

    -min(most, excess / scale), with excess = max(0, tokens / mean tokens of the correct ones - 1); nothing where no
    rollout is correct (term > `above`). The paper does not give the cap `most` and the scale (its temperature), nor,
    in the sources at hand, the exact shape of the fall: linear is the choice made here.
    """
    values = _values(group.rollouts, term)
    lengths = [len(rollout.response_ids) for rollout in group.rollouts]
    correct = [length for length, value in zip(lengths, values, strict=True) if value > above]
    if not correct:
        return [0.0] * len(lengths)
    return [-min(most, max(0.0, length / fmean(correct) - 1) / scale) for length in lengths]


def consistency_table(
    group: RolloutGroup,
    *,
    side: str,
    term: str = "accuracy",
    both: float = 0.5,
    first_only: float = 0.0,
    second_only: float = 0.0,
    neither: float = 0.0,
    above: NonNegative = 0.5,
) -> list[float]:
    """ACRE's consistency reward (arXiv 2510.10104, eq. 3) as a 2 x 2 table: is the answer right, and is it still right
    when the same reasoning meets shuffled options. The published coefficients were not found; these are a default.

    A rollout whose second answer does not exist (its reasoning was never closed) counts as wrong there.
    """
    table = {(True, True): both, (True, False): first_only, (False, True): second_only, (False, False): neither}
    second = group.sides.get(side)
    if second is None:
        return [0.0] * len(group.rollouts)
    again: dict[int | None, bool] = {
        rollout.parent: value > above
        for rollout, value in zip(second.rollouts, _values(second.rollouts, term), strict=True)
    }
    if second.lost:
        raise Abstained("lost_side", next(iter(second.lost[0].abstained.values())))
    values = _values(group.rollouts, term)
    return [
        table[value > above, again.get(rollout.index, False)]
        for rollout, value in zip(group.rollouts, values, strict=True)
    ]


async def play_tournament(group: RolloutGroup, compare: Callable[[Sample, Sample], Awaitable[float]]) -> list[float]:
    """Mean result against each other rollout of the group, in -1..1: the mean over j of 2 S(i, j) - 1 (pairwise reward
    models, as in R1-Reward). `compare` is S: how much better the first response is, in 0..1."""
    samples = [Sample.of(rollout) for rollout in group.rollouts]
    pairs = list(combinations(range(len(samples)), 2))
    results = await asyncio.gather(*(compare(samples[i], samples[j]) for i, j in pairs))
    totals = [0.0] * len(samples)
    for (i, j), result in zip(pairs, results, strict=True):
        totals[i] += 2 * result - 1
        totals[j] -= 2 * result - 1
    return [total / max(1, len(samples) - 1) for total in totals]


@dataclass(frozen=True)
class HookEntry:
    """A built-in hook and where its formula comes from."""

    function: Callable[..., Any]
    source: str


HOOKS = {
    "temporal_bonus": HookEntry(temporal_bonus, "T-GRPO of Video-R1 (2503.21776)"),
    "temporal_bonus_nep": HookEntry(temporal_bonus_nep, "T-GRPO in the code of next-event prediction (2505.22457)"),
    "length_window": HookEntry(length_window, "length reward of Video-R1 (2503.21776)"),
    "length_penalty": HookEntry(length_penalty, "HARMO (2510.05283)"),
    "consistency_table": HookEntry(consistency_table, "ACRE (2510.10104)"),
}


def is_hook(target: str) -> bool:
    """Whether a target names a group hook: a built-in one, or a function whose first argument is `group`."""
    if ":" not in target:
        return target in HOOKS
    loaded = load_object(target)
    return inspect.isfunction(loaded) and next(iter(inspect.signature(loaded).parameters), None) == "group"


def load_hook(target: str, terms: Collection[str], /, **params: Any) -> Hook:
    """A hook by built-in name or import string, its parameters fixed.

    Raises ValueError for an unknown name, for parameters it does not take or still needs, and where its `term` is none
    of `terms`.
    """
    if ":" in target:
        function = load_object(target)
    elif target in HOOKS:
        function = HOOKS[target].function
        params = validated(function, params)
    else:
        raise ValueError(f"{target!r} is not a built-in hook; {suggest(target, HOOKS)}, or give 'my_pkg.rewards:hook'")
    signature = inspect.signature(function)
    try:
        bound = signature.bind(None, **params)
    except TypeError as error:
        taken = ", ".join(list(signature.parameters)[1:])
        raise ValueError(f"params: {error}; {target} takes {taken}") from error
    bound.apply_defaults()
    if (term := bound.arguments.get("term")) is not None and term not in terms:
        raise ValueError(f"params.term: {term!r} is not a term of this rubric; {suggest(term, terms)}")
    return lambda group: function(group, **params)
