"""A fake judge behind a real OpenAI-compatible HTTP server, in a thread of the test.

    with JudgeServer(grade_by_overlap) as server:
        Judge(None, kind="open_ended", base_url=server.url, model="fake")

`grade_by_overlap` is a judge by rule: it reads the quoted blocks as a judge would and compares words. Other answers
are scripted: text, or a `Reply` for the ways in which servers fail.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """Anything a server may do. `hang` = nothing after `body`, until the test ends; `trickle` = then a blank now and
    again; `drop` = the connection closes before any reply; `length` = a Content-Length other than the true one."""

    body: str | bytes = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    hang: bool = False
    trickle: bool = False
    drop: bool = False


Answer = Callable[[dict[str, Any]], str | Reply]


def chat(content: str | None) -> Reply:
    """A whole and well-formed reply that says `content`."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return Reply(json.dumps({"id": "1", "object": "chat.completion", "model": "fake", "choices": [choice]}))


def script(*answers: str | Reply) -> Answer:
    """One after the other; a request beyond the last is an error of the test."""
    left = iter(answers)
    return lambda request: next(left)


def always(answer: str | Reply) -> Answer:
    return lambda request: answer


class JudgeServer:
    """`requests` and `headers` hold what came, in order; `most` is the largest number of requests under way at once."""

    def __init__(self, answer: Answer):
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.requests.append(request)
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                    server.under_way += 1
                    server.most = max(server.most, server.under_way)
                try:
                    answer = server.answer(request)
                finally:
                    with server._lock:
                        server.under_way -= 1
                self.send(chat(answer) if isinstance(answer, str) else answer)

            def send(self, reply: Reply) -> None:
                if reply.drop:
                    self.close_connection = True
                    return
                body = reply.body.encode() if isinstance(reply.body, str) else reply.body
                self.send_response(reply.status)
                endless = reply.hang or reply.trickle
                length = 1 << 30 if endless else len(body) if reply.length is None else reply.length
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                with suppress(ConnectionError):  # the reader had enough
                    self.wfile.write(body)
                if reply.hang:
                    server._over.wait()
                with suppress(ConnectionError):
                    while reply.trickle and not server._over.wait(0.01):
                        self.wfile.write(b" ")
                if length != len(body):
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


# --- the judge by rule -----------------------------------------------------------------------------------------------

BLOCK = re.compile(r"^<<<(\w+) (\w+)\n(.*?)\n\1 \2>>>$", re.DOTALL | re.MULTILINE)


def quoted(request: dict[str, Any]) -> dict[str, str]:
    """The blocks of the question a judge was asked: name -> text."""
    asked = next(message["content"] for message in request["messages"] if message["role"] == "user")
    return {name: text for name, _, text in BLOCK.findall(asked)}


def grade_by_overlap(request: dict[str, Any]) -> str:
    """A verdict of the schema that was asked for, from the word overlap (F1) of the graded text and the reference."""
    blocks = quoted(request)
    schema = request["response_format"]["json_schema"]["schema"]
    if "winner" in schema["properties"]:
        first, second = (overlap(blocks[name], blocks["REFERENCE"]) for name in ("FIRST", "SECOND"))
        worth = 1.0 if first > second else 0.0 if second > first else 0.5
    else:
        worth = overlap(blocks["RESPONSE"], blocks["REFERENCE"])
    return json.dumps({name: _value(rule, worth) for name, rule in schema["properties"].items()})


def overlap(text: str, reference: str) -> float:
    """F1 of the two sets of words."""
    words, wanted = words_of(text), words_of(reference)
    return 2 * len(words & wanted) / (len(words) + len(wanted)) if words | wanted else 0.0


def words_of(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _value(rule: dict[str, Any], worth: float) -> str | float:
    if rule.get("enum") == ["right", "wrong"]:
        return "right" if worth >= 0.5 else "wrong"
    if "enum" in rule:
        return {1.0: "first", 0.5: "tie", 0.0: "second"}[worth]
    if rule["type"] == "string":
        return f"overlap {worth:.2f}"
    score = rule["minimum"] + worth * (rule["maximum"] - rule["minimum"])
    return round(score) if rule["type"] == "integer" else score
