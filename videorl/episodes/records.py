"""The lines of a run's `episodes.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import from_json

from videorl.envs.records import Episode, Fraction, Record, Score
from videorl.live import printable
from videorl.types import DataError

FILE = "episodes.jsonl"  # in a run folder


class NamedEnv(Record):
    target: str
    params: dict[str, Any]

    def __str__(self) -> str:
        return printable(f"{self.target} {json.dumps(self.params)}" if self.params else self.target)


class EpisodeLine(Record):
    """A line of `episodes.jsonl`. `score` is that of the episode alone, before `shape`; null where it errored."""

    step: int = Field(ge=0)
    id: str
    index: int = Field(ge=0)
    env: NamedEnv
    progress: Fraction
    episode: Episode
    score: Score | None
    error: str | None
    texts: Any = None

    @property
    def name(self) -> str:
        return f"{self.id}#{self.index}"

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        episode, score = self.episode, self.score
        if (score is None) != (episode.status == "errored"):
            raise ValueError(f"score: null is for errored episodes, and for them alone; this one is {episode.status}")
        if score is not None:
            check_score(score, episode)
        counts = [turn.shown for turn in episode.turns] + [episode.frames_used]
        if counts != sorted(counts):
            raise ValueError(f"episode.turns: their shown and then the number of frames are {counts}, must never fall")
        for video in episode.task.videos:
            if not 0 <= video.duration < math.inf:
                raise ValueError(f"episode.task.videos: times of {video.id!r} must be finite and increase")
        candidates = {video.id: video.num_frames for video in episode.task.videos}
        for ref in episode.shown:
            if not 0 <= ref.index < candidates.get(ref.video, 0):
                raise ValueError(f"episode.shown: the task has no frame {ref.index} of a video {ref.video!r}")
        return self


def check_score(score: Score, episode: Episode) -> None:
    if len(score.turn) != len(episode.turns):
        raise ValueError(f"score.turn: {len(score.turn)} rewards, must be one for each of {len(episode.turns)} turns")
    if not all(map(math.isfinite, (*score.turn, score.rollout, *score.parts.values()))):
        raise ValueError("score: must hold finite numbers alone")


Lines = Iterable[tuple[str, EpisodeLine]]
"""Each behind its place, the file and the number of the line."""


def read_episodes(path: str | Path, report: Callable[[str], None]) -> Iterator[tuple[str, EpisodeLine]]:
    """The lines of a file, or of a run folder's. What a write that did not finish left at the end goes to `report`.

    Raises:
        DataError: `unreadable`; `bad_episode`, with file, line and rule.
    """
    file_path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        with file_path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                place = f"{file_path}, line {number}"
                try:
                    record = from_json(raw, allow_inf_nan=False)
                except ValueError as error:
                    if raw.endswith(b"\n"):
                        raise DataError("bad_episode", f"{place}: must be JSON ({error}); take it out") from error
                    report(f"{place}: skipped: {len(raw)} bytes of a line whose writing did not finish")
                    return
                yield place, _read_line(record, place)
    except OSError as error:
        message = f"{file_path}: {error.strerror}; give an {FILE}, or the folder of a run that played episodes"
        raise DataError("unreadable", message) from error


def _read_line(record: Any, place: str) -> EpisodeLine:
    try:
        return EpisodeLine.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        problem = f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
        raise DataError("bad_episode", f"{place}: {problem}") from error


def select(lines: Lines, step: int | None = None, id: str | None = None) -> Iterator[tuple[str, EpisodeLine]]:
    return ((place, line) for place, line in lines if step in (None, line.step) and id in (None, line.id))
