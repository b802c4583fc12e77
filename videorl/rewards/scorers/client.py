"""One question to a judge: answered and valid, or `Abstained`.

From the outside in, a question passes the cache on disk, the queue for a slot, the circuit breaker, one repair try
where the answer is no valid verdict, and retries with exponential backoff and full jitter where there is no answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakValueDictionary

from pydantic import ValidationError

from videorl.rewards.result import Abstained
from videorl.rewards.scorers.breaker import Breaker
from videorl.rewards.scorers.cache import AnswerCache
from videorl.rewards.scorers.endpoint import Endpoint, NoAnswer
from videorl.rewards.scorers.judge_params import EndpointParams
from videorl.rewards.scorers.prompts import VERSION, Messages, repair
from videorl.rewards.scorers.verdicts import Verdict, VerdictT, explain, read_verdict

log = logging.getLogger(__name__)

COUNTS = ("calls", "retries", "repairs", "cache_hits", "cache_errors", "abstained", "breaker_open")
NO_SCHEMA = (400, 422)  # what servers answer that know no `response_format`


class Client:
    """Asks one judge, for as many callers at a time as like to, in one event loop.

    Raises ValueError where `api_key_env` names a variable that is not set, OSError where `cache_dir` cannot be made.
    """

    def __init__(
        self,
        params: EndpointParams,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ):
        self._params, self._clock, self._sleep, self._jitter = params, clock, sleep, jitter
        self._endpoint = Endpoint(params)
        self._slots = asyncio.Semaphore(params.concurrency)
        self._breaker = Breaker(params.breaker_failures, params.breaker_pause, clock)
        self._cache = AnswerCache(params.cache_dir) if params.cache_dir else None
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._structured = params.structured_output
        self._counts: Counter[str] = Counter()
        self._seconds: list[float] = []  # of answered requests

    async def ask(self, messages: Messages, kind: type[VerdictT], *, cached: bool = True) -> VerdictT:
        """The verdict on what `messages` holds. With `cached`, a known one is not asked for again.

        Raises Abstained: `timeout` (no reply in time), `unavailable` (no reply at all, or the breaker is open),
        `refused` (the server rejects the request), `garbage` (no valid verdict, or a reply that is none).
        """
        try:
            if self._cache is None or not cached:
                return await self._ask_judge(messages, kind)
            key = self._cache_key(messages, kind)
            async with self._asking.setdefault(key, asyncio.Lock()):  # of equal questions at a time, one asks
                verdict = self._recall(self._cache, key, kind)
                if verdict is None:
                    verdict = await self._ask_judge(messages, kind)
                    self._remember(self._cache, key, verdict)
                return verdict
        except Abstained:
            self._counts["abstained"] += 1
            raise

    def take_counts(self) -> dict[str, float]:
        """Since the last call: requests sent (`calls`), of these repeated ones (`retries`) and ones for a corrected
        verdict (`repairs`); questions answered from disk (`cache_hits`), not answered (`abstained`), turned away by
        the open breaker (`breaker_open`); failures of the disk (`cache_errors`); and `latency_mean`, the mean seconds
        of an answered request, where there was one."""
        counts = {name: float(self._counts[name]) for name in COUNTS}
        if self._seconds:
            counts["latency_mean"] = math.fsum(self._seconds) / len(self._seconds)
        self._counts.clear()
        self._seconds.clear()
        return counts

    async def close(self) -> None:
        """End the connections."""
        await self._endpoint.close()

    # -- the cache ----------------------------------------------------------------------------------------------------

    def _cache_key(self, messages: Messages, kind: type[Verdict]) -> str:
        content = [VERSION, self._params.base_url, kind.model_json_schema(), self._request(messages)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _recall(self, cache: AnswerCache, key: str, kind: type[VerdictT]) -> VerdictT | None:
        try:
            data = cache.get(key)
            verdict = None if data is None else kind.model_validate_json(data)
        except (OSError, ValidationError) as error:
            self._disk_failed(cache, error)
            return None
        self._counts["cache_hits"] += verdict is not None
        return verdict

    def _remember(self, cache: AnswerCache, key: str, verdict: Verdict) -> None:
        try:
            cache.put(key, verdict.model_dump_json().encode())
        except OSError as error:
            self._disk_failed(cache, error)

    def _disk_failed(self, cache: AnswerCache, error: Exception) -> None:
        self._counts["cache_errors"] += 1
        log.warning("the judge is asked past its cache in %s: %s", cache.folder, error)

    # -- the judge ----------------------------------------------------------------------------------------------------

    async def _ask_judge(self, messages: Messages, kind: type[VerdictT]) -> VerdictT:
        async with self._slots:  # kept in pauses too: who is told to slow down has fewer requests under way
            if not self._breaker.admit():
                self._counts["breaker_open"] += 1
                raise Abstained("unavailable", f"{self._params.base_url} failed too often and is left alone for now")
            deadline = self._clock() + self._params.deadline
            answer = await self._send(messages, kind, deadline)
            try:
                return read_verdict(answer, kind)
            except ValidationError as error:
                correction = repair(messages, answer, explain(error))
            self._counts["repairs"] += 1
            answer = await self._send(correction, kind, deadline)
            try:
                return read_verdict(answer, kind)
            except ValidationError as error:
                raise Abstained(
                    "garbage", f"no valid verdict in two tries ({explain(error)}): {answer[:200]!r}"
                ) from None

    async def _send(self, messages: Messages, kind: type[Verdict], deadline: float) -> str:
        """What the judge says, in as many tries as the bounds allow."""
        longest = self._params.backoff
        for tries in itertools.count(1):
            try:
                answer = await self._try(messages, kind, deadline)
            except NoAnswer as failure:
                pause = failure.retry_after + self._jitter(0, min(longest, self._params.backoff_max))
                if failure.passing and self._may_retry(tries, failure, pause, deadline):
                    longest *= 2
                    self._counts["retries"] += 1
                    await self._sleep(pause)
                    continue
                if failure.passing:
                    self._breaker.failed()
                else:
                    self._breaker.succeeded()  # it is there; only this it will not do
                raise Abstained(failure.reason, f"{self._params.base_url}, try {tries}: {failure.message}") from None
            self._breaker.succeeded()
            return answer
        raise AssertionError("the loop has no end")

    def _may_retry(self, tries: int, failure: NoAnswer, pause: float, deadline: float) -> bool:
        return (
            tries <= self._params.retries
            and failure.retry_after <= self._params.retry_after_max
            and self._clock() + pause < deadline
            and not self._breaker.is_open  # others gave up meanwhile, or this call only tests whether it is back
        )

    async def _try(self, messages: Messages, kind: type[Verdict], deadline: float) -> str:
        """One try: two requests where the server turns out to know no JSON schema."""
        request = self._request(messages)
        if not self._structured:
            return await self._post(request, deadline)
        schema = {"name": "verdict", "schema": kind.model_json_schema(), "strict": True}
        try:
            return await self._post(
                {**request, "response_format": {"type": "json_schema", "json_schema": schema}}, deadline
            )
        except NoAnswer as failure:
            if failure.status not in NO_SCHEMA:
                raise
        answer = await self._post(request, deadline)
        if self._structured:
            log.warning("%s takes no JSON schema; from now on it is asked in words only", self._params.base_url)
            self._structured = False
        return answer

    def _request(self, messages: Messages) -> dict[str, Any]:
        params = self._params
        sampling = {"temperature": params.temperature, "max_tokens": params.max_tokens}
        return {
            "model": params.model,
            "messages": messages,
            "extra_body": params.extra_body,
            **{name: value for name, value in sampling.items() if value is not None},
        }

    async def _post(self, request: dict[str, Any], deadline: float) -> str:
        self._counts["calls"] += 1
        started = self._clock()
        answer = await self._endpoint.post(request, min(self._params.timeout, deadline - started))
        self._seconds.append(self._clock() - started)
        return answer
