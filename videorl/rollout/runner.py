"""Rolling out: prompts in, groups of scored responses out. Knows an engine only as a callable."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from videorl.config import Config
from videorl.models.base import VideoModel
from videorl.rewards.result import Sample
from videorl.rewards.rubric import Rubric
from videorl.rollout.passes import Passes, Start
from videorl.types import RenderedPrompt, Request, Rollout, RolloutGroup, SamplingParams

if TYPE_CHECKING:
    from videorl.rollout.engine import Generate


def rollout_seed(*parts: object) -> int:
    """A request's seed by value, from what names the request: the same run gives the same samples, resumed or not."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "big") >> 1


@dataclass(frozen=True)
class Training:
    """What collecting for training has and evaluation has not: second passes, group hooks, and stages of the terms."""

    done: float  # share of the training that is behind this step
    passes: Passes


class Runner:
    def __init__(self, config: Config, model: VideoModel, generate: Generate, rubric: Rubric):
        self.config, self.model, self.generate, self.rubric = config, model, generate, rubric

    def collect(
        self,
        prompts: Sequence[RenderedPrompt],
        *,
        group_size: int,
        temperature: float,
        label: str,
        progress: Callable[[int], None],
        training: Training | None = None,
    ) -> list[RolloutGroup]:
        """`group_size` scored rollouts of each prompt, in the order of the prompts.

        `label` names the occasion ("step 3", "eval"); together with the seed, the prompt's id and the index in the
        group it fixes each request's seed. `progress` is told the number of finished rollouts.
        """
        if training:
            training.passes.prepare(prompts)
        collection = _Collection(self, temperature, label, progress, training)
        return asyncio.run(gather(collection.group(prompt, group_size) for prompt in prompts))


class _Collection:
    """One call of `Runner.collect`."""

    def __init__(
        self,
        runner: Runner,
        temperature: float,
        label: str,
        progress: Callable[[int], None],
        training: Training | None,
    ):
        self.runner, self.temperature, self.label, self.progress = runner, temperature, label, progress
        self.training = training
        self.done = training.done if training else 1.0
        rollout = runner.config.rollout
        self.limit = asyncio.Semaphore(rollout.max_concurrency * rollout.num_engines)
        self.finished = 0

    async def group(self, prompt: RenderedPrompt, size: int) -> RolloutGroup:
        group = await self.roll(self.label, prompt, [Start()] * size)
        if self.training:
            group = await self.training.passes.run(group, self.second_pass)
        return await self.runner.rubric.settle(group, hooks=self.training is not None, done=self.done)

    async def second_pass(self, name: str, prompt: RenderedPrompt, starts: Sequence[Start]) -> RolloutGroup:
        group = await self.roll(f"{self.label}/{name}", prompt, starts)
        return await self.runner.rubric.settle(group, hooks=False, done=self.done)

    async def roll(self, label: str, prompt: RenderedPrompt, starts: Sequence[Start]) -> RolloutGroup:
        rollouts = await gather(self.episode(label, prompt, i, start) for i, start in enumerate(starts))
        return RolloutGroup(prompt=prompt, rollouts=tuple(rollouts))

    async def episode(self, label: str, prompt: RenderedPrompt, index: int, start: Start) -> Rollout:
        async with self.limit:
            rollout = await self.generate(label, prompt, index, start)
        # Outside the limit: a slow judge must not keep the engine from the next response.
        score = await self.runner.rubric.score(Sample.of(rollout), self.done)
        self.finished += 1
        self.progress(self.finished)
        return replace(rollout, terms=score.terms, failures=score.failures, abstained=score.abstained)

    async def generate(self, label: str, prompt: RenderedPrompt, index: int, start: Start) -> Rollout:
        config, tokenizer = self.runner.config, self.runner.model.tokenizer
        seed = rollout_seed(config.seed, label, prompt.prompt.id, index) if self.temperature > 0 else None
        sampling = SamplingParams(
            max_tokens=max(1, config.rollout.max_response_tokens - len(start.token_ids)),
            temperature=self.temperature,
            seed=seed,
        )
        generation = await self.runner.generate(
            Request(
                token_ids=prompt.token_ids,
                media=prompt.media,
                sampling=sampling,
                start=start.token_ids,
                home=prompt.prompt.id,
            )
        )
        response_ids = start.token_ids + generation.token_ids
        given = len(start.token_ids)
        return Rollout(
            prompt=prompt,
            response_ids=response_ids,
            response_mask=(0,) * given + (1,) * len(generation.token_ids),
            rollout_log_probs=(0.0,) * given + generation.log_probs,
            text=tokenizer.decode(list(response_ids), skip_special_tokens=True),
            finish_reason=generation.finish_reason,
            weight_version=generation.weight_version,
            seen=generation.seen,
            cached_tokens=generation.cached_tokens,
            temperature=self.temperature,
            index=index,
            parent=start.parent,
        )


async def gather(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Their results in order. The first failure comes out as itself, and the others are given up."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as failed:
        first = failed.exceptions[0]  # the others are its like, or follow from it
        raise first from first.__cause__
    return [task.result() for task in running]
