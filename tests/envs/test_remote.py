"""Environments behind HTTP: a real server on loopback, shared by most tests; the servers that fail are fakes."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from aiohttp import web
from env_policies import GARBAGE, make_task, make_video, perfect
from judge_server import JudgeServer, Reply, always, script

from videorl.envs import remote, serve
from videorl.envs.env import Env
from videorl.envs.records import Evidence, Task
from videorl.envs.registry import load_env
from videorl.envs.remote import EnvUnavailable, RemoteEnv
from videorl.envs.serve import Server

ANSWER = "<think>x</think><answer>B</answer>"
RETRIEVE = "<think>look</think><retrieve>40,43</retrieve>"
TOKEN = "a-token-of-the-tests"

PAIR = Task(
    id="pair",
    videos=(make_video(id="a"), make_video(id="b")),
    question="A cat jumps.",
    answer="1",
    evidence=Evidence(labels={"TA": 1, "VQ": 2, "MQ": 1, "OA": 1}),
)
TASKS = {
    "single_turn": make_task(),
    "video_mtr": make_task(),
    "framethinker": make_task().model_copy(update={"question": "What happens at 00:41?"}),
    "video_com": make_task(make_video(121.0, fps=0.97), spans=((42.0, 43.0),), boxes={43.1: (0.2, 0.2, 0.6, 0.6)}),
    "earl": make_task(),
    "vr_thinker": PAIR,
}


@contextmanager
def serving(app: web.Application) -> Iterator[str]:
    """The url of an application that runs in a thread."""
    loop, runner, sock = asyncio.new_event_loop(), web.AppRunner(app, shutdown_timeout=0.1), socket.socket()
    sock.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def begin() -> None:
        await runner.setup()
        await web.SockSite(runner, sock).start()

    try:
        asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Server().app()) as url:
        yield url


def make(url: str, target: str = "video_mtr", **more: Any) -> RemoteEnv:
    return RemoteEnv(url=url, target=target, **more)


async def run(env: Env, task: Task, policy: Callable[[Env], str], seed: int = 3) -> list[Any]:
    """All that an environment says in an episode, its record last."""
    said: list[Any] = [await env.reset(task, seed)]
    for _ in range(20):
        said += [env.episode(), await env.step(policy(env))]
        if said[-1].terminated or said[-1].truncated:
            break
    return [*said, env.episode()]


def opened(url: str, **more: Any) -> RemoteEnv:
    env = make(url, **more)
    asyncio.run(env.reset(make_task(), 3))
    return env


def step(env: RemoteEnv, response: str = RETRIEVE) -> Any:
    return asyncio.run(env.step(response))


@contextmanager
def unavailable(reason: str, status: int | None = None, match: str | None = None) -> Iterator[None]:
    with pytest.raises(EnvUnavailable, match=match) as raised:
        yield
    assert (raised.value.reason, raised.value.status) == (reason, status), str(raised.value)
    assert str(raised.value).startswith("http://127.0.0.1:")
    assert ", session " in str(raised.value)


# --- as if it were here -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_an_episode_is_record_for_record_the_local_one(url, name):
    here: Any = load_env(name, {})
    there: Any = load_env("remote", {"url": url, "target": name})
    assert (there.budget, there.scope) == (here.budget, here.scope)
    played = asyncio.run(run(there, TASKS[name], perfect))
    assert played == asyncio.run(run(here, TASKS[name], perfect))
    episode = played[-1]
    for progress in (0.1, 1.0):
        assert there.score(episode, progress) == here.score(episode, progress)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("said", GARBAGE)
def test_what_a_model_may_say_arrives(url, name, said):
    async def both() -> None:
        envs = make(url, name), load_env(name, {})
        one, other = [await run(env, TASKS[name], lambda env: said) for env in envs]
        assert one == other

    asyncio.run(both())


@pytest.mark.parametrize("name", ["video_mtr", "vr_thinker"])
def test_shaped_scores_are_the_local_ones(url, name):
    here = load_env(name, {})
    looking = asyncio.run(run(here, TASKS[name], perfect))[-1]
    lazy = asyncio.run(run(here, TASKS[name], lambda env: ""))[-1]
    group = [(episode, here.score(episode)) for episode in (looking, *[lazy] * 9)]
    assert here.shape(group) != [score for _, score in group]
    assert make(url, name).shape(group) == here.shape(group)


def test_parameters_reach_the_environment(url):
    params = {"variant": "release", "budget": {"max_turns": 2}}
    env = make(url, params=params)
    assert env.budget == load_env("video_mtr", params).budget
    assert asyncio.run(run(env, make_task(), lambda env: RETRIEVE))[-1].status == "truncated"


def test_many_sessions_at_once(url):
    tasks = [make_task().model_copy(update={"id": f"t{k}", "answer": "ABCD"[k % 4]}) for k in range(32)]

    async def play(made: Callable[[], Env]) -> list[Any]:
        return await asyncio.gather(*(run(made(), task, perfect, seed) for seed, task in enumerate(tasks)))

    assert asyncio.run(play(lambda: make(url))) == asyncio.run(play(lambda: load_env("video_mtr", {})))


def test_one_environment_plays_one_episode_after_another(url):
    env = make(url)
    for _ in range(2):
        episode = asyncio.run(run(env, make_task(), perfect))[-1]
        with pytest.raises(RuntimeError, match="the episode is done; reset it first"):
            step(env)
        assert len(episode.turns) == 2


def test_an_environment_can_be_pickled_without_its_token(url, monkeypatch):
    monkeypatch.setenv("ENV_TOKEN", TOKEN)
    env = opened(url, token_env="ENV_TOKEN")
    data = pickle.dumps(env)
    assert TOKEN.encode() not in data
    assert step(pickle.loads(data)) == asyncio.run(run(load_env("video_mtr", {}), make_task(), lambda env: RETRIEVE))[2]


# --- a step counts once -----------------------------------------------------------------------------------------------


def test_a_step_whose_reply_is_lost_is_asked_for_again_and_taken_once():
    lost = []

    @web.middleware
    async def lose_the_first_reply_to_a_step(request: web.Request, handler: Any) -> web.StreamResponse:
        reply = await handler(request)
        if request.path == "/step" and not lost:
            lost.append(request)
            assert request.transport is not None
            request.transport.abort()
        return reply

    app = Server().app()
    app.middlewares.append(lose_the_first_reply_to_a_step)
    with serving(app) as url:
        played = asyncio.run(run(make(url), make_task(), perfect))
    assert len(lost) == 1
    assert played == asyncio.run(run(load_env("video_mtr", {}), make_task(), perfect))


def test_a_repeated_step_is_answered_and_not_taken(url):
    env = opened(url)
    asked = {"session": env._session, "turn": 1, "response": RETRIEVE}
    first, again = (httpx2.post(f"{url}/step", json=asked) for _ in range(2))
    assert (first.status_code, first.content) == (200, again.content)
    for turn, response in ((1, ANSWER), (3, RETRIEVE), (0, RETRIEVE), (-1, RETRIEVE)):
        refused = httpx2.post(f"{url}/step", json=asked | {"turn": turn, "response": response})
        assert refused.status_code == 409
        assert refused.json()["error"].startswith(f"turn: {turn}, turn 1 was the last; send the one that follows")
    env._said = [RETRIEVE]
    assert [turn.response for turn in env.episode().turns] == [RETRIEVE]


def test_the_last_step_can_be_repeated_and_none_follows(url):
    env = opened(url)
    session = env._session
    ended = step(env, ANSWER)
    env._said, env._ended = [], None  # as if the reply had been lost
    assert step(env, ANSWER) == ended
    refused = httpx2.post(f"{url}/step", json={"session": session, "turn": 2, "response": ANSWER})
    assert (refused.status_code, "last of the episode" in refused.json()["error"]) == (409, True)


# --- what a server refuses --------------------------------------------------------------------------------------------


def test_an_unknown_session(url):
    env = opened(url)
    env._session = "0" * 32
    for call in (lambda: step(env), env.episode, env.oracle):
        with unavailable("refused", 404, match="is not there: never begun here, or failed, or idle for 600 s"):
            call()


@pytest.mark.parametrize("target", ["os:system", "videorl.envs.video_mtr:VideoMTR", "remote", ""])
def test_a_target_that_the_server_was_not_started_with(url, target):
    env = make(url, target)
    episode = asyncio.run(run(load_env("video_mtr", {}), make_task(), perfect))[-1]
    for call in (lambda: asyncio.run(env.reset(make_task(), 0)), lambda: env.score(episode), lambda: env.budget):
        with unavailable("refused", 403, match="this server has single_turn, video_mtr, .*; choose one, or start it"):
            call()


@pytest.mark.parametrize("params", [{"speed": 3}, {"budget": {"initial": 0}}, {"budget": {"per_year": 1}}])
def test_parameters_that_do_not_fit(url, params):
    with unavailable("refused", 400, match="params: "):
        asyncio.run(make(url, params=params).reset(make_task(), 0))


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"{}", b"[" * 100_000, b'{"session": "../x", "turn": 1}', b"\xff"])
def test_requests_that_are_none(url, body):
    reply = httpx2.post(f"{url}/step", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"].startswith("not a request of RemoteEnv: ")


def test_a_request_that_is_too_large(monkeypatch):
    monkeypatch.setattr(serve, "MAX_BYTES", 1000)
    with serving(Server().app()) as url, unavailable("refused", 413, match="a request of more than 1000 bytes"):
        asyncio.run(make(url).reset(make_task(make_video(400.0)), 0))


def test_tokens(monkeypatch):
    monkeypatch.setenv("ENV_TOKEN", TOKEN)
    with serving(Server(token=TOKEN).app()) as url:
        assert step(opened(url, token_env="ENV_TOKEN")).obs is not None
        with unavailable("refused", 401, match="the token is missing or wrong"):
            opened(url)
        for brought in (b"Bearer wrong", b"Bearer \xff", TOKEN.encode()):
            assert httpx2.post(f"{url}/step", headers={b"Authorization": brought}).status_code == 401
    with pytest.raises(ValueError, match="token_env: 'UNSET', no such environment variable in this process; set it"):
        make(url, token_env="UNSET")


def test_as_many_sessions_as_allowed_and_one_that_is_over_makes_room():
    with serving(Server(max_sessions=2).app()) as url:
        first, second = opened(url), opened(url)
        with unavailable("unavailable", 503, match="--max-sessions 2 are running; raise it"):
            opened(url)
        ended = step(first, ANSWER)
        third = opened(url)
        assert ended.terminated
        assert first.episode().answer == "B"  # it came with the last step
        assert step(second).obs == step(third).obs


def test_idle_sessions_are_dropped():
    now = [0.0]
    with serving(Server(max_sessions=1, idle=60, clock=lambda: now[0]).app()) as url:
        env = opened(url)
        for now[0] in (50.0, 100.0):  # a request is a sign of life
            env.oracle()
        now[0] = 161.0
        with unavailable("refused", 404, match="or idle for 60 s"):
            step(env)
        opened(url)


# --- environments that fail -------------------------------------------------------------------------------------------


class FakeEnv:
    """Fails or hangs where its task's id says so."""

    def __init__(self):
        self.real = load_env("video_mtr", {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    async def reset(self, task: Task, seed: int) -> Any:
        self.task = task
        return await self.real.reset(task, seed)

    async def step(self, response: str) -> Any:
        if self.task.id == "fails":
            raise KeyError("a fault")
        if self.task.id == "hangs":
            await asyncio.sleep(60)
        return await self.real.step(response)


@pytest.mark.parametrize(
    ("id", "status", "match"),
    [
        ("fails", 500, "the environment failed, see the server's log: KeyError"),
        ("hangs", 504, "more than --idle 0.2 s"),
    ],
)
def test_a_session_whose_environment_fails_is_dropped(monkeypatch, id, status, match):
    monkeypatch.setattr(serve, "load_env", lambda target, params: FakeEnv())
    with serving(Server(idle=0.2, clock=lambda: 0.0).app()) as url:
        env = make(url)
        asyncio.run(env.reset(make_task().model_copy(update={"id": id}), 0))
        with unavailable("unavailable", status, match=match):
            step(env)
        with unavailable("refused", 404):
            step(env)


# --- fake servers: nothing that one does is believed ------------------------------------------------------------------

VIDEO = '{"kind": "frames", "refs": [{"video": "%s", "index": %d, "max_pixels": 100}]}'
MESSAGES = '[{"role": "user", "parts": [%s]}]'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff\xfe\xff",
        b"[" * 200_000,
        b"null",
        b'[{"role": "robot", "parts": []}]',
        b'[{"role": "user", "parts": [], "more": 1}]',
        (MESSAGES % VIDEO % ("v", 64)).encode(),
        (MESSAGES % VIDEO % ("v", -1)).encode(),
        (MESSAGES % VIDEO % ("w", 0)).encode(),
    ],
)
def test_garbage_for_messages(body):
    with JudgeServer(always(Reply(body))) as fake, unavailable("garbage"):
        opened(fake.url)


RESULT = '{"obs": %s, "rewards": {"r": %s}, "terminated": %s}'


@pytest.mark.parametrize(
    ("obs", "reward", "over"),
    [
        ("null", "0", "true"),  # an end without a record
        ("null", "0", "false"),  # neither an end nor a next observation
        ("null", "NaN", "false"),
        ("null", "1e999", "false"),
        ("null", "-Infinity", "false"),
        ((MESSAGES % VIDEO % ("v", 99))[1:-1], "0", "false"),
    ],
)
def test_garbage_for_a_step(obs, reward, over):
    stepped = '{"result": %s, "episode": null}' % (RESULT % (obs, reward, over))
    with JudgeServer(script(Reply("[]"), Reply(stepped))) as fake, unavailable("garbage"):
        step(opened(fake.url))


@pytest.mark.parametrize("change", [{"seed": 4}, {"turns": ()}, {"task": PAIR}])
def test_the_record_of_another_episode(change):
    episode = asyncio.run(run(load_env("video_mtr", {}), make_task(), lambda env: ANSWER))[-1]
    stepped = '{"result": {"obs": null, "terminated": true}, "episode": %s}'
    replies = [Reply("[]"), Reply(stepped % episode.model_copy(update=change).model_dump_json())]
    with JudgeServer(script(*replies)) as fake, unavailable("garbage", match="the record of another episode"):
        step(opened(fake.url), ANSWER)
    with JudgeServer(script(Reply("[]"), Reply(stepped % episode.model_dump_json()))) as fake:
        assert step(opened(fake.url), ANSWER).terminated  # unchanged, it is believed


@pytest.mark.parametrize("body", ['{"turn": [], "rollout": 1}', '{"turn": [0], "rollout": Infinity}', "{}"])
def test_garbage_for_a_score(body):
    episode = asyncio.run(run(load_env("video_mtr", {}), make_task(), lambda env: ANSWER))[-1]
    with JudgeServer(always(Reply(body))) as fake, unavailable("garbage"):
        make(fake.url).score(episode)
    good = '{"turn": [0], "rollout": 1}'
    for scores in ("[]", f"[{body}]", f"[{good}, {good}]"):
        with JudgeServer(always(Reply(scores))) as fake, unavailable("garbage"):
            make(fake.url).shape([(episode, load_env("video_mtr", {}).score(episode))])


def test_a_reply_that_is_too_large(monkeypatch):
    monkeypatch.setattr(remote, "MAX_BYTES", 1000)
    endless = Reply(b" " * 2000, hang=True)
    with JudgeServer(always(endless)) as fake, unavailable("garbage", match="a reply of more than 1000 bytes"):
        opened(fake.url)


@pytest.mark.parametrize("slow", [Reply(hang=True), Reply(trickle=True)])
def test_a_slow_server(slow):
    with JudgeServer(always(slow)) as fake:
        began = time.monotonic()
        with unavailable("timeout", match=r"no reply within 0\.3 s; raise timeout"):
            opened(fake.url, timeout=0.3)
        assert time.monotonic() - began < 5
        assert len(fake.requests) == 1


def test_a_lost_connection_is_tried_once_more():
    with JudgeServer(script(Reply(drop=True), Reply("[]"))) as fake:
        opened(fake.url)
    with JudgeServer(always(Reply(drop=True))) as fake:
        with unavailable("unreachable", match="see that `python -m videorl.envs.serve` runs there"):
            opened(fake.url)
        assert len(fake.requests) == 2


def test_neither_redirects_nor_encoded_replies_are_followed():
    with JudgeServer(always(Reply("[]", status=307, headers={"Location": "/else"}))) as fake:
        with unavailable("refused", 307):
            opened(fake.url)
        assert len(fake.requests) == 1
    with JudgeServer(always(Reply("[]", headers={"Content-Encoding": "gzip"}))) as fake:
        opened(fake.url)  # read as it came


def test_a_server_that_repeats_the_token(monkeypatch):
    monkeypatch.setenv("ENV_TOKEN", TOKEN)
    with JudgeServer(always(Reply(f"no {TOKEN}", status=500))) as fake:
        with pytest.raises(EnvUnavailable, match=r"HTTP 500, 'no \*\*\*'") as raised:
            opened(fake.url, token_env="ENV_TOKEN")
        assert fake.headers[0]["authorization"] == f"Bearer {TOKEN}"
    again = pickle.loads(pickle.dumps(raised.value))
    assert (again.reason, again.status, str(again)) == ("unavailable", 500, str(raised.value))


@pytest.mark.parametrize("url", ["", "host:8300", "ftp://host", "http://", "http://me:secret@host"])
def test_addresses_that_are_none(url):
    with pytest.raises(ValueError, match="must look like http://host:8300") as raised:
        make(url)
    assert "secret" not in str(raised.value)


# --- the process ------------------------------------------------------------------------------------------------------

SLOW = """
import asyncio
from videorl.envs.video_mtr import VideoMTR

class Slow(VideoMTR):
    async def step(self, response):
        await asyncio.sleep(0.5)
        return await super().step(response)
"""


@contextmanager
def process(folder: Any, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of `slow:Slow` and its url."""
    (folder / "slow.py").write_text(SLOW)
    command = [sys.executable, "-m", "videorl.envs.serve", "--port", "0", "--allow", "video_mtr,slow:Slow", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.getcwd()]), "ENV_TOKEN": TOKEN}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("serving video_mtr, slow:Slow at http://127.0.0.1:")
            yield server, line.split()[-1]
        finally:
            server.kill()


def test_a_server_that_stops_and_is_killed_in_an_episode(tmp_path):
    with process(tmp_path) as (server, url):
        env = opened(url, timeout=1.0)
        assert step(env).obs is not None
        began = time.monotonic()
        server.send_signal(signal.SIGSTOP)
        with unavailable("timeout"):
            step(env)
        server.kill()
        server.wait()
        with unavailable("unreachable"):
            step(env)
        assert time.monotonic() - began < 10  # 1 s of them waiting, the rest for a busy machine


def test_sigterm_lets_requests_under_way_end(tmp_path, monkeypatch):
    monkeypatch.setenv("ENV_TOKEN", TOKEN)
    with process(tmp_path, "--token-env", "ENV_TOKEN") as (server, url):
        env = opened(url, target="slow:Slow", token_env="ENV_TOKEN")
        threading.Timer(0.2, server.terminate).start()
        assert step(env).obs is not None
        assert server.wait(10) == 0
        with unavailable("unreachable"):
            step(env)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: others can reach it, which takes a token; give --token-env"),
        (["--token-env", "UNSET"], "--token-env UNSET: no such environment variable; set it first"),
        (["--allow", "nowhere:Env"], "'nowhere:Env': no module named 'nowhere'"),
        (["--allow", "video_mrt"], "'video_mrt' is not an import string"),
        (["--max-sessions", "0"], "--max-sessions 0, --idle 600: both must be positive"),
        (["--port", "99999"], "port"),
    ],
)
def test_a_server_that_does_not_start(capsys, arguments, match):
    with pytest.raises(SystemExit, match="2"):
        serve.main(arguments)
    assert match in capsys.readouterr().err
