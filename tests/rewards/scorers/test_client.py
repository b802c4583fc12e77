"""A judge that is slow, down, rate-limited or answers garbage, over real HTTP. Time passes where a test says so."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer, Reply, always, chat, script

from videorl.rewards.result import Abstained
from videorl.rewards.scorers.client import Client
from videorl.rewards.scorers.judge_params import EndpointParams
from videorl.rewards.scorers.verdicts import OpenEndedVerdict

ASKED = [{"role": "system", "content": "grade"}, {"role": "user", "content": "this"}]
FOUR = '{"critique": "nearly", "score": 4}'
DOWN = Reply(status=503, body="overloaded")


class FakeTime:
    """A clock that moves by what is slept, and by what a test adds. Random pauses take their upper bound."""

    def __init__(self):
        self.now, self.pauses = 0.0, []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    @staticmethod
    def jitter(low: float, high: float) -> float:
        assert low == 0
        return high


def on(server: JudgeServer, time: FakeTime, work: Callable[[Client], Awaitable[Any]], **params: Any) -> Any:
    """`work` with a client of the server."""

    async def run() -> Any:
        endpoint = EndpointParams(**{"base_url": server.url, "model": "fake", **params})
        client = Client(endpoint, clock=time.clock, sleep=time.sleep, jitter=time.jitter)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(run())


async def ask(client: Client, *, cached: bool = True, messages=ASKED) -> int:
    return (await client.ask(messages, OpenEndedVerdict, cached=cached)).score


async def reason(client: Client) -> str:
    with pytest.raises(Abstained) as error:
        await ask(client)
    return error.value.reason


def counts(client: Client) -> dict[str, float]:
    """Those that are not 0, without the latency."""
    return {name: value for name, value in client.take_counts().items() if value and name != "latency_mean"}


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_a_request_holds_the_messages_the_schema_and_the_sampling():
    with JudgeServer(always(FOUR)) as server:
        extra = {"chat_template_kwargs": {"enable_thinking": False}}
        assert on(server, FakeTime(), ask, extra_body=extra, max_tokens=99) == 4
    (request,) = server.requests
    schema = {"name": "verdict", "schema": OpenEndedVerdict.model_json_schema(), "strict": True}
    assert request == {
        "model": "fake",
        "messages": ASKED,
        "temperature": 0.0,
        "max_tokens": 99,
        "response_format": {"type": "json_schema", "json_schema": schema},
        **extra,
    }


def test_sampling_may_be_left_to_the_server():
    with JudgeServer(always(FOUR)) as server:
        on(server, FakeTime(), ask, temperature=None, max_tokens=None, structured_output=False)
    assert server.requests == [{"model": "fake", "messages": ASKED}]


def test_a_server_without_schemas_is_asked_in_words_from_then_on():
    def answer(request):
        return Reply(status=400, body="unknown field response_format") if "response_format" in request else FOUR

    async def twice(client):
        return [await ask(client), await ask(client)], counts(client)

    with JudgeServer(answer) as server:
        assert on(server, FakeTime(), twice) == ([4, 4], {"calls": 3})
    assert ["response_format" in request for request in server.requests] == [True, False, False]


def test_a_request_refused_without_schema_too_says_nothing_about_schemas():
    async def work(client):
        return [await reason(client), await ask(client)], counts(client)

    too_long = Reply(status=400, body="context length exceeded")
    with JudgeServer(script(too_long, too_long, FOUR)) as server:
        assert on(server, FakeTime(), work, breaker_failures=1) == (["refused", 4], {"calls": 3, "abstained": 1})
    assert "response_format" in server.requests[-1]


# --- answers that are no verdict -------------------------------------------------------------------------------------


def test_a_wrong_verdict_is_repaired_once_with_the_error_quoted():
    async def work(client):
        return await ask(client), counts(client)

    with JudgeServer(script('{"critique": "nearly", "score": 40}', FOUR)) as server:
        assert on(server, FakeTime(), work) == (4, {"calls": 2, "repairs": 1})
    *asked, bad, demand = server.requests[1]["messages"]
    assert asked == ASKED
    assert bad == {"role": "assistant", "content": '{"critique": "nearly", "score": 40}'}
    assert demand["role"] == "user" and "score: Input should be less than or equal to 5" in demand["content"]


@pytest.mark.parametrize("garbage", ["I like it", "", FOUR[:-3], '{"score": "high"}', "\x00{}", chat(None)])
def test_two_answers_that_are_no_verdict_are_an_abstention(garbage):
    async def work(client):
        return await reason(client), counts(client)

    with JudgeServer(always(garbage)) as server:
        assert on(server, FakeTime(), work) == ("garbage", {"calls": 2, "repairs": 1, "abstained": 1})


def test_what_a_judge_says_reaches_neither_the_error_nor_the_repair_at_full_length():
    async def work(client):
        with pytest.raises(Abstained) as error:
            await ask(client)
        return str(error.value)

    with JudgeServer(always("blah " * 10_000)) as server:
        message = on(server, FakeTime(), work)
    assert "blah blah" in message and len(message) < 1000
    assert len(server.requests[1]["messages"][-2]["content"]) < 5000


# --- servers that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        DOWN,
        Reply(status=500, body="<html>"),
        Reply(status=429, body="slow down"),
        Reply(status=408),
        Reply(drop=True),
        Reply("not json at all"),
        Reply(FOUR),  # a verdict, but no reply of a chat API
        Reply(chat(FOUR).body[:-5]),
        Reply('{"choices": []}'),
        Reply("[" * 100_000),
        Reply("{}", headers={"Content-Type": "text/html"}),
        Reply(chat(FOUR).body, length=10_000),  # closed before its end
        Reply(chat(FOUR).body + " " * 200_000),  # more than max_reply_bytes
        Reply("x" * 200_000, status=500),
    ],
    ids=lambda reply: f"{reply.status}-{'dropped' if reply.drop else reply.body[:9]}",
)
def test_a_passing_failure_is_tried_again(failure):
    async def work(client):
        return await ask(client), counts(client)

    time = FakeTime()
    with JudgeServer(script(failure, failure, FOUR)) as server:
        result = on(server, time, work, max_reply_bytes=100_000)
    assert result == (4, {"calls": 3, "retries": 2})
    assert time.pauses == [0.5, 1.0]


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (DOWN, "unavailable"),
        (Reply(status=429), "unavailable"),
        (Reply(drop=True), "unavailable"),
        (Reply("half a"), "garbage"),
        (Reply(chat(FOUR).body + " " * 2000), "garbage"),
    ],
)
def test_a_lasting_failure_is_an_abstention(failure, why):
    async def work(client):
        return await reason(client), counts(client)

    time = FakeTime()
    with JudgeServer(always(failure)) as server:
        result = on(server, time, work, retries=3, max_reply_bytes=1000)
    assert result == (why, {"calls": 4, "retries": 3, "abstained": 1})
    assert time.pauses == [0.5, 1.0, 2.0]


def test_nobody_there_is_an_abstention():
    async def work(client):
        return await reason(client)

    with JudgeServer(always(FOUR)) as server:
        pass
    assert on(server, FakeTime(), work) == "unavailable"


@pytest.mark.parametrize("status", [301, 307, 401, 403, 404, 413])
def test_a_refusal_is_not_tried_again(status):
    async def work(client):
        return await reason(client), counts(client)

    with JudgeServer(always(Reply("no", status=status, headers={"Location": "/v1/elsewhere"}))) as server:
        result = on(server, FakeTime(), work)
    assert result == ("refused", {"calls": 1, "abstained": 1})


@pytest.mark.parametrize("reply", [Reply(hang=True), Reply('{"choices": [', hang=True), Reply(trickle=True)])
def test_a_server_that_does_not_finish_is_left_after_the_timeout(reply):
    async def work(client):
        return await reason(client), counts(client)

    with JudgeServer(always(reply)) as server:
        result = on(server, FakeTime(), work, timeout=0.05, retries=1)
    assert result == ("timeout", {"calls": 2, "retries": 1, "abstained": 1})


def test_pauses_double_up_to_a_bound():
    async def work(client):
        await reason(client)

    time = FakeTime()
    with JudgeServer(always(DOWN)) as server:
        on(server, time, work, retries=7, backoff=1.0, backoff_max=10.0)
    assert time.pauses == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_nobody_waits_beyond_the_deadline():
    async def work(client):
        return await reason(client), counts(client)

    time = FakeTime()
    with JudgeServer(always(DOWN)) as server:
        result = on(server, time, work, retries=50, deadline=10.0, timeout=5.0)
    # 0.5 + 1 + 2 + 4 = 7.5 s; with the next 8 s it would be 15.5
    assert time.pauses == [0.5, 1.0, 2.0, 4.0]
    assert result == ("unavailable", {"calls": 5, "retries": 4, "abstained": 1})


def test_slow_answers_count_towards_the_deadline():
    time = FakeTime()

    def slow(request):
        time.now += 6.0
        return DOWN

    async def work(client):
        await reason(client)

    with JudgeServer(slow) as server:
        on(server, time, work, retries=50, deadline=10.0, timeout=10.0)
    assert time.pauses == [0.5]  # 6 + 0.5 + 6 = 12.5 s


@pytest.mark.parametrize(
    ("header", "pause"),
    [
        ("7", 7.5),  # and the random pause on top, so that not all come back at once
        ("0.25", 0.75),
        ("60", 60.5),
        ("-3", 0.5),
        ("nan", 0.5),
        ("soon", 0.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.5),
    ],
)
def test_a_server_may_ask_to_wait(header, pause):
    time = FakeTime()
    with JudgeServer(script(Reply(status=429, headers={"Retry-After": header}), FOUR)) as server:
        assert on(server, time, ask) == 4
    assert time.pauses == [pause]


@pytest.mark.parametrize("header", ["61", "86400", "Tue, 20 Oct 2099 07:28:00 GMT"])
def test_nobody_waits_longer_than_the_bound_or_comes_back_too_early(header):
    async def work(client):
        return await reason(client), counts(client)

    time = FakeTime()
    with JudgeServer(always(Reply(status=429, headers={"Retry-After": header}))) as server:
        assert on(server, time, work) == ("unavailable", {"calls": 1, "abstained": 1})
    assert time.pauses == []


# --- the breaker -----------------------------------------------------------------------------------------------------


def test_a_server_that_stays_down_is_left_alone_until_one_try_succeeds():
    time = FakeTime()
    settings = {"retries": 1, "breaker_failures": 2, "breaker_pause": 30.0}
    answers = script(*[DOWN] * 4, DOWN, FOUR, FOUR)

    async def work(client):
        seen = []

        async def step(question):
            seen.append((await question(client), counts(client)))

        await step(reason)  # two tries
        await step(reason)  # two tries: the breaker opens
        await step(reason)
        time.now += 30.0
        await step(reason)  # one try, without a retry, and it is open for another 30 s
        await step(reason)
        time.now += 30.0
        await step(ask)
        await step(ask)
        return seen

    with JudgeServer(answers) as server:
        seen = on(server, time, work, **settings)
    turned_away = ("unavailable", {"abstained": 1, "breaker_open": 1})
    assert seen == [
        ("unavailable", {"calls": 2, "retries": 1, "abstained": 1}),
        ("unavailable", {"calls": 2, "retries": 1, "abstained": 1}),
        turned_away,
        ("unavailable", {"calls": 1, "abstained": 1}),
        turned_away,
        (4, {"calls": 1}),
        (4, {"calls": 1}),
    ]


def test_garbage_and_refusals_do_not_open_it():
    async def work(client):
        return [await reason(client) for _ in range(4)]

    with JudgeServer(always("what?")) as server:
        assert on(server, FakeTime(), work, breaker_failures=1) == ["garbage"] * 4
    with JudgeServer(always(Reply(status=404))) as server:
        assert on(server, FakeTime(), work, breaker_failures=1) == ["refused"] * 4


# --- many at a time --------------------------------------------------------------------------------------------------


def test_as_many_requests_at_a_time_as_allowed_and_no_more():
    together = threading.Barrier(3)

    def wait_for_two_others(request):
        together.wait(timeout=60)
        return FOUR

    async def work(client):
        return await asyncio.gather(*(ask(client) for _ in range(12)))

    with JudgeServer(wait_for_two_others) as server:
        assert on(server, FakeTime(), work, concurrency=3) == [4] * 12
    assert server.most == 3


def test_a_cancelled_question_gives_its_slot_back():
    async def work(client):
        first = asyncio.create_task(ask(client))
        while not server.requests:
            await asyncio.sleep(0.001)
        first.cancel()
        server.answer = always(FOUR)
        return await ask(client)

    with JudgeServer(always(Reply(hang=True))) as server:
        assert on(server, FakeTime(), work, concurrency=1) == 4


def test_the_latency_is_the_mean_of_answered_requests():
    time = FakeTime()
    seconds = iter([2.0, 100.0, 4.0])

    def slow(request):
        time.now += next(seconds)
        return DOWN if time.now > 100 and len(server.requests) == 2 else FOUR

    async def work(client):
        await ask(client)  # 2 s
        await ask(client)  # 100 s to an error, then 4 s
        return client.take_counts(), client.take_counts()

    with JudgeServer(slow) as server:
        taken, nothing = on(server, time, work, deadline=1000.0)
    assert taken["latency_mean"] == 3.0
    assert "latency_mean" not in nothing and not any(nothing.values())


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_known_verdict_is_not_asked_for_again(tmp_path):
    async def work(client):
        return await ask(client), counts(client)

    with JudgeServer(script(FOUR)) as server:
        assert on(server, FakeTime(), work, cache_dir=str(tmp_path)) == (4, {"calls": 1})
        assert on(server, FakeTime(), work, cache_dir=str(tmp_path)) == (4, {"cache_hits": 1})


ELSEWHERE = """
import asyncio, sys
from videorl.rewards.scorers.client import Client
from videorl.rewards.scorers.judge_params import EndpointParams
from videorl.rewards.scorers.verdicts import OpenEndedVerdict

async def main(url, folder):
    client = Client(EndpointParams(base_url=url, model="fake", cache_dir=folder))
    messages = [{"role": "system", "content": "grade"}, {"role": "user", "content": "this"}]
    verdict = await client.ask(messages, OpenEndedVerdict)
    counts = client.take_counts()
    print(verdict.score, int(counts["calls"]), int(counts["cache_hits"]))

asyncio.run(main(*sys.argv[1:]))
"""


def test_processes_share_the_cache(tmp_path):
    with JudgeServer(script(FOUR)) as server:
        assert on(server, FakeTime(), ask, cache_dir=str(tmp_path)) == 4
        command = [sys.executable, "-c", ELSEWHERE, server.url, str(tmp_path)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["4", "0", "1"]


@pytest.mark.parametrize(
    "other", [{"model": "larger"}, {"temperature": 0.5}, {"max_tokens": 10}, {"extra_body": {"seed": 1}}]
)
def test_another_judge_is_asked(tmp_path, other):
    with JudgeServer(script(FOUR, FOUR.replace("4", "1"))) as server:
        assert on(server, FakeTime(), ask, cache_dir=str(tmp_path)) == 4
        assert on(server, FakeTime(), ask, cache_dir=str(tmp_path), **other) == 1


def test_another_question_is_asked(tmp_path):
    async def work(client):
        return [await ask(client), await ask(client, messages=[ASKED[0], {"role": "user", "content": "that"}])]

    with JudgeServer(script(FOUR, FOUR.replace("4", "1"))) as server:
        assert on(server, FakeTime(), work, cache_dir=str(tmp_path)) == [4, 1]


def test_failures_are_not_kept(tmp_path):
    async def work(client):
        return [await reason(client), await reason(client), await ask(client)]

    with JudgeServer(script(DOWN, "what?", "what?", FOUR)) as server:
        result = on(server, FakeTime(), work, cache_dir=str(tmp_path), retries=0)
    assert result == ["unavailable", "garbage", 4]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_an_altered_entry_is_asked_for_again_and_replaced(tmp_path):
    with JudgeServer(script(FOUR, FOUR)) as server:
        on(server, FakeTime(), ask, cache_dir=str(tmp_path))
        (entry,) = (path for path in tmp_path.rglob("*") if path.is_file())
        whole = entry.read_bytes()
        entry.write_bytes(whole.replace(b'"score":4', b'"score":5'))
        assert on(server, FakeTime(), ask, cache_dir=str(tmp_path)) == 4
    assert entry.read_bytes() == whole and len(server.requests) == 2


def test_a_disk_that_fails_costs_no_verdict(tmp_path):
    async def work(client):
        (tmp_path / "cache").rmdir()
        (tmp_path / "cache").write_text("no folder any more")
        return await ask(client), counts(client)

    with JudgeServer(script(FOUR)) as server:
        result = on(server, FakeTime(), work, cache_dir=str(tmp_path / "cache"))
    assert result == (4, {"calls": 1, "cache_errors": 2})


def test_the_cache_can_be_passed_by(tmp_path):
    async def work(client):
        return [await ask(client), await ask(client, cached=False)]

    with JudgeServer(script(FOUR, FOUR.replace("4", "1"))) as server:
        assert on(server, FakeTime(), work, cache_dir=str(tmp_path)) == [4, 1]


def test_of_equal_questions_at_a_time_one_is_asked(tmp_path):
    async def work(client):
        return await asyncio.gather(*(ask(client) for _ in range(8))), counts(client)

    with JudgeServer(script(FOUR)) as server:
        assert on(server, FakeTime(), work, cache_dir=str(tmp_path)) == ([4] * 8, {"calls": 1, "cache_hits": 7})


# --- the key ---------------------------------------------------------------------------------------------------------

KEY = "sk-planted-0123456789"


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MY_JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    echo = Reply(status=401, body=json.dumps({"error": {"message": f"bad key {KEY}", "code": KEY}}))
    said = []

    async def work(client):
        await ask(client)
        for _ in range(3):
            with pytest.raises(Abstained) as error:
                await ask(client, cached=False)
            said.append("".join(traceback.format_exception(error.value)))
        said.append(repr(client) + repr(vars(client)) + str(client.take_counts()))

    broken = Reply(f"<html>{KEY}</html>")
    with JudgeServer(script(FOUR, echo, broken, Reply(status=500, body=KEY))) as server:
        on(server, FakeTime(), work, api_key_env="MY_JUDGE_KEY", cache_dir=str(tmp_path), retries=0)
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    said += [path.read_text() for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert len(said) == 5 and "***" in said[0] and caplog.text
    assert [text for text in [*said, caplog.text] if KEY in text] == []


def test_without_a_key_none_of_the_environment_is_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    with JudgeServer(always(FOUR)) as server:
        on(server, FakeTime(), ask)
    assert KEY not in str(server.headers)


def test_a_key_that_is_not_set_is_an_error_at_once(monkeypatch):
    monkeypatch.delenv("MY_JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match="api_key_env: 'MY_JUDGE_KEY', no such environment variable"):
        Client(EndpointParams(base_url="http://127.0.0.1:1/v1", model="m", api_key_env="MY_JUDGE_KEY"))
