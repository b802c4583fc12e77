"""Held-out accuracy: `python -m videorl.evaluate recipe=quickstart model.path=runs/quickstart/export`."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from videorl.cluster import Cluster
from videorl.config import Config, ConfigError
from videorl.data.prompts import Ensure, PromptStream
from videorl.data.stats import RECALL_IOU, Constant, best_constants
from videorl.envs.env import VideoEnv
from videorl.launch import main
from videorl.models.base import open_model
from videorl.models.media import open_source
from videorl.rewards.registry import load
from videorl.rewards.terms.accuracy import SCORED_TASKS
from videorl.rewards.workers import RewardWorkers
from videorl.rollout.engine import Engines
from videorl.rollout.episodes import Episodes, open_runner
from videorl.rollout.frames import Openings
from videorl.rollout.runner import Runner
from videorl.rollout.speakers import LOOKS, Guided
from videorl.run import Run, compute_measures
from videorl.types import DataError, RenderedPrompt, Rollout, RolloutGroup
from videorl.workers.encoder import Encoders

ACCURACY = "accuracy"  # the configured term that evaluation reads


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Sampled and greedy rollouts of every held-out prompt.

    Accuracy is what the configured term `accuracy` says; without one, 0/1 for choices and numbers and the temporal IoU
    for grounding; and for other tasks the reward. A response that cannot be parsed, or that nobody could score, is
    wrong, never left out.
    """

    sampled: list[RolloutGroup]
    greedy: list[RolloutGroup]
    others: dict[str, list[RolloutGroup]] = field(default_factory=dict)  # episodes in which others chose what to see

    def metrics(self) -> dict[str, float]:
        """`accuracy` (mean over prompts of the mean over samples: avg@k), `accuracy_greedy`, `parse_failure`, per
        `data_source`, and for grounding `recall@0.5`: the share of intervals with an IoU of at least 0.5."""
        sampled, unparsed = _accuracies(self.sampled)
        greedy, _ = _accuracies(self.greedy)
        out = {
            "accuracy": _mean([_mean(values) for values in sampled]),
            "accuracy_greedy": _mean([_mean(values) for values in greedy]),
            "parse_failure": unparsed,
            "reward": _mean([reward for group in self.sampled for reward in group.rewards]),
            "lost": sum(len(group.lost) + len(group.failed) for group in self.sampled)
            / sum(len(group.all) + len(group.failed) for group in self.sampled),
            "prompts": float(len(self.sampled)),
        }
        out |= compute_measures([rollout for group in self.sampled for rollout in group.all])
        for name, groups in self.others.items():
            out[f"accuracy_{name}"] = _mean([_mean(values) for values in _accuracies(groups)[0]])
        for kind, values in (("accuracy", sampled), ("accuracy_greedy", greedy)):
            by_source = defaultdict(list)
            for group, accuracies in zip(self.sampled, values, strict=True):
                for name, each in _by_source(group.prompt.prompt.row, accuracies):
                    by_source[name].append(_mean(each))
            out |= {f"{kind}/{name}": _mean(each) for name, each in sorted(by_source.items())}
        return out


def _by_source(row: dict[str, Any], accuracies: Sequence[float]) -> list[tuple[str, list[float]]]:
    """Under which names a prompt's accuracies are reported: its data source, and for grounding also the recall."""
    source = row["data_source"]
    if row["task"] != "grounding":
        return [(source, list(accuracies))]
    found = [float(value >= RECALL_IOU) for value in accuracies]
    return [(source, list(accuracies)), (f"{source}/recall@{RECALL_IOU}", found)]


def _accuracies(groups: Sequence[RolloutGroup]) -> tuple[list[list[float]], float]:
    """Accuracy of each rollout, group by group; and the share of rollouts whose answer could not be parsed.

    An episode that failed is wrong too.
    """
    results = [
        [_accuracy(rollout, rollout in group.lost) for rollout in group.all] + [(0.0, False)] * len(group.failed)
        for group in groups
    ]
    unparsed = [unparsed for group in results for _, unparsed in group]
    return [[value for value, _ in group] for group in results], _mean(unparsed)


def _accuracy(rollout: Rollout, lost: bool) -> tuple[float, bool]:
    """Accuracy of a rollout, and whether its answer could not be parsed."""
    row = rollout.prompt.prompt.row
    if ACCURACY in rollout.terms:
        return rollout.terms[ACCURACY], ACCURACY in rollout.failures
    if row["task"] in SCORED_TASKS:
        result = load("accuracy")(rollout.text, row)
        return result.value, result.failure is not None
    return (0.0 if lost else rollout.reward), False


def constant_baselines(prompts: Sequence[RenderedPrompt]) -> dict[str, float]:
    """What the best answer that ignores the video scores, named like the evaluation's metrics: over all and by source.

    That is the most frequent choice or number, and for grounding the best interval (`data.stats.best_constants`).
    """
    constants = best_constants([prompt.prompt.row for prompt in prompts])
    by_name: dict[str, list[Constant]] = defaultdict(list)
    for constant in constants:
        by_name[f"accuracy/{constant.source}"].append(constant)
        by_name["accuracy"].append(constant)
    best = {name: _weighted((each.score, each.rows) for each in found) for name, found in by_name.items()}
    for constant in constants:
        if constant.recall is not None:
            best[f"accuracy/{constant.source}/recall@{RECALL_IOU}"] = constant.recall
    return best


def _weighted(values: Iterable[tuple[float, int]]) -> float:
    """Mean of (value, weight)."""
    pairs = list(values)
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def evaluate(
    config: Config,
    runner: Runner | Episodes,
    prompts: Sequence[RenderedPrompt],
    ensure: Ensure,
    progress: Callable[[str, int, int], None],
) -> Evaluation:
    """`eval.samples` sampled rollouts and one greedy rollout of each prompt. The same seeds at every evaluation.

    In an environment of several turns also one in which the policy answers without a look, after a random look, and
    after that of the oracle.

    `ensure` makes their media available again, which a small store may have dropped since. Raises DataError where a
    clip cannot be read any more.
    """
    for failure in ensure([item for prompt in prompts for item in prompt.media]).values():
        raise DataError(failure.reason, f"evaluation: {failure}")

    def roll(what: str, samples: int, temperature: float, **options: Any) -> list[RolloutGroup]:
        return runner.collect(
            prompts,
            group_size=samples,
            temperature=temperature,
            label="eval",
            progress=lambda done: progress(what, done, samples * len(prompts)),
            **options,
        )

    others: dict[str, list[RolloutGroup]] = {}
    if isinstance(runner, Episodes) and isinstance(runner.make_env(), VideoEnv):
        for name, chosen in LOOKS.items():
            speaker = Guided(runner.speaker, runner.model, chosen, config.seed)
            others[name] = roll(f"evaluating, {name.replace('_', ' ')}", 1, config.rollout.temperature, speaker=speaker)
    return Evaluation(
        sampled=roll("evaluating", config.eval.samples, config.rollout.temperature),
        greedy=roll("evaluating greedily", 1, 0.0),
        others=others,
    )


def evaluate_checkpoint(config: Config) -> None:
    """Evaluate `model.path` on `data.eval_path`: sampled and greedy accuracy, without training."""
    if config.data.eval_path is None:
        raise ConfigError(["data.eval_path: null, evaluation needs held-out rows; give their file"])
    run = Run(config)
    model = open_model(config.model)
    source = open_source(config, model)
    openings = Openings.of(config, model, source)
    held_out = PromptStream.held_out(config, model, source, openings and openings.prompt)
    assert held_out is not None
    with Cluster(config) as cluster, run:
        encoders = Encoders(cluster, config, source)
        engines = Engines(cluster, config)
        rewards = RewardWorkers(cluster, config)
        runner = open_runner(config, model, source, engines.generate, rewards, encoders.ensure)
        cluster.wait(encoders=encoders, engines=engines, rewards=rewards)
        run.resume({})
        with run.step(0) as log:
            evaluation = evaluate(config, runner, held_out.all(encoders.ensure), encoders.ensure, run.progress)
            log.evaluation(evaluation)
            log.rollouts(evaluation.sampled, others=evaluation.greedy)
    for name, value in evaluation.metrics().items():
        print(f"{name:40} {value:.4f}")


if __name__ == "__main__":
    sys.exit(main(evaluate_checkpoint, "eval"))
