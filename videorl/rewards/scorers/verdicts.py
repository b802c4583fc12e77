"""What a judge may answer: one JSON object per kind, its fields checked, and what it is worth.

The docstrings and descriptions are part of the schema that the judge is shown.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from videorl.rewards.result import RewardResult

CRITIQUE_CHARS = 600  # a bound for decoders that follow the schema; a longer critique is no error


class Verdict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    critique: str = Field(
        description="what is right and what is wrong, in one or two sentences",
        json_schema_extra={"maxLength": CRITIQUE_CHARS},
    )

    @abstractmethod
    def result(self) -> RewardResult:
        """Its value in 0..1 and its numbers. Never its words: the policy is not to learn from what judges say."""

    @classmethod
    @abstractmethod
    def best(cls) -> Verdict:
        """What a response that wants to be graded by its own words would write."""


class NextEventVerdict(Verdict):
    """Whether the prediction came true."""

    conclusion: Literal["right", "wrong"]

    def result(self) -> RewardResult:
        return RewardResult(float(self.conclusion == "right"))

    @classmethod
    def best(cls) -> NextEventVerdict:
        return cls(critique="Exactly what happened.", conclusion="right")


class OpenEndedVerdict(Verdict):
    """How correct the answer is."""

    score: int = Field(ge=0, le=5, description="5 = says what the reference says, 0 = wrong or no answer")

    def result(self) -> RewardResult:
        return RewardResult(self.score / 5, {"score": float(self.score)})

    @classmethod
    def best(cls) -> OpenEndedVerdict:
        return cls(critique="Fully correct.", score=5)


Dimension = Annotated[int, Field(ge=0, le=5)]


class CriticVerdict(Verdict):
    """Five dimensions from 0 (absent) to 5 (faultless), and the overall worth of the response."""

    visual_alignment: Dimension = Field(description="what it says is visible agrees with what is known of the video")
    temporal_accuracy: Dimension = Field(description="order, duration and times of events are right")
    option_disambiguation: Dimension = Field(description="it separates the answer from the other candidates")
    reasoning_specificity: Dimension = Field(description="its steps name evidence instead of generalities")
    linguistic_precision: Dimension = Field(description="it is clear, consistent and free of padding")
    scalar_reward: float = Field(ge=0, le=1, description="overall, 0 = worthless, 1 = faultless")

    def result(self) -> RewardResult:
        dimensions = self.model_dump(exclude={"critique", "scalar_reward"})
        return RewardResult(self.scalar_reward, {name: float(score) for name, score in dimensions.items()})

    @classmethod
    def best(cls) -> CriticVerdict:
        top = dict.fromkeys(cls.model_fields.keys() - {"critique", "scalar_reward"}, 5)
        return cls(critique="Faultless.", scalar_reward=1.0, **top)


class ScaleVerdict(Verdict):
    """A score on a scale of the user's; `on_scale` makes the class for one."""

    scale: ClassVar[tuple[float, float]]
    score: float

    def result(self) -> RewardResult:
        low, high = self.scale
        return RewardResult((self.score - low) / (high - low), {"score": self.score})

    @classmethod
    def best(cls) -> ScaleVerdict:
        return cls(critique="Perfect.", score=cls.scale[1])


def on_scale(low: float, high: float) -> type[ScaleVerdict]:
    verdict = create_model(
        "ScaleVerdict",
        __base__=ScaleVerdict,
        __doc__=f"A score from {low:g} (worst) to {high:g} (best).",
        score=(float, Field(ge=low, le=high)),
    )
    verdict.scale = (low, high)
    return verdict


class PairwiseVerdict(Verdict):
    """Which of the two responses is better."""

    winner: Literal["first", "second", "tie"]

    def result(self) -> RewardResult:
        """Of the first response."""
        return RewardResult({"first": 1.0, "tie": 0.5, "second": 0.0}[self.winner])

    @classmethod
    def best(cls) -> PairwiseVerdict:
        return cls(critique="The first is better in every way.", winner="first")


VerdictT = TypeVar("VerdictT", bound=Verdict)


def read_verdict(text: str, kind: type[VerdictT]) -> VerdictT:
    """The verdict in what a judge wrote: one JSON object, after its reasoning if any, bare or in one code fence.

    Raises pydantic's ValidationError for anything else. Objects are not searched for in prose: there they may be
    quotes of the graded text.
    """
    text = text.rpartition("</think>")[2].strip()
    if len(text) >= 6 and text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json")
    return kind.model_validate_json(text.translate(_CONTROLS).encode("utf-8", "replace"))


# Decoders that bound the length of a string let it hold raw control characters, which JSON does not; elsewhere in an
# object they are blanks.
_CONTROLS = dict.fromkeys(range(32), " ")


def explain(error: ValidationError) -> str:
    """What is wrong with a verdict, in a line short enough to send back."""
    problems = [f"{'.'.join(map(str, item['loc'])) or 'the answer'}: {item['msg']}" for item in error.errors()]
    return "; ".join(problems)[:500]
