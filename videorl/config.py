"""The configuration: Hydra composes YAML, this schema validates all of it before anything starts.

Values live in `configs/*.yaml`, types and bounds here: the schema has no defaults, forbids unknown keys and is frozen.
A switched-off feature is `null`. No torch and no ray: this module is imported by everything.
"""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class RunConfig(Section):
    dir: str = Field(description="run directory; the same command on the same directory resumes")
    eval_every: Count = Field(description="evaluate every so many steps (0 = only before and after)")
    save_every: Count = Field(description="checkpoint every so many steps (0 = only at the end)")
    keep_checkpoints: Annotated[int, Field(ge=2)] = Field(description="newest checkpoints to keep")
    export: bool = Field(description="write export/ in Hugging Face format at the end")
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "swanlab"]] = Field(description="beside metrics.jsonl")
    live: Literal["auto", "rich", "plain"] = Field(description="live view; auto = rich on a terminal")


class LoraConfig(Section):
    r: Positive
    alpha: PositiveFloat
    targets: list[str] = Field(min_length=1, description="names of the linear layers, e.g. [q_proj, v_proj]")


class ModelConfig(Section):
    family: Literal["qwen2_5_vl"]
    path: str = Field(description="Hugging Face checkpoint: a folder or a hub name")
    revision: str | None = Field(description="hub revision; pin it")
    build: Literal["tiny"] | None = Field(
        description="tiny = where model.path is missing, make a random tiny checkpoint for the words of data.path"
    )
    dtype: Literal["float32", "bfloat16"] = Field(description="dtype of the engine, the tower and the embeddings")
    train_vision: bool = Field(description="train the vision tower; turns the embedding store off")
    trust_remote_code: bool
    lora: LoraConfig | None


class SamplingConfig(Section):
    fps: PositiveFloat | None
    num_frames: Positive | None
    min_frames: Positive
    max_frames: Positive
    min_pixels: Positive = Field(description="pixels of one frame")
    max_pixels: Positive = Field(description="pixels of one frame")
    total_pixels: Positive = Field(description="pixels of all frames of one video")


class LimitsConfig(Section):
    """Checked before a file is decoded; `deadline` kills the decoder."""

    duration: PositiveFloat = Field(description="seconds")
    frames: Positive = Field(description="frames stored in the file")
    frame_pixels: Positive = Field(description="width x height of a stored frame")
    deadline: PositiveFloat = Field(description="seconds one clip may take to decode")
    memory_gb: PositiveFloat = Field(description="address space of a decoder process")


class DataConfig(Section):
    path: str = Field(description="training rows: .jsonl, .parquet or a Hugging Face dataset (hf:name:split)")
    eval_path: str | None = Field(description="held-out rows, same formats")
    media_root: str = Field(description="every media path is relative to and stays under this folder")
    system_prompt: str | None
    instructions: dict[str, str | None] = Field(description="task -> text appended to its question; null = none")
    sampling: SamplingConfig
    limits: LimitsConfig
    decoder: Literal["pyav", "decord", "torchcodec"]
    decode_workers: Positive = Field(description="decoder processes of each process that decodes")
    max_prompt_tokens: Positive = Field(description="longer prompts are set aside and counted, never cut")
    max_bad_fraction: Fraction = Field(description="stop when more of the rows are bad than this")
    shuffle: bool


class StoreConfig(Section):
    dir: str = Field(description="folder of cached frames and embeddings; may be shared by runs of one machine")
    max_gb: PositiveFloat = Field(description="least recently used entries are evicted above this")


# The entries of a mapping have no place in YAML for defaults, so their sections have them here.


class TargetConfig(Section):
    """Something by name."""

    target: str = Field(description="a built-in name, or 'my_pkg.module:name'")
    params: dict[str, Any] = Field(default={}, description="its keyword arguments")


class PassConfig(TargetConfig):
    """A second pass over a prompt on the same engine, with whose rollouts group hooks compare the first."""

    join: bool = Field(default=False, description="train on the second pass's rollouts too, as a group of their own")


class EnvConfig(TargetConfig):
    """An environment of several turns, in which the model chooses the frames it wants to see."""

    context: TargetConfig = Field(
        default=TargetConfig(target="concat"), description="what a turn sees: concat, window or visual_window"
    )


class RolloutConfig(Section):
    engine: str = Field(description="vllm, or an import string of an Engine class")
    num_engines: Positive
    prompts_per_step: Positive
    group_size: Positive = Field(description="responses per prompt")
    max_response_tokens: Positive
    temperature: PositiveFloat
    max_model_len: Positive = Field(description="prompt + response tokens the engine accepts")
    max_concurrency: Positive = Field(description="requests under way in one engine")
    timeout: PositiveFloat = Field(description="seconds one response may take")
    parity_tolerance: PositiveFloat | None = Field(
        description="mean difference of engine's and trainer's log-probs that stops the run; null = logged only"
    )
    tensor_parallel: Positive
    passes: dict[str, PassConfig | None] = Field(description="second passes by name; null = off")
    env: EnvConfig | None = Field(description="null = one response to each prompt")
    engine_kwargs: dict[str, Any] = Field(description="passed to vLLM as they are")


class StageConfig(Section):
    """What changes in a term once a share of the training is done."""

    after: Fraction = Field(description="share of total_steps")
    weight: float | None = Field(default=None, allow_inf_nan=False)
    params: dict[str, Any] = {}


class TermConfig(TargetConfig):
    """A function of a response and its row, a scorer, or a group hook."""

    weight: float = Field(allow_inf_nan=False, description="0 = log only")
    tasks: list[str] | None = Field(default=None, description="rows this term scores; null = all")
    requires: str | None = Field(default=None, description="a term that must be positive, else this one counts 0")
    stages: list[StageConfig] = Field(default=[], description="in the order of `after`")


class RewardsConfig(Section):
    terms: dict[str, TermConfig | None] = Field(description="by name; null = off")
    deadline: PositiveFloat = Field(description="seconds a function of yours, or a scorer, may take for one response")
    on_abstain: Literal["drop", "mean", "stop"] = Field(
        description="a response that could not be scored: drop it, give it the mean of its group, or stop the run"
    )


class KLConfig(Section):
    where: Literal["loss", "reward"]
    estimator: Literal["k1", "k2", "k3"]
    coef: PositiveFloat


class DynamicSamplingConfig(Section):
    """DAPO: groups in which all rewards are equal are replaced by further prompts of the stream."""

    max_batches: Positive = Field(description="stop drawing after so many batches in one step")


class OverlongConfig(Section):
    """DAPO's soft penalty: falls linearly from 0 to -penalty over the last `buffer` tokens of the budget."""

    buffer: Positive
    penalty: PositiveFloat


class AlgorithmConfig(Section):
    advantage: str = Field(description="name of an advantage estimator")
    norm_by_std: bool = Field(description="divide group-centred rewards by the group's standard deviation")
    gamma: Fraction
    lam: Fraction
    advantage_options: dict[str, Any] = Field(description="settings of this estimator alone, e.g. turn_gamma")
    loss: str = Field(description="name of a policy loss; of a loss on pairs for prefer and reward_model, e.g. dpo")
    loss_options: dict[str, Any] = Field(description="settings of that loss, e.g. beta; verl's as verl spells them")
    loss_agg: Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
    clip_low: PositiveFloat
    clip_high: PositiveFloat
    clip_dual: Annotated[float, Field(gt=1)] = Field(description="dual-clip bound for negative advantages")
    entropy_coef: NonNegative
    kl: KLConfig | None
    importance_cap: PositiveFloat | None = Field(
        description="truncated importance correction between engine and trainer log-probs; null = off"
    )
    dynamic_sampling: DynamicSamplingConfig | None
    overlong: OverlongConfig | None


class OptimConfig(Section):
    name: Literal["adamw", "sgd"]
    lr: PositiveFloat
    betas: tuple[Fraction, Fraction]
    weight_decay: NonNegative
    schedule: Literal["constant", "cosine"]
    warmup_steps: Count = Field(description="in optimiser steps")
    max_grad_norm: PositiveFloat


class TrainerConfig(Section):
    """One FSDP2 worker group: the policy, or the critic."""

    ranks: Positive
    sequence_parallel: Positive = Field(description="ranks that each packed row is spread over; 1 = none")
    mini_batches: Positive = Field(description="optimiser steps per batch of rollouts")
    epochs: Positive = Field(description="passes over one batch of rollouts")
    micro_batch_tokens: Positive = Field(
        description="tokens of one forward, visual tokens included, over all ranks that share it"
    )
    shared_prompt: bool = Field(description="what the rows of a forward begin with alike is computed once")
    optim: OptimConfig
    gradient_checkpointing: bool
    mixed_precision: bool = Field(description="bf16 compute over fp32 master weights")
    cpu_offload: bool


class CriticConfig(TrainerConfig):
    clip_value: PositiveFloat
    warmup_steps: Count = Field(description="steps in which only the critic learns")


class FitConfig(Section):
    """A stage that learns from rows as they stand: `prefer` and `reward_model`, from `chosen` and `rejected`."""

    model_path: str = Field(
        description="checkpoint to start from, for sft also tiny = a random one; export/ comes of it"
    )
    path: str = Field(description="the rows to learn from")
    steps: Positive
    batch_size: Positive = Field(description="rows of one step")
    optim: OptimConfig


class SftConfig(FitConfig):
    """Supervised cold start, read by `python -m videorl.sft`: rows carry their target in `response`."""

    train_vision: bool
    noise: tuple[Fraction, Fraction] = Field(
        description="share of an environment's demonstrated turns that know nothing, and share of the steps before that"
    )


class EncoderConfig(Section):
    workers: Positive


class EvalConfig(Section):
    samples: Positive = Field(description="sampled responses per prompt (avg@k)")
    max_prompts: Positive | None


class ClusterConfig(Section):
    address: str = Field(description="local, auto, or host:port of a Ray head")
    device: Literal["auto", "cpu", "cuda"]
    threads: Positive = Field(description="torch threads of each worker on CPU")
    placement: Literal["colocate", "spread"] = Field(description="colocate = policy, reference and critic share GPUs")
    start_timeout: PositiveFloat = Field(description="seconds a worker may take to start")


class Config(Section):
    name: str = Field(description="name of the recipe")
    seed: Count
    total_steps: Positive
    dry_run: bool = Field(description="validate, scan the data, estimate tokens and memory, exit before Ray starts")
    run: RunConfig
    model: ModelConfig
    data: DataConfig
    store: StoreConfig | None = Field(description="null = every process decodes and encodes for itself, every time")
    rollout: RolloutConfig
    rewards: RewardsConfig
    algorithm: AlgorithmConfig
    policy: TrainerConfig
    critic: CriticConfig | None
    encoder: EncoderConfig
    sft: SftConfig | None
    prefer: FitConfig | None
    reward_model: FitConfig | None
    self_align: TargetConfig | None = Field(description="how the model makes pairs of its own responses to data.path")
    eval: EvalConfig
    cluster: ClusterConfig


class ConfigError(Exception):
    """All that is wrong with a configuration, one line each: `dotted.key: value, rule, remedy`."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


def configs_folder() -> Path:
    """`configs/` of the checkout, or its copy inside an installed package."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def compose_config(name: str, overrides: list[str], extra_dir: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """`configs/<name>.yaml` with overrides as a plain dict, interpolations resolved; and what is wrong with them.

    `extra_dir` holds further recipes and groups. Overrides that do not compose are reported and left out. Raises
    ConfigError where nothing composes, as for an unknown recipe.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if extra_dir and not Path(extra_dir).is_dir():
        raise ConfigError([f"--config-dir: {extra_dir!r}, no such folder; give the one that holds your recipe/"])
    errors = (HydraException, OmegaConfBaseException, YAMLError)
    search = [f"hydra.searchpath=[file://{Path(extra_dir).resolve()}]"] if extra_dir else []

    def attempt(chosen: list[str]) -> Any:
        with initialize_config_dir(str(configs_folder()), version_base="1.3"):
            return compose(name, overrides=search + chosen)

    problems: list[str] = []
    try:
        composed = attempt(overrides)
    except errors:
        names = _group_names(extra_dir)
        good = [override for override in overrides if override.split("=")[0] in names]
        try:
            known = _dotted_keys(OmegaConf.to_container(attempt(good)))
            likely = [override for override in overrides if override.split("=")[0] in {*names, *known}]
            with suppress(*errors):  # most are right, and to compose takes a quarter of a second
                attempt(likely)
                good = likely
            for override in (override for override in overrides if override not in good):
                try:
                    attempt([*good, override])
                except errors as reason:
                    problems.append(_override_problem(override, known, reason))
                else:
                    good.append(override)
            composed = attempt(good)
        except errors as error:
            raise ConfigError([*problems, _one_line(error)]) from error
    try:
        problems += [
            f"{key}: has no default; give it as {key}=... on the command line"
            for key in sorted(OmegaConf.missing_keys(composed))
        ]
        return OmegaConf.to_container(composed, resolve=True), problems  # type: ignore[return-value]
    except errors as error:
        raise ConfigError([*problems, _one_line(error)]) from error


def load_config(name: str, overrides: list[str], extra_dir: str | None = None) -> Config:
    """The validated configuration; raises `ConfigError` with every problem of the overrides and of the values."""
    values, problems = compose_config(name, overrides, extra_dir)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(problems + [_schema_problem(item, values) for item in error.errors()]) from error
    if problems:
        raise ConfigError(problems)
    return config


def _schema_problem(item: Any, values: dict[str, Any]) -> str:
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _dotted_keys(values) - {key}, n=1)
        return f"{key}: {item['input']!r}, no such key" + (f"; did you mean {near[0]}?" if near else "; remove it")
    if item["type"] == "missing":
        return f"{key}: is missing; give it a value (null where a feature is off)"
    return f"{key}: {item['input']!r}, {item['msg'][0].lower()}{item['msg'][1:]}; change it"


def _override_problem(override: str, known: set[str], reason: Exception) -> str:
    key = override.lstrip("+~").split("=")[0]
    if key not in known:
        if key.startswith(_OPEN):
            return f"{key}: no such entry; to add one, write +{override}"
        near = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(
            key.split(".")[-1], [name.split(".")[-1] for name in known], n=1
        )
        return f"{key}: no such key" + (f"; did you mean {near[0]}?" if near else "; `--cfg job` shows every key")
    return f"{override}: {_one_line(reason)}"


_OPEN = (
    "rewards.terms.",
    "rollout.passes.",
    "rollout.env.params.",
    "data.instructions.",
    "rollout.engine_kwargs.",
    "algorithm.advantage_options.",
    "algorithm.loss_options.",
)
"""Mappings whose keys are the user's own."""


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    keep = [line for line in lines if not line.startswith(("See https", "provider=", "Config search path", "full_key"))]
    return " ".join(keep)


def _dotted_keys(values: Any, prefix: str = "") -> set[str]:
    if not isinstance(values, dict):
        return set()
    own = {f"{prefix}{key}" for key in values}
    return own.union(*(_dotted_keys(value, f"{prefix}{key}.") for key, value in values.items()), set())


def _group_names(extra_dir: str | None) -> set[str]:
    folders = [configs_folder(), *([Path(extra_dir)] if extra_dir else [])]
    return {child.name for folder in folders if folder.is_dir() for child in folder.iterdir() if child.is_dir()}
