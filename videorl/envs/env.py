"""An environment in which the model chooses the frames it wants to see: a pure state machine over records.

It never touches a pixel. `VideoEnv` is the template of those in this folder: a subclass writes `parse`, `opening`,
`score`, `oracle`, and a method `do_<name>` for each action, so that a new tool is one method. Its one grammar serves
steps, rewards, the oracle and evaluation.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from string import ascii_uppercase
from typing import Any, Literal, Protocol

from videorl.answers.answer import Failure
from videorl.answers.letters import list_options, parse_letter
from videorl.envs.records import (
    Action,
    Budget,
    Episode,
    FrameRef,
    Frames,
    Message,
    Part,
    Score,
    Status,
    StepResult,
    Task,
    Text,
    Turn,
    VideoHandle,
)

_HERE = "\0"
OnBad = Literal["end", "retry", "nudge"]
Variant = Literal["paper", "release"]
PATCH = 28  # pixels to the side of a visual token of Qwen2.5-VL


class Env(Protocol):
    budget: Budget
    scope: Literal["group", "batch"]  # what `shape` is given

    async def reset(self, task: Task, seed: int) -> tuple[Message, ...]:
        """Begin an episode; the messages before the first response."""
        ...

    async def step(self, response: str) -> StepResult: ...

    def episode(self) -> Episode:
        """What has happened so far; ended where `step` said so, else cut off here."""
        ...

    def score(self, episode: Episode, progress: float = 1.0) -> Score:
        """The rewards of a recorded episode, from the record alone; `progress` is the share of the training done."""
        ...

    def shape(self, group: Sequence[tuple[Episode, Score]]) -> list[Score]:
        """Scores that depend on the other episodes of the group, or of the batch."""
        ...

    def oracle(self) -> str:
        """The next perfect response, from the ground truth."""
        ...


class Refused(Exception):
    """An action that is spelt well and cannot be granted: a range outside the video, frames over the budget."""


@dataclass(frozen=True)
class Outcome:
    """What an action leads to."""

    parts: tuple[Part, ...] = ()
    rewards: dict[str, float] = field(default_factory=dict)
    done: bool = False
    info: dict[str, Any] = field(default_factory=dict)


class VideoEnv:
    """The template. `on_bad` says what a malformed or refused action does: end the episode, spend the turn with an
    error text (retry), or spend it with a text that asks for the answer (nudge).
    """

    budget: Budget
    on_bad: OnBad = "retry"
    scope: Literal["group", "batch"] = "group"  # what `shape` is given

    def __init__(self, budget: Budget):
        self.budget = budget

    # -- what a subclass writes ------------------------------------------------------------------------------------

    def parse(self, response: str) -> Action:
        raise NotImplementedError

    def opening(self) -> tuple[Message, ...]:
        """The messages before the first response; frames through `grant`."""
        raise NotImplementedError

    def score(self, episode: Episode, progress: float = 1.0) -> Score:
        raise NotImplementedError

    def oracle(self) -> str:
        raise NotImplementedError

    @staticmethod
    def render(action: Action) -> str:
        """The response that `parse` reads as this action."""
        raise NotImplementedError

    def random_look(self, rng: Random) -> str:
        """A response that asks for frames and knows nothing."""
        raise NotImplementedError

    def shape(self, group: Sequence[tuple[Episode, Score]]) -> list[Score]:
        return [score for _, score in group]

    def trained(self, episode: Episode) -> tuple[bool, ...]:
        """For each turn whether the policy learns from it; () = from all."""
        return ()

    def prompt(self, k: int) -> str:
        """What closes every observation before turn k."""
        return ""

    # -- the episode -------------------------------------------------------------------------------------------------

    async def reset(self, task: Task, seed: int) -> tuple[Message, ...]:
        self.task, self.seed = task, seed
        self.turns: list[Turn] = []
        self.shown: list[FrameRef] = []
        self.tokens_used = 0
        self.status: Status | None = None
        return self.opening()

    async def step(self, response: str) -> StepResult:
        if self.status is not None:
            raise RuntimeError(f"task {self.task.id}: the episode is {self.status}; reset it before the next step")
        k, shown = len(self.turns) + 1, len(self.shown)
        action = self.parse(response)
        try:
            if action.error is not None:
                raise Refused(action.error)
            outcome = getattr(self, f"do_{action.name}")(**action.args)
        except Refused as refused:
            action = action.model_copy(update={"error": str(refused)})
            outcome = self._bad(str(refused))
        self.turns.append(
            Turn(k=k, shown=shown, response=response, action=action, rewards=outcome.rewards, info=outcome.info)
        )
        if outcome.done:
            self.status = "done"
        elif k == self.budget.max_turns:
            self.status = "truncated"
        obs = None
        if self.status is None:
            closing = self.prompt(k + 1)
            parts = (*outcome.parts, *([Text(text=closing)] if closing else []))
            obs = Message(role="user", parts=parts)
        return StepResult(
            obs=obs,
            rewards=outcome.rewards,
            terminated=self.status == "done",
            truncated=self.status == "truncated",
            info=outcome.info,
        )

    def _bad(self, why: str) -> Outcome:
        text = "Choose the final answer now." if self.on_bad == "nudge" else f"Invalid: {why}"
        return Outcome(parts=(Text(text=text),), done=self.on_bad == "end")

    def episode(self) -> Episode:
        return Episode(
            task=self.task,
            seed=self.seed,
            turns=tuple(self.turns),
            status=self.status or "truncated",
            shown=tuple(self.shown),
            tokens_used=self.tokens_used,
        )

    @property
    def question(self) -> str:
        """The task's question with its options."""
        return " ".join(filter(None, (self.task.question, list_options(self.task.options))))

    # -- for demonstrations and comparisons --------------------------------------------------------------------------

    @property
    def gold(self) -> str:
        """The right answer in words: its option, where it names one."""
        letter = parse_letter(self.task.answer, self.task.options) if self.task.options else Failure("no_letter")
        return self.task.answer if isinstance(letter, Failure) else self.task.options[ord(letter) - ord("A")]

    def stray(self, rng: Random) -> str:
        """A response of the right form that knows nothing: where the oracle answers an answer, else mostly a look."""
        answers = self.parse(self.oracle()).name == "answer" or rng.random() < 1 / 3
        return self.random_answer(rng) if answers else self.random_look(rng)

    def random_answer(self, rng: Random) -> str:
        letter, option = rng.choice([*zip(ascii_uppercase, self.task.options, strict=False)] or [("0", "0")])
        return self.render(Action(name="answer", args={"text": letter}, think=option))

    def answer_head(self) -> str:
        """How a response begins that answers without another look, up to the answer itself."""
        return self.render(Action(name="answer", args={"text": _HERE}, think="?")).partition(_HERE)[0]

    # -- for actions -------------------------------------------------------------------------------------------------

    def do_answer(self, text: str) -> Outcome:
        return Outcome(done=True)

    def grant(self, refs: Sequence[FrameRef], as_video: bool = False) -> Frames:
        """Charge frames to the budget and show them. Raises Refused where they are over it, and charges nothing."""
        tokens = sum(self.tokens_of(ref) for ref in refs)
        tokens = -(-tokens // 2) if as_video else tokens  # two frames to a temporal step
        budget, frames = self.budget, len(self.shown) + len(refs)
        if budget.total is not None and frames > budget.total:
            raise Refused(f"{len(refs)} more frames would be {frames} of at most {budget.total}")
        if budget.tokens is not None and self.tokens_used + tokens > budget.tokens:
            raise Refused(
                f"{tokens} more visual tokens would be {self.tokens_used + tokens} of at most {budget.tokens}"
            )
        self.shown += refs
        self.tokens_used += tokens
        return Frames(refs=tuple(refs), as_video=as_video)

    def tokens_of(self, ref: FrameRef) -> int:
        """About what a frame costs as an image: never more pixels than it has, nor than `max_pixels`."""
        video = self.video(ref.video)
        left, top, right, bottom = ref.box or (0.0, 0.0, 1.0, 1.0)
        pixels = min(video.width * (right - left) * video.height * (bottom - top), ref.max_pixels)
        return max(1, round(pixels / PATCH**2))

    def video(self, id: str) -> VideoHandle:
        return next(video for video in self.task.videos if video.id == id)

    def refs(self, indices: Sequence[int], label: str = "", video: VideoHandle | None = None) -> list[FrameRef]:
        """Candidate frames of a video, the task's only one by default; `{}` in the label is their index."""
        handle = video or self.task.videos[0]
        return [
            FrameRef(video=handle.id, index=index, max_pixels=self.budget.max_pixels, label=label.format(index))
            for index in indices
        ]


def spread(count: int, first: int, last: int) -> list[int]:
    """`count` indices evenly from `first` to `last`, both included; all of them where there are no more."""
    if last - first + 1 <= count:
        return list(range(first, last + 1))
    if count == 1:
        return [(first + last) // 2]
    return [first + round(place * (last - first) / (count - 1)) for place in range(count)]


def in_spans(video: VideoHandle, spans: Sequence[tuple[float, float]]) -> set[int]:
    """The candidate frames inside any of the spans; of a span that has none, the one nearest to its middle."""
    found: set[int] = set()
    for start, end in spans:
        inside = range(bisect_left(video.times, start), bisect_right(video.times, end))
        found.update(inside or [nearest(video, (start + end) / 2)])
    return found


def nearest(video: VideoHandle, seconds: float) -> int:
    """The candidate frame nearest to a time, the earlier of two."""
    after = min(bisect_left(video.times, seconds), video.num_frames - 1)
    before = max(0, after - 1)
    return before if seconds - video.times[before] <= video.times[after] - seconds else after


def set_iou(found: set[int], gold: set[int]) -> float:
    """Shared over all; 0 where both are empty."""
    return len(found & gold) / len(found | gold) if found | gold else 0.0


def right(episode: Episode) -> float:
    """1 where the final answer is the task's: the same option, or without options the same text; else 0."""
    said, task = episode.answer, episode.task
    if said is None:
        return 0.0
    if not task.options:
        return float(said.strip().casefold() == task.answer.strip().casefold())
    letters = parse_letter(said, task.options), parse_letter(task.answer, task.options)
    return float(not isinstance(letters[0], Failure) and letters[0] == letters[1])
