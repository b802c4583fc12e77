"""A recorded episode on the terminal, turn by turn. What a model wrote is shown as text, whatever it holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from string import ascii_uppercase

from rich.console import Console
from rich.table import Table
from rich.text import Text

from videorl.data.report import say
from videorl.envs.records import Action, Episode, Evidence, FrameRef, VideoHandle
from videorl.episodes.records import EpisodeLine
from videorl.live import printable

WIDTH = 60  # of a timeline, in characters
NOTHING, EVIDENCE, SEEN, GRANTED = "-=ox"
LEGEND = f"{NOTHING} video  {EVIDENCE} evidence  {SEEN} seen  {GRANTED} granted now  capital: in the evidence"


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
    _print(console, "env", f"{line.env}, {line.progress:.0%} of the training done")
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
