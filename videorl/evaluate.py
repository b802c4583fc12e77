"""Held-out accuracy: `python -m videorl.evaluate recipe=quickstart model.path=runs/quickstart/export`."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from videorl.cluster import Cluster
from videorl.config import Config, ConfigError
from videorl.data.prompts import PromptStream
from videorl.launch import main
from videorl.models.base import open_model
from videorl.models.media import open_source
from videorl.rewards.registry import load
from videorl.rewards.rubric import Rubric
from videorl.rollout.engine import Engines
from videorl.rollout.runner import Runner
from videorl.run import Run
from videorl.types import RenderedPrompt, RolloutGroup
from videorl.workers.encoder import Encoders

SCORED_TASKS = ("mc", "next_event", "numeric", "grounding")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Sampled and greedy rollouts of every held-out prompt.

    Accuracy is 0/1 for choices and numbers and the temporal IoU for grounding, whatever the configured rewards are;
    tasks without such a rule count their configured reward. A response that cannot be parsed is wrong, never left out.
    """

    sampled: list[RolloutGroup]
    greedy: list[RolloutGroup]

    def metrics(self) -> dict[str, float]:
        """`accuracy` (mean over prompts of the mean over samples: avg@k), `accuracy_greedy`, `parse_failure`, per task,
        and `recall@0.5` for grounding: the share of sampled intervals with an IoU of at least 0.5."""
        sampled, unparsed = _accuracies(self.sampled)
        greedy, _ = _accuracies(self.greedy)
        out = {
            "accuracy": _mean([_mean(values) for values in sampled]),
            "accuracy_greedy": _mean([_mean(values) for values in greedy]),
            "parse_failure": unparsed,
            "reward": _mean([reward for group in self.sampled for reward in group.rewards]),
            "prompts": float(len(self.sampled)),
        }
        by_task = defaultdict(list)
        for group, values, best in zip(self.sampled, sampled, greedy, strict=True):
            by_task[group.prompt.prompt.row.get("data_source") or group.prompt.prompt.task].append((values, best))
            if group.prompt.prompt.task == "grounding":
                by_task["recall@0.5"].append(([float(v >= 0.5) for v in values], [float(v >= 0.5) for v in best]))
        for task, values in sorted(by_task.items()):
            out[f"accuracy/{task}"] = _mean([_mean(sampled) for sampled, _ in values])
            out[f"accuracy_greedy/{task}"] = _mean([_mean(greedy) for _, greedy in values])
        return out


def _accuracies(groups: Sequence[RolloutGroup]) -> tuple[list[list[float]], float]:
    """Accuracy of each rollout, group by group; and the share of rollouts whose answer could not be parsed."""
    accuracy = load("accuracy")
    values, failures, count = [], 0, 0
    for group in groups:
        row = group.prompt.prompt.row
        if row["task"] not in SCORED_TASKS:
            values.append(list(group.rewards))
            continue
        results = [accuracy(rollout.text, row) for rollout in group.rollouts]
        failures += sum(result.failure is not None for result in results)
        count += len(results)
        values.append([result.value for result in results])
    return values, failures / max(1, count)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def evaluate(
    config: Config, runner: Runner, prompts: Sequence[RenderedPrompt], progress: Callable[[str, int, int], None]
) -> Evaluation:
    """`eval.samples` sampled rollouts and one greedy rollout of each prompt. The same seeds at every evaluation."""

    def roll(what: str, samples: int, temperature: float) -> list[RolloutGroup]:
        return runner.collect(
            prompts,
            group_size=samples,
            temperature=temperature,
            label="eval",
            progress=lambda done: progress(what, done, samples * len(prompts)),
        )

    return Evaluation(
        sampled=roll("evaluating", config.eval.samples, config.rollout.temperature),
        greedy=roll("evaluating greedily", 1, 0.0),
    )


def evaluate_checkpoint(config: Config) -> None:
    """Evaluate `model.path` on `data.eval_path`: sampled and greedy accuracy, without training."""
    if config.data.eval_path is None:
        raise ConfigError(["data.eval_path: null, evaluation needs held-out rows; give their file"])
    run = Run(config)
    model = open_model(config.model)
    source = open_source(config, model)
    held_out = PromptStream.held_out(config, model, source)
    assert held_out is not None
    with Cluster(config) as cluster, run:
        encoders = Encoders(cluster, config, source.store)
        engines = Engines(cluster, config)
        runner = Runner(config, model, engines.generate, Rubric(config.rewards))
        cluster.wait(encoders=encoders, engines=engines)
        run.resume({})
        with run.step(0) as log:
            evaluation = evaluate(config, runner, held_out.all(encoders.ensure), run.progress)
            log.evaluation(evaluation)
            log.rollouts(evaluation.greedy)
    for name, value in evaluation.metrics().items():
        print(f"{name:40} {value:.4f}")


if __name__ == "__main__":
    sys.exit(main(evaluate_checkpoint, "eval"))
