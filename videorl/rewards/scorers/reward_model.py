"""A scorer that asks a scalar reward model, held in its own process."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

from videorl.answers.letters import list_options
from videorl.config import Config, Positive
from videorl.data.schema import PLACEHOLDER, CanonicalRow
from videorl.rewards.registry import load
from videorl.rewards.result import Abstained, RewardResult, Sample
from videorl.rewards.scorers.batching import Batcher
from videorl.rewards.scorers.checkpoint import Checkpoint, Dtype


class Hybrid:
    """The sigmoid of a reward model's number, which is the part `logit`.

    With `rule` (a built-in term or an import string, called with `rule_params`) this is BaseReward's hybrid reward: 1
    where the rule gives at least 1, else the sigmoid; the model is asked only then. The part `rule` is what it gave.
    """

    def __init__(self, rule: str | None, rule_params: dict[str, Any] | None):
        self._rule = None if rule is None else load(rule, **rule_params or {})

    async def __call__(self, sample: Sample, ask: Callable[[Sample], Awaitable[float]]) -> RewardResult:
        parts: dict[str, float] = {}
        if self._rule is not None:
            ruled = self._rule(response=sample.response, row=sample.row)
            parts["rule"] = float(ruled.value)
            if ruled.value >= 1:
                return RewardResult(1.0, parts)
        logit = await ask(sample)
        if not math.isfinite(logit):
            raise Abstained("garbage", f"the reward model gave {logit}")
        return RewardResult(compute_sigmoid(logit), {**parts, "logit": logit})


class RewardModel:
    """sigmoid(RM(prompt, response)), in [0, 1]; the part `logit` is the model's own number.

    `path` is a checkpoint of `AutoModelForSequenceClassification` with one output and a chat template. It reads text:
    the row's conversation with its options, without the videos, then the whole response.

    `rule` and `rule_params`: see `Hybrid`.
    """

    def __init__(
        self,
        config: Config | None,
        *,
        path: str,
        rule: str | None = None,
        rule_params: dict[str, Any] | None = None,
        revision: str | None = None,
        max_tokens: Positive = 8192,
        batch_size: Positive = 8,
        dtype: Dtype = "float32",
        device: str = "cpu",
    ):
        from videorl.rewards.scorers.networks import RewardHead

        self._hybrid = Hybrid(rule, rule_params)
        self._head = RewardHead(Checkpoint(path=path, revision=revision, dtype=dtype, device=device))
        self._max_tokens = max_tokens
        self._logit = Batcher(self._head, batch_size)

    async def __call__(self, sample: Sample) -> RewardResult:
        """Abstains, reason `too_long`, above `max_tokens`: of a text that was cut the model would judge another."""
        return await self._hybrid(sample, self._ask)

    async def _ask(self, sample: Sample) -> float:
        tokens = self._head.tokens(make_conversation(sample.row, sample.response))
        if len(tokens) > self._max_tokens:
            raise Abstained("too_long", f"{len(tokens)} tokens; max_tokens={self._max_tokens}")
        return await self._logit(tokens)

    async def check(self) -> dict[str, float]:
        """Nothing: a reward model's numbers have no scale of their own."""
        return {}

    def take_counts(self) -> dict[str, float]:
        return self._logit.take_counts()


def compute_sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), for any finite number."""
    small = math.exp(-abs(logit))
    return (1.0 if logit >= 0 else small) / (1.0 + small)


def make_conversation(row: dict[str, Any], response: str) -> list[dict[str, str]]:
    """A canonical row as messages of text, its question followed by the options, then the response."""
    canonical = CanonicalRow.model_validate(row)
    messages = [
        {"role": message.role, "content": message.text.replace(PLACEHOLDER, "").strip()}
        for message in canonical.messages
    ]
    messages[-1]["content"] = f"{messages[-1]['content']} {list_options(canonical.choices)}".rstrip()
    return [*messages, {"role": "assistant", "content": response}]
