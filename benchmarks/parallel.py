"""Work spread over processes: a clip over encoders, a packed row over policy ranks."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.groups import make_batch, make_row
from benchmarks.report import write_table
from benchmarks.videos import Workspace, make_workspace
from videorl.cluster import Cluster
from videorl.data.prompts import PromptStream
from videorl.data.schema import load_rows
from videorl.models.base import open_model
from videorl.models.media import open_source
from videorl.workers.encoder import Encoders
from videorl.workers.policy import Policy

FRAMES = 256
REPEATS = 5
ROW = (2048, 64, 4)  # prompt, response, group


def wall_seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def encode(cluster: Cluster, workspace: Workspace) -> list[list[object]]:
    """One clip of 256 frames by 1 and by 2 encoders, in turns. Its frames are stored, its features made anew."""
    sides, seconds, features = {}, {1: [], 2: []}, {}
    for workers in seconds:
        config = workspace.config(
            FRAMES, f"encoder.workers={workers}", f"store.dir={workspace.folder}/encode-{workers}"
        )
        model = open_model(config.model)
        source = open_source(config, model)
        sides[workers] = (config, model, source, Encoders(cluster, config, source))
    cluster.wait(**{f"encoders {workers}": side[3] for workers, side in sides.items()})
    for repeat in range(REPEATS + 1):
        for workers, (config, model, source, encoders) in sides.items():
            assert source.store is not None
            for key in list(source.store.keys()):
                source.store.discard(key)
            stream = PromptStream(load_rows(config.data.path)[:1], config.data, model, source, seed=0)
            taken = wall_seconds(lambda stream=stream, encoders=encoders: stream.all(encoders.ensure))
            if repeat:  # the first warms up
                seconds[workers].append(taken)
            stored = [source.store.get(key) for key in source.store.keys()]  # noqa: SIM118
            (features[workers],) = [tensor.clone() for tensor in stored if tensor.dtype == torch.float32]
    for *_, encoders in sides.values():
        for actor in encoders.actors:
            ray.kill(actor)
    median = {workers: statistics.median(values) for workers, values in seconds.items()}
    gap = float((features[1] - features[2]).abs().max())
    return [
        [f"encode {FRAMES} frames", workers, f"{value:.2f}", f"{median[1] / value:.2f}",
         f"{gap:.1e}" if workers > 1 else ""]
        for workers, value in median.items()
    ]  # fmt: skip


def spread(cluster: Cluster, workspace: Workspace) -> list[list[object]]:
    """Log-probs of one packed row on 1, 2 and 4 ranks."""
    prompt, response, group = ROW
    base = workspace.config(FRAMES, f"data.max_prompt_tokens={prompt}")
    model = open_model(base.model)
    source = open_source(base, model)
    assert source.store is not None
    row = make_row(prompt, model.placeholder_id, "video", model.tower)
    generator = torch.Generator().manual_seed(0)
    source.store.put("video", torch.randn(row.media[0].num_tokens, model.hidden_size, generator=generator))
    batch = make_batch([dataclasses.replace(row, group="one")] * group, response)
    policies = {}
    for ranks in (1, 2, 4):
        config = base.model_copy(
            update={"policy": base.policy.model_copy(update={"ranks": ranks, "sequence_parallel": ranks})}
        )
        policies[ranks] = Policy.trained(cluster, config)
    cluster.wait(**{f"policy {ranks}": policy for ranks, policy in policies.items()})
    found: dict[int, torch.Tensor] = {}
    seconds: dict[int, list[float]] = {ranks: [] for ranks in policies}
    for repeat in range(REPEATS + 1):
        for ranks, policy in policies.items():
            started = time.perf_counter()
            found[ranks] = policy.compute_log_probs(batch)
            if repeat:
                seconds[ranks].append(time.perf_counter() - started)
    median = {ranks: statistics.median(values) for ranks, values in seconds.items()}
    return [
        [f"log-probs of a row of {prompt + group * response} tokens", ranks, f"{median[ranks]:.2f}",
         f"{median[1] / median[ranks]:.2f}", f"{float((found[ranks] - found[1]).abs().max()):.1e}" if ranks > 1 else ""]
        for ranks in policies
    ]  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_workspace(Path(folder), [FRAMES], 1)
        with Cluster(workspace.config(FRAMES)) as cluster:
            rows = encode(cluster, workspace) + spread(cluster, workspace)
    write_table(
        "parallel",
        "Work spread over processes",
        ["work", "processes", "seconds", "times faster", "largest difference"],
        rows,
        f"Wall seconds, median of {REPEATS}, in turns, one thread a process. Tower of 7 million parameters, language "
        "model of 3 million. Where there are more processes than cores, the figure shows what the exchange costs.",
    )


if __name__ == "__main__":
    main()
