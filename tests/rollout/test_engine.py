"""Requests go to the engine with the fewest under way; what an engine does not answer in time is given up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fakes import FakeCluster, FakeEngineActor

from videorl.config import load_config
from videorl.rollout.engine import Engines
from videorl.types import Generation, Request, SamplingParams

REQUEST = Request(token_ids=(1,), media=(), sampling=SamplingParams(max_tokens=1, temperature=1.0))
GENERATION = Generation(token_ids=(5,), log_probs=(-0.5,), finish_reason="stop", weight_version=0, seen="")


def make_engines(num_engines: int = 3, **changes) -> tuple[Engines, list[FakeEngineActor], FakeCluster]:
    overrides = ["recipe=quickstart", "rollout.engine=fakes:FakeEngineActor", f"rollout.num_engines={num_engines}"]
    overrides += [f"rollout.{key}={value}" for key, value in changes.items()]
    cluster: Any = FakeCluster()
    engines = Engines(cluster, load_config("train", overrides))
    return engines, engines.actors, cluster


def test_engines_are_started_as_configured():
    engines, actors, cluster = make_engines(2, max_concurrency=4, tensor_parallel=2)
    options = {"max_concurrency": 12, "runtime_env": {"env_vars": {"FAKE_ENGINE": "1"}}}
    assert cluster.started == [(1, 2.0, options)] * 2
    assert [actor.index for actor in actors] == [0, 1]
    assert engines.ready() == ["ready 0", "ready 1"]


def test_a_request_goes_to_the_engine_with_the_fewest_under_way():
    engines, actors, cluster = make_engines(3)

    async def scenario() -> list[list[int]]:
        loads = []

        def note() -> None:
            loads.append([sum(not future.done() for _, future in actor.asked) for actor in actors])

        tasks = []
        for _ in range(4):
            tasks.append(asyncio.create_task(engines.generate(REQUEST)))
            await asyncio.sleep(0)
        note()
        for _, future in actors[1].asked:  # engine 1 is quick: it gets what comes next
            future.set_result(GENERATION)
        await tasks[1]
        for _ in range(2):
            tasks.append(asyncio.create_task(engines.generate(REQUEST)))
            await asyncio.sleep(0)
        note()
        for actor in actors:
            for _, future in actor.asked:
                if not future.done():
                    future.set_result(GENERATION)
        assert await asyncio.gather(*tasks) == [GENERATION] * 6
        return loads

    assert asyncio.run(scenario()) == [[2, 1, 1], [2, 2, 1]]
    assert cluster.shipped == [REQUEST] * 6


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), asyncio.CancelledError()])
def test_a_failed_request_is_no_longer_under_way(failure):
    engines, actors, _ = make_engines(2)

    async def scenario() -> None:
        task = asyncio.create_task(engines.generate(REQUEST))
        await asyncio.sleep(0)
        actors[0].asked[0][1].set_exception(failure)
        with pytest.raises(type(failure)):
            await task
        task = asyncio.create_task(engines.generate(REQUEST))
        await asyncio.sleep(0)
        assert [len(actor.asked) for actor in actors] == [2, 0]
        task.cancel()

    asyncio.run(scenario())


def test_an_engine_that_does_not_answer_is_named():
    engines, _, _ = make_engines(1, timeout=0.01)
    with pytest.raises(TimeoutError, match=r"engine 0 gave no response within rollout.timeout=0.01 s; raise it"):
        asyncio.run(engines.generate(REQUEST))
