"""One Ray, one vLLM engine, one policy and one encoder for all tests of the real stack, over a few synthetic clips."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e


def pytest_collection_modifyitems(items):
    for item in items:
        if "e2e" in Path(str(item.fspath)).parts:
            item.add_marker(pytest.mark.e2e)


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
            *more,
        ]

    def config(self, *more: str):
        from videorl.config import load_config

        return load_config("train", self.overrides(*more))

    def rows(self, name: str = "train") -> list[dict[str, Any]]:
        from videorl.data.schema import load_rows

        return load_rows(self.folder / f"{name}.jsonl")


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
    from videorl.cluster import Cluster
    from videorl.models.base import open_model
    from videorl.models.media import open_source
    from videorl.rollout.engine import Engines
    from videorl.workers.encoder import Encoders
    from videorl.workers.policy import Policy

    # SGD: weights move by what the gradient says, which is what tests compare
    config = workspace.config(
        "policy.optim.name=sgd", "policy.optim.lr=0.1", "policy.optim.warmup_steps=0", "cluster.num_cpus=32",
        "cluster.placement=spread", "data.max_prompt_tokens=512", "rollout.max_model_len=640",
    )  # fmt: skip
    model = open_model(config.model)
    source = open_source(config, model)
    with Cluster(config) as cluster:
        encoders = Encoders(cluster, config, source.store)
        engines = Engines(cluster, config)
        policy = Policy.trained(cluster, config)
        cluster.wait(encoders=encoders, engines=engines, policy=policy)
        engines.load_weights(policy.publish(version=0))
        yield Stack(workspace, config, model, source, cluster, encoders, engines, policy)
