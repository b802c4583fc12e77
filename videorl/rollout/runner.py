"""Rolling out: prompts in, groups of scored responses out. Knows an engine only as a callable."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from videorl.config import Config
from videorl.models.base import VideoModel
from videorl.rewards.rubric import Rubric
from videorl.types import RenderedPrompt, Request, Rollout, RolloutGroup, SamplingParams

if TYPE_CHECKING:
    from videorl.rollout.engine import Generate


def rollout_seed(*parts: object) -> int:
    """A request's seed by value, from what names the request: the same run gives the same samples, resumed or not."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "big") >> 1


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
    ) -> list[RolloutGroup]:
        """`group_size` scored rollouts of each prompt, in the order of the prompts.

        `label` names the occasion ("step 3", "eval"); together with the seed, the prompt's id and the index in the
        group it fixes each request's seed. `progress` is told the number of finished rollouts.
        """
        limit = asyncio.Semaphore(self.config.rollout.max_concurrency * self.config.rollout.num_engines)
        done = 0

        async def one(prompt: RenderedPrompt, index: int) -> Rollout:
            nonlocal done
            async with limit:
                rollout = await self._episode(prompt, index, temperature, label)
            done += 1
            progress(done)
            return rollout

        async def all_groups() -> list[RolloutGroup]:
            try:
                async with asyncio.TaskGroup() as tasks:
                    groups = [[tasks.create_task(one(prompt, i)) for i in range(group_size)] for prompt in prompts]
            except ExceptionGroup as failed:
                first = failed.exceptions[0]  # the others are its like, or follow from it
                raise first from first.__cause__
            return [
                RolloutGroup(prompt=prompt, rollouts=tuple(task.result() for task in group))
                for prompt, group in zip(prompts, groups, strict=True)
            ]

        return asyncio.run(all_groups())

    async def _episode(self, prompt: RenderedPrompt, index: int, temperature: float, label: str) -> Rollout:
        sampling = SamplingParams(
            max_tokens=self.config.rollout.max_response_tokens,
            temperature=temperature,
            seed=rollout_seed(self.config.seed, label, prompt.prompt.id, index) if temperature > 0 else None,
        )
        generation = await self.generate(Request(token_ids=prompt.token_ids, media=prompt.media, sampling=sampling))
        text = self.model.tokenizer.decode(list(generation.token_ids), skip_special_tokens=True)
        score = self.rubric.score(text, prompt.prompt.row)
        return Rollout(
            prompt=prompt,
            response_ids=generation.token_ids,
            response_mask=(1,) * len(generation.token_ids),
            rollout_log_probs=generation.log_probs,
            text=text,
            finish_reason=generation.finish_reason,
            weight_version=generation.weight_version,
            seen=generation.seen,
            cached_tokens=generation.cached_tokens,
            reward=score.total,
            terms=score.terms,
            failures=score.failures,
        )
