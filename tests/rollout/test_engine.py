"""Requests go to the engine that knows their prompt or has the fewest under way; one without an answer is given up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fakes import FakeCluster, FakeEngineActor
from ray.exceptions import RayActorError

from videorl.config import load_config
from videorl.rollout.engine import EngineLost, Engines
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


def a_request(prompt: int) -> Request:
    return Request(token_ids=(prompt,), media=(), sampling=REQUEST.sampling, home=str(prompt))


def test_a_prompt_goes_to_the_engine_with_the_fewest_requests_under_way():
    engines, actors, cluster = make_engines(3)
    requests = [a_request(prompt) for prompt in range(6)]

    async def scenario() -> list[list[int]]:
        loads = []

        def note() -> None:
            loads.append([sum(not future.done() for _, future in actor.asked) for actor in actors])

        tasks = []
        for request in requests[:4]:
            tasks.append(asyncio.create_task(engines.generate(request)))
            await asyncio.sleep(0)
        note()
        for _, future in actors[1].asked:  # engine 1 is quick: it gets what comes next
            future.set_result(GENERATION)
        await tasks[1]
        for request in requests[4:]:
            tasks.append(asyncio.create_task(engines.generate(request)))
            await asyncio.sleep(0)
        note()
        for actor in actors:
            for _, future in actor.asked:
                if not future.done():
                    future.set_result(GENERATION)
        assert await asyncio.gather(*tasks) == [GENERATION] * 6
        return loads

    assert asyncio.run(scenario()) == [[2, 1, 1], [2, 2, 1]]
    assert cluster.shipped == requests


def test_a_group_stays_on_one_engine_until_another_would_wait_for_work():
    engines, actors, _ = make_engines(2, group_size=3)

    async def scenario() -> None:
        async def ask(request: Request, times: int) -> list[int]:
            tasks.extend(asyncio.create_task(engines.generate(request)) for _ in range(times))
            await asyncio.sleep(0)
            return [len(actor.asked) for actor in actors]

        tasks: list[asyncio.Task] = []
        assert await ask(a_request(0), 3) == [3, 0]
        assert await ask(a_request(1), 3) == [3, 3]
        assert await ask(a_request(0), 3) == [6, 3]  # a later turn of the first group
        assert await ask(a_request(0), 2) == [7, 4]  # one engine is now more than a group behind the other
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


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


def test_an_engine_that_ends_is_replaced_once_and_its_requests_are_made_again():
    engines, actors, cluster = make_engines(1)
    first = actors[0]

    async def scenario() -> list[Generation]:
        tasks = [asyncio.create_task(engines.generate(a_request(prompt))) for prompt in range(2)]
        await asyncio.sleep(0)
        for _, future in first.asked:
            future.set_exception(RayActorError())
        while len(engines.actors[0].asked) < 2 or engines.actors[0] is first:
            await asyncio.sleep(0)
        for _, future in engines.actors[0].asked:
            future.set_result(GENERATION)
        return await asyncio.gather(*tasks)

    assert asyncio.run(scenario()) == [GENERATION] * 2
    assert engines.actors[0] is not first and len(cluster.started) == 2
    assert [request for request, _ in engines.actors[0].asked] == [a_request(0), a_request(1)]


def test_a_request_under_which_two_engines_end_is_given_up():
    engines, actors, _ = make_engines(1)
    first = actors[0]

    async def scenario() -> None:
        task = asyncio.create_task(engines.generate(REQUEST))
        await asyncio.sleep(0)
        first.asked[0][1].set_exception(RayActorError())
        while engines.actors[0] is first or not engines.actors[0].asked:
            await asyncio.sleep(0)
        engines.actors[0].asked[0][1].set_exception(RayActorError())
        await task

    with pytest.raises(EngineLost, match="engine 0 ended twice under a request"):
        asyncio.run(scenario())
