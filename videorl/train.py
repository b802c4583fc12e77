"""Reinforcement learning: `python -m videorl.train recipe=quickstart`. `train` is the loop, one step on one screen."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from videorl import contract
from videorl.algorithms.advantages import compute_advantages
from videorl.algorithms.importance import compute_importance_weights
from videorl.algorithms.kl import apply_kl_to_rewards
from videorl.algorithms.shaping import compute_overlong_penalty
from videorl.cluster import Cluster
from videorl.config import Config
from videorl.contract import AlignmentError
from videorl.data.batch import Batch, at_last_token, make_batch
from videorl.data.prompts import PromptStream
from videorl.evaluate import constant_baselines, evaluate
from videorl.launch import main
from videorl.models.base import build_model, open_model
from videorl.models.media import open_source
from videorl.planning import print_plan
from videorl.rewards.report import describe_batch
from videorl.rewards.rubric import RewardError
from videorl.rewards.workers import RewardWorkers
from videorl.rollout.engine import Engines
from videorl.rollout.episodes import Episodes, open_runner
from videorl.rollout.frames import Openings
from videorl.rollout.passes import Passes
from videorl.rollout.runner import Runner, Training
from videorl.rollout.speakers import texts
from videorl.run import Run, StepLog
from videorl.stages import of_stage
from videorl.types import Media, RenderedPrompt, RolloutGroup
from videorl.workers.critic import Critic
from videorl.workers.encoder import Encoders
from videorl.workers.policy import Policy, Reference


@dataclass
class Job:
    """The parts of a run, started, and the step after which it goes on."""

    config: Config
    run: Run
    cluster: Cluster
    prompts: PromptStream
    exam: Sequence[RenderedPrompt]  # held-out prompts
    encoders: Encoders
    engines: Engines
    policy: Policy
    reference: Reference | None
    critic: Critic | None
    rewards: RewardWorkers
    runner: Runner | Episodes
    passes: Passes
    step: int

    @property
    def learners(self) -> dict[str, Policy | Critic]:
        return {"policy": self.policy} | ({"critic": self.critic} if self.critic else {})

    def in_use(self, trained: Sequence[Media]) -> list[Media]:
        """What the store has to keep while this is trained on."""
        return [*(item for prompt in self.exam for item in prompt.media), *trained]


def shown(groups: Sequence[RolloutGroup]) -> list[Media]:
    """The media of all rollouts, each once."""
    return list({item.key: item for group in groups for each in group.all for item in each.media}.values())


def train(config: Config) -> None:
    """Post-train a video LLM with reinforcement learning."""
    config = of_stage(config, "train")
    with start(config) as job:
        for step in range(job.step + 1, config.total_steps + 1):
            with job.run.step(step) as log:
                with log.time("rollout"):  # 1. G responses per prompt, scored
                    groups = collect(job, step, log)
                if step < config.total_steps:  # beside all that follows
                    count, in_use = config.rollout.prompts_per_step, job.in_use(shown(groups))
                    job.prompts.look_ahead(count, job.encoders.ensure, in_use)
                learn(job, groups, step, log)  # 2. to 5.
                with log.time("weight_sync"):  # 6. the engines sample from the new policy
                    job.engines.load_weights(job.policy.publish(version=step))
                report(job, step, log)
            if job.run.due("save", step):
                job.run.save(step, job.learners, job.prompts.state())


def learn(job: Job, groups: Sequence[RolloutGroup], step: int, log: StepLog, max_staleness: int = 0) -> None:
    """The optimiser steps of a batch of rollouts, sampled at most `max_staleness` weight versions ago."""
    config, policy, reference, critic = job.config, job.policy, job.reference, job.critic
    if step == 1:
        job.run.say(describe_batch(groups))
    staleness = step - 1 - min(rollout.weight_version for group in groups for rollout in group.rollouts)
    log.value("rollout/staleness", staleness)
    if staleness > max_staleness:
        raise AlignmentError(
            f"step {step}: a rollout is {staleness} weight versions old, {max_staleness} are allowed; "
            "an engine has missed a weight update"
        )

    batch = make_batch(groups)  # 2. to tensors, once
    with log.time("log_probs"):  # 3. the same tokens under the frozen views
        batch = batch.with_(old_log_probs=policy.compute_log_probs(batch))
        if reference:
            batch = batch.with_(ref_log_probs=reference.compute_log_probs(batch))
        if critic:
            batch = batch.with_(values=critic.compute_values(batch))
    log.metrics("parity", prove(config, policy, batch, control=step == 1, same_weights=staleness == 0))

    batch = assign_credit(config, batch, log)  # 4. pure

    with log.time("update"):  # 5. optimiser steps
        if critic:
            log.metrics("critic", critic.update(batch))
        if config.critic is None or step > config.critic.warmup_steps:
            log.metrics("policy", policy.update(batch))


def report(job: Job, step: int, log: StepLog) -> None:
    """Evaluate, where it is due, and log what the parts have counted in this step."""
    if job.exam and job.run.due("eval", step):
        with log.time("eval"):
            log.evaluation(evaluate(job.config, job.runner, job.exam, job.encoders.ensure, job.run.progress))
    log.metrics("scorer", job.rewards.report(check=job.run.due("eval", step)))
    log.metrics("data", job.prompts.metrics())
    log.metrics("video", job.encoders.take_counts())
    log.metrics("driver", job.cluster.take_counts())


@contextmanager
def start(config: Config) -> Iterator[Job]:
    """Everything a run needs, resumed where it was; after its last step the export and the summary are written."""
    run = Run(config)
    build_model(config.model, texts(config), config.seed)
    model = open_model(config.model)
    source = open_source(config, model)
    openings = Openings.of(config, model, source)
    prompts = PromptStream.train(config, model, source, openings and openings.prompt)
    held_out = PromptStream.held_out(config, model, source, openings and openings.prompt)
    print_plan(config, list(prompts.rows.values()), model.tokenizer)

    with Cluster(config) as cluster, run:
        encoders = Encoders(cluster, config, source)
        engines = Engines(cluster, config)
        policy = Policy.trained(cluster, config)
        reference = Policy.reference(cluster, config, policy)
        critic = Critic(cluster, config, config.critic) if config.critic else None
        rewards = RewardWorkers(cluster, config)
        runner = open_runner(config, model, source, engines.generate, rewards, encoders.ensure)
        passes = Passes(config.rollout.passes, prompts.renderer, model.tokenizer, config.seed, encoders.ensure)
        cluster.wait(
            encoders=encoders, engines=engines, policy=policy, reference=reference, critic=critic, rewards=rewards
        )
        job = Job(
            config, run, cluster, prompts, (), encoders, engines, policy, reference, critic, rewards, runner, passes, 0
        )
        job.step, state = run.resume(job.learners)
        if state is not None:
            prompts.load_state(state)
        engines.load_weights(policy.publish(version=job.step))
        job.exam = held_out.all(encoders.ensure) if held_out else ()
        if state is None and job.exam:
            with run.step(0) as log:
                log.evaluation(evaluate(config, runner, job.exam, encoders.ensure, run.progress))
                log.metrics("video", encoders.take_counts())
        yield job
        if config.run.export:
            policy.export(run.folder / "export")
        run.finish(constant_baselines(job.exam))


def collect(job: Job, step: int, log: StepLog) -> list[RolloutGroup]:
    """One step's groups to train on. All that was rolled out is logged.

    With dynamic sampling (DAPO), groups that teach nothing are replaced by further prompts. Groups that lost rollouts
    whose reward nobody could say are trained on with those that are left, if two are.

    Raises RewardError where more than half of the rollouts were lost, or all groups.
    """
    rollout, dynamic = job.config.rollout, job.config.algorithm.dynamic_sampling
    training = Training(done=(step - 1) / job.config.total_steps, passes=job.passes)
    all_drawn: list[RolloutGroup] = []
    scored: list[RolloutGroup] = []
    groups: list[RolloutGroup] = []
    for draw in range(dynamic.max_batches if dynamic else 1):
        drawn = job.runner.collect(
            job.prompts.take(rollout.prompts_per_step - len(groups), job.encoders.ensure),
            group_size=rollout.group_size,
            temperature=rollout.temperature,
            label=f"step {step}.{draw}",
            progress=log.progress,
            training=training,
        )
        all_drawn += drawn
        usable = [group for group in drawn if len(group.rollouts) >= min(2, rollout.group_size)]
        scored += usable
        groups += [group for group in usable if not (dynamic and group.zero_variance)]
        if len(groups) == rollout.prompts_per_step:
            break
    log.rollouts(all_drawn, passes=job.passes.on)
    lost = [why for group in all_drawn for rollout in group.lost for why in rollout.abstained.values()]
    lost += [failed.why for group in all_drawn for failed in group.failed]
    total = sum(len(group.all) + len(group.failed) for group in all_drawn)
    if 2 * len(lost) > total or not scored:
        raise RewardError(
            f"step {step}: {len(lost)} of {total} rollouts could not be scored, more than half or all of their groups: "
            + "; ".join(why for why, _ in Counter(lost).most_common(3))
        )
    groups = groups or scored  # a step in which no group differs is trained on as it is: its advantages are zero
    groups += [side for group in groups for side in job.passes.joined(group) if len(side.rollouts) >= 2]
    log.value("rollout/trained_groups", len(groups))
    return groups


def prove(config: Config, policy: Policy, batch: Batch, control: bool, same_weights: bool) -> dict[str, float]:
    """That the trainer is about to train on what the engines saw. Raises AlignmentError (see `contract`).

    Log-probs of older weights cannot be held against the trainer's: then the fingerprints alone speak.
    """
    tolerance = config.rollout.parity_tolerance if same_weights else None
    with_video = torch.tensor([bool(row.media) for row in batch.rows])
    control = control and tolerance is not None and bool(with_video.any())
    return contract.check_log_probs(
        [row.id for row in batch.rows],
        batch.need("rollout_log_probs"),
        batch.need("old_log_probs"),
        batch.response_mask,
        tolerance,
        policy.compute_blank_log_probs(batch) if control else None,
        with_video,
    )


def assign_credit(config: Config, batch: Batch, log: StepLog) -> Batch:
    """Rewards to advantages: overlong penalty, KL in the reward, importance correction, estimator. No side effects."""
    algorithm = config.algorithm
    rewards = batch.need("token_rewards")
    if algorithm.overlong:
        budget = config.rollout.max_response_tokens
        penalties = [compute_overlong_penalty(int(n), budget, algorithm.overlong) for n in batch.lengths]
        rewards = rewards + at_last_token(batch.response_mask, torch.tensor(penalties))
    if algorithm.kl and algorithm.kl.where == "reward":
        rewards, metrics = apply_kl_to_rewards(
            rewards, batch.need("old_log_probs"), batch.need("ref_log_probs"), batch.response_mask, algorithm.kl
        )
        log.metrics("policy", metrics)
    weights = None
    if algorithm.importance_cap:
        weights, metrics = compute_importance_weights(
            batch.need("old_log_probs"), batch.need("rollout_log_probs"), batch.response_mask, algorithm.importance_cap
        )
        log.metrics("importance", metrics)
    credit = compute_advantages(
        algorithm,
        token_rewards=rewards,
        response_mask=batch.response_mask,
        groups=[row.group for row in batch.rows],
        episodes=batch.episodes,
        values=batch.values,
        old_log_probs=batch.old_log_probs,
        importance_weights=weights,
    )
    batch = batch.with_(advantages=credit.advantages, returns=credit.returns, importance_weights=weights)
    return batch if batch.trained is None else batch.with_(response_mask=batch.trained)


if __name__ == "__main__":
    sys.exit(main(train, "train"))
