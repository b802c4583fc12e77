"""Siblings that look again into one long video and share what they see, against a plain loop over them from pixels."""

from __future__ import annotations

import statistics
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from benchmarks.engines import Side
from benchmarks.report import write_table
from benchmarks.videos import FPS, SIDE, make_workspace
from videorl.cluster import Cluster
from videorl.envs.records import Episode
from videorl.envs.video_mtr import VideoMTR
from videorl.types import Rollout
from videorl.workers.policy import Policy

MINUTES, CANDIDATES = 10, 64
SIBLINGS, TURNS, INITIAL, A_TURN = 8, 5, 8, 4
ROUNDS = 2  # the first from an empty store


class Wanders(VideoMTR):
    """Retrieves a range that follows from the response, whatever it says, and answers in the last turn."""

    async def step(self, response: str):
        if len(self.turns) + 1 == self.budget.max_turns:
            return await super().step("<think>x</think><answer>A</answer>")
        frames = self.budget.per_turn
        first = zlib.crc32(response.encode()) % (self.task.videos[0].num_frames - frames)
        return await super().step(f"<think>x</think><retrieve>{first},{first + frames - 1}</retrieve>")


def play(side: Side, together: bool, label: str) -> tuple[float, list[Rollout]]:
    """(wall seconds, rollouts) of all siblings, from the row to the score: at once, or one after the other."""
    started = time.perf_counter()
    if together:
        groups = side.collect(side.prompts(), group_size=SIBLINGS, temperature=1.0, label=label)
    else:
        groups = [
            side.collect(side.prompts(), group_size=1, temperature=1.0, label=f"{label} {index}")[0]
            for index in range(SIBLINGS)
        ]
    seconds = time.perf_counter() - started
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert len(rollouts) == SIBLINGS and all(rollout.num_turns == TURNS for rollout in rollouts)
    return seconds, rollouts


def seen(rollouts: list[Rollout]) -> list[int]:
    """All frames that were shown, again and again."""
    return [
        ref.index for rollout in rollouts for ref in Episode.model_validate((rollout.episode or {})["episode"]).shown
    ]


def main() -> None:
    frames = 60 * MINUTES * FPS
    budget = f"{{initial: {INITIAL}, per_turn: {A_TURN}, max_turns: {TURNS}, total: null, max_pixels: {SIDE * SIDE}}}"
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_workspace(Path(folder), [frames], 1)
        config = workspace.config(
            frames, f"data.sampling.num_frames={CANDIDATES}", f"data.sampling.max_frames={CANDIDATES}",
            "data.max_prompt_tokens=1024", "rollout.max_model_len=2048", "rollout.max_response_tokens=8",
            "rewards.terms.format=null", "rewards.terms.accuracy=null",
            f"rollout.env={{target: 'benchmarks.episodes:Wanders', params: {{budget: {budget}}}}}",
        )  # fmt: skip
        rows: list[list[Any]] = []
        with Cluster(config) as cluster:
            policy = Policy.trained(cluster, config)
            sides = {"plain": Side(cluster, config.model_copy(update={"store": None})), "shared": Side(cluster, config)}
            cluster.wait(policy=policy, **{name: side.engines for name, side in sides.items()})
            cluster.wait(**{f"encoders of {name}": side.encoders for name, side in sides.items()})
            weights = policy.publish(version=1)
            for number in range(ROUNDS):
                seconds = {}
                for name, side in sides.items():
                    side.engines.load_weights(weights)  # as every step begins: nothing is left of the round before
                    side.encoders.take_counts()
                    seconds[name], rollouts = play(side, name == "shared", f"round {number}")
                    counts, shown = side.encoders.take_counts(), seen(rollouts)
                    calls = counts["encoder_calls"] if name == "shared" else "each turn anew"
                    hits = statistics.mean(rollout.measures["prefix_hit"] for rollout in rollouts)
                    rows.append([number + 1, name, f"{seconds[name]:.2f}", len(shown), len(set(shown)), calls,
                                 f"{hits:.0%}"])  # fmt: skip
                rows.append([number + 1, "**ratio**", f"**{seconds['plain'] / seconds['shared']:.1f}**", *[""] * 4])
    write_table(
        "episodes",
        "Siblings that look again",
        ["round", "path", "seconds", "frames shown", "distinct", "encoder calls", "prefix hits"],
        rows,
        f"{SIBLINGS} episodes of {TURNS} turns over one video of {MINUTES} minutes: {INITIAL} of {CANDIDATES} "
        f"candidate frames of {SIDE} x {SIDE} pixels at first, {A_TURN} more a turn, of a range that follows from what "
        "was said; tower of 7 million parameters; wall seconds from the row to the score. Plain: one episode after "
        "the other, each turn from pixels, which the engine decodes and encodes with all frames of the turns before "
        "(vLLM's prefix cache is on, there too). Shared: all at once, each distinct frame decoded and encoded once. "
        "Both paths start a round with new weights; the second has frames in the store from the first.",
    )


if __name__ == "__main__":
    main()
