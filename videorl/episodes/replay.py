"""The rewards of recorded episodes, from the record alone: no model, no pixels, no GPU."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from videorl.data.report import say
from videorl.envs.env import Env
from videorl.envs.records import Score
from videorl.envs.registry import load_env
from videorl.episodes.records import EpisodeLine, Lines, NamedEnv, check_score
from videorl.live import printable
from videorl.types import DataError

TOLERANCE = 1e-9  # a score is a pure function of the record: more than this is another function
NAMED = 20  # episodes that a message lists at most


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
                check_score(score, line.episode)
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
        self.envs[str(replayed.env)] += 1
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
