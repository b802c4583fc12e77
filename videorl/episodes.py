"""Recorded episodes: their rewards scored again, and one of them on the terminal. Needs no GPU and no model.

python -m videorl.episodes replay runs/mine
python -m videorl.episodes replay runs/mine --params '{"variant": "release"}' --out rescored.jsonl
python -m videorl.episodes show runs/mine 'row-7#2' --step 3

Episodes are not trusted: what a model wrote is shown as text, and code that a file names is loaded only where the
command line names it too.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import from_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from videorl.data.report import say
from videorl.envs.env import Env
from videorl.envs.records import Action, Episode, Evidence, Fraction, FrameRef, Record, Score, VideoHandle
from videorl.envs.registry import load_env
from videorl.live import printable
from videorl.types import DataError

FILE = "episodes.jsonl"  # in a run folder
TOLERANCE = 1e-9  # a score is a pure function of the record: more than this is another function
NAMED = 20  # episodes that a message lists at most
WIDTH = 60  # of a timeline, in characters
NOTHING, EVIDENCE, SEEN, GRANTED = "-=ox"
LEGEND = f"{NOTHING} video  {EVIDENCE} evidence  {SEEN} seen  {GRANTED} granted now  capital: in the evidence"


class NamedEnv(Record):
    target: str
    params: dict[str, Any]


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
            _check_score(score, episode)
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


def _check_score(score: Score, episode: Episode) -> None:
    if len(score.turn) != len(episode.turns):
        raise ValueError(f"score.turn: {len(score.turn)} rewards, must be one for each of {len(episode.turns)} turns")
    if not all(map(math.isfinite, (*score.turn, score.rollout, *score.parts.values()))):
        raise ValueError("score: must hold finite numbers alone")


# --- reading ----------------------------------------------------------------------------------------------------------

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


# --- scoring again ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replayed:
    """`score` is what `env` gives now; None for an errored episode."""

    line: EpisodeLine
    env: NamedEnv
    score: Score | None

    @property
    def difference(self) -> float:
        """Of the total."""
        recorded, now = self.line.score, self.score
        return abs(now.total - recorded.total) if recorded and now else 0.0

    @property
    def reproduced(self) -> bool:
        """False where the environment of the record says something else now, in any of the numbers."""
        recorded, now = self.line.score, self.score
        if recorded is None or now is None or self.env != self.line.env:
            return True
        before, after = _numbers(recorded), _numbers(now)
        return before.keys() == after.keys() and all(abs(after[key] - before[key]) <= TOLERANCE for key in after)


def _numbers(score: Score) -> dict[str, float]:
    turns = {f"turn {place}": reward for place, reward in enumerate(score.turn)}
    return turns | {"rollout": score.rollout} | {f"part {name}": value for name, value in score.parts.items()}


def choose_env(recorded: NamedEnv, target: str | None, params: Mapping[str, Any]) -> NamedEnv:
    """The recorded environment with some other parameters, or another one with these alone."""
    if target in (None, recorded.target):
        return NamedEnv(target=recorded.target, params={**recorded.params, **params})
    return NamedEnv(target=target, params=dict(params))


def replay(lines: Lines, target: str | None = None, params: Mapping[str, Any] | None = None) -> Iterator[Replayed]:
    """Score episodes again, with the environment of each or another one; see `choose_env`.

    Raises DataError, naming the line, where an environment cannot be made or fails, and where it is code or a server
    that the file names and `target` does not.
    """
    envs: dict[str, Env] = {}
    for place, line in lines:
        named, score = choose_env(line.env, target, params or {}), None
        if line.score is not None:
            try:
                key = named.model_dump_json()
                if key not in envs:
                    envs[key] = _load(named, asked_for=target is not None)
                score = envs[key].score(line.episode, line.progress)
                _check_score(score, line.episode)
            except Exception as error:
                raise DataError("unscored", f"{place}: {type(error).__name__}: {error}") from error
        yield Replayed(line, named, score)


def _load(env: NamedEnv, asked_for: bool) -> Env:
    if not asked_for and (":" in env.target or env.target == "remote"):
        raise ValueError(
            f"env.target: {env.target!r}, runs only where the command line names it too; if you trust it and the file, "
            f"give --env {env.target}"
        )
    return load_env(env.target, env.params)


@dataclass
class Tally:
    """The numbers of replayed episodes without the episodes, so that no file has to fit into memory."""

    statuses: Counter[str] = field(default_factory=Counter)
    envs: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    rewards: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)  # name: recorded, now
    malformed: int = 0
    different: int = 0
    largest: float = 0.0
    changed: list[str] = field(default_factory=list)  # episodes that their own environment scores otherwise

    def add(self, replayed: Replayed) -> None:
        line, episode = replayed.line, replayed.line.episode
        self.statuses[episode.status] += 1
        if line.score is None or replayed.score is None:
            return
        self.envs[_describe(replayed.env)] += 1
        for name, size in (
            ("turns", len(episode.turns)),
            ("frames", episode.frames_used),
            ("visual tokens", episode.tokens_used),
        ):
            self.sizes[name].append(size)
        self.malformed += sum(turn.action.error is not None for turn in episode.turns)
        for column, score in enumerate((line.score, replayed.score)):
            for name, value in {**score.parts, "total reward": score.total}.items():
                self.rewards.setdefault(name, ([], []))[column].append(value)
        self.different += replayed.difference > TOLERANCE
        self.largest = max(self.largest, replayed.difference)
        if not replayed.reproduced:
            totals = f"{line.score.total:.10g} recorded, {replayed.score.total:.10g} now"
            self.changed.append(f"step {line.step}, {line.name}: {totals}")

    def show(self, console: Console) -> None:
        table = Table("", "recorded", "scored again")
        for column in table.columns[1:]:
            column.justify = "right"
        table.add_row("episodes", str(self.statuses.total()))
        for status in ("done", "truncated", "errored"):
            table.add_row(f"  {status}", str(self.statuses[status]))
        for name, sizes in self.sizes.items():
            table.add_row(f"{name}, mean", f"{fmean(sizes):.2f}")
        if turns := sum(self.sizes["turns"]):
            table.add_row("malformed turns", f"{self.malformed / turns:.1%}")
        table.add_section()
        for name in sorted(self.rewards, key=lambda name: name == "total reward"):
            means = (f"{fmean(values):.4f}" if values else "-" for values in self.rewards[name])
            table.add_row(Text(f"{printable(name)}, mean"), *means)
        console.print(table)
        if self.statuses["errored"]:
            say(console, "errored episodes are not scored and in no mean")
        for env, count in self.envs.most_common(NAMED):
            say(console, f"{count} scored with {env}")
        of = f"{self.different} of {self.envs.total()} totals differ from the recorded ones"
        say(console, f"{of}, by {self.largest:.3g} at most")
        for name in self.changed[:NAMED]:
            say(console, f"not reproduced: {printable(name)}")
        if len(self.changed) > NAMED:
            say(console, f"not reproduced: {len(self.changed) - NAMED} more")


def _describe(env: NamedEnv) -> str:
    return printable(f"{env.target} {json.dumps(env.params)}" if env.params else env.target)


# --- showing ----------------------------------------------------------------------------------------------------------


def split_frames(episode: Episode) -> list[tuple[FrameRef, ...]]:
    """The frames of the first observation, then those that were granted in each turn."""
    cuts = [0, *(turn.shown for turn in episode.turns), episode.frames_used]
    return [episode.shown[start:stop] for start, stop in pairwise(cuts)]


def draw_timeline(
    video: VideoHandle,
    spans: Sequence[tuple[float, float]],
    seen: Iterable[int],
    granted: Iterable[int],
    width: int = WIDTH,
) -> str:
    """The video as `width` characters, marked as in `LEGEND`; `seen` and `granted` are indices of candidate frames."""
    first, last = video.times[0], video.times[-1]

    def column(seconds: float) -> int:
        place = (seconds - first) / (video.duration or 1.0) * width
        return int(min(max(place, 0.0), width - 1.0))

    inside: set[int] = set()
    for start, end in spans:
        if start <= last and first <= end:
            inside.update(range(column(start), column(end) + 1))
    marks = {column(video.times[index]): SEEN for index in seen}
    marks |= {column(video.times[index]): GRANTED for index in granted}
    return "".join(
        marks.get(place, EVIDENCE).upper() if place in inside else marks.get(place, NOTHING) for place in range(width)
    )


def show_episode(line: EpisodeLine, console: Console) -> None:
    episode, task, score = line.episode, line.episode.task, line.score
    console.rule(Text(f"step {line.step}, {printable(line.name)}"))
    _print(console, "env", f"{_describe(line.env)}, {line.progress:.0%} of the training done")
    _print(console, "question", task.question)
    for place, option in enumerate(task.options):
        _print(console, "", f"({ascii_uppercase[place : place + 1] or place + 1}) {option}")
    _print(console, "gold answer", task.answer)
    for what, evidence in _evidence(task.evidence):
        _print(console, what, evidence)

    first, *granted = split_frames(episode)
    console.rule("first observation")
    _show_frames(episode, (), first, console)
    _print(console, "", LEGEND)
    for place, (turn, frames) in enumerate(zip(episode.turns, granted, strict=True)):
        console.rule(f"turn {turn.k}")
        _print(console, "response", turn.response)
        _print(console, *_action(turn.action))
        _show_frames(episode, episode.shown[: turn.shown], frames, console)
        rewards = ([f"{score.turn[place]:.4g}"] if score else []) + ([_list(turn.rewards)] if turn.rewards else [])
        _print(console, "reward", ", ".join(rewards) or "none")

    console.rule("end")
    _print(console, "status", f"{episode.status}{f': {line.error}' if line.error else ''}")
    if episode.answer is not None:
        _print(console, "answer", episode.answer)
    _print(console, "used", f"{episode.frames_used} frames, {episode.tokens_used} visual tokens")
    if score is None:
        _print(console, "score", "none: the episode errored")
    else:
        _print(console, "parts", _list(score.parts))
        _print(console, "total", f"{score.total:.4g} = turns {sum(score.turn):.4g} + rollout {score.rollout:.4g}")


def readable(text: str) -> str:
    """`text` on its lines, with every other character that could act on a terminal replaced."""
    return "\n".join(
        "".join(
            character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
            for character in line
        )
        for line in text.split("\n")
    )


def _print(console: Console, what: str, text: str) -> None:
    """A labelled text, the further lines of which stand below its first one."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=11, style="dim")
    grid.add_column(overflow="fold")
    grid.add_row(what, Text(readable(text)))
    console.print(grid)


def _show_frames(episode: Episode, seen: Sequence[FrameRef], granted: Sequence[FrameRef], console: Console) -> None:
    """Times in seconds, with a * in the evidence, which is that of the first video; then the timeline."""
    videos = episode.task.videos
    for place, video in enumerate(videos):
        spans = () if place else episode.task.evidence.spans
        now = [ref for ref in granted if ref.video == video.id]
        before = [ref.index for ref in seen if ref.video == video.id]
        times = " ".join(_time(ref, video.times[ref.index], spans) for ref in now)
        if len(videos) > 1:
            _print(console, "video", video.id)
        _print(console, "frames", f"{len(now)} granted at {times} s" if now else "none granted")
        drawn = draw_timeline(video, spans, before, [ref.index for ref in now])
        say(console, f"{video.times[0]:7.2f} |{drawn}| {video.times[-1]:.2f} s")


def _time(ref: FrameRef, seconds: float, spans: Sequence[tuple[float, float]]) -> str:
    star = "*" if any(start <= seconds <= end for start, end in spans) else ""
    return f"{seconds:.2f}{star}" + (f"[{_sides(ref.box)}]" if ref.box else "")


def _evidence(evidence: Evidence) -> Iterator[tuple[str, str]]:
    if evidence.spans:
        yield "evidence", ", ".join(f"{start:.2f} to {end:.2f} s" for start, end in evidence.spans)
    if evidence.boxes:
        yield "boxes", ", ".join(f"{seconds:.2f} s [{_sides(box)}]" for seconds, box in evidence.boxes.items())
    if evidence.labels:
        yield "labels", _list(evidence.labels)


def _sides(box: Sequence[float]) -> str:
    return " ".join(f"{side:.3g}" for side in box)


def _action(action: Action) -> tuple[str, str]:
    """What was executed, or why nothing was."""
    asked = f"{action.name} {json.dumps(action.args, ensure_ascii=False)}" if action.name else ""
    if action.error is None:
        return "executed", asked
    return ("refused", f"{asked}: {action.error}") if asked else ("malformed", action.error)


def _list(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


# --- the command ------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, OSError) as error:  # a DataError is a ValueError
        _warn(str(error))
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m videorl.episodes", description="Recorded episodes: scored again, or shown."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    again = commands.add_parser(
        "replay",
        help="score episodes again",
        description="Score episodes again. Exits with 1 where their own environment does not give the recorded scores.",
    )
    one = commands.add_parser("show", help="show one episode turn by turn", description="Show one episode.")
    for command, run in ((again, _replay), (one, _show)):
        command.add_argument("file", metavar="FILE_OR_RUN_DIR", help=f"an {FILE}, or the folder of a run")
        command.add_argument("--step", type=int, metavar="N", help="episodes of this step alone")
        command.set_defaults(run=run)
    again.add_argument("--id", help="episodes of this task alone")
    again.add_argument("--env", metavar="NAME", help="score with this environment instead: a name, or 'my_pkg:MyEnv'")
    again.add_argument(
        "--params",
        type=_parameters,
        default={},
        metavar="JSON",
        help="parameters that replace the recorded ones; all there are where --env names another environment",
    )
    again.add_argument("--out", metavar="FILE", help="write the episodes with their new scores here")
    again.add_argument("--limit", type=_positive, metavar="N", help="the first N episodes alone")
    one.add_argument("name", metavar="ID[#INDEX]", help="a task, or one of its episodes: row-7#2")
    return parser


def _parameters(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object; write it as \'{{"variant": "release"}}\'')
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return int(text)


def _warn(text: str) -> None:
    print(printable(text), file=sys.stderr)


def _replay(args: argparse.Namespace) -> int:
    lines = islice(select(read_episodes(args.file, _warn), args.step, args.id), args.limit)
    tally = Tally()
    with _publish(args.out) as write:
        for replayed in replay(lines, args.env, args.params):
            tally.add(replayed)
            write(replayed.line.model_copy(update={"env": replayed.env, "score": replayed.score}))
        if not tally.statuses:
            raise DataError("empty", f"{args.file}: no such episode; give another --step or --id, or another file")
    tally.show(Console())
    return 1 if tally.changed else 0


@contextmanager
def _publish(path: str | None) -> Iterator[Callable[[EpisodeLine], None]]:
    """Lines to a file that is there once the block ends without exception; to nowhere without one."""
    if path is None:
        yield lambda line: None
        return
    target = Path(path)
    if target.exists():
        raise DataError("exists", f"{path} exists; choose another name for --out")
    building = target.with_name(f"{target.name}.{os.getpid()}.building")
    try:
        with building.open("w", encoding="utf-8") as file:
            yield lambda line: print(line.model_dump_json(), file=file)
        building.replace(target)
    finally:
        building.unlink(missing_ok=True)


def _show(args: argparse.Namespace) -> int:
    found: EpisodeLine | None = None
    others: list[str] = []
    known: dict[str, None] = {}
    for _, line in select(read_episodes(args.file, _warn), args.step):
        known[line.name] = None
        if args.name not in (line.id, line.name):
            continue
        if found is None:
            found = line
        else:
            others.append(f"step {line.step}, {line.name}")
    if found is None:
        near = difflib.get_close_matches(args.name, known) or [*islice(known, 3)] or ["nothing"]
        step = "" if args.step is None else f" of step {args.step}"
        raise DataError("no_episode", f"{args.file}: no episode {args.name!r}{step}; it holds {', '.join(near)}, ...")
    console = Console()
    show_episode(found, console)
    if others:
        more = f"{', '.join(others[:NAMED])}{', ...' if len(others) > NAMED else ''}"
        say(console, f"{len(others)} more: {printable(more)}; choose with #INDEX and --step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
