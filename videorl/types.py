"""The nouns of the project. Each type refuses bad data when it is built, so no later stage has to check again.

    Clip ─ Media ─ Prompt ─ RenderedPrompt ─ Request ─ Generation ─ Rollout ─ RolloutGroup ─ Row

Nothing here imports torch or ray: these types travel between processes and are read by tools without a GPU.
Pixels and embeddings never appear in them; a `Media` handle (a few hundred bytes) stands for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

EQUAL_REWARDS = 1e-6
"""Rewards closer than this are equal: single precision keeps no more of a sum of rewards."""


class DataError(ValueError):
    """Untrusted input is bad. `reason` is for programs; the text names the value, the rule and the remedy."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason, str(self))


class VideoError(DataError):
    """A media file cannot give the frames that were asked for. `reason` is one of `VIDEO_REASONS`."""


VIDEO_REASONS = (
    "missing",  # no such file
    "empty",  # zero bytes
    "not_a_video",  # no container or no codec recognises it
    "no_video_stream",  # audio only
    "truncated",  # the container promises more than the file holds
    "corrupt",  # a packet or frame fails to decode
    "too_large",  # a limit on duration, frames or pixels is exceeded, checked before decoding
    "bad_span",  # start/end select nothing
    "timeout",  # the decoder was killed at its deadline
    "crashed",  # the decoder process died
    "digest_mismatch",  # the file is not the one the data set describes
    "outside_root",  # the path leaves data.media_root
)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of a clip are shown and how large they are. Exactly one of `fps` and `num_frames` is given.

    Pixel budgets count pixels of one frame, `total_pixels` of all frames of one video together (Qwen-VL's rules).
    Both sides of a frame are multiples of `spatial_factor` (28 for Qwen2.5-VL, 32 for Qwen3-VL); the number of
    frames is a multiple of `temporal_factor`.
    """

    fps: float | None
    num_frames: int | None
    min_frames: int
    max_frames: int
    min_pixels: int
    max_pixels: int
    total_pixels: int
    spatial_factor: int = 28
    temporal_factor: int = 2

    def __post_init__(self):
        if (self.fps is None) == (self.num_frames is None):
            raise ValueError(f"Sampling: fps={self.fps}, num_frames={self.num_frames}: give exactly one of the two")
        if self.fps is not None and not (self.fps > 0 and math.isfinite(self.fps)):
            raise ValueError(f"Sampling: fps={self.fps} must be a positive finite number")
        if not 1 <= self.min_frames <= self.max_frames:
            raise ValueError(
                f"Sampling: 1 <= min_frames={self.min_frames} <= max_frames={self.max_frames} does not hold"
            )
        if self.num_frames is not None and not 1 <= self.num_frames <= self.max_frames:
            raise ValueError(f"Sampling: num_frames={self.num_frames} must be in 1..max_frames={self.max_frames}")
        if not 0 < self.min_pixels <= self.max_pixels <= self.total_pixels:
            raise ValueError(
                f"Sampling: 0 < min_pixels={self.min_pixels} <= max_pixels={self.max_pixels} "
                f"<= total_pixels={self.total_pixels} does not hold"
            )


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video file, a time span of it and a sampling rule. `load_frames(clip)` turns it into pixels.

    `start` and `end` are seconds on the player's clock (0 = the first frame of the file); None = the file's own bound.
    `sha256`, where given, is what the file's bytes must hash to. `shuffle`, where given, is the seed of the order in
    which the frames are shown in place of their own. `hold` names some of the frames that the rule chooses, by their
    places among them: each stays on until the next of them, the first from the beginning. `pick` keeps some of them
    alone, and `box` a part of each: left, top, right and bottom, from 0 to 1.
    """

    path: str
    sampling: Sampling
    start: float | None = None
    end: float | None = None
    sha256: str | None = None
    shuffle: int | None = None
    hold: tuple[int, ...] | None = None
    pick: tuple[int, ...] | None = None
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self):
        for name, places in (("pick", self.pick), ("hold", self.hold)):
            if places is not None and (not places or places[0] < 0 or [*places] != sorted({*places})):
                raise VideoError("bad_span", f"{self.path}: {name}={places} must be places that increase, one at least")
        if self.shuffle is not None and self.hold is not None:
            raise VideoError("bad_span", f"{self.path}: shuffle and hold both say which frame is shown when; give one")
        if self.box is not None:
            left, top, right, bottom = self.box
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise VideoError("bad_span", f"{self.path}: box={self.box} must be left < right, top < bottom in 0..1")
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise VideoError("bad_span", f"{self.path}: {name}={value} must be a finite number of seconds >= 0")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise VideoError("bad_span", f"{self.path}: end={self.end} must be greater than start={self.start}")


@dataclass(frozen=True, kw_only=True)
class Media:
    """A clip as the model sees it: the handle that travels instead of pixels, of the same size for any length.

    `key` is the content address of its embeddings (or, for a trained tower, of its frames): it changes whenever
    the file's bytes, the frame times, the size, the processor or the frozen tower change.
    `grid` is (t, h, w) in patches before spatial merging; `num_tokens` = t*h*w / merge².
    `seconds_per_grid` is the time between two temporal grid steps, the one number M-RoPE needs.
    `tower` names the weights that make the features, "pixels" where they are being trained.
    """

    clip: Clip
    key: str
    grid: tuple[int, int, int]
    num_tokens: int
    seconds_per_grid: float
    tower: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One data-set row, ready to be shown: messages whose `{"type": "video"}` parts stand for `clips`, in order.

    `row` is the canonical row as a plain dict; rewards receive it whole.
    """

    id: str
    task: str
    messages: tuple[dict[str, Any], ...]
    clips: tuple[Clip, ...]
    row: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RenderedPrompt:
    """A prompt as token ids in which ONE placeholder stands for each video; `expand_placeholders` gives the long form.

    `frame_times[i]` are the container timestamps in seconds of the frames of `media[i]` as shown; `origins[i]` is the
    container time of that clip's own 0 s and `durations[i]` its length. They stay with the driver: only `token_ids` and
    `media` are sent to engines and trainers, so what travels does not grow with the number of frames.
    """

    prompt: Prompt
    token_ids: tuple[int, ...]
    media: tuple[Media, ...]
    frame_times: tuple[tuple[float, ...], ...]
    origins: tuple[float, ...]
    durations: tuple[float, ...]

    def __post_init__(self):
        counts = {name: len(getattr(self, name)) for name in ("media", "frame_times", "origins", "durations")}
        if len(set(counts.values())) > 1:
            raise ValueError(f"RenderedPrompt of {self.prompt.id}: {counts}: must be equally long, one entry per video")

    @property
    def num_tokens(self) -> int:
        """Length of the expanded prompt."""
        return len(self.token_ids) + sum(media.num_tokens - 1 for media in self.media)


def expand_placeholders(token_ids: Sequence[int], media: Sequence[Media], placeholder: int) -> list[int]:
    """Repeat the i-th `placeholder` id `media[i].num_tokens` times. The only place where placeholders are expanded."""
    expanded: list[int] = []
    remaining = iter(media)
    for token in token_ids:
        if token != placeholder:
            expanded.append(token)
        elif (item := next(remaining, None)) is not None:
            expanded.extend([placeholder] * item.num_tokens)
        else:
            raise ValueError(f"more video placeholders in the prompt than its {len(media)} videos")
    if next(remaining, None) is not None:
        raise ValueError(f"fewer video placeholders in the prompt than its {len(media)} videos")
    return expanded


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the engine samples one response. `seed` is given by value so that a request is reproducible alone.

    There is no top-p or top-k: the trainer's log-probabilities are those of the whole distribution, and a truncated
    one would make every importance ratio wrong. `temperature` 0 is greedy.
    """

    max_tokens: int
    temperature: float
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an engine needs for one response. The engine fetches embeddings or frames itself, by `media[i].key`.

    `start` holds response tokens that stand already: the engine goes on after them. Requests of one `home` go to one
    engine, whose caches hold what they have in common.
    """

    token_ids: tuple[int, ...]
    media: tuple[Media, ...]
    sampling: SamplingParams
    start: tuple[int, ...] = ()
    home: str = ""


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the engine returns for one request; `seen` is the fingerprint of what it was shown (see `contract`)."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: FinishReason
    weight_version: int
    seen: str
    cached_tokens: int = 0  # prompt tokens served from the engine's prefix cache

    def __post_init__(self):
        if len(self.token_ids) != len(self.log_probs):
            raise ValueError(f"Generation: {len(self.token_ids)} tokens but {len(self.log_probs)} log-probs")
        if not all(math.isfinite(value) and value <= 1e-3 for value in self.log_probs):
            raise ValueError(
                f"Generation: log-probs must be finite and <= 0, got {min(self.log_probs)}..{max(self.log_probs)}"
            )


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """The part of an episode that begins anew, because its context dropped something that stood there before: what the
    engine was shown then, and what follows, as in `Rollout`."""

    token_ids: tuple[int, ...]
    media: tuple[Media, ...]
    response_ids: tuple[int, ...]
    response_mask: tuple[int, ...]
    rollout_log_probs: tuple[float, ...]
    later: tuple[Media, ...]
    seen: str


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One episode: the prompt's tokens, then every token of the response, the environment's turns included.

    `response_mask[i]` is 1 where the policy sampled `response_ids[i]`; there, and only there,
    `rollout_log_probs[i]` is the engine's log-probability of it (0.0 elsewhere). Each run of ones is a turn; what
    stands between two turns the environment wrote, one placeholder for each of the videos in `later`. Where the context
    of a later turn is no continuation of this, that turn begins another row: `further`.

    `index` is its place among the rollouts of its prompt; in a second pass `parent` is the index of the rollout that
    this one goes back to. Of the reward: `terms` holds what each term gave, `failures` why a term could not read the
    text, `abstained` why a term could not say anything; `turn_rewards` is the part of it that each turn has earned, and
    `trained` says which turns the policy learns from (empty: all). `measures` are further numbers of an episode to log,
    `episode` is its record as JSON.
    """

    prompt: RenderedPrompt
    response_ids: tuple[int, ...]
    response_mask: tuple[int, ...]
    rollout_log_probs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    weight_version: int
    seen: str
    cached_tokens: int = 0
    temperature: float = 1.0
    index: int = 0
    parent: int | None = None
    later: tuple[Media, ...] = ()
    further: tuple[Continuation, ...] = ()
    reward: float = 0.0
    turn_rewards: tuple[float, ...] = ()
    trained: tuple[bool, ...] = ()
    terms: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    abstained: dict[str, str] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    episode: dict[str, Any] | None = None

    def __post_init__(self):
        n = len(self.response_ids)
        if n == 0:
            raise ValueError(f"Rollout of {self.prompt.prompt.id}: empty response")
        if not len(self.response_mask) == len(self.rollout_log_probs) == n:
            raise ValueError(
                f"Rollout of {self.prompt.prompt.id}: {n} response_ids, {len(self.response_mask)} response_mask, "
                f"{len(self.rollout_log_probs)} rollout_log_probs: the three must be equally long"
            )
        if not {1} <= set(self.response_mask) <= {0, 1}:
            raise ValueError(
                f"Rollout of {self.prompt.prompt.id}: response_mask holds {sorted(set(self.response_mask))}; "
                "it must be 0 or 1, and 1 at least once: a reward stands on the last token the policy sampled"
            )
        for name in ("turn_rewards", "trained"):
            if getattr(self, name) and len(getattr(self, name)) != self.num_turns:
                raise ValueError(
                    f"Rollout of {self.prompt.prompt.id}: {len(getattr(self, name))} {name} for {self.num_turns} turns"
                )
        if not math.isfinite(self.reward):
            raise ValueError(f"Rollout of {self.prompt.prompt.id}: reward {self.reward} is not finite")

    @property
    def num_turns(self) -> int:
        return sum(count_turns(each.response_mask) for each in (self, *self.further))

    @property
    def media(self) -> tuple[Media, ...]:
        """All that it shows."""
        return (*self.prompt.media, *self.later, *(m for row in self.further for m in (*row.media, *row.later)))

    @property
    def measured(self) -> dict[str, float]:
        """The terms that said something: not those that were filled in where one abstained."""
        return {name: value for name, value in self.terms.items() if name not in self.abstained}


def count_turns(response_mask: Sequence[int]) -> int:
    """Runs of ones."""
    return sum(1 for before, now in pairwise((0, *response_mask)) if now > before)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An episode without an end, and what is known of it as JSON: nobody can say what it is worth."""

    index: int
    why: str
    episode: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """The rollouts of one prompt. `lost` are those whose reward nobody could say: they are kept, and not trained on.
    `failed` are the episodes that something else than the policy has ended.

    `sides` are the groups of second passes, by the name of the pass, each with a prompt of its own.
    """

    prompt: RenderedPrompt
    rollouts: tuple[Rollout, ...]
    lost: tuple[Rollout, ...] = ()
    failed: tuple[Failed, ...] = ()
    sides: dict[str, RolloutGroup] = field(default_factory=dict)

    def __post_init__(self):
        if not self.all and not self.failed:
            raise ValueError(f"RolloutGroup of {self.prompt.prompt.id} is empty")
        for rollout in self.all:
            if rollout.prompt.token_ids != self.prompt.token_ids or rollout.prompt.media != self.prompt.media:
                raise ValueError(
                    f"RolloutGroup of {self.prompt.prompt.id} holds a rollout of {rollout.prompt.prompt.id} "
                    "with another prompt: all rollouts of a group share tokens and media"
                )

    @property
    def all(self) -> tuple[Rollout, ...]:
        return self.rollouts + self.lost

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(rollout.reward for rollout in self.rollouts)

    @property
    def zero_variance(self) -> bool:
        """All rewards are equal, so a group-relative advantage is zero and the group teaches nothing."""
        return max(self.rewards, default=0.0) - min(self.rewards, default=0.0) <= EQUAL_REWARDS
