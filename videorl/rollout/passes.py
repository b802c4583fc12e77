"""Second passes: the engine is asked again about a prompt, changed, and group hooks compare the answers.

A pass makes the side group of a group: rollouts of one changed prompt, scored by the same terms on the changed row.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from string import ascii_uppercase
from typing import Any, Protocol

from videorl.answers.answer import END_THINK
from videorl.answers.gold import gold_letter
from videorl.config import PassConfig
from videorl.data.prompts import TOO_LONG, Ensure, Renderer
from videorl.data.reduced import RULES, reduce_frames
from videorl.imports import load_object
from videorl.rewards.term import suggest, validated
from videorl.types import DataError, Prompt, RenderedPrompt, Rollout, RolloutGroup


@dataclass(frozen=True)
class Start:
    """Where a rollout begins: after response tokens that stand already, those of rollout `parent` of the first pass."""

    token_ids: tuple[int, ...] = ()
    parent: int | None = None


Roll = Callable[[str, RenderedPrompt, Sequence[Start]], Awaitable[RolloutGroup]]
"""(name, prompt, starts) -> a scored group, one rollout for each start; the name goes into the seeds."""


class SecondPass(Protocol):
    """Made as `SomePass(renderer, tokenizer, seed, **params)`."""

    def prepare(self, prompt: RenderedPrompt) -> RenderedPrompt | None:
        """The changed prompt whose media must be made available before the step; None if it shows the same ones."""
        ...

    async def run(self, group: RolloutGroup, roll: Roll) -> RolloutGroup | None:
        """The side group of a scored group; None where there is nothing to ask."""
        ...


class OtherFrames:
    """The same question about other frames. `share` is the side group's size relative to the group's."""

    name: str

    def __init__(self, renderer: Renderer, share: float):
        if not 0 < share <= 1:
            raise ValueError(f"params.share: {share}, must be over 0 and at most 1")
        self.renderer, self.share = renderer, share

    def change(self, prompt: Prompt) -> Prompt:
        raise NotImplementedError

    def prepare(self, prompt: RenderedPrompt) -> RenderedPrompt | None:
        return self.renderer.render(self.change(prompt.prompt)) if prompt.media else None

    async def run(self, group: RolloutGroup, roll: Roll) -> RolloutGroup | None:
        prompt = self.prepare(group.prompt)
        if prompt is None:
            return None
        return await roll(self.name, prompt, [Start()] * max(1, round(self.share * len(group.all))))


class ShuffledFrames(OtherFrames):
    """The frames in random order: T-GRPO's second group (Video-R1, arXiv 2503.21776).

    The order follows from the seed and the prompt and stays the same over epochs, so that a clip is encoded twice in
    all; the release draws a new one at every step.
    """

    name = "shuffled"

    def __init__(self, renderer: Renderer, tokenizer: Any, seed: int, *, share: float = 0.5):
        super().__init__(renderer, share)
        self.seed = seed

    def change(self, prompt: Prompt) -> Prompt:
        clips = (
            replace(clip, shuffle=random.Random(f"{self.seed}|{prompt.id}|{index}").getrandbits(32))
            for index, clip in enumerate(prompt.clips)
        )
        return replace(prompt, clips=tuple(clips))


class ReducedFrames(OtherFrames):
    """Few of the frames: those that `rule` keeps, `frames` of each video (`data.reduced.RULES`).

    A reward that stays as it was is not earned by watching the video: temporal hacking (Video-UTR, arXiv 2502.12081).
    Without a group hook that reads it, this pass only watches.
    """

    name = "reduced"

    def __init__(
        self,
        renderer: Renderer,
        tokenizer: Any,
        seed: int,
        *,
        frames: int = 1,
        rule: str = "uniform",
        share: float = 0.5,
    ):
        super().__init__(renderer, share)
        if frames < 1:
            raise ValueError(f"params.frames: {frames}, must be at least 1")
        if rule not in RULES:
            raise ValueError(f"params.rule: {rule!r}; {suggest(rule, RULES)}")
        self.frames, self.rule = frames, rule

    def change(self, prompt: Prompt) -> Prompt:
        return reduce_frames(prompt, self.renderer, self.rule, self.frames)


class ShuffledOptions:
    """The same reasoning with the options in another order: ACRE (arXiv 2510.10104).

    Each rollout's reasoning, up to </think>, is put behind the changed question and the model answers again. The order
    is never the options' own, and answers are compared by content: the changed row names the new letter of the same
    option. With `remap` the letters in the reasoning, as in "(B)" or "option B", follow their options; the paper
    reuses the reasoning as it is, which punishes one that names its letter.
    """

    def __init__(self, renderer: Renderer, tokenizer: Any, seed: int, *, remap: bool = False):
        self.renderer, self.tokenizer, self.seed, self.remap = renderer, tokenizer, seed, remap

    def prepare(self, prompt: RenderedPrompt) -> RenderedPrompt | None:
        return None

    async def run(self, group: RolloutGroup, roll: Roll) -> RolloutGroup | None:
        row = group.prompt.prompt.row
        if not row.get("choices"):
            return None
        order = self._order(row)
        choices = [row["choices"][old] for old in order]
        letters = {ascii_uppercase[old]: ascii_uppercase[new] for new, old in enumerate(order)}
        changed = row | {"choices": choices, "answer": letters[gold_letter(row)]}
        starts = [
            Start(self._reasoning(rollout, letters), rollout.index)
            for rollout in group.all
            if END_THINK in rollout.text
        ]
        if not starts:
            return None
        return await roll("options", self.renderer.render(self.renderer.prompt(changed)), starts)

    def _order(self, row: dict[str, Any]) -> list[int]:
        rng = random.Random(f"{self.seed}|{row['id']}")
        own = list(range(len(row["choices"])))
        order = own.copy()
        while order == own:
            rng.shuffle(order)
        return order

    def _reasoning(self, rollout: Rollout, letters: dict[str, str]) -> tuple[int, ...]:
        """The response's tokens up to its last </think>: the policy's own, unless letters have to change."""
        text = rollout.text[: rollout.text.rindex(END_THINK) + len(END_THINK)]
        if self.remap:
            text = _LETTER.sub(lambda found: found[1] + letters.get(found[2], found[2]), text)
            return tuple(self.tokenizer.encode(text, add_special_tokens=False))

        def decoded(end: int) -> str:
            return self.tokenizer.decode(list(rollout.response_ids[:end]), skip_special_tokens=True)

        ends = range(len(rollout.response_ids) + 1)
        end = bisect_left(ends, len(text), key=lambda end: len(decoded(end)))
        if decoded(end) == text:
            return rollout.response_ids[:end]
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))  # a token spans the end of the tag


_LETTER = re.compile(r"((?:\b[Oo]ption |\b[Aa]nswer |\b[Cc]hoice |\())([A-Z])\b")


class HintLadder:
    """For a prompt that no rollout gets right: hints, one level after the other, until one does (Keye-VL-1.5).

    `meta.hints` of a row holds its levels, from a concept to the full solution; rows without are passed over. `term`
    and `above` say what right is. The side group is that of the lowest level with a right rollout; with `join` it is
    trained on, under the prompt with the hint. A prompt is passed over where the term has no value for a rollout, and
    left where a hint would make it longer than `data.max_prompt_tokens`.
    """

    def __init__(self, renderer: Renderer, tokenizer: Any, seed: int, *, term: str = "accuracy", above: float = 0.5):
        self.renderer, self.term, self.above = renderer, term, above

    def prepare(self, prompt: RenderedPrompt) -> RenderedPrompt | None:
        return None

    async def run(self, group: RolloutGroup, roll: Roll) -> RolloutGroup | None:
        row = group.prompt.prompt.row
        values = [rollout.terms.get(self.term) for rollout in group.all]
        if any(value is None or value > self.above for value in values):
            return None  # right already, or nobody can say that all are wrong
        for level, hint in enumerate(row["meta"].get("hints", ())):
            hinted = self.renderer.prompt(row | {"prompt": _with_hint(row["prompt"], str(hint))})
            try:
                prompt = self.renderer.render(hinted)
            except DataError as error:
                if error.reason == TOO_LONG:
                    return None  # there is no room for this hint, nor for those after it
                raise
            side = await roll(f"hint {level}", prompt, [Start()] * len(group.all))
            if any(rollout.terms.get(self.term, 0.0) > self.above for rollout in side.all):
                return side
        return None


def _with_hint(prompt: Any, hint: str) -> Any:
    if isinstance(prompt, str):
        return f"{prompt}\nHint: {hint}"
    last = prompt[-1]
    content = last["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [*prompt[:-1], {**last, "content": [*parts, {"type": "text", "text": f"\nHint: {hint}"}]}]


PASSES = {
    "shuffled_frames": ShuffledFrames,
    "reduced_frames": ReducedFrames,
    "shuffled_options": ShuffledOptions,
    "hint_ladder": HintLadder,
}


def load_pass(config: PassConfig) -> Any:
    """What makes a pass, given (renderer, tokenizer, seed). Raises ValueError for an unknown name or parameter."""
    if ":" in config.target:
        made, params = load_object(config.target), config.params
    elif config.target in PASSES:
        made = PASSES[config.target]
        params = validated(made.__init__, config.params)
    else:
        raise ValueError(
            f"{config.target!r} is not a second pass; {suggest(config.target, PASSES)}, or give 'my_pkg.passes:Pass'"
        )
    try:
        signature(made).bind(None, None, 0, **params)
    except TypeError as error:
        raise ValueError(f"params: {error}") from error
    return lambda renderer, tokenizer, seed: made(renderer, tokenizer, seed, **params)


class Passes:
    """The second passes of a configuration, with what they need."""

    def __init__(
        self, configs: Mapping[str, PassConfig | None], renderer: Renderer, tokenizer: Any, seed: int, ensure: Ensure
    ):
        self.on = {name: config for name, config in configs.items() if config is not None}
        self._passes: dict[str, SecondPass] = {
            name: load_pass(config)(renderer, tokenizer, seed) for name, config in self.on.items()
        }
        self._ensure = ensure

    def prepare(self, prompts: Sequence[RenderedPrompt]) -> None:
        """Make the media of all changed prompts available. Raises DataError where a clip fails that did not before."""
        changed = [one.prepare(prompt) for one in self._passes.values() for prompt in prompts]
        media = [item for prompt in changed if prompt is not None for item in prompt.media]
        for failure in self._ensure(media).values() if media else ():
            raise DataError(failure.reason, f"second pass: {failure}")

    async def run(self, group: RolloutGroup, roll: Roll) -> RolloutGroup:
        """The group with its side groups."""
        sides = {name: await one.run(group, roll) for name, one in self._passes.items()}
        return replace(group, sides={name: side for name, side in sides.items() if side is not None})

    def joined(self, group: RolloutGroup) -> list[RolloutGroup]:
        """The side groups that are trained on."""
        return [side for name, side in group.sides.items() if self.on[name].join]
