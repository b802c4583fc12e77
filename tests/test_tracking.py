"""Trackers see every step, and none of them can stop a run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from videorl.tracking import RunInfo, Trackers, tracker_openers


class Listed:
    """Keeps what it is told; raises in one method if asked to."""

    def __init__(self, fails: str = ""):
        self.fails = fails
        self.seen: list[Any] = []
        if fails == "open":
            raise ConnectionError("no network")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.seen.append((step, dict(metrics)))
        if self.fails == "log" and step == 2:
            raise ConnectionError("no network")

    def close(self) -> None:
        if self.fails == "close":
            raise ConnectionError("no network")
        self.seen.append("closed")


def log_three(trackers: Trackers) -> None:
    for step in (1, 2, 3):
        trackers.log(step, {"reward/mean": float(step)})
    trackers.close()


LOGGED = [(step, {"reward/mean": float(step)}) for step in (1, 2, 3)]


@pytest.mark.parametrize(("fails", "seen"), [("log", LOGGED[:2]), ("close", LOGGED)])
def test_a_tracker_that_fails_is_off_and_the_others_go_on(fails: str, seen: list, caplog: pytest.LogCaptureFixture):
    bad, good = Listed(fails), Listed()
    log_three(Trackers({"bad": lambda: bad, "good": lambda: good}))
    assert bad.seen == seen
    assert good.seen == [*LOGGED, "closed"]
    assert caplog.text.count("tracker bad is off") == 1 and "no network" in caplog.text


def test_a_tracker_that_does_not_open_is_off(caplog: pytest.LogCaptureFixture):
    good = Listed()
    log_three(Trackers({"bad": lambda: Listed("open"), "good": lambda: good}))
    assert good.seen == [*LOGGED, "closed"]
    assert caplog.text.count("tracker bad is off") == 1


def test_a_tracker_that_hangs_is_left_behind(caplog: pytest.LogCaptureFixture):
    release = threading.Event()

    def hang() -> Listed:
        release.wait()
        return Listed()

    trackers = Trackers({"stuck": hang})
    trackers.log(1, {})
    trackers.close(timeout=0.01)
    release.set()
    assert "tracker stuck did not finish" in caplog.text


def test_an_extra_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'videorl\[wandb\]'"):
        tracker_openers(["wandb"], RunInfo(folder=tmp_path, config={}))


def scalars(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("reward/mean")]


def test_tensorboard_hides_the_steps_that_are_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    info = RunInfo(folder=tmp_path, config={})
    log_three(Trackers(tracker_openers(["tensorboard"], info)))
    assert scalars(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    resumed = Trackers(tracker_openers(["tensorboard"], info))
    resumed.log(2, {"reward/mean": 20.0})
    resumed.close()
    assert "tracker tensorboard" not in caplog.text
    assert scalars(tmp_path) == [(1, 1.0), (2, 20.0)]


class FakeWandb(SimpleNamespace):
    def __init__(self):
        self.calls: list[Any] = []
        run = SimpleNamespace(
            define_metric=lambda name, step_metric: self.calls.append(("axis", name, step_metric)),
            log=lambda values: self.calls.append(values),
            finish=lambda: self.calls.append("finish"),
        )
        self.Settings = SimpleNamespace
        self.init = lambda **options: self.calls.append(("init", options)) or run


class FakeSwanLab(SimpleNamespace):
    def __init__(self):
        self.calls: list[Any] = []
        run = SimpleNamespace(
            log=lambda values, step: self.calls.append((step, values)), finish=lambda: self.calls.append("finish")
        )
        self.init = lambda **options: self.calls.append(("init", options)) or run


class FakeMLflow(SimpleNamespace):
    def __init__(self):
        self.calls: list[Any] = []
        self.entities = SimpleNamespace(Metric=lambda key, value, timestamp, step: (key, value, step))
        client = SimpleNamespace(
            get_experiment_by_name=lambda name: None,
            create_experiment=lambda name: f"experiment {name}",
            create_run=lambda experiment_id, run_name: (
                self.calls.append(("create", experiment_id, run_name))
                or SimpleNamespace(info=SimpleNamespace(run_id="r1"))
            ),
            log_dict=lambda run_id, values, file: self.calls.append((run_id, values, file)),
            update_run=lambda run_id, status: self.calls.append((run_id, status)),
            log_batch=lambda run_id, metrics: self.calls.append((run_id, metrics)),
            set_terminated=lambda run_id: self.calls.append((run_id, "terminated")),
        )
        self.MlflowClient = lambda: client


@pytest.fixture
def twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Log one step with a tracker of this name, then another as a resumed process would; the calls of both."""

    def run(name: str, package: Any) -> tuple[list, list]:
        monkeypatch.setitem(sys.modules, name, package)
        calls = []
        for step in (1, 2):
            package.calls = []
            trackers = Trackers(tracker_openers([name], RunInfo(folder=tmp_path, config={"seed": 0})))
            trackers.log(step, {"eval/recall@0.5": 0.5})
            trackers.close()
            calls.append(package.calls)
        return calls[0], calls[1]

    return run


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_resumed_run_continues_under_its_id(twice, tmp_path: Path, name: str):
    first, second = twice(name, {"wandb": FakeWandb, "swanlab": FakeSwanLab}[name]())
    options, again = first[0][1], second[0][1]
    assert options["id"] == again["id"] and options["resume"] == "allow"
    assert options["config"] == {"seed": 0} and options["name"] == tmp_path.name
    logged = {"wandb": {"step": 2, "eval/recall@0.5": 0.5}, "swanlab": (2, {"eval/recall@0.5": 0.5})}[name]
    assert second[-2:] == [logged, "finish"]


def test_mlflow_continues_its_run_and_gets_names_it_accepts(twice, tmp_path: Path):
    first, second = twice("mlflow", FakeMLflow())
    assert first[:2] == [("create", "experiment videorl", tmp_path.name), ("r1", {"seed": 0}, "config.yaml")]
    assert second == [("r1", "RUNNING"), ("r1", [("eval/recall_0.5", 0.5, 2)]), ("r1", "terminated")]
