"""An LLM as a reward: it grades one response, or compares two, and abstains where it cannot.

    judge = Judge(config, kind="next_event", base_url="http://127.0.0.1:8001/v1", model="judge", tags="full")
    await judge(sample)     # RewardResult in 0..1, or raises Abstained
    await judge.check()     # {"canaries": 5, "canaries_failed": 0, ...}

It reads the question, the row's reference and the response, never frames. All parameters and their defaults are in
`judge_params.py`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, NamedTuple

from videorl.answers.answer import Failure, Tags, find_answer
from videorl.answers.gold import bad_gold, gold_letter
from videorl.answers.letters import list_options
from videorl.data.schema import PLACEHOLDER
from videorl.rewards.result import Abstained, RewardResult, Sample
from videorl.rewards.scorers import prompts
from videorl.rewards.scorers.client import Client
from videorl.rewards.scorers.judge_params import JudgeParams, PairwiseParams, read_params
from videorl.rewards.scorers.verdicts import (
    CriticVerdict,
    NextEventVerdict,
    OpenEndedVerdict,
    PairwiseVerdict,
    Verdict,
    VerdictT,
    on_scale,
)

if TYPE_CHECKING:
    from videorl.config import Config


class Task(NamedTuple):
    text: str
    verdict: type[Verdict]


TASKS = {
    "next_event": Task(prompts.NEXT_EVENT, NextEventVerdict),
    "open_ended": Task(prompts.OPEN_ENDED, OpenEndedVerdict),
    "critic": Task(prompts.CRITIC, CriticVerdict),
}


class _Judge(ABC):
    """What both judges share: a client, canaries and counts."""

    def __init__(self, params: PairwiseParams):
        self._params = params
        self.client = Client(params)

    async def check(self) -> dict[str, float]:
        """Grade what must score low, past the cache; `canaries_failed` of them scored above `canary_max`,
        `canaries_abstained` got no verdict. `canary_control` is what the reference itself scores as a response: near
        1 with a judge that can read; absent where it got no verdict."""
        *canaries, control = await asyncio.gather(
            *map(self._grade_canary, [*prompts.CANARIES, self._best_verdict(), prompts.CANARY_REFERENCE])
        )
        values = [value for value in canaries if value is not None]
        counts = {
            "canaries": float(len(canaries)),
            "canaries_failed": float(sum(value > self._params.canary_max for value in values)),
            "canaries_abstained": float(len(canaries) - len(values)),
        }
        return counts if control is None else counts | {"canary_control": control}

    def take_counts(self) -> dict[str, float]:
        """See `Client.take_counts`."""
        return self.client.take_counts()

    async def _grade_canary(self, response: str) -> float | None:
        try:
            return await self._canary_value(response)
        except Abstained:
            return None

    async def _ask(self, task: str, verdict: type[VerdictT], texts: Mapping[str, str], cached: bool) -> VerdictT:
        messages = prompts.messages(task, verdict, texts, self._params.max_chars)
        return await self.client.ask(messages, verdict, cached=cached)

    @abstractmethod
    def _best_verdict(self) -> str: ...

    @abstractmethod
    async def _canary_value(self, response: str) -> float: ...


class Judge(_Judge):
    """Grades one response. A `Scorer`; its parameters are those of `JudgeParams`.

    A response without the answer its tags promise, or a blank one, is worth 0 without asking, as with every other
    term; the failure says why. Raises RowError("bad_gold") for a row without the reference.
    """

    Params = JudgeParams

    def __init__(self, config: Config | None, **params: Any):
        checked = read_params(JudgeParams, params)
        super().__init__(checked)
        self._tags: Tags | None = checked.tags
        self._task = _task(checked)

    async def __call__(self, sample: Sample) -> RewardResult:
        response = _graded_text(sample.response, self._tags)
        if isinstance(response, Failure):
            return RewardResult(0.0, failure=response)
        return await self._grade(_texts(sample.row, self._params.reference) | {"RESPONSE": response}, cached=True)

    async def _grade(self, texts: Mapping[str, str], cached: bool) -> RewardResult:
        verdict = await self._ask(self._task.text, self._task.verdict, texts, cached)
        return verdict.result()

    def _best_verdict(self) -> str:
        return self._task.verdict.best().model_dump_json()

    async def _canary_value(self, response: str) -> float:
        return (await self._grade(_canary_texts(self._params) | {"RESPONSE": response}, cached=False)).value


class PairwiseJudge(_Judge):
    """Compares two responses to one row; its parameters are those of `PairwiseParams`."""

    Params = PairwiseParams

    def __init__(self, config: Config | None, **params: Any):
        super().__init__(read_params(PairwiseParams, params))

    async def compare(self, row: dict[str, Any], first: str, second: str) -> float:
        """How much better `first` is: 1 = it wins, 0 = `second` wins, in both orders; the mean of the two orders,
        because judges favour a place. `compare(row, a, b) == 1 - compare(row, b, a)`.

        Raises Abstained where either order gets no verdict.
        """
        return await self._compare(_texts(row, self._params.reference), first, second, cached=True)

    async def _compare(self, texts: Mapping[str, str], first: str, second: str, cached: bool) -> float:
        orders = ((first, second), (second, first))
        there, back = await asyncio.gather(
            *(
                self._ask(prompts.PAIRWISE, PairwiseVerdict, {**texts, "FIRST": a, "SECOND": b}, cached)
                for a, b in orders
            )
        )
        return (there.result().value + 1 - back.result().value) / 2

    def _best_verdict(self) -> str:
        return PairwiseVerdict.best().model_dump_json()

    async def _canary_value(self, response: str) -> float:
        """Against the reference."""
        return await self._compare(_canary_texts(self._params), response, prompts.CANARY_REFERENCE, cached=False)


# --- what is graded --------------------------------------------------------------------------------------------------


def _task(params: JudgeParams) -> Task:
    if params.template is not None and params.scale is not None:
        return Task(params.template, on_scale(*params.scale))
    return TASKS[params.kind]


def _graded_text(response: str, tags: Tags | None) -> str | Failure:
    if tags is not None:
        return find_answer(response, tags)
    return response if response.strip() else Failure("empty_answer")


def _texts(row: dict[str, Any], reference: str | None) -> dict[str, str]:
    texts = {"QUESTION": _question(row)}
    return texts if reference is None else texts | {"REFERENCE": _reference(row, reference)}


def _canary_texts(params: PairwiseParams) -> dict[str, str]:
    texts = {"QUESTION": prompts.CANARY_QUESTION}
    return texts if params.reference is None else texts | {"REFERENCE": prompts.CANARY_REFERENCE}


def _question(row: dict[str, Any]) -> str:
    """What the user asks, with the options if there are any."""
    prompt = row["prompt"]
    contents = [prompt] if isinstance(prompt, str) else [item["content"] for item in prompt if item["role"] == "user"]
    texts = [
        content if isinstance(content, str) else "".join(part.get("text") or PLACEHOLDER for part in content)
        for content in contents
    ]
    options = list_options(row.get("choices"))
    return "\n".join([*texts, options] if options else texts).replace(PLACEHOLDER, "[video]")


def _reference(row: dict[str, Any], field: str) -> str:
    """A field of the row as text; of an answer by letter, the letter and its option."""
    if field == "answer" and row.get("choices"):
        letter = gold_letter(row)
        return f"({letter}) {row['choices'][ascii_uppercase.index(letter)]}"
    value: Any = row
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise bad_gold(row, field, "must be a text or a number for the judge to compare with")
    return str(value)
