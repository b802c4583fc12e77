"""An environment on another machine, which alone needs its code and what that depends on.

`RemoteEnv` asks `videorl.envs.serve`: a POST of JSON for each call. Any call may be repeated without harm: the client
names the session, a step names its turn, and the others change nothing. What comes back is untrusted.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
from pydantic import JsonValue, TypeAdapter
from pydantic_core import to_json

from videorl.envs.records import Budget, Episode, Message, Record, Score, StepResult, Task

MAX_BYTES = 64 * 2**20  # of a request or a reply: about a thousand long episodes
QUOTED = 500  # characters of a server's words in an error
Scope = Literal["group", "batch"]  # what `shape` is given
TRAITS: dict[str, Any] = {"budget": Budget, "scope": Scope}  # the server knows them


class Made(Record):
    """What the server makes an environment of."""

    target: str
    params: dict[str, JsonValue]


class Stepped(Record):
    """`episode` is there where the step ended it."""

    result: StepResult
    episode: Episode | None


class EnvUnavailable(Exception):
    """The server gave no answer that can be used; the episode is lost through no fault of the policy.

    `reason` is "timeout", "unreachable" (no connection), "unavailable" (HTTP 5xx: it failed), "refused" (another
    `status` than 200: it will not) or "garbage" (not the record that was asked for).
    """

    def __init__(self, reason: str, message: str, status: int | None = None):
        super().__init__(reason, message, status)
        self.reason, self.message, self.status = reason, message, status

    def __str__(self) -> str:
        return self.message


class RemoteEnv:
    """The environment `target` of the server at `url`, made there with `params`.

    `timeout`: seconds for a call, its second try included; there is one where the connection breaks. `token_env`: NAME
    of the environment variable that holds the server's token; None = it wants none. Raises ValueError where url or
    variable do not fit; every call raises EnvUnavailable. Those that are no coroutines block for up to `timeout`, and
    so does the first look at `budget` or `scope`.
    """

    budget: Budget
    scope: Scope

    def __init__(
        self,
        *,
        url: str,
        target: str,
        params: Mapping[str, Any] | None = None,
        timeout: float = 10.0,
        token_env: str | None = None,
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            rule = "must look like http://host:8300, without user and password; for a token give token_env"
            raise ValueError(f"url: {url.rpartition('@')[2]!r}, {rule}")
        self.url, self.timeout, self.token_env = url.rstrip("/"), timeout, token_env
        self._token()
        self._env = Made(target=target, params=dict(params or {}))
        self._session, self._said, self._ended = None, [], None

    def __getattr__(self, name: str) -> Any:
        if name not in TRAITS:
            raise AttributeError(f"RemoteEnv has no attribute {name!r}")
        trait = self._ask(name, TRAITS[name], env=self._env).result()
        setattr(self, name, trait)
        return trait

    async def reset(self, task: Task, seed: int) -> tuple[Message, ...]:
        self._task, self._seed, self._said, self._ended = task, seed, [], None
        self._session = secrets.token_hex(16)  # a new one: a late step of the last episode finds nothing to change
        asked = self._ask("reset", tuple[Message, ...], env=self._env, session=self._session, task=task, seed=seed)
        messages = await asyncio.wrap_future(asked)
        self._check_frames("reset", messages)
        return messages

    async def step(self, response: str) -> StepResult:
        if self._ended is not None:
            raise RuntimeError(f"task {self._task.id}: the episode is {self._ended.status}; reset it first")
        said = [*self._said, response]
        asked = self._ask("step", Stepped, session=self._session, turn=len(said), response=response)
        stepped: Stepped = await asyncio.wrap_future(asked)
        result, over = stepped.result, stepped.result.terminated or stepped.result.truncated
        if (stepped.episode is not None, result.obs is None) != (over, over):
            raise self._garbage("step", "the end of an episode without its record, or a record without an end")
        self._check_frames("step", [result.obs] if result.obs else [])
        self._ended = stepped.episode and self._check_episode("step", stepped.episode, said)
        self._said = said
        return result

    def episode(self) -> Episode:
        if self._ended is not None:
            return self._ended
        episode = self._ask("episode", Episode, session=self._session).result()
        return self._check_episode("episode", episode, self._said)

    # The server scores too, for the trainer need not have the class. Its reply is awaited without a coroutine, as the
    # scores of other environments have nothing to await; it takes milliseconds.

    def score(self, episode: Episode, progress: float = 1.0) -> Score:
        score = self._ask("score", Score, env=self._env, episode=episode, progress=progress).result()
        return self._check_score("score", score, episode)

    def shape(self, group: Sequence[tuple[Episode, Score]]) -> list[Score]:
        scores = self._ask("shape", list[Score], env=self._env, group=list(group)).result()
        if len(scores) != len(group):
            raise self._garbage("shape", f"{len(scores)} scores of {len(group)} episodes")
        return [self._check_score("shape", after, episode) for after, (episode, _) in zip(scores, group, strict=True)]

    def oracle(self) -> str:
        return self._ask("oracle", str, session=self._session).result()

    # -- asking -------------------------------------------------------------------------------------------------------

    def _ask(self, call: str, kind: Any, **asked: Any) -> Future[Any]:
        link = _link(os.getpid())
        return asyncio.run_coroutine_threadsafe(self._exchange(link.client, call, kind, to_json(asked)), link.loop)

    async def _exchange(self, client: httpx2.AsyncClient, call: str, kind: Any, asked: bytes) -> Any:
        try:
            async with asyncio.timeout(self.timeout):
                try:
                    status, body = await self._post(client, call, asked)
                except httpx2.TransportError:  # a kept connection may have been closed meanwhile
                    status, body = await self._post(client, call, asked)
        except TimeoutError:
            rule = f"no reply within {self.timeout:g} s; raise timeout, or see what keeps the server"
            raise self._failed("timeout", call, rule) from None
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            why = f"no connection, {type(error).__name__} {self._quote(str(error).encode())}"
            remedy = "see that `python -m videorl.envs.serve` runs there, or correct url"
            raise self._failed("unreachable", call, f"{why}; {remedy}") from None
        if status != 200:
            reason = "unavailable" if status >= 500 else "refused"
            raise self._failed(reason, call, f"HTTP {status}, {self._quote(body)}", status)
        try:
            return _adapter(kind).validate_python(json.loads(body, parse_float=_finite, parse_constant=_finite))
        except (ValueError, RecursionError):
            raise self._garbage(call, f"not {kind}: {self._quote(body)}") from None

    async def _post(self, client: httpx2.AsyncClient, call: str, asked: bytes) -> tuple[int, bytes]:
        token = self._token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with client.stream("POST", f"{self.url}/{call}", content=asked, headers=headers) as reply:
            body = bytearray()
            async for chunk in reply.aiter_raw():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise self._garbage(call, f"a reply of more than {MAX_BYTES} bytes")
            return reply.status_code, bytes(body)

    def _token(self) -> str | None:
        if self.token_env is None:
            return None
        if not (token := os.environ.get(self.token_env)):  # read anew, never kept: an environment may be pickled
            rule = "no such environment variable in this process; set it where the run starts"
            raise ValueError(f"token_env: {self.token_env!r}, {rule}, or give null if the server wants no token")
        return token

    # -- what came back -----------------------------------------------------------------------------------------------

    def _check_frames(self, call: str, messages: Sequence[Message]) -> None:
        lengths = {video.id: video.num_frames for video in self._task.videos}
        for ref in (ref for message in messages for ref in message.refs):
            if not 0 <= ref.index < lengths.get(ref.video, 0):
                raise self._garbage(call, f"frame {ref.index} of video {ref.video[:40]!r} is none of the task's")

    def _check_episode(self, call: str, episode: Episode, said: Sequence[str]) -> Episode:
        played = episode.task, episode.seed, [turn.response for turn in episode.turns]
        if played != (self._task, self._seed, said):
            raise self._garbage(call, "the record of another episode")
        return episode

    def _check_score(self, call: str, score: Score, episode: Episode) -> Score:
        if len(score.turn) != len(episode.turns):
            raise self._garbage(call, f"rewards of {len(score.turn)} turns for {len(episode.turns)}")
        return score

    def _garbage(self, call: str, why: str) -> EnvUnavailable:
        return self._failed("garbage", call, f"{why}; see that url is right, and videorl there the same version")

    def _failed(self, reason: str, call: str, why: str, status: int | None = None) -> EnvUnavailable:
        return EnvUnavailable(reason, f"{self.url}/{call}, session {self._session}: {why}", status)

    def _quote(self, body: bytes) -> str:
        """The start of what a server said, without the token that some repeat."""
        words, token = body.decode(errors="replace"), self._token()
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            words = str(json.loads(body)["error"])
        return repr((words.replace(token, "***") if token else words)[:QUOTED])


class _Link:
    """What all remote environments of a process ask through: an HTTP client and its event loop, in a thread.

    So a caller may stand in any event loop or in none, connections outlive the loop of a training step, and a deadline
    holds for a call as a whole: that of a blocking client is for each read, and a slow trickle would pass it.
    """

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.client = httpx2.AsyncClient(
            timeout=None,
            # As many as there are episodes under way; few are kept, for every request looks at each of those.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=16),
            headers={"Accept-Encoding": "identity"},  # so that bytes received are bytes held
            trust_env=False,  # no proxy gets to see the token
        )
        threading.Thread(target=self.loop.run_forever, daemon=True, name="remote environments").start()


@functools.cache
def _link(process: int) -> _Link:  # by process: a fork lacks the threads of its parent
    return _Link()


_adapter = functools.cache(TypeAdapter)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not finite")
    return number
