"""Environments for trainers elsewhere, which ask with `videorl.envs.remote`.

python -m videorl.envs.serve --port 8300 --allow video_mtr,my_pkg:MyEnv

A client may name the targets that the server was started with, and nothing else. Environments run in one event loop, as
they do in a trainer; for more than one core, start more servers.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import ipaddress
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, get_type_hints

from aiohttp import web
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, create_model

from videorl.envs.env import Env
from videorl.envs.records import Budget, Episode, Message, Score, Task
from videorl.envs.registry import BUILT_IN, load_env
from videorl.envs.remote import MAX_BYTES, Made, Scope, Stepped
from videorl.imports import load_object

log = logging.getLogger(__name__)

ALLOWED = tuple(name for name in BUILT_IN if name != "remote")  # which would ask any address that a client likes
GRACE = 10.0  # seconds that requests under way have when the server ends

SessionId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class Refusal(Exception):
    """Becomes {"error": text} with an HTTP status."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text


@dataclass
class Running:
    """A session: `last` is what turn `turn` led to, which was `response`."""

    env: Env
    used: float
    turn: int = 0
    response: str = ""
    last: Stepped | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def over(self) -> bool:
        return self.last is not None and self.last.episode is not None


class Server:
    """`idle`: seconds without a request, or in one, after which a session is dropped. Where `max_sessions` are there,
    one whose episode is over makes room for the next. `token`: what every request has to bring; None = nothing.
    """

    def __init__(
        self,
        allow: Sequence[str] = ALLOWED,
        *,
        max_sessions: int = 1024,
        idle: float = 600.0,
        token: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.allow, self.max_sessions, self.idle, self.token, self.clock = allow, max_sessions, idle, token, clock
        self.sessions: dict[str, Running] = {}

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BYTES)
        calls = self.budget, self.scope, self.reset, self.step, self.episode, self.oracle, self.score, self.shape
        app.router.add_routes([web.post(f"/{call.__name__}", self._handler(call)) for call in calls])
        return app

    # -- calls: their arguments and results, in JSON, are the requests and replies -----------------------------------

    async def budget(self, env: Made) -> Budget:
        return self._make(env).budget

    async def scope(self, env: Made) -> Scope:
        return getattr(self._make(env), "scope", "group")

    async def reset(self, env: Made, session: SessionId, task: Task, seed: int) -> tuple[Message, ...]:
        made = self._make(env)
        self._make_room(session)
        self.sessions[session] = Running(made, self.clock())
        async with self._use(session):
            return await made.reset(task, seed)

    async def step(self, session: SessionId, turn: int, response: str) -> Stepped:
        async with self._use(session) as running:
            if running.last is not None and (running.turn, running.response) == (turn, response):
                return running.last  # its reply was lost
            if running.over or turn != running.turn + 1:
                state = f"turn {running.turn} was the last" + " of the episode" * running.over
                raise Refusal(409, f"turn: {turn}, {state}; send the one that follows, or reset")
            result = await running.env.step(response)
            episode = running.env.episode() if result.terminated or result.truncated else None
            running.turn, running.response, running.last = turn, response, Stepped(result=result, episode=episode)
            return running.last

    async def episode(self, session: SessionId) -> Episode:
        async with self._use(session) as running:
            return running.env.episode()

    async def oracle(self, session: SessionId) -> str:
        async with self._use(session) as running:
            return running.env.oracle()

    async def score(self, env: Made, episode: Episode, progress: float) -> Score:
        return self._make(env).score(episode, progress)

    async def shape(self, env: Made, group: list[tuple[Episode, Score]]) -> list[Score]:
        return self._make(env).shape(group)

    # -- requests -----------------------------------------------------------------------------------------------------

    def _handler(self, call: Callable[..., Awaitable[Any]]) -> Callable[[web.Request], Awaitable[web.Response]]:
        kinds = get_type_hints(call, include_extras=True)
        reply = TypeAdapter(kinds.pop("return"))
        fields: dict[str, Any] = {name: (kind, ...) for name, kind in kinds.items()}
        asked = create_model(call.__name__, __config__=ConfigDict(extra="forbid"), **fields)

        async def handle(request: web.Request) -> web.Response:
            try:
                brought = request.headers.get("Authorization", "").encode(errors="surrogateescape")
                if self.token is not None and not hmac.compare_digest(brought, f"Bearer {self.token}".encode()):
                    raise Refusal(401, "the token is missing or wrong; give token_env the variable that holds it")
                try:
                    values = dict(asked.model_validate_json(await request.read()))
                except ValidationError as error:
                    first = error.errors()[0]
                    raise Refusal(400, f"not a request of RemoteEnv: {first['loc']}: {first['msg']}") from None
                return web.json_response(body=reply.dump_json(await call(**values)))
            except Refusal as refusal:
                status, text = refusal.status, refusal.text
            except web.HTTPRequestEntityTooLarge:
                status, text = 413, f"a request of more than {MAX_BYTES} bytes; score fewer episodes at a time"
            except TimeoutError:
                status, text = 504, f"the environment took more than --idle {self.idle:g} s; its session is dropped"
            except Exception as error:
                log.exception("%s failed", call.__name__)
                status, text = 500, f"the environment failed, see the server's log: {type(error).__name__}: {error}"
            return web.json_response({"error": text}, status=status)

        return handle

    def _make(self, made: Made) -> Env:
        if made.target not in self.allow:
            rule = f"this server has {', '.join(self.allow)}; choose one, or start it with --allow"
            raise Refusal(403, f"target: {made.target[:100]!r}, {rule}")
        try:
            return load_env(made.target, made.params)
        except ValueError as error:
            raise Refusal(400, str(error)) from None

    # -- sessions -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _use(self, session: str) -> AsyncIterator[Running]:
        """For one request at a time. A session in which something fails is dropped: it may be half changed."""
        self._drop_idle()
        if (running := self.sessions.get(session)) is None:
            why = f"never begun here, or failed, or idle for {self.idle:g} s, or over and dropped for another"
            raise Refusal(404, f"session: {session}, is not there: {why}; reset")
        running.used = self.clock()
        try:
            async with asyncio.timeout(self.idle), running.lock:
                yield running
        except Refusal:
            raise
        except BaseException:
            if self.sessions.get(session) is running:
                del self.sessions[session]
            raise
        running.used = self.clock()

    def _make_room(self, session: str) -> None:
        self._drop_idle()
        if session not in self.sessions and len(self.sessions) >= self.max_sessions:
            over = next((other for other, running in self.sessions.items() if running.over), None)
            if over is None:
                rule = f"--max-sessions {self.max_sessions} are running; raise it, or run fewer episodes at a time"
                raise Refusal(503, rule)
            del self.sessions[over]

    def _drop_idle(self) -> None:
        oldest = self.clock() - self.idle
        self.sessions = {name: running for name, running in self.sessions.items() if running.used >= oldest}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m videorl.envs.serve", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8300, help="0 = any that is free (default: %(default)s)")
    parser.add_argument("--max-sessions", type=int, default=1024, metavar="N", help="default: %(default)s")
    parser.add_argument("--idle", type=float, default=600.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--token-env", metavar="NAME", help="environment variable that holds the token of clients")
    parser.add_argument("--allow", default=",".join(ALLOWED), metavar="TARGETS", help="default: %(default)s")
    args = parser.parse_args(argv)
    allow: list[str] = args.allow.split(",")
    token = os.environ.get(args.token_env or "")
    if args.max_sessions < 1 or not args.idle > 0:
        parser.error(f"--max-sessions {args.max_sessions}, --idle {args.idle:g}: both must be positive")
    if args.token_env and not token:
        parser.error(f"--token-env {args.token_env}: no such environment variable; set it first")
    if not token and not _is_loopback(args.host):
        parser.error(f"--host {args.host}: others can reach it, which takes a token; give --token-env")
    try:
        for target in allow:
            load_object(BUILT_IN.get(target, target))
        sock = socket.create_server((args.host, args.port))
    except (ValueError, OSError, OverflowError) as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO)
    server = Server(allow, max_sessions=args.max_sessions, idle=args.idle, token=token)
    print(f"serving {', '.join(allow)} at http://{args.host}:{sock.getsockname()[1]}", flush=True)
    web.run_app(server.app(), sock=sock, print=None, access_log=None, shutdown_timeout=GRACE)  # until SIGTERM
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(main())
