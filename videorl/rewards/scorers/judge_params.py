"""The parameters of the judges: types, bounds, defaults. Checked before a run starts, without importing a client."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator

from videorl.answers.answer import Tags
from videorl.config import Count, Fraction, NonNegative, Positive, PositiveFloat, Section

NonEmpty = Annotated[str, Field(pattern=r"\S")]
RESERVED = ("messages", "model", "response_format", "stream", "n")  # what the client itself decides


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must look like http://host:port/v1")
    if parts.username or parts.password:
        raise ValueError("must hold no user or password; put the key into an environment variable, see api_key_env")
    return url


def _check_scale(scale: tuple[float, float]) -> tuple[float, float]:
    if not (scale[0] < scale[1] and math.isfinite(scale[1] - scale[0])):
        raise ValueError("must be [lowest, highest], two finite numbers")
    return scale


class EndpointParams(Section):
    """Where the judge is and how patiently it is asked."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a key put in the wrong place must not reach a log

    base_url: Annotated[str, AfterValidator(_check_url)] = Field(description="of an OpenAI-compatible API, with /v1")
    model: NonEmpty = Field(description="the name the server gives the judge")
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        None, description="NAME of the environment variable that holds the key; null = the server wants none"
    )
    temperature: NonNegative | None = Field(0.0, description="null = left to the server")
    max_tokens: Positive | None = Field(1024, description="of one answer of the judge; null = left to the server")
    extra_body: dict[str, JsonValue] = Field({}, description="further fields of the request, as the server names them")
    structured_output: bool = Field(
        True, description="ask for a JSON schema where the server can follow one; false = in words only"
    )
    concurrency: Positive = Field(16, description="requests under way at once")
    timeout: PositiveFloat = Field(60.0, description="seconds for one request")
    deadline: PositiveFloat = Field(180.0, description="seconds for one verdict, all tries included, queueing excluded")
    retries: Count = Field(4, description="further tries after 408, 409, 429, 5xx, a lost connection, a broken reply")
    backoff: PositiveFloat = Field(0.5, description="seconds: the first pause is random in [0, backoff], then doubles")
    backoff_max: PositiveFloat = Field(16.0, description="seconds: the longest random pause")
    retry_after_max: NonNegative = Field(
        60.0, description="seconds: what the server may ask to wait; if it asks for longer, nobody waits"
    )
    breaker_failures: Positive = Field(5, description="given-up verdicts in a row after which nobody asks any more")
    breaker_pause: PositiveFloat = Field(30.0, description="seconds until one request may try again")
    max_reply_bytes: Positive = Field(1 << 20, description="of a reply; a longer one is broken")
    cache_dir: NonEmpty | None = Field(None, description="folder of verdicts, may be shared by runs; null = none")

    @model_validator(mode="after")
    def _check_times(self) -> EndpointParams:
        if self.timeout > self.deadline:
            raise ValueError(f"timeout={self.timeout} must be at most deadline={self.deadline}; lower the one")
        taken = [name for name in RESERVED if name in self.extra_body]
        if taken:
            raise ValueError(f"extra_body.{taken[0]} is set by the client; take it out")
        return self


class PairwiseParams(EndpointParams):
    """And what it is shown."""

    reference: NonEmpty | None = Field(
        "answer", description="field of the row the judge compares with, as answer or meta.<key>; null = none"
    )
    max_chars: Annotated[int, Field(ge=100)] = Field(
        4000, description="of each quoted text; of a longer one the middle is cut out"
    )
    canary_max: Fraction = Field(0.3, description="the most a canary may score")


class JudgeParams(PairwiseParams):
    """And what it is to grade."""

    kind: Literal["next_event", "open_ended", "critic", "custom"]
    template: NonEmpty | None = Field(None, description="kind=custom: what to grade and how, in words")
    scale: Annotated[tuple[float, float], AfterValidator(_check_scale)] | None = Field(
        None, description="kind=custom: [lowest, highest] score, mapped to 0..1"
    )
    tags: Tags | None = Field(
        "full", description="where the graded answer is in a response; null = the whole response is graded"
    )

    @model_validator(mode="after")
    def _check_kind(self) -> JudgeParams:
        given = [name for name in ("template", "scale") if getattr(self, name) is not None]
        if self.kind == "custom" and len(given) < 2:
            raise ValueError("kind='custom' needs both template and scale; give them")
        if self.kind != "custom" and given:
            raise ValueError(f"kind={self.kind!r} has its own template and scale; use kind='custom' for yours")
        if self.kind in ("next_event", "open_ended") and self.reference is None:
            raise ValueError(f"kind={self.kind!r} compares with a reference; name its field")
        return self


ParamsT = TypeVar("ParamsT", bound=EndpointParams)


def read_params(model: type[ParamsT], params: dict[str, Any]) -> ParamsT:
    """The parameters, validated. Raises ValueError with one line for each that is wrong; values that may be or hold
    a key are not repeated."""
    try:
        return model.model_validate(params)
    except ValidationError as error:
        raise ValueError("\n".join(map(_describe, error.errors()))) from None


def _describe(item: Any) -> str:
    key = ".".join(map(str, item["loc"]))
    rule = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"params.{key} is not a parameter; remove it"
    if item["type"] == "missing":
        return f"params.{key} is missing and has no default"
    if key == "api_key_env":
        return "params.api_key_env: must be the NAME of an environment variable, not the key itself"
    if key in ("", "base_url"):
        return f"params{'.' if key else ''}{key}: {rule}"
    return f"params.{key}: {item['input']!r}, {rule[0].lower()}{rule[1:]}; change it"
