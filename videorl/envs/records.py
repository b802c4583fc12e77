"""What an environment says and keeps: frozen records that round-trip through JSON. No pixels, no model.

A video is known by the times of its candidate frames, seconds from its start; an index is a place among them. Evidence
is in seconds and in boxes whose sides run from 0 to 1, so that it belongs to no sampling rule.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Box = tuple[Fraction, Fraction, Fraction, Fraction]  # left, top, right, bottom


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VideoHandle(Record):
    id: str
    times: tuple[float, ...] = Field(min_length=1)  # of the candidate frames, seconds, increasing
    width: int
    height: int

    @property
    def num_frames(self) -> int:
        return len(self.times)

    @property
    def duration(self) -> float:
        """Seconds from the first candidate frame to the last."""
        return self.times[-1] - self.times[0]


class FrameRef(Record):
    """One candidate frame, or a box of it; `label` is the text that stands before it."""

    video: str
    index: int
    max_pixels: int
    box: Box | None = None
    label: str = ""


class Text(Record):
    kind: Literal["text"] = "text"
    text: str


class Frames(Record):
    """Frames as images, each behind its label, or as one video."""

    kind: Literal["frames"] = "frames"
    refs: tuple[FrameRef, ...] = Field(min_length=1)
    as_video: bool = False


Part = Annotated[Text | Frames, Field(discriminator="kind")]


class Message(Record):
    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]

    @property
    def refs(self) -> tuple[FrameRef, ...]:
        return tuple(ref for part in self.parts if isinstance(part, Frames) for ref in part.refs)


class Evidence(Record):
    """What the answer rests on."""

    spans: tuple[tuple[float, float], ...] = ()  # seconds
    boxes: dict[float, Box] = {}  # by the time of their frame
    labels: dict[str, int] = {}


class Task(Record):
    id: str
    videos: tuple[VideoHandle, ...] = Field(min_length=1)
    question: str
    options: tuple[str, ...] = ()
    answer: str
    evidence: Evidence = Evidence()


class Budget(Record):
    """What an episode may use. Frames and tokens are charged before a frame is granted."""

    initial: int = Field(gt=0)  # frames of the first observation
    per_turn: int = Field(gt=0)  # frames of an action
    max_turns: int = Field(gt=0)
    total: int | None = None  # frames of an episode
    tokens: int | None = None  # visual tokens of an episode
    max_pixels: int = Field(gt=0)  # of a frame

    @model_validator(mode="after")
    def _holds_the_first_observation(self) -> Self:
        if self.total is not None and self.initial > self.total:
            raise ValueError(f"initial: {self.initial}, exceeds total={self.total} frames; lower it")
        return self


class Action(Record):
    """What a response asks for; `error` says why it cannot be done. `args` are JSON: lists, and no tuples."""

    name: str = ""
    args: dict[str, Any] = {}
    think: str = ""
    error: str | None = None


class StepResult(Record):
    """`terminated`: the episode has come to its end; `truncated`: it ran out of turns. `obs` is None in both."""

    obs: Message | None
    rewards: dict[str, float] = {}
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = {}


class Turn(Record):
    """`action` is what was executed: rewards read it, and never the text. `info` is what the environment noted."""

    k: int  # from 1
    shown: int = Field(ge=0)  # frames of the episode that were granted before this response
    response: str
    action: Action
    rewards: dict[str, float] = {}
    info: dict[str, Any] = {}


Status = Literal["done", "truncated", "errored"]


class Episode(Record):
    """`errored` means that something else than the policy failed: such an episode is never scored."""

    task: Task
    seed: int
    turns: tuple[Turn, ...]
    status: Status
    shown: tuple[FrameRef, ...]  # all frames granted, those of the first observation first
    tokens_used: int

    @property
    def frames_used(self) -> int:
        return len(self.shown)

    @property
    def answer(self) -> str | None:
        """The final answer's text; None where there is none."""
        last = self.turns[-1].action if self.turns else Action()
        return last.args.get("text") if self.status == "done" and last.name == "answer" else None


class Score(Record):
    """`turn[k]` is credited at the end of turn k + 1, `rollout` at the end of the last one."""

    turn: tuple[float, ...]
    rollout: float
    parts: dict[str, float] = {}

    @property
    def total(self) -> float:
        return sum(self.turn) + self.rollout
