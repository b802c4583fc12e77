"""One Ray, one vLLM engine, one policy and one encoder for all tests of the real stack, over a few synthetic clips."""

from __future__ import annotations

import importlib
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
MY_CODE = ROOT / "tests" / "my_code.py"


JUDGE_KEY = "a-key-for-tests"
os.environ["TINY_JUDGE_KEY"] = JUDGE_KEY  # before Ray starts, whose workers look for it


def pytest_collection_modifyitems(items):
    for item in items:
        if "e2e" in Path(str(item.fspath)).parts:
            item.add_marker(pytest.mark.e2e)
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@dataclass(frozen=True)
class Workspace:
    """Synthetic clips with their rows, and a tiny model that knows their words."""

    folder: Path

    def overrides(self, *more: str) -> list[str]:
        return [
            "recipe=quickstart",
            f"data.path={self.folder}/train.jsonl",
            f"data.eval_path={self.folder}/eval.jsonl",
            f"data.media_root={self.folder}",
            f"model.path={self.folder}/model",
            f"store.dir={self.folder}/store",
            "run.trackers=[]",
            "run.live=plain",
            "policy.ranks=1",
            "rollout.num_engines=1",
            *more,
        ]

    def config(self, *more: str):
        from videorl.config import load_config

        return load_config("train", self.overrides(*more))

    def rows(self, name: str = "train") -> list[dict[str, Any]]:
        from videorl.data.schema import load_rows

        return load_rows(self.folder / f"{name}.jsonl")

    def pair_rows(self) -> list[dict[str, Any]]:
        """Six rows with a right and a wrong response of unequal length."""
        from videorl.data.phrases import align_phrases
        from videorl.data.synthetic import draw_example, draw_response

        rng = random.Random(0)
        rows = self.rows()[:6]
        for row in rows:
            kind = row["data_source"].removeprefix("synthetic-")
            row["chosen"] = draw_response(draw_example(kind, rng), 0.0, rng)
            row["rejected"] = row["chosen"].replace("<think>", "<think>red ")[: rng.choice([-9, -1])]
            row["phrases"] = align_phrases(row["chosen"], row["rejected"])
        return rows


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Workspace:
    from videorl.data.synthetic import generate
    from videorl.models.tiny import build_tiny_model

    folder = tmp_path_factory.mktemp("workspace")
    generate(folder, seed=0, num_train=24, num_eval=9)
    rows = [json.loads(line) for line in (folder / "sft.jsonl").read_text().splitlines()]
    texts = [f"{row['prompt']} {' '.join(row['choices'] or [])} {row['response']}" for row in rows]
    build_tiny_model(folder / "model", texts, seed=0)
    return Workspace(folder)


@dataclass
class Stack:
    """The running parts, and what tests do with them."""

    workspace: Workspace
    config: Any
    model: Any
    source: Any
    cluster: Any
    encoders: Any
    engines: Any
    policy: Any

    def prompts(self, rows: Sequence[dict[str, Any]], config: Any = None) -> list:
        """Rendered prompts of rows, with their embeddings in the store."""
        from videorl.data.prompts import PromptStream

        config = config or self.config
        return PromptStream(rows, config.data, self.model, self.source, seed=0).all(self.encoders.ensure)

    def collect(self, prompts, group_size: int = 4, temperature: float = 1.0, label: str = "test") -> list:
        from videorl.rewards.rubric import Rubric
        from videorl.rollout.runner import Runner

        runner = Runner(self.config, self.model, self.engines.generate, Rubric(self.config.rewards))
        return runner.collect(
            prompts, group_size=group_size, temperature=temperature, label=label, progress=lambda done: None
        )

    def parity(self, groups, policy: Any = None) -> float:
        """Largest difference between engine and trainer log-probs on the sampled tokens."""
        from videorl.data.batch import make_batch

        batch = make_batch(groups)
        difference = batch.need("rollout_log_probs") - (policy or self.policy).compute_log_probs(batch)
        return float(difference.abs()[batch.response_mask].max())


@pytest.fixture(scope="session")
def stack(workspace):
    os.environ["OMP_NUM_THREADS"] = "1"
    import warm_workers

    from videorl.models.base import open_model
    from videorl.models.media import open_source
    from videorl.rollout.engine import Engines
    from videorl.workers.encoder import Encoders
    from videorl.workers.policy import Policy

    # SGD: weights move by what the gradient says, which is what tests compare
    config = workspace.config(
        "policy.optim.name=sgd", "policy.optim.lr=0.1", "policy.optim.warmup_steps=0",
        "cluster.placement=spread", "data.max_prompt_tokens=512", "rollout.max_model_len=4096",
    )  # fmt: skip
    model = open_model(config.model)
    source = open_source(config, model)
    with warm_workers.WarmCluster(config) as cluster:
        encoders = Encoders(cluster, config, source)
        engines = Engines(cluster, config)
        policy = Policy.trained(cluster, config)
        cluster.wait(encoders=encoders, engines=engines, policy=policy)
        engines.load_weights(policy.publish(version=0))
        yield Stack(workspace, config, model, source, cluster, encoders, engines, policy)


@contextmanager
def lending(stack: Stack) -> Iterator[None]:
    """Runs in this process take the engine and the encoder that are running, and do not end them."""
    from warm_workers import WarmCluster

    from videorl import fitting, tpl, train
    from videorl.rollout.vllm_engine import VLLMEngine
    from videorl.self_align import __main__ as self_align
    from videorl.workers.encoder import EncoderWorker

    running = {VLLMEngine: stack.engines.actors, EncoderWorker: stack.encoders.actors}

    class Lending(WarmCluster):
        def actors(self, actor_class, *args, **options):
            return running.get(actor_class) or super().actors(actor_class, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for program in (train, fitting, tpl, self_align):
            patch.setattr(program, "Cluster", Lending)
        try:
            yield
        finally:  # the tests that follow hold the engine against the stack's policy
            stack.engines.load_weights(stack.policy.publish(version=0))


@pytest.fixture
def lent(stack) -> Iterator[None]:
    with lending(stack):
        yield


# --- whole runs ------------------------------------------------------------------------------------------------------


class RunFolder:
    """What a run left behind, so far."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir

    def metrics(self) -> dict[int, dict[str, float]]:
        """{step: metrics}."""
        return {line["step"]: line for line in self._lines("metrics.jsonl")}

    def rollouts(self) -> list[dict[str, Any]]:
        return self._lines("rollouts.jsonl")

    def batches(self) -> dict[int, list[str]]:
        """{step: prompt ids in the order of the batch}."""
        steps: dict[int, dict[str, None]] = {}
        for line in self.rollouts():
            steps.setdefault(line["step"], {})[line["prompt_id"]] = None
        return {step: list(ids) for step, ids in steps.items()}

    def _lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run_dir / name).read_text().splitlines()]


class Program(RunFolder):
    """A command that runs in a folder, as a user starts it there: with `my_code.py` in it and a clean environment.

    Whatever comes of it, its Ray among others, is known by a variable in the environment and by the parents, so that a
    test can wait until the last process is gone.
    """

    def __init__(self, folder: Path, command: Sequence[str], environment: Mapping[str, str]):
        super().__init__(folder / "run")
        self.folder = folder
        mark = uuid.uuid4().hex
        self._mark = mark.encode()
        self._seen: set[tuple[int, str]] = set()
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(MY_CODE, folder)
        self._out, self._err = (folder / f"{mark}.{name}" for name in ("out", "err"))
        # files, not pipes: a process that outlived the program would keep a pipe open
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**user_environment(), **environment, "VIDEORL_TEST_PROGRAM": mark},
                stdout=out,
                stderr=err,
                start_new_session=True,  # as a shell does: signals to the tests' group do not reach it, nor the reverse
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait(self, timeout: float = 300) -> int:
        """The exit code. A program that takes too long is killed and fails the test."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end after {timeout} s: {self._tail()}") from None

    def succeed(self) -> Program:
        assert self.wait() == 0, self._tail()
        return self

    def until(self, condition: Callable[[], bool], timeout: float = 300) -> None:
        """Wait for something that the running program does."""
        wait_until(lambda: condition() or self.process.poll() is not None, timeout)
        assert condition(), f"exit code {self.process.poll()} before that: {self._tail()}"

    def kill(self) -> None:
        """SIGKILL, to the program alone."""
        self._seen |= descendants(self.process.pid)
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """SIGKILL, to the program and to all that it started."""
        if self.process.poll() is None:
            self.kill()
        for pid in self._alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def leftovers(self, timeout: float, but: Sequence[str] = ()) -> set[str]:
        """Names of what still runs of the program and of all that it started, `timeout` seconds later."""

        def names() -> set[str]:
            return {name for pid in self._alive() if (name := process_name(pid))} - {*but}

        wait_until(lambda: not names(), timeout)
        return names()

    def _alive(self) -> set[int]:
        pids = {pid for pid, start in self._seen if start_time(pid) == start}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with suppress(OSError):  # ended meanwhile
                if self._mark in Path(f"/proc/{pid}/environ").read_bytes():
                    pids.add(pid)
        return {pid for pid in pids if start_time(pid)}

    def _tail(self) -> str:
        return f"{self.out[-2000:]}\n{self.err[-4000:]}"


def user_environment() -> dict[str, str]:
    """What a user's shell has: nothing of Ray's or vLLM's, whatever tests before this one set."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "VLLM_"))}
    return inherited | {"PYTHONPATH": str(ROOT)}


def start_time(pid: int) -> str | None:
    """What tells a process from a later one with its pid; None where it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def process_name(pid: int) -> str | None:
    """`ray::PolicyWorker` or the command; None where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip() or None
    except OSError:
        return None


def descendants(pid: int) -> set[tuple[int, str]]:
    """(pid, start time) of all processes below one."""
    found: set[tuple[int, str]] = set()
    with suppress(OSError):  # ended meanwhile
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                if start := start_time(child):
                    found |= {(child, start)} | descendants(child)
    return found


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="session")
def start():
    """`start(folder, *command, NAME=value)` starts a `Program`. Nothing of it outlives the tests."""
    started: list[Program] = []

    def start(folder: Path, *command: str, **environment: str) -> Program:
        started.append(Program(folder, command, environment))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture(scope="session")
def program(start):
    """`program(module, folder, *overrides)` starts `python -m videorl.<module> run.dir=<folder>/run ...`."""
    return lambda module, folder, *overrides: start(
        folder, sys.executable, "-m", f"videorl.{module}", f"run.dir={folder}/run", *overrides
    )


@dataclass
class Ran(RunFolder):
    """What became of a run in this process."""

    run_dir: Path
    code: int
    err: str


@pytest.fixture(scope="session")
def run_here(stack):
    """`run_here(module, folder, *overrides)`: the same in this process, with what is lent, which saves the minute
    that a program needs to start. The store is the stack's; the overrides have to name its model."""

    def run(module: str, folder: Path, *overrides: str) -> Ran:
        from videorl.launch import main

        program = getattr(importlib.import_module(f"videorl.{module}"), module)
        place = [f"run.dir={folder}/run", f"store.dir={stack.workspace.folder}/store", "cluster.placement=spread"]
        with lending(stack), redirect_stderr(io.StringIO()) as err:
            code = main(program, "train", [*overrides, *place])
        return Ran(folder / "run", code, err.getvalue())

    return run


@pytest.fixture(scope="session")
def open_run() -> type[RunFolder]:
    return RunFolder


@dataclass(frozen=True)
class Course:
    """Three epochs of eight questions about six clips, and an exam of four with three more clips."""

    overrides: list[str]
    num_clips: int = 6 + 3
    rows: int = 8
    steps: int = 6


@pytest.fixture(scope="session")
def length_reward() -> str:
    """An override that rewards what differs from rollout to rollout even with a random model."""
    return "+rewards.terms.length={target: 'my_code:length', weight: 1, requires: null, params: {per: 120}}"


@pytest.fixture(scope="session")
def course(workspace, length_reward, tmp_path_factory) -> Course:
    folder = tmp_path_factory.mktemp("course")
    lessons, exam = workspace.rows("train")[:6], workspace.rows("eval")[:3]
    write_rows(folder / "lessons.jsonl", lessons + [row | {"id": f"{row['id']}-again"} for row in lessons[:2]])
    write_rows(folder / "exam.jsonl", [*exam, lessons[0]])
    return Course(
        workspace.overrides(
            f"data.path={folder}/lessons.jsonl", f"data.eval_path={folder}/exam.jsonl", f"store.dir={folder}/store",
            "total_steps=6", "rollout.prompts_per_step=4", "rollout.group_size=4", "eval.samples=1", "run.eval_every=3",
            "algorithm.loss=my_code:half", length_reward,
        )
    )  # fmt: skip


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def whole_run(program, course, tmp_path_factory) -> Program:
    """The course from the first step to the last, on an empty store."""
    return program("train", tmp_path_factory.mktemp("whole"), *course.overrides).succeed()


# --- a judge ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServedJudge:
    """A running `vllm serve` of the tiny model: its verdicts are worthless, but valid ones or none."""

    program: Program
    url: str

    @property
    def params(self) -> dict[str, Any]:
        # a random model fills its critique to the last of 600 characters, of up to 4 tokens each
        return {"base_url": self.url, "model": "tiny", "api_key_env": "TINY_JUDGE_KEY", "max_tokens": 3000}


@pytest.fixture(scope="session")
def served_judge(start, workspace, tmp_path_factory) -> Iterator[ServedJudge]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = start(
        tmp_path_factory.mktemp("judge"), sys.executable, str(Path(__file__).with_name("serve_judge.py")),
        "--model", str(workspace.folder / "model"), "--served-model-name", "tiny", "--dtype", "float32",
        "--host", "127.0.0.1", "--port", str(port), "--api-key", JUDGE_KEY, "--enforce-eager",
        "--max-model-len", "8192", "--limit-mm-per-prompt", json.dumps({"image": 0, "video": 0}),
        # left the choice, a random model writes blanks between two fields for ever
        "--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}),
        VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1", TORCHDYNAMO_DISABLE="1", HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS="1",
    )  # fmt: skip

    def is_up() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
                return reply.status == 200
        except OSError:
            return False

    program.until(is_up)
    yield ServedJudge(program, f"http://127.0.0.1:{port}/v1")
    program.end()
