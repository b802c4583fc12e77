"""What is asked of the model for one row, in which order, and which of it becomes a pair."""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from videorl.config import Fraction, Positive
from videorl.data.phrases import align_phrases
from videorl.data.prompts import Renderer
from videorl.data.reduced import RULES, reduce_frames
from videorl.imports import load_object
from videorl.self_align.templates import load_templates
from videorl.types import DataError, Prompt

PAIR = "pair"


class Say(Protocol):
    """The model's answer to a prompt: its text, and whether it came to an end. `occasion` goes into the seed."""

    def __call__(self, prompt: Prompt, occasion: str) -> Awaitable[tuple[str, bool]]: ...


@dataclass(frozen=True)
class Made:
    """What became of one question: a `row` with its pair, or why none. `said` is all that was said on the way."""

    outcome: str
    said: dict[str, str]
    row: dict[str, Any] | None = None


class Method(Protocol):
    """Made as `SomeMethod(renderer, seed, **params)`."""

    def prompts(self, row: dict[str, Any]) -> Sequence[Prompt]:
        """Those whose media must be there before anything is asked."""
        ...

    async def make(self, row: dict[str, Any], say: Say) -> list[Made]: ...


def compare(chosen: str, rejected: str) -> str:
    """Why two responses are no pair: they are empty or have the same words; else `pair`."""
    if not chosen.strip() or not rejected.strip():
        return "empty"
    words = [re.findall(r"\w+", text.lower()) for text in (chosen, rejected)]
    return "identical" if words[0] == words[1] else PAIR


class Params(BaseModel):
    """`iteration` says which round of making pairs and learning from them this is; it is written into the pairs."""

    model_config = ConfigDict(extra="forbid")
    iteration: int = 0


def with_pair(row: dict[str, Any], chosen: str, rejected: str, **provenance: Any) -> dict[str, Any]:
    phrases = align_phrases(chosen, rejected) or None
    return row | {
        "chosen": chosen,
        "rejected": rejected,
        "phrases": phrases,
        "response": None,
        "provenance": {"model": None, "perturbation": None, "critique": None, **provenance},
    }


# --- VideoSAVi -------------------------------------------------------------------------------------------------------


class VideoSAVi:
    """Question, answer, critique, revision: the revision is chosen, the first answer rejected (VideoSAVi, 2412.00624).

    A question each about space and time is asked of every video. No pair comes of an answer that was cut off, of a
    critique that found nothing, or of a revision with the words of the answer.
    """

    class Params(Params):
        templates: str | None = None

    def __init__(self, renderer: Renderer, seed: int, **params: Any):
        self.renderer, self.params = renderer, self.Params(**params)
        self.templates = load_templates(self.params.templates)

    def prompts(self, row: dict[str, Any]) -> Sequence[Prompt]:
        return [self._prompt(row, "?")]

    async def make(self, row: dict[str, Any], say: Say) -> list[Made]:
        return [await self._ask(row, kind, say) for kind in self.templates.questions]

    async def _ask(self, row: dict[str, Any], kind: str, say: Say) -> Made:
        templates, said = self.templates, {"kind": kind}
        question = templates.questions[kind]
        steps = (("question", question), ("answer", templates.answer), ("critique", templates.critique),
                 ("revision", templates.revision))  # fmt: skip
        for step, template in steps:
            text = template if step == "question" else _fill(template, said)
            said[step], ended = await say(self._prompt(row, text), f"{kind} {step}")
            if not ended:
                return Made(f"{step} cut off", said)
            if not said[step].strip():
                return Made(f"{step} empty", said)
            if step == "critique" and re.fullmatch(templates.no_finding, said[step], re.IGNORECASE | re.DOTALL):
                return Made("nothing found", said)
        outcome = compare(said["revision"], said["answer"])
        if outcome != PAIR:
            return Made(outcome, said)
        asked = {**row, **_asked(said["question"].strip()), "id": f"{row['id']}#{kind}"}
        provenance = {"iteration": self.params.iteration, "critique": said["critique"]}
        return Made(PAIR, said, with_pair(asked, said["revision"], said["answer"], **provenance))

    def _prompt(self, row: dict[str, Any], text: str) -> Prompt:
        return self.renderer.prompt({**row, **_asked(text)})


def _asked(text: str) -> dict[str, Any]:
    """A row's fields for an open question. What stands for a video in a model's words is taken out."""
    return {"task": "open", "prompt": text.replace("<video>", ""), "choices": None, "answer": None, "spans": None}


def _fill(template: str, said: dict[str, str]) -> str:
    """One pass, so that braces in what a model said stay as they are."""
    return re.sub(r"\{(question|answer|critique)\}", lambda found: said[found[1]].strip(), template)


# --- RRPO ------------------------------------------------------------------------------------------------------------


class Perturbed:
    """The row's own `response` is chosen; rejected is what the model says where it sees the video shuffled or with few
    frames (RRPO, arXiv 2504.12083). Phrases are those in which the two differ, word by word; there a model finds them.

    `share` of the rows get shuffled frames, the others `frames` of them by `rule`. What is no pair is said twice more.
    """

    class Params(Params):
        share: Fraction = 0.5
        frames: Positive = 1
        rule: Literal["first", "last", "middle", "uniform"] = "uniform"
        tries: Positive = 3

    def __init__(self, renderer: Renderer, seed: int, **params: Any):
        self.renderer, self.seed, self.params = renderer, seed, self.Params(**params)
        assert self.params.rule in RULES

    def prompts(self, row: dict[str, Any]) -> Sequence[Prompt]:
        return [self._perturbed(row)[0]]

    async def make(self, row: dict[str, Any], say: Say) -> list[Made]:
        if not row["response"] or not row["videos"]:
            raise DataError("no_response", f"row {row['id']}: needs a video and a `response`; add them or take it out")
        prompt, how = self._perturbed(row)
        outcome, said = "", {"perturbation": how}
        for number in range(self.params.tries):
            said["answer"], ended = await say(prompt, f"{how} {number}")
            outcome = compare(row["response"], said["answer"]) if ended else "answer cut off"
            if outcome == PAIR:
                provenance = {"iteration": self.params.iteration, "perturbation": how}
                return [Made(PAIR, said, with_pair(row, row["response"], said["answer"], **provenance))]
        return [Made(outcome, said)]

    def _perturbed(self, row: dict[str, Any]) -> tuple[Prompt, str]:
        prompt, rng = self.renderer.prompt(row), random.Random(f"{self.seed}|{row['id']}")
        if rng.random() < self.params.share:
            clips = (replace(clip, shuffle=rng.getrandbits(32)) for clip in prompt.clips)
            return replace(prompt, clips=tuple(clips)), "shuffled"
        frames, rule = self.params.frames, self.params.rule
        return reduce_frames(prompt, self.renderer, rule, frames), f"{frames} {rule} frames"


METHODS = {"videosavi": VideoSAVi, "perturbed": Perturbed}


def load_method(target: str, renderer: Renderer, seed: int, params: dict[str, Any]) -> Method:
    """Raises ValueError for an unknown name or parameter."""
    if ":" not in target and target not in METHODS:
        raise ValueError(f"self_align.target: {target!r}; choose one of {', '.join(METHODS)}, or 'my_pkg.pairs:Method'")
    return (load_object(target) if ":" in target else METHODS[target])(renderer, seed, **params)
