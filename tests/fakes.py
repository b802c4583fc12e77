"""Stand-ins for the parts of a run that need Ray or vLLM, under names that say so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from makers import make_media, make_rendered

from videorl.config import Config
from videorl.types import Generation, Prompt, RenderedPrompt, Request


class FakeEngine:
    """An engine that answers with `script(request)`: the token ids of the response, or an exception to raise.

    A request takes as many turns of the event loop as `turns(number)` says, `number` counting requests from 0.
    `requests` holds them as they came, `most` the largest number that was under way at once.
    """

    def __init__(
        self,
        script: Callable[[Request], Sequence[int] | Exception],
        turns: Callable[[int], int] = lambda _: 1,
        cached: int = 3,
    ):
        self.script, self.turns, self.cached = script, turns, cached
        self.requests: list[Request] = []
        self.under_way = self.most = 0

    async def __call__(self, request: Request) -> Generation:
        number = len(self.requests)
        self.requests.append(request)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            for _ in range(self.turns(number)):
                await asyncio.sleep(0)
            answer = self.script(request)
        finally:
            self.under_way -= 1
        if isinstance(answer, Exception):
            raise answer
        return Generation(
            token_ids=tuple(answer),
            log_probs=(-0.5,) * len(answer),
            finish_reason="stop",
            weight_version=7,
            seen="seen",
            cached_tokens=self.cached,
        )


class FakeTokenizer:
    """Token 97 is the letter a."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(map(ord, text))


class FakeRenderer:
    """A row is its own prompt: token ids are the characters of its question and options, after those of its clips."""

    def prompt(self, row: dict[str, Any]) -> Prompt:
        messages = ({"role": "user", "content": [{"type": "text", "text": str(row["prompt"])}]},)
        return Prompt(id=row["id"], task=row["task"], messages=messages, clips=(), row=row)

    def render(self, prompt: Prompt) -> RenderedPrompt:
        text = str(prompt.row["prompt"]) + "".join(prompt.row.get("choices") or [])
        media = [replace(make_media(f"{clip.path}/{clip.shuffle}"), clip=clip) for clip in prompt.clips]
        return replace(make_rendered(prompt.id, tuple(map(ord, text)), media), prompt=prompt)


FAKE_MODEL: Any = SimpleNamespace(tokenizer=FakeTokenizer())


def count_letters(response: str, row: dict[str, Any]) -> float:
    """A reward term: the number of letters; asked of the row "broken", it fails."""
    if row["id"] == "broken":
        raise KeyError("answer")
    return float(len(response))


class FakeEngineActor:
    """The class of a Ray actor that is never started: `FakeCluster` calls it here."""

    def __init__(self, config: Config, index: int):
        self.index = index
        self.asked: list[tuple[Request, asyncio.Future]] = []
        self.loaded: list[Any] = []
        self.generate = SimpleNamespace(remote=self._generate)
        self.ready = SimpleNamespace(remote=lambda: f"ready {index}")

    @staticmethod
    def environment(config: Config) -> dict[str, str]:
        return {"FAKE_ENGINE": "1"}

    def _generate(self, request: Request) -> asyncio.Future:
        self.asked.append((request, asyncio.get_running_loop().create_future()))
        return self.asked[-1][1]


class FakeCluster:
    """Makes actors as plain objects and remembers what was asked for."""

    def __init__(self):
        self.started: list[tuple[int, float, dict[str, Any]]] = []
        self.shipped: list[Any] = []

    def actors(self, actor_class: type, count: int, gpus: float, *args: Any, **options: Any) -> list[Any]:
        self.started.append((count, gpus, options))
        return [actor_class(*args) for _ in range(count)]

    def shipping(self, payload: Any) -> Any:
        self.shipped.append(payload)
        return payload
