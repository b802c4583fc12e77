"""Rollouts from stored embeddings, against rollouts from pixels: cold, in the next epoch, and after a weight sync."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engines import Side
from benchmarks.report import plot, write_table
from benchmarks.videos import make_workspace
from videorl.cluster import Cluster
from videorl.types import RolloutGroup
from videorl.workers.policy import Policy

FRAMES = (64, 128, 256)
CLIPS = 5  # more than the prompts that an engine keeps rendered
TOKENS = 8


def roll(side: Side) -> tuple[float, float, list[RolloutGroup]]:
    """(seconds before the engine is asked, seconds that it takes, greedy rollouts)."""
    started = time.perf_counter()
    prompts = side.prompts()
    filled = time.perf_counter()
    groups = side.collect(prompts, group_size=8, temperature=0.0, label="")
    return filled - started, time.perf_counter() - filled, groups


def gap(ours: Sequence[RolloutGroup], theirs: Sequence[RolloutGroup]) -> float:
    """Largest difference of the log-probs of the first tokens, where both have read the same."""
    pairs = zip((r for g in ours for r in g.rollouts), (r for g in theirs for r in g.rollouts), strict=True)
    return max(abs(a.rollout_log_probs[0] - b.rollout_log_probs[0]) for a, b in pairs)


def main() -> None:
    rows, lines = [], {"pixels": ([], []), "embeddings": ([], [])}
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_workspace(Path(folder), FRAMES, CLIPS)
        base = workspace.config(FRAMES[-1], f"rollout.max_response_tokens={TOKENS}")
        with Cluster(base) as cluster:
            policy = Policy.trained(cluster, base)
            for frames in FRAMES:
                config = workspace.config(frames, f"rollout.max_response_tokens={TOKENS}")
                sides = {
                    "pixels": Side(cluster, config.model_copy(update={"store": None})),
                    "embeddings": Side(cluster, config),
                }
                cluster.wait(policy=policy, **{name: side.engines for name, side in sides.items()})
                cluster.wait(**{f"encoders of {name}": side.encoders for name, side in sides.items()})
                found: dict[str, dict[str, Any]] = {name: {} for name in sides}
                weights = policy.publish(version=1)
                occasions: dict[str, Callable[[Side], object]] = {
                    "cold": lambda side: None,
                    "again": lambda side: None,
                    "after sync": lambda side, weights=weights: side.engines.load_weights(weights),
                }
                for occasion, prepare in occasions.items():
                    for name, side in sides.items():
                        prepare(side)
                        found[name][occasion] = roll(side)
                for name in sides:
                    seconds = {key: f"{value[1]:.2f}" for key, value in found[name].items()}
                    rows.append([frames, name, f"{found[name]['cold'][0]:.2f}", *seconds.values()])
                    lines[name][0].append(frames)
                    lines[name][1].append(found[name]["after sync"][1])
                both = [found[name] for name in ("pixels", "embeddings")]
                ratios = [both[0][key][1] / both[1][key][1] for key in occasions]
                rows.append([frames, "**ratio**", "", *(f"**{ratio:.1f}**" for ratio in ratios)])
                rows[-1].append(f"{max(gap(both[0][key][2], both[1][key][2]) for key in occasions):.1e}")
                for side in sides.values():
                    side.end()
    write_table(
        "embeddings",
        "Rollouts from stored embeddings",
        ["frames", "engine is fed", "before", "cold", "again", "after sync", "log-prob gap"],
        [row + [""] * (7 - len(row)) for row in rows],
        f"{CLIPS} clips of 112 x 112 pixels, 8 responses of {TOKENS} tokens each; tower of 7 million parameters; wall "
        "seconds. `before`: reading headers and, for embeddings, decoding and encoding each clip, once for a run and "
        "hidden behind the update in training. `again`: the same prompts, their keys and values still cached, though "
        "not their pixels, which this library's engine does not keep. `after sync`: with new weights, which is how "
        "every step of training begins.",
    )
    plot("embeddings", "frames", "seconds after a weight sync", lines)


if __name__ == "__main__":
    main()
