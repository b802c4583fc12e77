"""The frames of environments: which ones a row's videos have, and the clips that stand for some of them.

An environment names frames by their place among the candidates that `data.sampling` takes of a video. A frame that is
shown as an image is a clip of one frame: to a Qwen-VL model a video of one frame is an image, position for position.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from videorl.data.prompts import make_clips, make_sampling
from videorl.data.schema import PLACEHOLDER, CanonicalRow
from videorl.envs.records import Evidence, Frames, Message, Task, VideoHandle
from videorl.envs.registry import load_env
from videorl.rollout.runner import rollout_seed
from videorl.types import Clip, DataError, Media, Prompt

if TYPE_CHECKING:
    from videorl.config import Config
    from videorl.data.prompts import Ensure
    from videorl.models.base import VideoModel
    from videorl.models.media import MediaSource
    from videorl.video.frames import FramePlan


@dataclass(frozen=True)
class Shown:
    """A message as the model gets it: text and video parts, and the clips that the video parts stand for, in order."""

    parts: list[dict[str, str]]
    clips: list[Clip]


class Openings:
    """How the episodes of a row begin. `plan` says which frames a clip has, from its header; `spatial` and `temporal`
    are the model family's factors."""

    def __init__(self, config: Config, plan: Callable[[Clip], FramePlan], spatial: int, temporal: int):
        assert config.rollout.env is not None
        self.config, self.env, self.plan = config, config.rollout.env, plan
        self.sampling = make_sampling(config.data.sampling, spatial, temporal)

    @classmethod
    def of(cls, config: Config, model: VideoModel, source: MediaSource) -> Openings | None:
        """None where `rollout.env` is: then a row's question is its prompt."""
        if config.rollout.env is None:
            return None
        return Openings(config, lambda clip: source.plan(clip)[0], model.spatial_factor, model.temporal_factor)

    def prompt(self, row: dict[str, Any]) -> Prompt:
        """The prompt of a row, whose messages are its environment's first. Raises DataError."""
        env = load_env(self.env.target, self.env.params)
        return self.open(row, asyncio.run(env.reset(self.task(row), self.seed(row))))

    def seed(self, row: dict[str, Any]) -> int:
        """Of a row's environment: the same for all episodes of a prompt, which begin alike."""
        return rollout_seed(self.config.seed, "env", row["id"])

    def task(self, row: dict[str, Any]) -> Task:
        """What an environment is told of a canonical row. Its spans are the evidence; `meta.evidence` adds boxes and
        labels to them. Raises DataError."""
        plans = [self.plan(clip) for clip in self._clips(row)]
        if not plans:
            raise DataError("no_video", f"row {row['id']}: has no video; rollout.env needs one to choose frames of")
        videos = tuple(
            VideoHandle(
                id=str(number),
                times=tuple(seconds - plan.origin for seconds in plan.pts),
                width=plan.crop[2] - plan.crop[0],
                height=plan.crop[3] - plan.crop[1],
            )
            for number, plan in enumerate(plans)
        )
        spans = tuple((start, end) for start, end in row["spans"] or ())
        for start, end in spans:
            if start > plans[0].duration:
                raise DataError(
                    "span_outside_clip",
                    f"row {row['id']}: span [{start}, {end}] begins after its clip of {plans[0].duration:.3f} s; spans "
                    "are in seconds from where the clip starts: correct the span, or the video's start and end",
                )
        try:
            evidence = Evidence.model_validate({"spans": spans} | row["meta"].get("evidence", {}))
        except (ValidationError, TypeError) as error:
            raise DataError("bad_evidence", f"row {row['id']}: meta.evidence: {error}") from error
        question = CanonicalRow.model_validate(row).messages[-1].text.replace(PLACEHOLDER, "").strip()
        answer = "" if row["answer"] is None else str(row["answer"])
        options = tuple(row["choices"] or ())
        return Task(id=row["id"], videos=videos, question=question, options=options, answer=answer, evidence=evidence)

    def show(self, row: dict[str, Any], message: Message) -> Shown:
        """Labels and frames of a message of a row's environment."""
        own = self._clips(row)
        shown = Shown([], [])
        for part in message.parts:
            if not isinstance(part, Frames):
                shown.parts.append({"type": "text", "text": part.text})
            elif part.as_video:
                self._add(shown, own, part, range(len(part.refs)))
            else:
                for place in range(len(part.refs)):
                    self._add(shown, own, part, [place])
        return shown

    def _add(self, shown: Shown, own: Sequence[Clip], part: Frames, places: Sequence[int]) -> None:
        refs = [part.refs[place] for place in places]
        first = refs[0]
        if any((ref.video, ref.box, ref.max_pixels) != (first.video, first.box, first.max_pixels) for ref in refs):
            raise ValueError(f"frames of one video must be of the same file, box and size; they are {refs}")
        if not first.video.isdecimal() or int(first.video) >= len(own):
            raise ValueError(f"{first!r}: there is no such video; the task has {len(own)}, from 0")
        if first.label and len(refs) == 1:
            shown.parts.append({"type": "text", "text": first.label})
        shown.parts.append({"type": "video"})
        clip = own[int(first.video)]
        largest = min(first.max_pixels, clip.sampling.max_pixels)
        sampling = replace(
            clip.sampling,
            max_pixels=largest,
            min_pixels=min(clip.sampling.min_pixels, largest),
            total_pixels=max(clip.sampling.total_pixels, largest * len(refs)),
        )
        pick = tuple(sorted({ref.index for ref in refs}))
        shown.clips.append(replace(clip, pick=pick, box=first.box, sampling=sampling))

    def open(self, row: dict[str, Any], messages: Sequence[Message]) -> Prompt:
        """The prompt with which an episode begins."""
        shown = [self.show(row, message) for message in messages]
        said = [{"role": message.role, "content": each.parts} for message, each in zip(messages, shown, strict=True)]
        if self.config.data.system_prompt is not None and messages[0].role != "system":
            said.insert(0, {"role": "system", "content": [{"type": "text", "text": self.config.data.system_prompt}]})
        clips = tuple(clip for each in shown for clip in each.clips)
        return Prompt(id=row["id"], task=row["task"], messages=tuple(said), clips=clips, row=row)

    def _clips(self, row: dict[str, Any]) -> tuple[Clip, ...]:
        return make_clips(row, self.config.data.media_root, self.sampling)


class FrameStore(Openings):
    """The same with the frames that later turns show, as handles of the model's. `ensure` makes them available."""

    def __init__(self, config: Config, model: VideoModel, source: MediaSource, ensure: Ensure):
        super().__init__(config, lambda clip: source.plan(clip)[0], model.spatial_factor, model.temporal_factor)
        self.source, self._ensure = source, ensure

    def resolve(self, row: dict[str, Any], message: Message) -> tuple[list[dict[str, str]], tuple[Media, ...]]:
        """A message's text and video parts, and what the video parts stand for. Raises DataError."""
        shown = self.show(row, message)
        return shown.parts, tuple(self.source.plan(clip)[1] for clip in shown.clips)

    def ensure(self, asked: Sequence[Sequence[Media]]) -> list[DataError | None]:
        """Make the frames of several turns available at once; for each turn why they cannot be."""
        failures = self._ensure([item for media in asked for item in media])
        return [next((failures[item.key] for item in media if item.key in failures), None) for media in asked]
