"""Where reward code runs that may hang or crash: Ray actors that are killed at a deadline and replaced.

Functions named by import string share a few actors, one call at a time in each. A scorer (judge, reward
model, similarity) has an actor of its own, with many calls at a time.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from videorl.cluster import Cluster
from videorl.config import Config, TermConfig
from videorl.rewards.hooks import is_hook
from videorl.rewards.registry import find_scorer, load
from videorl.rewards.result import Abstained, RewardResult, Sample
from videorl.rewards.term import Reward

logger = logging.getLogger(__name__)

_FUNCTION_WORKERS = 2  # while one hangs, the other works
_ALIVE = 10.0  # seconds a scorer may take to say that it still answers


class FunctionWorker:
    """Calls functions by import string. A result or an `Abstained` comes back; nothing is raised."""

    def __init__(self, path: list[str]):
        sys.path += [folder for folder in path if folder not in sys.path]  # a name means what it means to the driver
        self._bound: dict[str, Reward] = {}

    def ready(self) -> None:
        """Answers once the worker is built."""

    def score(self, target: str, params: dict[str, Any], sample: Sample) -> RewardResult | Abstained:
        key = repr((target, params))
        try:
            if key not in self._bound:
                self._bound[key] = load(target, **params)
            return self._bound[key](sample.response, sample.row)
        except Abstained as abstained:
            return abstained
        except Exception as error:
            return Abstained("raised", f"{target}: {type(error).__name__}: {error}")


class ScorerWorker:
    """Holds one scorer."""

    def __init__(self, config: Config, target: str, params: dict[str, Any]):
        scorer = find_scorer(target, **params)
        assert scorer is not None
        self.scorer: Any = scorer(config, **params)

    async def ready(self) -> None:
        """Answers once the scorer is built."""

    async def score(self, sample: Sample) -> RewardResult | Abstained:
        return await self._answer(self.scorer(sample))

    async def compare(self, first: Sample, second: Sample) -> float | Abstained:
        return await self._answer(self.scorer.compare(first.row, first.response, second.response))

    async def _answer(self, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except Abstained as abstained:
            return abstained
        except Exception as error:
            return Abstained("raised", f"{type(error).__name__}: {error}")

    async def check(self) -> dict[str, float]:
        return await self.scorer.check()

    def take_counts(self) -> dict[str, float]:
        return self.scorer.take_counts()


class _Slot:
    """An actor that can be replaced. A caller keeps the actor it asked, to name the one that failed it."""

    def __init__(self, start: Callable[[], Any]):
        self._start = start
        self.actor = start()
        self._up: Any = None  # the actor that has answered

    async def started(self) -> Any:
        """The actor, once it answers: the time it takes to start is nobody's deadline."""
        actor = self.actor
        if self._up is not actor:
            await actor.ready.remote()
            self._up = actor
        return actor

    def replace(self, failed: Any) -> None:
        """Kill that actor and start the next, once, whoever asks."""
        if self.actor is failed:
            ray.kill(failed)
            self.actor = self._start()


class RewardWorkers:
    """All terms that do not run in the driver; implements `rubric.Elsewhere`."""

    def __init__(self, cluster: Cluster, config: Config):
        self._cluster, self.deadline = cluster, config.rewards.deadline
        terms = {name: term for name, term in config.rewards.terms.items() if term is not None}
        scorers = [name for name, t in terms.items() if not is_hook(t.target) and find_scorer(t.target, **t.params)]
        self._targets = {
            name: t.target
            for name, t in terms.items()
            if ":" in t.target and name not in scorers and not is_hook(t.target)
        }
        count = _FUNCTION_WORKERS if self._targets else 0
        self._functions = [
            _Slot(lambda: cluster.actors(FunctionWorker, 1, 0.0, sys.path, num_cpus=0)[0]) for _ in range(count)
        ]
        self._scorers = {name: _Slot(_starter(cluster, config, terms[name])) for name in scorers}
        self._idle: asyncio.Queue[_Slot] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def ready(self) -> list[Any]:
        return [slot.actor.ready.remote() for slot in [*self._functions, *self._scorers.values()]]

    async def score(self, term: str, params: dict[str, Any], sample: Sample) -> RewardResult:
        """Raises Abstained: `timeout`, `crashed`, or what the function or the scorer says."""
        if term in self._scorers:
            return await self._ask_scorer(term, lambda actor: actor.score.remote(self._cluster.shipping(sample)))
        idle = self._idle_workers()
        slot = await idle.get()
        actor = slot.actor
        try:
            actor = await slot.started()
            call = actor.score.remote(self._targets[term], params, self._cluster.shipping(sample))
            return _unwrap(await asyncio.wait_for(call, self.deadline))
        except TimeoutError:
            slot.replace(actor)
            raise Abstained("timeout", f"{self._targets[term]} took longer than {self._limit()}") from None
        except (RayActorError, RayTaskError) as error:
            slot.replace(actor)
            raise Abstained("crashed", f"{self._targets[term]} ended its process: {_first_line(error)}") from error
        finally:
            idle.put_nowait(slot)

    async def compare(self, term: str, first: Sample, second: Sample) -> float:
        return await self._ask_scorer(
            term, lambda actor: actor.compare.remote(*self._cluster.shipping((first, second)))
        )

    def report(self, check: bool) -> dict[str, float]:
        """`<term>/<count>` since the last report, with the canaries' results if they are to be asked now.

        A scorer that does not answer is replaced and reported as `<term>/unreachable`; the run goes on.
        """
        out: dict[str, float] = {}
        for name, slot in self._scorers.items():
            actor = slot.actor
            try:
                calls = [actor.take_counts.remote()] + ([actor.check.remote()] if check else [])
                answers = ray.get(calls, timeout=10 * self.deadline)
            except (RayActorError, RayTaskError, TimeoutError) as error:
                logger.warning("rewards.terms.%s: its scorer does not answer: %s", name, _first_line(error))
                slot.replace(actor)
                answers = [{"unreachable": 1.0}]
            out |= {f"{name}/{key}": value for counts in answers for key, value in counts.items()}
        return out

    async def _ask_scorer(self, term: str, call: Callable[[Any], Any]) -> Any:
        slot = self._scorers[term]
        for attempt in ("first", "second"):
            actor = slot.actor
            try:
                actor = await slot.started()
                return _unwrap(await asyncio.wait_for(call(actor), self.deadline))
            except TimeoutError:
                await self._replace_if_stuck(slot, actor)
                raise Abstained("timeout", f"{term!r} took longer than {self._limit()}") from None
            except (RayActorError, RayTaskError) as error:  # perhaps through another sample's fault: once more
                slot.replace(actor)
                if attempt == "second":
                    raise Abstained("crashed", f"{term!r} ended its process: {_first_line(error)}") from error
        raise AssertionError("unreachable")

    async def _replace_if_stuck(self, slot: _Slot, actor: Any) -> None:
        try:
            await asyncio.wait_for(actor.ready.remote(), _ALIVE)
        except (TimeoutError, RayActorError):
            slot.replace(actor)

    def _limit(self) -> str:
        return f"rewards.deadline={self.deadline:g} s; raise it or make it faster"

    def _idle_workers(self) -> asyncio.Queue[_Slot]:
        """The workers without a call, for the loop that runs now: each collection of rollouts has its own."""
        loop = asyncio.get_running_loop()
        if self._idle is None or self._loop is not loop:
            self._idle, self._loop = asyncio.Queue(), loop
            for slot in self._functions:
                self._idle.put_nowait(slot)
        return self._idle


def _starter(cluster: Cluster, config: Config, term: TermConfig) -> Callable[[], Any]:
    gpus = 0.25 if term.params.get("device") == "cuda" else 0.0
    calls = config.rollout.max_concurrency * config.rollout.num_engines + 8  # and the control calls
    return lambda: cluster.actors(
        ScorerWorker, 1, gpus, config, term.target, term.params, num_cpus=0, max_concurrency=calls
    )[0]


def _unwrap(answer: Any) -> Any:
    if isinstance(answer, Abstained):
        raise answer
    return answer


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
