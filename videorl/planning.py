"""What a run will need, from headers and configuration alone: the run header, and all of `dry_run=true`."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from videorl.algorithms.names import PAIR_LOSSES
from videorl.config import Config
from videorl.data.prompts import check_spans, make_prompt, make_sampling
from videorl.data.schema import load_rows
from videorl.gpus import num_gpus
from videorl.models.families import FAMILIES, checkpoint_size
from videorl.rewards.terms.accuracy import SCORED_TASKS
from videorl.rollout.frames import Openings
from videorl.types import Clip, DataError, Prompt
from videorl.video.frames import Limits
from videorl.video.reader import VideoReader

_HEADER_ROWS = 64  # the run header looks at so many rows and extrapolates; a dry run looks at all
_CHARACTERS_PER_TOKEN = 4  # of English text; the exact number needs the tokenizer


@dataclass
class Scan:
    """What the headers of a data set's clips say."""

    num_rows: int
    scanned: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    bad: dict[str, str] = field(default_factory=dict)  # row id -> why
    too_long: int = 0
    prompt_tokens: list[int] = field(default_factory=list)
    clip_tokens: dict[Clip, int] = field(default_factory=dict)  # distinct clip -> visual tokens


def scan_rows(config: Config, rows: Sequence[dict[str, Any]], limit: int | None = None, tokenizer: Any = None) -> Scan:
    """Read the headers of the first `limit` rows' clips (None: of all, with a progress bar). Nothing is decoded.

    Visual tokens are exact; those of the text are counted by the tokenizer, or estimated from its length without one.
    """
    family, data = FAMILIES[config.model.family], config.data
    sampling = make_sampling(data.sampling, family.spatial_factor, family.temporal)
    scan = Scan(num_rows=len(rows))
    chosen = rows if limit is None else rows[:limit]
    with VideoReader(Limits(**data.limits.model_dump()), data.decoder, data.decode_workers) as reader:
        openings = None
        if config.rollout.env is not None:
            openings = Openings(config, reader.plan, family.spatial_factor, family.temporal)
        for row in track(chosen, "reading headers", disable=limit is not None):
            scan.scanned += 1
            scan.tasks[row["task"]] += 1
            try:
                prompt = openings.prompt(row) if openings else make_prompt(row, data, sampling)
                plans = [reader.plan(clip) for clip in prompt.clips]
                if not openings:
                    check_spans(row, plans)
            except DataError as error:
                scan.bad[row["id"]] = f"{error.reason}: {error}"
                continue
            tokens = _text_tokens(prompt, tokenizer)
            for clip, plan in zip(prompt.clips, plans, strict=True):
                visual = math.prod(plan.grid(family.patch, family.temporal)) // family.merge**2
                scan.clip_tokens[clip] = visual
                tokens += visual
            scan.prompt_tokens.append(tokens)
            scan.too_long += tokens > data.max_prompt_tokens
    return scan


def _text_tokens(prompt: Prompt, tokenizer: Any) -> int:
    if tokenizer is not None:
        ids = tokenizer.apply_chat_template(list(prompt.messages), add_generation_prompt=True, return_dict=False)
        return len(ids) - len(prompt.clips)  # a placeholder for each clip
    texts = (part.get("text", "") for message in prompt.messages for part in message["content"])
    return sum(map(len, texts)) // _CHARACTERS_PER_TOKEN


def describe(config: Config, scan: Scan) -> list[tuple[str, str]]:
    """The plan as (what, how much) lines."""
    rollout, policy = config.rollout, config.policy
    size = checkpoint_size(config.model.family, config.model.path)
    mean = statistics.fmean(scan.prompt_tokens) if scan.prompt_tokens else 0.0
    scale = scan.num_rows / max(1, scan.scanned)
    lines = [
        (
            "rows",
            f"{scan.num_rows} ({', '.join(f'{n} {task}' for task, n in scan.tasks.most_common())} of {scan.scanned})",
        ),
        ("rows set aside", f"{len(scan.bad)} bad, {scan.too_long} too long"),
        ("prompt tokens", f"mean {mean:.0f}, largest {max(scan.prompt_tokens, default=0)}"),
        ("distinct clips", f"{len(scan.clip_tokens) * scale:.0f}"),
        (
            "a step",
            f"{rollout.prompts_per_step} prompts x {rollout.group_size} responses = "
            f"{rollout.prompts_per_step * rollout.group_size} rollouts, {policy.mini_batches * policy.epochs} "
            f"optimiser steps; an epoch is {scan.num_rows / rollout.prompts_per_step:.1f} steps, the run "
            f"{config.total_steps * rollout.prompts_per_step / max(1, scan.num_rows):.1f} epochs",
        ),
        ("workers", _workers(config)),
    ]
    if config.store is None:
        lines.append(("embedding store", "off (store=null): every process decodes and encodes for itself, every time"))
    elif config.model.train_vision:
        lines.append(("embedding store", "off: the vision tower trains (model.train_vision=true); frames are cached"))
    elif size:
        width = 4 if config.model.dtype == "float32" else 2
        needed = sum(scan.clip_tokens.values()) * scale * size.hidden * width
        over = "; MORE THAN ITS BUDGET, entries will be evicted" if needed > config.store.max_gb * 2**30 else ""
        lines.append(("embedding store", f"about {_bytes(needed)} of store.max_gb={config.store.max_gb:g}{over}"))
    if size:
        trained = size.parameters if config.model.lora is None else 0.01 * size.parameters
        # fp32 master, gradient and two moments are sharded; the frozen rest is held once more in fp32
        state = (12 * trained + 4 * size.parameters) / policy.ranks
        activations = policy.micro_batch_tokens * size.hidden * size.layers * 4 / policy.sequence_parallel
        weights = (4 if config.model.dtype == "float32" else 2) * size.parameters / rollout.tensor_parallel
        lines += [
            ("memory of a policy rank", f"about {_bytes(state)} of state + {_bytes(activations)} of activations"),
            ("memory of an engine", f"about {_bytes(weights)} of weights per device, and the KV cache"),
        ]
    else:
        lines.append(("memory", f"unknown: {config.model.path} is neither a folder nor a published name"))
    return lines


def _bytes(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def _workers(config: Config) -> str:
    parts = [
        f"{config.policy.ranks} policy",
        f"{config.rollout.num_engines} engine",
        f"{config.encoder.workers} encoder",
    ]
    if config.algorithm.kl and not config.model.lora:
        parts.append(f"{config.policy.ranks} reference")
    if config.critic:
        parts.append(f"{config.critic.ranks} critic")
    return f"{', '.join(parts)}; {num_gpus(config)} GPUs, or CPUs alone"


def check_rewards(config: Config, rows: Sequence[dict[str, Any]]) -> None:
    """Raises DataError where reinforcement learning would ask the term `accuracy` about rows that it cannot score."""
    if config.algorithm.loss in PAIR_LOSSES:
        return
    for name, term in config.rewards.terms.items():
        if term is not None and term.target == "accuracy":
            asked = [row["task"] for row in rows if term.tasks is None or row["task"] in term.tasks]
            if unscored := Counter(task for task in asked if task not in SCORED_TASKS):
                raise DataError(
                    "no_scorer",
                    f"rewards.terms.{name}: accuracy scores {', '.join(SCORED_TASKS)}, and of {len(rows)} rows "
                    f"{', '.join(f'{count} are {task}' for task, count in unscored.items())}; set "
                    f"rewards.terms.{name}.tasks=[{','.join(SCORED_TASKS)}] and give the others a term of their own",
                )


def print_plan(config: Config, rows: Sequence[dict[str, Any]], tokenizer: Any) -> None:
    """The run header: what the first rows say, extrapolated. Raises DataError as `check_rewards`."""
    check_rewards(config, rows)
    _print(config, scan_rows(config, rows, _HEADER_ROWS, tokenizer))


def dry_run(config: Config, rewarded: bool = True) -> int:
    """Scan every header, print the plan and every bad row; exit code 0 if training could start, else 1."""
    rows = load_rows(config.data.path)
    if rewarded:
        check_rewards(config, rows)
    scan = scan_rows(config, rows)
    _print(config, scan)
    for sample_id, why in scan.bad.items():
        print(f"row {sample_id}: {why}")
    allowed, wanted = config.data.max_bad_fraction, config.rollout.prompts_per_step
    if len(scan.bad) > allowed * scan.num_rows:
        print(
            f"not ready: {len(scan.bad)} of {scan.num_rows} rows are bad, data.max_bad_fraction={allowed:g} are allowed"
        )
        return 1
    if (usable := len(scan.prompt_tokens) - scan.too_long) < wanted:
        print(
            f"not ready: {usable} rows can be used, fewer than rollout.prompts_per_step={wanted}; lower it or add rows"
        )
        return 1
    print("ready: configuration and data are valid; nothing was started")
    return 0


def _print(config: Config, scan: Scan) -> None:
    table = Table(title=f"{config.name} in {config.run.dir}", show_header=False, title_justify="left")
    for what, amount in describe(config, scan):
        table.add_row(what, amount)
    Console().print(table)
