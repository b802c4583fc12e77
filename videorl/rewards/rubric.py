"""From the configured reward terms and group hooks to one reward per rollout.

    reward = sum of weight * value over the terms that apply to the row's task and whose `requires` holds

A term is a function of one response, a scorer that asks something outside, or a group hook, which sees all rollouts of
a prompt once the others have scored them. A term with weight 0 is only logged. `requires` names another term that must
count and be positive; otherwise this one counts 0 in the total, and is still logged with its own value. `stages` change
weight and parameters of a term once a share of the training is done. A term that cannot say anything abstains:
`rewards.on_abstain` decides what becomes of the rollout, and it never earns 0 for that.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, Protocol

from videorl.answers.gold import RowError
from videorl.config import RewardsConfig, TermConfig
from videorl.rewards.hooks import Hook, is_hook, load_hook, play_tournament
from videorl.rewards.registry import find_scorer, load
from videorl.rewards.result import Abstained, RewardResult, Sample
from videorl.rewards.term import Reward, suggest
from videorl.types import DataError, RolloutGroup


class Elsewhere(Protocol):
    """The terms that run in processes of their own. Both raise Abstained."""

    async def score(self, term: str, params: dict[str, Any], sample: Sample) -> RewardResult: ...

    async def compare(self, term: str, first: Sample, second: Sample) -> float:
        """How much better the first response is than the second, in 0..1; 0.5 = equal."""
        ...


class RewardError(DataError):
    """Rollouts could not be scored, and the configuration says to stop."""

    def __init__(self, message: str):
        super().__init__("rewards", message)


@dataclass(frozen=True, kw_only=True)
class Score:
    """`terms` holds each term's own value, unweighted, and its parts as `term/part`; `failures` the terms that could
    not read the response, and why; `abstained` the terms that could not say anything, and why."""

    terms: dict[str, float]
    failures: dict[str, str]
    abstained: dict[str, str]


@dataclass(frozen=True)
class _Stage:
    after: float
    weight: float
    params: dict[str, Any]
    reward: Reward | None  # None: asked elsewhere
    hook: Hook | None


class Rubric:
    """The terms and hooks of a configuration, ready to score.

    `elsewhere` scores by the terms that do not run here: scorers, and functions named by import string, which may hang
    or crash. Without it functions are called here and scorers abstain. Raises ValueError, naming the key, for what does
    not fit.
    """

    def __init__(self, config: RewardsConfig, elsewhere: Elsewhere | None = None):
        self.config, self._elsewhere = config, elsewhere
        self._terms = {name: term for name, term in config.terms.items() if term is not None}
        if not self._terms:
            raise ValueError("rewards.terms: every term is off; give one")
        self._stages: dict[str, list[_Stage]] = {}
        self._hooks = [name for name, term in self._terms.items() if _at(name, _is_of_group, term)]
        single = [name for name in self._terms if name not in self._hooks]
        for name, term in self._terms.items():
            self._stages[name] = _at(name, self._load, name, term, single)
            if term.requires is not None and term.requires not in single:
                raise ValueError(
                    f"rewards.terms.{name}.requires: {term.requires!r} is not a term of this rubric that scores single "
                    f"responses; {suggest(term.requires, single)}"
                )
        self._valued = [  # what gives a response a value: hooks only adjust it
            name
            for name, stages in self._stages.items()
            if any(stage.weight for stage in stages) and not is_hook(self._terms[name].target)
        ]
        for name in self._terms:
            chain = self._required_by(name)
            if name in chain:
                raise ValueError(
                    f"rewards.terms.{name}.requires: {' -> '.join([name, *chain])} is a cycle; set one of them to null"
                )

    def _load(self, name: str, term: TermConfig, single: list[str]) -> list[_Stage]:
        scorer = None if is_hook(term.target) else find_scorer(term.target, **term.params)
        if scorer and any(stage.params for stage in term.stages):
            raise ValueError("stages.params: a scorer is made once; only its weight can have stages")
        elsewhere = scorer is not None or (self._elsewhere is not None and ":" in term.target)
        stages = [(0.0, term.weight, term.params)] + [
            (stage.after, term.weight if stage.weight is None else stage.weight, term.params | stage.params)
            for stage in term.stages
        ]
        if sorted(after for after, _, _ in stages) != [after for after, _, _ in stages]:
            raise ValueError(f"stages: {[stage.after for stage in term.stages]} must grow from stage to stage")
        return [
            _Stage(after, weight, params, *self._function(name, term.target, params, single, elsewhere))
            for after, weight, params in stages
        ]

    def _function(
        self, name: str, target: str, params: dict[str, Any], single: list[str], elsewhere: bool
    ) -> tuple[Reward | None, Hook | None]:
        if is_hook(target):
            return None, load_hook(target, single, **params)
        if name not in single:  # a scorer that compares
            return None, partial(play_tournament, compare=partial(self._compare, name))
        return (None if elsewhere else load(target, **params)), None

    async def _compare(self, name: str, first: Sample, second: Sample) -> float:
        if self._elsewhere is None:
            raise Abstained("unavailable", f"{name!r} asks a service, and none was started")
        return await self._elsewhere.compare(name, first, second)

    def _stage(self, name: str, done: float) -> _Stage:
        return next(stage for stage in reversed(self._stages[name]) if stage.after <= done)

    def _required_by(self, name: str) -> list[str]:
        """What a term requires, what that requires, and so on; ends where it would repeat."""
        chain: list[str] = []
        required = self._terms[name].requires
        while required is not None and required not in chain:
            chain.append(required)
            required = self._terms[required].requires
        return chain

    # -- one response ------------------------------------------------------------------------------------------------

    async def score(self, sample: Sample, done: float = 0.0) -> Score:
        """What each term gives one response; `done` is the share of the training behind it."""
        terms: dict[str, float] = {}
        failures: dict[str, str] = {}
        abstained: dict[str, str] = {}
        names = [n for n, term in self._terms.items() if n not in self._hooks and _applies(term, sample.row)]
        for name, result in zip(
            names, await asyncio.gather(*(self._value(name, sample, done) for name in names)), strict=True
        ):
            if isinstance(result, Abstained):
                abstained[name] = f"{result} (sample {sample.id})"
                continue
            terms[name] = float(result.value)
            terms |= {f"{name}/{part}": float(value) for part, value in result.parts.items()}
            if result.failure is not None:
                failures[name] = str(result.failure)
        return Score(terms=terms, failures=failures, abstained=abstained)

    async def _value(self, name: str, sample: Sample, done: float) -> RewardResult | Abstained:
        stage = self._stage(name, done)
        try:
            if stage.reward is not None:
                return stage.reward(sample.response, sample.row)
            if self._elsewhere is None:
                return Abstained("unavailable", f"{name!r} asks a service, and none was started")
            return await self._elsewhere.score(name, stage.params, sample)
        except Abstained as abstained:
            return abstained
        except RowError as error:
            return Abstained(error.reason, str(error))
        except Exception as error:
            return Abstained("raised", f"{type(error).__name__}: {error}")

    def total(self, terms: Mapping[str, float], abstained: Collection[str] = (), done: float = 0.0) -> float | None:
        """The weighted sum of the terms that count; None where it depends on a term that abstained."""
        total = 0.0
        for name in self._terms:
            weight, required = self._stage(name, done).weight, self._required_by(name)
            if weight == 0 or (name not in terms and name not in abstained):
                continue
            if any(each not in abstained and terms.get(each, 0.0) <= 0 for each in required):
                continue
            if not {name, *required}.isdisjoint(abstained):
                return None
            total += weight * terms[name]
        return total

    # -- one group ---------------------------------------------------------------------------------------------------

    async def settle(self, group: RolloutGroup, *, hooks: bool, done: float = 0.0) -> RolloutGroup:
        """A group whose rollouts have their terms -> the same with rewards, and with what could not be scored apart.

        Raises RewardError for such a rollout where `rewards.on_abstain` is stop.
        """
        group = self._rewarded(group, done)
        if hooks and group.rollouts:
            group = self._rewarded(await self._with_hooks(group, done), done)
        if group.lost and self.config.on_abstain == "stop":
            why = "; ".join(group.lost[0].abstained.values())
            raise RewardError(f"{why}; rewards.on_abstain=stop ends the run here")
        return group

    def _rewarded(self, group: RolloutGroup, done: float) -> RolloutGroup:
        """Totals of the terms as they are now; rollouts without one are lost."""
        kept, lost = [], []
        for rollout in group.all:
            if not any(_applies(self._terms[name], rollout.prompt.prompt.row) for name in self._valued):
                task = rollout.prompt.prompt.row["task"]
                why = (
                    f"no_term: no term of rewards.terms has a weight for task {task!r}; add one, or leave such rows out"
                )
                lost.append(replace(rollout, abstained=rollout.abstained | {"reward": why}))
                continue
            terms, abstained = rollout.terms, set(rollout.abstained)
            if self.config.on_abstain == "mean":
                for name in rollout.abstained:
                    if others := [other.terms[name] for other in group.all if name in other.terms]:
                        terms = terms | {name: fmean(others)}
                        abstained.discard(name)
            total = self.total(terms, abstained, done)
            if total is None:
                lost.append(rollout)
            elif math.isfinite(total):
                kept.append(replace(rollout, reward=total, terms=terms))
            else:
                why = f"garbage: the terms {terms} add up to {total}; declare ranges or lower the weights"
                lost.append(replace(rollout, abstained=rollout.abstained | {"total": why}))
        return replace(group, rollouts=tuple(kept), lost=tuple(lost))

    async def _with_hooks(self, group: RolloutGroup, done: float) -> RolloutGroup:
        """The group hooks' values among the terms of each rollout. A hook that abstains does so for all of them."""
        rollouts = group.rollouts
        for name in self._hooks:
            if not _applies(self._terms[name], group.prompt.prompt.row):
                continue
            hook = self._stage(name, done).hook
            assert hook is not None
            try:
                values = hook(group)
                if inspect.isawaitable(values):
                    values = await values
                if len(values) != len(rollouts) or not all(map(math.isfinite, values)):
                    raise Abstained("garbage", f"{values}, not a finite number for each of {len(rollouts)}")
            except Exception as error:
                said = error if isinstance(error, Abstained) else f"raised: {type(error).__name__}: {error}"
                why = {name: f"{said} (group {group.prompt.prompt.id})"}
                rollouts = tuple(replace(each, abstained=each.abstained | why) for each in rollouts)
                continue
            rollouts = tuple(
                replace(each, terms=each.terms | {name: float(value)})
                for each, value in zip(rollouts, values, strict=True)
            )
        return replace(group, rollouts=rollouts)


def _is_of_group(term: TermConfig) -> bool:
    """Whether a term sees all rollouts of a prompt at once: a hook, or a scorer that compares two responses."""
    return is_hook(term.target) or hasattr(find_scorer(term.target, **term.params), "compare")


def _at(name: str, call: Callable[..., Any], *args: Any) -> Any:
    """A call whose ValueError names the term."""
    try:
        return call(*args)
    except ValueError as error:
        raise ValueError(f"rewards.terms.{name}: {error}") from error


def _applies(term: TermConfig, row: Mapping[str, Any]) -> bool:
    return term.tasks is None or row["task"] in term.tasks
