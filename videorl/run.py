"""The run directory, the only thing a run leaves behind, and what is written to it while training.

    config.yaml       the resolved configuration, secrets redacted
    metrics.jsonl     one line a step; step 0 is the evaluation before training
    rollouts.jsonl    one line a rollout: prompt, response, rewards, media
    episodes.jsonl    with rollout.env, one line an episode: its record, to be scored again or shown
    checkpoints/      see videorl/checkpoint.py
    tensorboard/      and the folders of other trackers
    export/           the trained model in Hugging Face format
    summary.json, curves.png

A step is published when its line of metrics is on disk. `resume` takes the files back to the step of the newest whole
checkpoint, so that a killed run leaves the same files as one that was never killed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal, Protocol, TextIO

import yaml
from rich.console import Console

from videorl.checkpoint import Checkpoints, Part
from videorl.config import Config, ConfigError
from videorl.live import PlainView, RichView, message_text
from videorl.summary import compute_summary, draw_curves, make_table
from videorl.tracking import RunInfo, Trackers, tracker_openers
from videorl.types import Rollout, RolloutGroup

logger = logging.getLogger(__name__)

_MAY_CHANGE = {"total_steps", "dry_run", "run", "cluster", "eval"}
"""Top-level keys that do not change what a step computes, so that a run may be resumed with other values."""

_SECRET = re.compile(r"(^|[_-])(token|secret|password|passwd|api_?key|access_?key|credentials?)$", re.IGNORECASE)


class Evaluation(Protocol):
    def metrics(self) -> Mapping[str, float]: ...


class StepLog:
    """The metrics and rollouts of one step, gathered until the step is published."""

    def __init__(self, step: int, show: Callable[[str], None]):
        self.step, self._show, self._phase = step, show, ""
        self.numbers: dict[str, float] = {}
        self.groups: Sequence[RolloutGroup] = ()

    def value(self, name: str, number: float) -> None:
        self.numbers[name] = float(number)

    def count(self, name: str, number: float = 1) -> None:
        """Add to what this step has counted under `name`."""
        self.value(name, self.numbers.get(name, 0.0) + number)

    def metrics(self, area: str, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self.value(f"{area}/{name}", number)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to `time/<name>`, and show it as what is under way."""
        self._phase = name
        self._show(f"step {self.step} · {name}")
        start = time.perf_counter()
        yield
        self.count(f"time/{name}", time.perf_counter() - start)

    def progress(self, done: int) -> None:
        """Show how much of what is under way is done."""
        self._show(f"step {self.step} · {self._phase} {done}")

    def rollouts(
        self, groups: Sequence[RolloutGroup], others: Sequence[RolloutGroup] = (), passes: Iterable[str] = ()
    ) -> None:
        """Keep the step's rollouts for `rollouts.jsonl` and summarise them, without `others`, as `reward/*` and
        `rollout/*`; `passes` are the names of the second passes."""
        self.groups = [*groups, *others]
        self.metrics("reward", compute_reward_metrics(groups))
        self.metrics("rollout", compute_rollout_metrics(groups, passes))

    def merge(self, other: StepLog) -> None:
        """Take over what another log has gathered of this step, beside it."""
        self.numbers |= other.numbers
        self.groups = [*self.groups, *other.groups]

    def evaluation(self, evaluation: Evaluation) -> None:
        self.metrics("eval", evaluation.metrics())


class Run:
    """A run directory and what writes to it. `with run:` starts and stops the live view and the trackers.

    Raises ConfigError where another process uses the folder, and where the folder has checkpoints of a run whose
    configuration differs in more than may change.
    """

    def __init__(self, config: Config):
        self.config = config
        self.folder = Path(config.run.dir).resolve()  # workers with another working directory write here too
        self.folder.mkdir(parents=True, exist_ok=True)
        self.history: list[dict[str, float]] = []
        self._lock = _lock(self.folder)
        self._checkpoints = Checkpoints(self.folder / "checkpoints", config.run.keep_checkpoints)
        self._resolved = redact(config.model_dump(mode="json"))
        self._write_config()
        self._view = self._open_view()
        info = RunInfo(folder=self.folder, config=self._resolved)
        self._openers = tracker_openers(config.run.trackers, info)
        self._trackers = Trackers({})
        self._carried: dict[str, float] = {}  # what happened between two steps, for the line of the second
        self._failed_saves = 0

    def __enter__(self) -> Run:
        self._trackers = Trackers(self._openers)
        self._view.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._view.stop()
        self._trackers.close()
        self._lock.close()

    def progress(self, label: str, done: int, total: int) -> None:
        """Show how far something is that takes time."""
        self._view.show(f"{label} {done}/{total}")

    def say(self, lines: Sequence[str]) -> None:
        """Print lines that stay, above the live view."""
        self._view.say(lines)

    @contextmanager
    def step(self, step: int) -> Iterator[StepLog]:
        """Gather a step; publish it if the block ends without an exception, else write nothing of it."""
        log = StepLog(step, self._view.show)
        self._view.show(f"step {step}")
        start = time.perf_counter()
        yield log
        log.value("time/step", time.perf_counter() - start)
        log.numbers |= self._carried
        self._carried = {}
        lines = [line for group in log.groups for line in make_lines(step, group)]
        _append(self.folder / "rollouts.jsonl", lines)
        if self.config.rollout.env is not None:
            lines = [line for group in log.groups for line in make_episode_lines(step, group)]
            _append(self.folder / "episodes.jsonl", lines)
        _append(self.folder / "metrics.jsonl", [{"step": step, **_or_null(log.numbers)}])
        self.history.append({"step": step, **log.numbers})
        self._trackers.log(step, log.numbers)
        self._view.published([rollout for group in log.groups for rollout in group.all])

    def due(self, what: Literal["eval", "save"], step: int) -> bool:
        """Whether to evaluate or save after this step: every `run.<what>_every` steps, and after the last one."""
        every = {"eval": self.config.run.eval_every, "save": self.config.run.save_every}[what]
        return step == self.config.total_steps or (every > 0 and step % every == 0)

    def save(self, step: int, parts: Mapping[str, Part], state: Mapping[str, Any]) -> None:
        """Publish a checkpoint of a published step. `state` is JSON.

        Where the disk refuses (OSError), the older checkpoints stay and training goes on, with a warning. `time/save`
        and `run/save_failed` stand in the line of the step that follows.
        """
        self._view.show(f"step {step} · save")
        start = time.perf_counter()
        try:
            self._checkpoints.save(step, parts, state)
        except OSError as error:
            self._failed_saves += 1
            kept = self._checkpoints.steps()
            newest = f"step {kept[-1]}" if kept else "the start"
            logger.warning("CHECKPOINT OF STEP %d FAILED (%s). Training goes on; the newest is %s", step, error, newest)
        self._carried = {"time/save": time.perf_counter() - start, "run/save_failed": float(self._failed_saves)}

    def resume(self, parts: Mapping[str, Part]) -> tuple[int, dict[str, Any] | None]:
        """Load the newest whole checkpoint and cut the files after its step; (0, None) where there is none.

        RuntimeError if there are checkpoints and none of them is whole.
        """
        step, state = self._checkpoints.load(parts)
        metrics, rollouts = self.folder / "metrics.jsonl", self.folder / "rollouts.jsonl"
        if state is not None:
            print(f"{self.folder}: resuming after step {step}", flush=True)
        elif metrics.exists():
            logger.warning("%s has no checkpoint: starting over at step 0", self.folder)
        for path in (metrics, rollouts, self.folder / "episodes.jsonl"):
            _cut(path, step if state is not None else -1)
        self.history[:] = _read_history(metrics)
        return step, state

    def finish(self, baselines: Mapping[str, float] | None = None) -> None:
        """Print before and after, and write `summary.json` and `curves.png`.

        `baselines` are the scores of the best constant answer, named like the evaluation's metrics.
        """
        self._view.stop()
        summary = compute_summary(self.history, baselines or {}) | {"failed_saves": self._failed_saves}
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=2))
        title = f"{self.config.name}: {self.folder.name}"
        draw_curves(self.history, baselines or {}, title, self.folder / "curves.png")
        console = Console()
        console.print(make_table(summary))
        console.print(f"curves: {self.folder / 'curves.png'}", soft_wrap=True)

    def _open_view(self) -> PlainView:
        mode = self.config.run.live
        console = Console(force_terminal=True if mode == "rich" else None)
        if mode == "plain" or not console.is_terminal:
            return PlainView(self.config.total_steps, self.history)
        return RichView(self.config.total_steps, self.history, console, self.config.name)

    def _write_config(self) -> None:
        path = self.folder / "config.yaml"
        text = yaml.safe_dump(self._resolved, sort_keys=False, allow_unicode=True)
        if self._checkpoints.steps() and path.exists():
            _refuse_changes(path, yaml.safe_load(path.read_text()), yaml.safe_load(text))
        building = path.with_suffix(".building")
        building.write_text(text)
        building.replace(path)


def _refuse_changes(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, after = _flatten(old), _flatten(new)
    absent = "<absent>"
    problems = [
        f"{key}: {after.get(key, absent)}, but {path.parent} was begun with {before.get(key, absent)}; "
        "set it back, or choose another run.dir"
        for key in dict.fromkeys([*before, *after])
        if key.split(".")[0] not in _MAY_CHANGE and before.get(key, absent) != after.get(key, absent)
    ]
    if problems:
        raise ConfigError(problems)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def redact(tree: Any) -> Any:
    """A copy in which the texts under keys like `hf_token` or `api_key` are replaced. `max_tokens` is no such key."""
    if isinstance(tree, dict):
        return {
            key: "<redacted>" if isinstance(value, str) and _SECRET.search(str(key)) else redact(value)
            for key, value in tree.items()
        }
    return [redact(item) for item in tree] if isinstance(tree, list) else tree


def _lock(folder: Path) -> TextIO:
    """Hold the folder until the file is closed or the process ends, however it ends."""
    file = (folder / ".lock").open("a+")
    try:
        # a record lock, unlike flock, does not live on in a child process of a killed driver
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read()
        raise ConfigError([f"run.dir: {folder} is in use by {holder}; stop it, or choose another folder"]) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def _append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def _cut(path: Path, step: int) -> None:
    """Cut a JSONL file before the first line that is torn or of a later step.

    Lines stand in the order of steps, and those of a step that has a checkpoint were on disk before it.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = 0
        for line in file:
            try:
                whole = line.endswith(b"\n") and json.loads(line)["step"] <= step
            except ValueError:
                whole = False
            if not whole:
                break
            end += len(line)
        file.truncate(end)


def _read_history(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    with path.open() as file:
        return [{name: math.nan if v is None else v for name, v in json.loads(line).items()} for line in file]


def _or_null(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN and no infinity."""
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def compute_reward_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Mean of every reward term over the rollouts that have it, and the shares of those it could not read and of those
    it could not say anything of; then mean and standard deviation of the reward, and the share of rollouts without one,
    failed episodes included."""
    rollouts = [rollout for group in groups for rollout in group.all]
    rewards = [reward for group in groups for reward in group.rewards] or [math.nan]
    out = _term_means(rollouts)
    for name in dict.fromkeys(name for rollout in rollouts for name in rollout.failures):
        out[f"{name}/unreadable"] = fmean(name in each.failures for each in rollouts if name in each.terms)
    for name in dict.fromkeys(name for rollout in rollouts for name in rollout.abstained):
        out[f"{name}/abstained"] = fmean(
            name in each.abstained for each in rollouts if name in each.abstained or name in each.terms
        )
    failed = sum(len(group.failed) for group in groups)
    lost = (sum(len(group.lost) for group in groups) + failed) / (len(rollouts) + failed)
    return out | {"mean": fmean(rewards), "std": pstdev(rewards), "lost": lost}


def _term_means(rollouts: Sequence[Rollout]) -> dict[str, float]:
    measured = [rollout.measured for rollout in rollouts]
    names = dict.fromkeys(name for terms in measured for name in terms)
    return {name: fmean(terms[name] for terms in measured if name in terms) for name in names}


def compute_rollout_metrics(groups: Sequence[RolloutGroup], passes: Iterable[str] = ()) -> dict[str, float]:
    """Mean response length in tokens, and shares: of rollouts, of groups (zero variance), of prompt tokens (prefix).

    For each of the `passes` by name the means of its terms and of its reward, to hold beside `reward/mean`, and the
    share of prompts that got a side group of it; for episodes the means of their measures, and the share of those that
    failed.
    """
    rollouts = [rollout for group in groups for rollout in group.all]
    if not rollouts:
        return {"failed": 1.0}
    prompt_tokens = sum(rollout.prompt.num_tokens for rollout in rollouts)
    extra: dict[str, float] = {}
    for name in passes:
        sides = [group.sides[name] for group in groups if name in group.sides]
        means = _term_means([rollout for side in sides for rollout in side.all])
        extra |= {f"{name}/asked": len(sides) / len(groups)} | {f"{name}/{term}": v for term, v in means.items()}
        if rewards := [reward for side in sides for reward in side.rewards]:
            extra[f"{name}/reward"] = fmean(rewards)
    failed = sum(len(group.failed) for group in groups)
    if failed or any(rollout.measures for rollout in rollouts):
        extra |= compute_measures(rollouts) | {"failed": failed / (failed + len(rollouts))}
    return extra | {
        "response_tokens": fmean(len(rollout.response_ids) for rollout in rollouts),
        "truncated": fmean(rollout.finish_reason == "length" for rollout in rollouts),
        "parse_failure": fmean(bool(rollout.failures) for rollout in rollouts),
        "zero_variance_groups": fmean(group.zero_variance for group in groups),
        "prefix_cached": sum(rollout.cached_tokens for rollout in rollouts) / prompt_tokens,
    }


def compute_measures(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means of what was measured in episodes, each over those that have it."""
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.measures)
    return {name: fmean(each.measures[name] for each in rollouts if name in each.measures) for name in names}


def make_episode_lines(step: int, group: RolloutGroup) -> list[dict[str, Any]]:
    """A group's episodes for `episodes.jsonl`, those that failed among them."""
    place = {"step": step, "id": group.prompt.prompt.id}
    known = [place | {"index": each.index, "error": None} | each.episode for each in group.all if each.episode]
    failed = [place | {"index": each.index, "error": each.why} | each.episode for each in group.failed if each.episode]
    return sorted([*known, *failed], key=lambda line: line["index"])


def make_lines(step: int, group: RolloutGroup) -> list[dict[str, Any]]:
    """A group for `rollouts.jsonl`: a line for each rollout, then those of its second passes."""
    known = [make_line(step, rollout) for rollout in group.rollouts]
    unknown = [make_line(step, rollout) | {"reward": None} for rollout in group.lost]
    first = sorted(known + unknown, key=lambda line: line["index"])
    sides = [line | {"pass": name} for name, side in group.sides.items() for line in make_lines(step, side)]
    return first + sides


def make_line(step: int, rollout: Rollout) -> dict[str, Any]:
    """`index` is the rollout's place in its group; frame times are seconds to the microsecond."""
    rendered = rollout.prompt
    return {
        "step": step,
        "prompt_id": rendered.prompt.id,
        "index": rollout.index,
        "temperature": rollout.temperature,
        "prompt": "\n".join(message_text(message) for message in rendered.prompt.messages),
        "response": rollout.text,
        "reward": rollout.reward,
        "terms": _or_null(rollout.measured),
        "failures": rollout.failures,
        "abstained": rollout.abstained,
        "finish_reason": rollout.finish_reason,
        "media_keys": [media.key for media in rendered.media],
        "media_paths": [media.clip.path for media in rendered.media],
        "frame_times": [[round(seconds, 6) for seconds in times] for times in rendered.frame_times],
    }
