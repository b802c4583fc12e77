"""From the command line to a validated configuration: every problem at once, before Ray starts."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import yaml

from videorl import ending
from videorl.algorithms.names import (
    ADVANTAGE_OPTIONS,
    ADVANTAGES,
    FIXED_LOSS_AGG,
    LOSSES,
    PAIR_LOSSES,
    SEQUENCE_LOSSES,
    advantage_needs,
    needs_group,
)
from videorl.config import (
    Config,
    ConfigError,
    EnvConfig,
    FitConfig,
    compose_config,
    configs_folder,
    load_config,
)
from videorl.envs.registry import load_env
from videorl.imports import load_object
from videorl.planning import dry_run
from videorl.rewards.hooks import is_hook
from videorl.rewards.registry import find_scorer
from videorl.rewards.rubric import Rubric
from videorl.rollout.contexts import load_context
from videorl.rollout.passes import load_pass
from videorl.stages import of_stage
from videorl.types import DataError

_USAGE = 2  # exit code of a configuration that cannot run


def main(run: Callable[[Config], None], config_name: str, argv: list[str] | None = None) -> int:
    """Parse, validate and run; the exit code. 2: the configuration is wrong. 1: the run stopped on an error."""
    arguments = _parser(run.__doc__ or "").parse_intermixed_args(argv)
    try:
        if arguments.cfg:
            values, problems = compose_config(config_name, arguments.overrides, arguments.config_dir)
            print(yaml.safe_dump(values, sort_keys=False))
            if problems:
                raise ConfigError(problems)
            return 0
        config = load_config(config_name, arguments.overrides, arguments.config_dir)
        if problems := list(config_problems(config)):
            raise ConfigError(problems)
        if config.dry_run:
            return _run(partial(dry_run, rewarded=config_name == "train"), of_stage(config, config_name))
        return _run(run, config)
    except ConfigError as error:
        for problem in error.problems:
            print(f"config: {problem}", file=sys.stderr)
        return _USAGE


def _run(run: Callable[[Config], int | None], config: Config) -> int:
    try:
        return run(config) or 0
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or ending.asked():
            print(f"stopped; the same command resumes {config.run.dir}", file=sys.stderr)
            return 130
        if isinstance(error, DataError):  # what the user's own files cause needs a sentence, not a traceback
            print(f"error: {error}", file=sys.stderr)
            return 1
        raise


def _parser(description: str) -> argparse.ArgumentParser:
    recipes = sorted(path.stem for path in (configs_folder() / "recipe").glob("*.yaml"))
    parser = argparse.ArgumentParser(
        prog=f"python -m videorl.{Path(sys.argv[0]).stem}",
        description=description,
        epilog=f"recipes: {', '.join(recipes)}. Any key can be overridden: total_steps=3 policy.optim.lr=1e-6. "
        "`--cfg job` prints every key with its value; `dry_run=true` checks data, tokens and memory and exits.",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="recipe=NAME, then overrides (Hydra's grammar)"
    )
    parser.add_argument("--cfg", choices=["job"], help="print the composed configuration and exit")
    parser.add_argument("--config-dir", metavar="DIR", help="folder with your own recipe/ and other groups")
    return parser


def config_problems(config: Config) -> Iterator[str]:
    """The rules that span sections: value, rule and remedy of each one that is broken."""
    yield from _batch_arithmetic(config)
    yield from list(_unknown_names(config)) or _algorithm(config)
    yield from _model_and_data(config)
    for key, stage in (("prefer", config.prefer), ("reward_model", config.reward_model)):
        if stage is not None:
            yield from _pairs(config, key, stage)
    if config.rollout.env is not None:
        yield from _environment(config, config.rollout.env)
        return
    for name in {"mean", "std", "lost"} & config.rewards.terms.keys():
        yield f"rewards.terms.{name}: is taken by the metric reward/{name}; give the term another name"
    yield from _passes(config)
    try:
        Rubric(config.rewards)
    except ValueError as error:
        yield str(error)
    else:
        yield from _reward_terms(config)


def _environment(config: Config, env: EnvConfig) -> Iterator[str]:
    """What does not go with episodes of several turns, which their environment scores."""
    try:
        load_env(env.target, env.params)
    except ValueError as error:
        yield f"rollout.env.{error}"
    for name, term in config.rewards.terms.items():
        if term is not None:
            yield f"rewards.terms.{name}: given, but rollout.env={env.target} scores its episodes itself; set null"
    for name, one in config.rollout.passes.items():
        if one is not None:
            yield f"rollout.passes.{name}: given, but second passes are for single responses; set it to null"
    if config.algorithm.overlong:
        yield "algorithm.overlong: given, but it is about the length of a single response; set it to null"
    for key, trainer in (("policy", config.policy), ("critic", config.critic)):
        if trainer and trainer.micro_batch_tokens < config.rollout.max_model_len:
            yield (
                f"{key}.micro_batch_tokens: {trainer.micro_batch_tokens}, must hold an episode of "
                f"rollout.max_model_len={config.rollout.max_model_len}; raise it or lower that"
            )
    try:
        context = load_context(env.context)
    except ValueError as error:
        yield f"rollout.env.context.{error}"
        return
    if context.splits and config.algorithm.loss in SEQUENCE_LOSSES:
        yield (
            f"algorithm.loss: {config.algorithm.loss}, has one ratio for a response, and with rollout.env.context="
            f"{env.context.target} an episode is several rows; take another loss, or context.target=concat"
        )
    if context.splits and config.algorithm.loss_agg != "token-mean":
        yield (
            f"algorithm.loss_agg: {config.algorithm.loss_agg}, counts rows, and with rollout.env.context="
            f"{env.context.target} an episode is several; set token-mean"
        )


def _passes(config: Config) -> Iterator[str]:
    for name, one in config.rollout.passes.items():
        try:
            if one is not None:
                load_pass(one)
        except ValueError as error:
            yield f"rollout.passes.{name}: {error}"


def _reward_terms(config: Config) -> Iterator[str]:
    """Group hooks name second passes that are on, and a scorer has done with its own tries before it is given up."""
    passes = [name for name, one in config.rollout.passes.items() if one is not None]
    for name, term in config.rewards.terms.items():
        if term is None:
            continue
        if is_hook(term.target):
            if (side := term.params.get("side")) is not None and side not in passes:
                yield (
                    f"rewards.terms.{name}.params.side: {side!r} is no second pass; name one of rollout.passes "
                    f"({', '.join(passes) or 'there is none'}) or add it there"
                )
        elif model := getattr(find_scorer(term.target, **term.params), "Params", None):
            deadline = getattr(model.model_validate(term.params), "deadline", 0.0)
            if deadline > config.rewards.deadline:
                yield (
                    f"rewards.terms.{name}.params.deadline: {deadline:g}, must be at most rewards.deadline="
                    f"{config.rewards.deadline:g}; lower the one or raise the other"
                )


def _batch_arithmetic(config: Config) -> Iterator[str]:
    rollout, data = config.rollout, config.data
    for name, trainer in (("policy", config.policy), ("critic", config.critic)):
        if trainer is None:
            continue
        if rollout.prompts_per_step % trainer.mini_batches:
            divisors = [n for n in range(1, rollout.prompts_per_step + 1) if rollout.prompts_per_step % n == 0]
            _, near = min((abs(n - trainer.mini_batches), n) for n in divisors)
            yield (
                f"{name}.mini_batches: {trainer.mini_batches}, must divide rollout.prompts_per_step="
                f"{rollout.prompts_per_step}; set {near}"
            )
        if trainer.ranks % trainer.sequence_parallel:
            yield (
                f"{name}.sequence_parallel: {trainer.sequence_parallel}, must divide {name}.ranks={trainer.ranks}; "
                "lower it, or give more ranks"
            )
        if trainer.sequence_parallel > 1 and not trainer.shared_prompt:
            yield (
                f"{name}.sequence_parallel: {trainer.sequence_parallel}, spreads packed rows; "
                f"set {name}.shared_prompt=true"
            )
        longest = data.max_prompt_tokens + rollout.max_response_tokens
        if trainer.micro_batch_tokens < longest:
            yield (
                f"{name}.micro_batch_tokens: {trainer.micro_batch_tokens}, must hold one row of data.max_prompt_tokens "
                f"+ rollout.max_response_tokens = {longest}; raise it or lower those"
            )
    if rollout.max_model_len < data.max_prompt_tokens + rollout.max_response_tokens:
        yield (
            f"rollout.max_model_len: {rollout.max_model_len}, must be at least data.max_prompt_tokens + "
            f"rollout.max_response_tokens = {data.max_prompt_tokens + rollout.max_response_tokens}; raise it"
        )


def _pairs(config: Config, key: str, stage: FitConfig) -> Iterator[str]:
    """Mini-batches are equal, and a pair goes through the model together."""
    if stage.batch_size % config.policy.mini_batches:
        yield (
            f"{key}.batch_size: {stage.batch_size}, must be a multiple of policy.mini_batches="
            f"{config.policy.mini_batches}; change one of them"
        )
    prompt, response = config.data.max_prompt_tokens, config.rollout.max_response_tokens
    pair = prompt + 2 * response if config.policy.shared_prompt else 2 * (prompt + response)
    if config.policy.micro_batch_tokens < pair:
        yield (
            f"policy.micro_batch_tokens: {config.policy.micro_batch_tokens}, must hold both rows of a pair = {pair}; "
            "raise it, or lower data.max_prompt_tokens or rollout.max_response_tokens"
        )


def _unknown_names(config: Config) -> Iterator[str]:
    """What is given by a name or an import string that leads nowhere."""
    for key, value, names in (
        ("algorithm.advantage", config.algorithm.advantage, tuple(ADVANTAGES)),
        ("algorithm.loss", config.algorithm.loss, (*LOSSES, *PAIR_LOSSES)),
        ("rollout.engine", config.rollout.engine, ("vllm",)),
    ):
        if ":" in value:
            try:
                load_object(value)
            except ValueError as error:
                yield f"{key}: {error}"
        elif value not in names:
            near = difflib.get_close_matches(value, names, n=1)
            rule = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}, or give 'my_pkg:name'"
            yield f"{key}: {value!r} is not known; {rule}"


def _algorithm(config: Config) -> Iterator[str]:
    algorithm = config.algorithm
    if needs_group(algorithm.advantage) and config.rollout.group_size < 2:
        yield (
            f"rollout.group_size: {config.rollout.group_size}, algorithm.advantage={algorithm.advantage} compares the "
            "rollouts of a prompt; set at least 2, or take an advantage without groups such as gae"
        )
    if missing := (advantage_needs(algorithm.advantage) & ADVANTAGE_OPTIONS) - algorithm.advantage_options.keys():
        names = ", ".join(sorted(missing))
        yield (
            f"algorithm.advantage_options: {algorithm.advantage_options}, algorithm.advantage={algorithm.advantage} "
            f"needs {names}; add +algorithm.advantage_options.{sorted(missing)[0]}=1.0"
        )
    if ":" not in algorithm.advantage:
        for name in algorithm.advantage_options.keys() - (advantage_needs(algorithm.advantage) & ADVANTAGE_OPTIONS):
            yield (
                f"algorithm.advantage_options.{name}: given, but algorithm.advantage={algorithm.advantage} has no such "
                "setting; remove it"
            )
    recorded = {"groups", "values", "old_log_probs", "importance_weights"}
    if unavailable := advantage_needs(algorithm.advantage) - recorded - ADVANTAGE_OPTIONS:
        yield (
            f"algorithm.advantage: {algorithm.advantage!r}, needs {', '.join(sorted(unavailable))}, which the training "
            "loop does not record; choose another, or call it from a loop of your own"
        )
    if algorithm.kl and algorithm.kl.where == "loss" and algorithm.kl.estimator == "k1":
        yield "algorithm.kl.estimator: 'k1', its gradient is zero on average when it is in the loss; take k2 or k3"
    needed, further = PAIR_LOSSES.get(algorithm.loss, (frozenset(), algorithm.loss_options.keys()))
    for name in sorted(needed - algorithm.loss_options.keys()):
        yield f"algorithm.loss_options: {algorithm.loss_options}, {algorithm.loss} needs {name}; add it"
    for name in sorted(algorithm.loss_options.keys() - needed - further):
        yield f"algorithm.loss_options.{name}: given, but {algorithm.loss} has no such setting; remove it"
    if (fixed := FIXED_LOSS_AGG.get(algorithm.loss)) and algorithm.loss_agg != fixed:
        yield f"algorithm.loss_agg: {algorithm.loss_agg!r}, {algorithm.loss} is defined with {fixed}; set that"
    wants_critic = "values" in advantage_needs(algorithm.advantage)
    if wants_critic and config.critic is None:
        yield f"critic: null, algorithm.advantage={algorithm.advantage} needs values; add critic=default"
    if config.critic is not None and not wants_critic:
        yield f"critic: given, but algorithm.advantage={algorithm.advantage} uses no values; set critic=none"
    if algorithm.overlong and algorithm.overlong.buffer > config.rollout.max_response_tokens:
        yield (
            f"algorithm.overlong.buffer: {algorithm.overlong.buffer}, must not exceed rollout.max_response_tokens="
            f"{config.rollout.max_response_tokens}; lower it"
        )


def _model_and_data(config: Config) -> Iterator[str]:
    sampling = config.data.sampling
    if (sampling.fps is None) == (sampling.num_frames is None):
        yield f"data.sampling.fps: {sampling.fps}, num_frames: {sampling.num_frames}, give one; set the other null"
    if not sampling.min_frames <= sampling.max_frames:
        yield f"data.sampling.min_frames: {sampling.min_frames}, exceeds max_frames={sampling.max_frames}; lower it"
    if not sampling.min_pixels <= sampling.max_pixels <= sampling.total_pixels:
        yield (
            f"data.sampling.max_pixels: {sampling.max_pixels}, must lie between min_pixels={sampling.min_pixels} and "
            f"total_pixels={sampling.total_pixels}; change it"
        )
    if config.model.lora and config.model.train_vision:
        yield "model.train_vision: true, LoRA adapts the language model only; set it false or model.lora=null"
    if not Path(config.data.media_root).is_dir():
        yield f"data.media_root: {config.data.media_root!r}, no such folder; give the one media paths are relative to"
    for key, path in (("path", config.data.path), ("eval_path", config.data.eval_path)):
        if path and not path.startswith("hf:") and not Path(path).exists():
            yield f"data.{key}: {path!r}, no such file; give a .jsonl, a .parquet or hf:name:split"
