"""The run directory: what is written, what survives a kill, and what is refused."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from videorl.config import Config, ConfigError, load_config
from videorl.run import Run, compute_reward_metrics, compute_rollout_metrics, make_line, make_lines, redact
from videorl.types import Clip, Media, Prompt, RenderedPrompt, Rollout, RolloutGroup, Sampling


@pytest.fixture(scope="module")
def base() -> Config:
    return load_config("train", ["recipe=quickstart", "run.live=plain", "run.trackers=[]", "total_steps=10"])


@pytest.fixture
def config(base: Config, tmp_path: Path) -> Config:
    return changed(base, run={"dir": str(tmp_path / "run"), "eval_every": 4, "save_every": 3})


def changed(config: Config, **sections) -> Config:
    """A copy with other values; a section is given as the keys of it that change."""
    values = config.model_dump()
    for key, value in sections.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    return Config.model_validate(values)


class Counter:
    """A stand-in for the policy: its whole state is one number."""

    def __init__(self, value: int = 0):
        self.value = value

    def save(self, folder: Path) -> None:
        (folder / "value.txt").write_text(str(self.value))

    def load(self, folder: Path) -> None:
        self.value = int((folder / "value.txt").read_text())


class Full:
    """A part that finds the disk full half-way."""

    def save(self, folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    def load(self, folder: Path) -> None:
        raise AssertionError


SAMPLING = Sampling(
    fps=2.0, num_frames=None, min_frames=2, max_frames=16, min_pixels=784, max_pixels=3136, total_pixels=100352
)


def make_group(name: str, rewards: list[float], **changes) -> RolloutGroup:
    """A group over a prompt of 5 tokens, one of which stands for a video of 6: 10 expanded."""
    clip = Clip(path="clips/a.mp4", sampling=SAMPLING)
    media = Media(clip=clip, key="k1", grid=(2, 4, 6), num_tokens=6, seconds_per_grid=1.0, tower="t")
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "How many balls?"}]},
    )
    rendered = RenderedPrompt(
        prompt=Prompt(id=name, task="numeric", messages=messages, clips=(clip,), row={}),
        token_ids=(1, 2, 3, 4, 5),
        media=(media,),
        frame_times=((0.0, 0.5000004),),
        origins=(0.0,),
        durations=(1.0,),
    )
    values = {"response_ids": (7, 8), "response_mask": (1, 1), "rollout_log_probs": (-0.1, -0.2), "text": "<answer>3"}
    values |= {"finish_reason": "stop", "weight_version": 0, "seen": ""} | changes
    return RolloutGroup(
        prompt=rendered,
        rollouts=tuple(Rollout(prompt=rendered, reward=r, index=i, **values) for i, r in enumerate(rewards)),
    )


def lines(run: Run, name: str) -> list[dict]:
    return [json.loads(line) for line in (run.folder / name).read_text().splitlines()]


def train(run: Run, until: int) -> Counter:
    """The loop of train.py in small: the policy's number is the sum of the steps it was updated in."""
    policy = Counter()
    step, _ = run.resume({"policy": policy})
    if step == 0:
        with run.step(0) as log:
            log.metrics("eval", {"accuracy": 0.25})
    while step < until:
        step += 1
        with run.step(step) as log:
            log.rollouts([make_group(f"p{step}", [0.0, 1.0])])
            policy.value += step
            log.value("policy/value", policy.value)
        if run.due("save", step):
            run.save(step, {"policy": policy}, {"consumed": step})
    return policy


# --- one step --------------------------------------------------------------------------------------------------------


def test_a_step_becomes_one_line(config: Config):
    with Run(config) as run:
        with run.step(1) as log:
            with log.time("rollout"):
                pass
            with log.time("rollout"):
                pass
            log.metrics("policy", {"loss": 0.5, "grad_norm": math.nan})
            log.count("data/bad")
            log.count("data/bad", 2)
            log.value("data/epoch", 1)
        (line,) = lines(run, "metrics.jsonl")
    assert line["step"] == 1 and line["policy/loss"] == 0.5 and line["data/bad"] == 3 and line["data/epoch"] == 1
    assert line["policy/grad_norm"] is None  # JSON has no NaN
    assert 0 <= line["time/rollout"] <= line["time/step"]


def test_a_step_that_fails_leaves_no_trace(config: Config):
    with pytest.raises(ZeroDivisionError), Run(config) as run, run.step(1) as log:
        log.rollouts([make_group("a", [1.0])])
        log.value("data/bad", 1 / 0)
    assert not (Path(config.run.dir) / "metrics.jsonl").exists()
    assert not (Path(config.run.dir) / "rollouts.jsonl").exists()


def test_reward_metrics_by_hand():
    groups = [
        make_group("a", [1.0, 3.0], terms={"accuracy": 1.0, "format": 0.5}),
        make_group("b", [2.0, 2.0], terms={"accuracy": 0.0}),
    ]
    metrics = compute_reward_metrics(groups)
    # accuracy (1+1+0+0)/4; format over the two rollouts that have it; std of 1,3,2,2 = sqrt(2/4)
    wanted = {"accuracy": 0.5, "format": 0.5, "mean": 2.0, "std": math.sqrt(0.5), "lost": 0.0}
    assert metrics == pytest.approx(wanted, abs=1e-12)


def test_reward_metrics_say_what_could_not_be_read_and_what_nobody_could_score():
    read = make_group("a", [1.0, 3.0], terms={"judge": 1.0, "accuracy": 0.0}, failures={"accuracy": "no_letter"})
    silent = make_group("b", [0.0, 0.0], terms={"accuracy": 1.0}, abstained={"judge": "timeout: slow"})
    metrics = compute_reward_metrics([read, replace(silent, rollouts=(), lost=silent.rollouts)])
    wanted = {"judge": 1.0, "accuracy": 0.5, "accuracy/unreadable": 0.5, "judge/abstained": 0.5, "lost": 0.5}
    assert metrics == pytest.approx(wanted | {"mean": 2.0, "std": 1.0}, abs=1e-12)


def test_second_passes_have_their_means_and_lines():
    side = make_group("b", [0.0], terms={"accuracy": 0.5})
    groups = [replace(make_group("a", [1.0, 0.0]), sides={"shuffled": side}), make_group("c", [1.0, 0.0])]
    metrics = compute_rollout_metrics(groups, ["shuffled", "hints"])
    assert (metrics["shuffled/asked"], metrics["shuffled/accuracy"], metrics["shuffled/reward"]) == (0.5, 0.5, 0.0)
    assert metrics["hints/asked"] == 0 and not {"hints/accuracy", "hints/reward"} & metrics.keys()
    first = make_lines(3, groups[0])
    assert [(line["prompt_id"], line["index"], line.get("pass")) for line in first] == [
        ("a", 0, None), ("a", 1, None), ("b", 0, "shuffled"),
    ]  # fmt: skip
    lost = replace(groups[1], rollouts=groups[1].rollouts[1:], lost=groups[1].rollouts[:1])
    assert [(line["index"], line["reward"]) for line in make_lines(3, lost)] == [(0, None), (1, 0.0)]


def test_rollout_metrics_by_hand():
    groups = [
        make_group("a", [1.0, 3.0], cached_tokens=5),
        make_group("b", [2.0, 2.0], finish_reason="length", failures={"accuracy": "no_answer"}),
    ]
    # prefix: 2 x 5 of 4 x 10 expanded prompt tokens
    wanted = {"response_tokens": 2.0, "truncated": 0.5, "parse_failure": 0.5, "zero_variance_groups": 0.5}
    assert compute_rollout_metrics(groups) == pytest.approx(wanted | {"prefix_cached": 0.25}, abs=1e-12)


def test_a_rollout_line_holds_what_is_needed_to_look_at_it():
    group = make_group("a", [0.5], terms={"accuracy": 0.0, "judge": math.nan}, failures={"accuracy": "no_answer"})
    assert make_line(4, group.rollouts[0]) == {
        "step": 4,
        "prompt_id": "a",
        "index": 0,
        "temperature": 1.0,
        "prompt": "Be brief.\n<video>How many balls?",
        "response": "<answer>3",
        "reward": 0.5,
        "terms": {"accuracy": 0.0, "judge": None},
        "failures": {"accuracy": "no_answer"},
        "abstained": {},
        "finish_reason": "stop",
        "media_keys": ["k1"],
        "media_paths": ["clips/a.mp4"],
        "frame_times": [[0.0, 0.5]],
    }


def test_rollouts_are_one_line_each_whatever_the_text(config: Config):
    text = "two\nlines\u2028\x85 \ud800 終"
    with Run(config) as run:
        with run.step(1) as log:
            log.rollouts([make_group("a", [0.0, 1.0], text=text), make_group("b", [1.0])])
        written = lines(run, "rollouts.jsonl")
        (metrics,) = lines(run, "metrics.jsonl")
    assert metrics["reward/mean"] == pytest.approx(2 / 3, abs=1e-12) and metrics["rollout/response_tokens"] == 2.0
    assert [(line["prompt_id"], line["index"], line["reward"]) for line in written] == [
        ("a", 0, 0.0),
        ("a", 1, 1.0),
        ("b", 0, 1.0),
    ]
    assert written[0]["response"] == text


@pytest.mark.parametrize(
    ("every", "due"), [(3, [3, 6, 9, 10]), (0, [10]), (5, [5, 10])], ids=["every 3", "never", "divides"]
)
def test_due_every_so_many_steps_and_at_the_end(config: Config, every: int, due: list[int]):
    run = Run(changed(config, run={"eval_every": every, "save_every": every}))
    for what in ("eval", "save"):
        assert [step for step in range(1, 11) if run.due(what, step)] == due


# --- resume ----------------------------------------------------------------------------------------------------------


def test_resume_takes_everything_back_to_the_checkpoint(config: Config):
    with Run(config) as run:
        train(run, until=5)
    with Run(config) as run:
        policy = Counter()
        assert run.resume({"policy": policy}) == (3, {"consumed": 3})
        assert policy.value == 1 + 2 + 3
        assert [line["step"] for line in lines(run, "metrics.jsonl")] == [0, 1, 2, 3]
        assert [line["step"] for line in lines(run, "rollouts.jsonl")] == [1, 1, 2, 2, 3, 3]
        assert [metrics["step"] for metrics in run.history] == [0, 1, 2, 3]


def test_a_killed_run_ends_like_one_that_was_not(config: Config):
    whole = changed(config, run={"dir": config.run.dir + "-whole"})
    with Run(whole) as run:
        train(run, until=10)
    for until in (1, 5, 8, 10):
        with Run(config) as run:
            policy = train(run, until)
    assert policy.value == sum(range(1, 11))

    def without_times(folder: str) -> list[dict]:
        text = (Path(folder) / "metrics.jsonl").read_text()
        return [{k: v for k, v in json.loads(line).items() if "time/" not in k} for line in text.splitlines()]

    def values(folder: str) -> list[dict]:  # a resumed run has no line to put the save before its first step in
        return [{k: v for k, v in line.items() if not k.startswith("run/")} for line in without_times(folder)]

    assert values(config.run.dir) == values(whole.run.dir)
    for name in ("rollouts.jsonl", "checkpoints/step-00000010/policy/value.txt"):
        assert (Path(config.run.dir) / name).read_text() == (Path(whole.run.dir) / name).read_text()


@pytest.mark.parametrize("torn", ['{"step": 4, "rew', '{"step": 4, "reward/mean": 1.0}', "\0\0\0\n", '{"step": 3'])
def test_torn_and_unpublished_lines_are_cut(config: Config, torn: str):
    with Run(config) as run:
        train(run, until=3)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        with (run.folder / name).open("a") as file:
            file.write(torn)
    with Run(config) as run:
        run.resume({"policy": Counter()})
        assert [line["step"] for line in lines(run, "metrics.jsonl")] == [0, 1, 2, 3]
        assert [line["step"] for line in lines(run, "rollouts.jsonl")] == [1, 1, 2, 2, 3, 3]


def test_without_a_checkpoint_a_run_starts_over(config: Config, caplog: pytest.LogCaptureFixture):
    with Run(config) as run:
        train(run, until=2)
    with Run(config) as run:
        assert run.resume({"policy": Counter()}) == (0, None)
        assert lines(run, "metrics.jsonl") == lines(run, "rollouts.jsonl") == run.history == []
    assert "starting over" in caplog.text


def test_nan_comes_back_as_nan(config: Config):
    with Run(config) as run:
        with run.step(1) as log:
            log.value("policy/loss", math.inf)
        run.save(1, {}, {})
        run.resume({})
    assert math.isnan(run.history[0]["policy/loss"])


KILLED = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_run import Run, changed, load_config, train
    base = load_config("train", ["recipe=quickstart", "run.live=plain", "run.trackers=[]", "total_steps=100000"])
    with Run(changed(base, run={{"dir": {folder!r}, "save_every": 1}})) as run:
        train(run, until=100000)
"""


def test_kill_9_loses_at_most_the_step_under_way(config: Config):
    """With a checkpoint every step, a run that was killed while writing resumes at its last published step, or at the
    one before where the kill came between publishing the step and its checkpoint."""
    code = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent), folder=config.run.dir)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step     20/"):
        assert process.poll() is None
    with pytest.raises(ConfigError, match=rf"in use by process {process.pid} on .*; stop it"):
        Run(config)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    published = (Path(config.run.dir) / "metrics.jsonl").read_bytes().count(b"\n") - 1  # step 0 has a line too
    resumed = changed(config, total_steps=50)
    with Run(resumed) as run:
        policy = Counter()
        step, state = run.resume({"policy": policy})
        assert step in (published, published - 1) and step >= 19
        assert policy.value == step * (step + 1) // 2 and state == {"consumed": step}
        assert [line["step"] for line in lines(run, "metrics.jsonl")] == list(range(step + 1))


# --- saving ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_costs_the_checkpoint_only(config: Config, caplog: pytest.LogCaptureFixture):
    with Run(config) as run:
        with run.step(1):
            pass
        run.save(1, {"policy": Counter(5)}, {})
        with run.step(2):
            pass
        run.save(2, {"policy": Full()}, {})
        for step in (3, 4):
            with run.step(step):
                pass
        written = lines(run, "metrics.jsonl")
        policy = Counter()
        assert run.resume({"policy": policy}) == (1, {}) and policy.value == 5
    assert "CHECKPOINT OF STEP 2 FAILED" in caplog.text and "No space left" in caplog.text and "step 1" in caplog.text
    assert [line.get("run/save_failed") for line in written] == [None, 0, 1, None]
    assert "time/save" in written[1]


def test_a_bug_while_saving_is_not_taken_for_a_full_disk(config: Config):
    with Run(config) as run, pytest.raises(TypeError):
        run.save(1, {}, {"state": object()})


# --- configuration and lock ------------------------------------------------------------------------------------------


def test_the_configuration_is_written_and_secrets_are_not(config: Config):
    config = changed(config, rollout={"engine_kwargs": {"hf_token": "hf_abc", "block_size": 32}})
    run = Run(config)
    text = (run.folder / "config.yaml").read_text()
    assert "hf_abc" not in text
    written = yaml.safe_load(text)
    assert written["rollout"]["engine_kwargs"] == {"hf_token": "<redacted>", "block_size": 32}
    written["rollout"] = config.rollout.model_dump(mode="json")
    assert Config.model_validate(written) == config


def test_redact_by_key():
    tree = {
        "api_key": "a",
        "judges": [{"OPENAI_API_KEY": "b", "password": "c", "url": "u"}],
        "token": "d",
        "max_tokens": 5,
        "loss_agg": "token-mean",
        "client-secret": "e",
        "max_token": 7,
        "tokenizer": "t",
    }
    hidden = "<redacted>"
    assert redact(tree) == {
        "api_key": hidden,
        "judges": [{"OPENAI_API_KEY": hidden, "password": hidden, "url": "u"}],
        "token": hidden,
        "max_tokens": 5,
        "loss_agg": "token-mean",
        "client-secret": hidden,
        "max_token": 7,
        "tokenizer": "t",
    }


def test_resuming_with_another_configuration_names_every_change(config: Config):
    with Run(config) as run:
        train(run, until=3)
    other = changed(config, rollout={"group_size": 4}, seed=9)
    with pytest.raises(ConfigError) as error:
        Run(other)
    seed, group_size = error.value.problems
    assert seed.startswith("seed: 9, but ") and "was begun with 0; set it back, or choose another run.dir" in seed
    assert group_size.startswith("rollout.group_size: 4, but ") and "was begun with 8" in group_size
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["seed"] == 0


def test_what_may_change_on_resume(config: Config):
    with Run(config) as run:
        train(run, until=3)
    longer = changed(config, total_steps=99, run={"save_every": 7}, eval={"samples": 3}, cluster={"threads": 2})
    Run(longer)
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["total_steps"] == 99


def test_a_run_that_never_saved_may_be_begun_anew_with_another_configuration(config: Config):
    with Run(config) as run:
        train(run, until=2)
    Run(changed(config, seed=9))
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["seed"] == 9


def test_a_missing_tracker_package_is_an_error_before_training(config: Config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "swanlab", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'videorl\[swanlab\]'"):
        Run(changed(config, run={"trackers": ["swanlab"]}))


# --- the end ---------------------------------------------------------------------------------------------------------


def test_finish_tells_before_and_after(config: Config, capsys: pytest.CaptureFixture[str]):
    with Run(config) as run:
        train(run, until=2)
        with run.step(3) as log:
            log.metrics("eval", {"accuracy": 0.75})
        run.finish({"accuracy": 0.5})
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["step"] == 3 and summary["failed_saves"] == 0
    row = {"before": 0.25, "after": 0.75, "before_step": 0, "after_step": 3, "baseline": 0.5}
    assert summary["metrics"]["eval/accuracy"] == row
    assert (run.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = [line for line in capsys.readouterr().out.splitlines() if "eval/accuracy" in line]
    assert [cell in table[0] for cell in ("0.250", "0.750", "+0.500", "0.500")] == [True] * 4


def test_a_finished_run_is_not_trained_again(config: Config):
    config = changed(config, total_steps=4)
    for _ in range(2):
        with Run(config) as run:
            policy = train(run, until=4)
            assert policy.value == 10 and [line["step"] for line in lines(run, "metrics.jsonl")] == [0, 1, 2, 3, 4]
