"""Who else than the policy speaks in an episode: in demonstrations, and to see what its looks are worth."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from videorl.config import Config
from videorl.data.schema import load_rows
from videorl.envs.env import VideoEnv
from videorl.envs.records import Task, Text
from videorl.envs.registry import load_env
from videorl.models.families import FAMILIES
from videorl.models.tiny import row_texts
from videorl.rollout.episodes import Asked, Speaker
from videorl.rollout.frames import Openings
from videorl.types import Generation
from videorl.video.frames import Limits
from videorl.video.reader import VideoReader

if TYPE_CHECKING:
    from videorl.models.base import VideoModel


class Demonstrator:
    """Says what `meta.responses` of the row holds, turn for turn, or without it what the oracle would; with probability
    `noise` instead something of the right form that knows nothing."""

    def __init__(self, model: VideoModel, noise: float = 0.0):
        self.model, self.noise = model, noise

    async def __call__(self, asked: Asked) -> Generation:
        rng = random.Random(asked.sampling.seed)
        recorded = asked.prompt.prompt.row["meta"].get("responses")
        if recorded and asked.k <= len(recorded):
            return say(self.model, recorded[asked.k - 1])
        env = of_video(asked)
        return say(self.model, env.stray(rng) if rng.random() < self.noise else env.oracle())


Look = Callable[[VideoEnv, int, random.Random], str | None]
"""(environment, turn, random numbers) -> the response of this turn; None: the policy's own."""


class Guided:
    """The policy, after looks that were chosen for it; or made to answer at once."""

    def __init__(self, policy: Speaker, model: VideoModel, look: Look | Literal["never"], seed: int):
        self.policy, self.model, self.look, self.seed = policy, model, look, seed

    async def __call__(self, asked: Asked) -> Generation:
        env = of_video(asked)
        if isinstance(self.look, str):
            return await self._begun(asked, env.answer_head())
        rng = random.Random(f"{self.seed}|{asked.prompt.prompt.id}|{asked.index}|look")
        text = self.look(env, asked.k, rng)
        return await self.policy(asked) if text is None else say(self.model, text)

    async def _begun(self, asked: Asked, text: str) -> Generation:
        start = tuple(self.model.tokenizer.encode(text, add_special_tokens=False))
        sampling = replace(asked.sampling, max_tokens=max(1, asked.sampling.max_tokens - len(start)))
        said = await self.policy(replace(asked, start=start, sampling=sampling))
        return replace(said, token_ids=start + said.token_ids, log_probs=(0.0,) * len(start) + said.log_probs)


def _random_look(env: VideoEnv, k: int, rng: random.Random) -> str | None:
    return env.random_look(rng) if k == 1 else None


def _oracle_look(env: VideoEnv, k: int, rng: random.Random) -> str | None:
    said = env.oracle()
    return None if env.parse(said).name == "answer" else said


LOOKS: dict[str, Look | Literal["never"]] = {
    "never_look": "never",
    "random_look": _random_look,
    "oracle_look": _oracle_look,
}


_PLAYED = 64  # rows whose demonstrations are enough to know an environment's words


def texts(config: Config) -> Iterator[str]:
    """What a tokenizer made for this configuration has to know: the texts of its rows, or of episodes over them."""
    rows = load_rows(config.data.path)
    yield from row_texts(rows)
    if config.rollout.env is None:
        return
    family = FAMILIES[config.model.family]
    with VideoReader(Limits(**config.data.limits.model_dump()), config.data.decoder) as reader:
        openings = Openings(config, reader.plan, family.spatial_factor, family.temporal)
        for row in rows[:_PLAYED]:
            yield from asyncio.run(_demonstrated(config, openings.task(row)))


async def _demonstrated(config: Config, task: Task) -> list[str]:
    """All texts of a demonstration."""
    assert config.rollout.env is not None
    env = load_env(config.rollout.env.target, config.rollout.env.params)
    if not isinstance(env, VideoEnv):
        return []
    said: list[str] = []
    messages = list(await env.reset(task, 0))
    while messages:
        parts = [part for message in messages for part in message.parts]
        said += [part.text if isinstance(part, Text) else part.refs[0].label for part in parts]
        response = env.oracle()
        result = await env.step(response)
        said.append(response)
        messages = [result.obs] if result.obs else []
    return said


def say(model: VideoModel, text: str) -> Generation:
    """A text as if it had been sampled, with the token that ends it."""
    token_ids = (*model.tokenizer.encode(text, add_special_tokens=False), model.stop_ids[0])
    return Generation(
        token_ids=token_ids, log_probs=(0.0,) * len(token_ids), finish_reason="stop", weight_version=0, seen=""
    )


def of_video(asked: Asked) -> VideoEnv:
    if not isinstance(asked.env, VideoEnv):
        raise TypeError(f"{type(asked.env).__name__} has no demonstrations of its own; derive it from VideoEnv")
    return asked.env
