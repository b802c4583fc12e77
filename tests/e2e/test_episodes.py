"""Episodes of several turns on the real stack: what is trained on is what was generated, and each frame costs once."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray

from videorl.config import Config
from videorl.data.batch import make_batch
from videorl.data.prompts import PromptStream
from videorl.data.synth.mp4 import write_frames
from videorl.envs.records import Episode
from videorl.rollout.episodes import Asked, Episodes, PolicySpeaker
from videorl.rollout.frames import FrameStore
from videorl.types import Generation

TOLERANCE = 1e-4
SMALL = {"initial": 4, "per_turn": 3, "total": None, "max_pixels": 1568}
LABELS = {"TA": 1, "VQ": 2, "MQ": 0, "OA": 1}
ENVS = {
    "single_turn": ("env_policies:LedSingleTurn", {"budget": SMALL | {"max_turns": 1}}, 1),
    "video_mtr": ("env_policies:LedMTR", {"budget": SMALL | {"max_turns": 3}}, 2),
    "framethinker": ("env_policies:LedThinker", {"budget": SMALL | {"max_turns": 5}}, 3),
    "video_com": ("env_policies:LedCoM", {"budget": SMALL | {"max_turns": 5}}, 4),
    "earl": ("env_policies:LedEarl", {"budget": SMALL | {"max_turns": 3}}, 2),
    "vr_thinker": ("env_policies:LedVR", {"budget": SMALL | {"max_turns": 3}}, 2),
}


def make_config(stack, target: str, params: dict[str, Any], **more: Any) -> Config:
    """The stack's configuration with an environment: 16 candidate frames of a clip, few tokens a response."""
    config = stack.config
    env = {"target": target, "params": params} | more
    sampling = config.data.sampling.model_copy(update={"fps": None, "num_frames": 16, "max_frames": 16})
    values = config.model_dump() | {
        "data": config.data.model_copy(update={"sampling": sampling, "max_prompt_tokens": 2048}).model_dump(),
        "rollout": config.rollout.model_dump() | {"env": env, "max_response_tokens": 6},
    }
    return Config.model_validate(values)


def make_row(stack, id: str = "a", videos: int = 1) -> dict[str, Any]:
    row = stack.workspace.rows()[0]
    evidence = {"boxes": {"2.6": [0.25, 0.25, 0.75, 0.75]}, "labels": LABELS}
    return row | {
        "id": id, "task": "mc", "prompt": "Which?", "choices": ["red", "green"], "answer": "B", "spans": [[2.4, 2.9]],
        "videos": row["videos"] * videos, "meta": {"evidence": evidence}, "response": None,
    }  # fmt: skip


def make_episodes(stack, config: Config) -> Episodes:
    frames = FrameStore(config, stack.model, stack.source, stack.encoders.ensure)
    return Episodes(config, stack.model, frames, PolicySpeaker(stack.engines.generate))


def collect(stack, config: Config, rows: Sequence[dict[str, Any]], size: int = 3, label: str = "t", **options: Any):
    episodes = make_episodes(stack, config)
    stream = PromptStream(rows, config.data, stack.model, stack.source, seed=0, make=episodes.frames.prompt)
    prompts = stream.all(stack.encoders.ensure)
    return episodes.collect(
        prompts, group_size=size, temperature=1.0, label=label, progress=lambda done: None, **options
    )


@pytest.mark.parametrize("name", ENVS)
def test_the_row_that_is_trained_on_is_the_one_that_was_generated(stack, name):
    """Tokens, positions and clips by the engine's fingerprint, which the trainer verifies; log-probs at every turn."""
    target, params, turns = ENVS[name]
    config = make_config(stack, target, params)
    groups = collect(stack, config, [make_row(stack, videos=1 + (name == "vr_thinker"))])
    (group,) = groups
    assert not group.failed and {rollout.num_turns for rollout in group.rollouts} == {turns}
    assert all(not rollout.further for rollout in group.rollouts)
    assert (turns > 1) == any(rollout.later or name == "framethinker" for rollout in group.rollouts)
    assert stack.parity(groups) < TOLERANCE
    for rollout in group.rollouts:
        assert rollout.measures["turns"] == turns
        assert turns == 1 or rollout.measures["prefix_hit"] > 0.5


@pytest.mark.parametrize(("context", "params"), [("window", {"turns": 1}), ("visual_window", {"rounds": 1})])
def test_windowed_contexts_train_on_what_each_call_saw(stack, context, params):
    target, budget, turns = ENVS["video_com"]
    config = make_config(stack, target, budget, context={"target": context, "params": params})
    groups = collect(stack, config, [make_row(stack)], label=context)
    rollouts = groups[0].rollouts
    assert all(rollout.further and rollout.num_turns == turns for rollout in rollouts)
    batch = make_batch(groups)
    assert len(batch) == sum(1 + len(rollout.further) for rollout in rollouts)
    assert len(set(batch.episodes)) == len(rollouts)
    assert stack.parity(groups) < TOLERANCE


def test_another_clip_in_a_later_turn_is_found(stack):
    target, params, _ = ENVS["video_mtr"]
    groups = collect(stack, make_config(stack, target, params), [make_row(stack)], size=1, label="fault")
    rollout = groups[0].rollouts[0]
    assert len(rollout.later) > 1
    changed = replace(rollout, later=(*rollout.later[1:], rollout.later[0]))
    with pytest.raises(Exception, match="the engine saw"):
        stack.policy.compute_log_probs(make_batch([replace(groups[0], rollouts=(changed,))]))


@pytest.fixture(scope="module")
def long_clip(stack) -> str:
    """Ten minutes at one frame a second."""
    frames = np.random.default_rng(0).integers(0, 255, (600, 56, 56, 3), dtype=np.uint8)
    write_frames(stack.workspace.folder / "long.mp4", frames, np.arange(601.0).tolist(), {"g": "16"})
    return "long.mp4"


def test_siblings_share_what_they_look_at(stack, long_clip):
    """Eight siblings of five turns on ten minutes of video: a frame is decoded and encoded once, whoever asks."""
    budget = {"initial": 8, "per_turn": 4, "max_turns": 5, "total": None, "max_pixels": 784}
    config = make_config(stack, "benchmarks.episodes:Wanders", {"budget": budget})
    sampling = config.data.sampling.model_copy(update={"num_frames": 64, "max_frames": 64})
    config = config.model_copy(update={"data": config.data.model_copy(update={"sampling": sampling})})
    video = {"path": long_clip, "start": None, "end": None, "fps": None, "sha256": None}
    row = make_row(stack, "long") | {"videos": [video]}
    stack.encoders.take_counts()
    (group,) = collect(stack, config, [row], size=8, label="siblings")
    counts = stack.encoders.take_counts()
    assert len(group.rollouts) == 8 and {rollout.num_turns for rollout in group.rollouts} == {5}
    shown = [
        ref.index for rollout in group.rollouts for ref in Episode.model_validate(rollout.episode["episode"]).shown
    ]
    assert len(shown) == 8 * (8 + 4 * 4)
    assert counts["encoder_calls"] == len(set(shown))
    assert counts["decodes"] <= 1 + 4 * 8  # at most one a request, the opening among them
    again = collect(stack, config, [row], size=8, label="again")
    assert stack.encoders.take_counts()["encoder_calls"] <= 4 * 4 * 8 - len(set(shown)) + 8
    assert np.mean([rollout.measures["prefix_hit"] for rollout in again[0].rollouts]) > 0.7
    assert stack.parity([group]) < TOLERANCE


def test_an_engine_that_is_killed_costs_no_episode(stack):
    """Its requests are made again of its successor, which has the same weights."""
    target, params, turns = ENVS["video_com"]
    config = make_config(stack, target, params)
    killed = stack.engines.actors[0]

    def kill(done: int) -> None:
        if done == 1:
            ray.kill(killed)

    stream = PromptStream(
        [make_row(stack, f"k{n}") for n in range(4)], config.data, stack.model, stack.source, seed=0,
        make=make_episodes(stack, config).frames.prompt,
    )  # fmt: skip
    prompts = stream.all(stack.encoders.ensure)
    groups = make_episodes(stack, config).collect(prompts, group_size=4, temperature=1.0, label="killed", progress=kill)
    assert stack.engines.actors[0] is not killed
    assert sum(len(group.rollouts) for group in groups) == 16
    assert all(rollout.num_turns == turns for group in groups for rollout in group.rollouts)
    assert stack.parity(groups) < TOLERANCE


class KillsTheServer:
    """The policy; before the second turn of the last episode it kills the process of the environments."""

    def __init__(self, policy: PolicySpeaker, server: subprocess.Popen[str], last: int):
        self.policy, self.server, self.last = policy, server, last

    async def __call__(self, asked: Asked) -> Generation:
        if (asked.index, asked.k) == (self.last, 2):
            self.server.kill()
        return await self.policy(asked)


@contextmanager
def serving() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of environments in a process of its own, and its url."""
    command = [sys.executable, "-m", "videorl.envs.serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+", server.stdout.readline())
            assert found
            yield server, found[0]
        finally:
            server.kill()


def test_an_environment_server_that_is_killed_costs_its_episodes(stack):
    """Those that are under way fail and are counted; with a server again the next ones are played."""
    budget = SMALL | {"max_turns": 3}
    with serving() as (server, url):
        config = make_config(stack, "remote", {"url": url, "target": "video_mtr", "params": {"budget": budget}})
        speaker = KillsTheServer(PolicySpeaker(stack.engines.generate), server, last=3)
        (group,) = collect(stack, config, [make_row(stack)], size=4, label="served", speaker=speaker)
    assert len(group.failed) + len(group.rollouts) == 4
    assert any(failed.index == 3 and "EnvUnavailable" in failed.why for failed in group.failed)
    with serving() as (_, url):
        config = make_config(stack, "remote", {"url": url, "target": "video_mtr", "params": {"budget": budget}})
        groups = collect(stack, config, [make_row(stack)], size=4, label="served again")
    assert len(groups[0].rollouts) == 4 and stack.parity(groups) < TOLERANCE
