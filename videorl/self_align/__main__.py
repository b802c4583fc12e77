"""Self-alignment: `python -m videorl.self_align recipe=...`. Rows in, pairs out, made by the model itself."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from videorl.cluster import Cluster
from videorl.config import Config, ConfigError
from videorl.data.output import publish_rows
from videorl.data.prompts import Renderer
from videorl.data.schema import load_rows
from videorl.launch import main
from videorl.models.base import VideoModel, open_model, weights_digest
from videorl.models.media import open_source
from videorl.rollout.engine import Engines, Generate
from videorl.rollout.runner import gather, rollout_seed
from videorl.run import Run
from videorl.self_align.methods import PAIR, Made, Method, load_method
from videorl.types import DataError, Media, Prompt, Request, SamplingParams
from videorl.workers.encoder import Encoders


def self_align(config: Config) -> None:
    """Let the model make pairs of its own responses: `pairs.jsonl` in the run directory, and `records.jsonl`, in which
    everything stands that was said."""
    section = config.self_align
    if section is None:
        raise ConfigError([f"self_align: null, recipe {config.name} has no such stage; give a `self_align` section"])
    run = Run(config)
    model = open_model(config.model)
    source = open_source(config, model)
    renderer = Renderer(config.data, model, source)
    try:
        method = load_method(section.target, renderer, config.seed, section.params)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    rows = load_rows(config.data.path)
    records = Records(run.folder / "records.jsonl")
    with Cluster(config) as cluster, run:
        encoders = Encoders(cluster, config, source)
        engines = Engines(cluster, config)
        cluster.wait(encoders=encoders, engines=engines)
        speaker = Speaker(config, model, renderer, engines.generate)
        todo = [row for row in rows if row["id"] not in records.made]
        count = config.rollout.prompts_per_step
        for chunk in (todo[start : start + count] for start in range(0, len(todo), count)):
            run.progress("rows", len(records.made), len(rows))
            media, set_aside = show(method, renderer, chunk)
            failures = encoders.ensure([item for each in media.values() for item in each])
            for id, each in media.items():
                if failed := next((failures[item.key] for item in each if item.key in failures), None):
                    set_aside[id] = [Made(failed.reason, {"error": str(failed)})]
            asked = [row for row in chunk if row["id"] not in set_aside]
            answers = asyncio.run(gather(ask(method, row, speaker) for row in asked))
            records.add(set_aside | {row["id"]: made for row, made in zip(asked, answers, strict=True)})
            records.check(config.data.max_bad_fraction, len(rows))
    write_pairs(records, run.folder / "pairs.jsonl", weights_digest(model.path))


def show(
    method: Method, renderer: Renderer, rows: Sequence[dict[str, Any]]
) -> tuple[dict[str, list[Media]], dict[str, list[Made]]]:
    """What has to be decoded and encoded for each row, and the rows that cannot be shown, with the reason."""
    media: dict[str, list[Media]] = {}
    set_aside: dict[str, list[Made]] = {}
    for row in rows:
        try:
            media[row["id"]] = [item for prompt in method.prompts(row) for item in renderer.render(prompt).media]
        except DataError as error:
            set_aside[row["id"]] = [Made(error.reason, {"error": str(error)})]
    return media, set_aside


async def ask(method: Method, row: dict[str, Any], speaker: Speaker) -> list[Made]:
    """A row about which nothing can be asked is set aside too."""
    try:
        return await method.make(row, speaker)
    except DataError as error:
        return [Made(error.reason, {"error": str(error)})]


class Speaker:
    """Asks the engine. The seed of a request follows from the row and the occasion."""

    def __init__(self, config: Config, model: VideoModel, renderer: Renderer, generate: Generate):
        self.config, self.model, self.renderer, self.generate = config, model, renderer, generate

    async def __call__(self, prompt: Prompt, occasion: str) -> tuple[str, bool]:
        rendered, rollout = self.renderer.render(prompt), self.config.rollout
        seed = rollout_seed(self.config.seed, "self_align", prompt.id, occasion)
        sampling = SamplingParams(max_tokens=rollout.max_response_tokens, temperature=rollout.temperature, seed=seed)
        generation = await self.generate(
            Request(token_ids=rendered.token_ids, media=rendered.media, sampling=sampling, start=(), home=prompt.id)
        )
        text = self.model.tokenizer.decode(list(generation.token_ids), skip_special_tokens=True)
        return text, generation.finish_reason == "stop"


class Records:
    """What was made of each row, a line each, on disk before the next rows are asked about. A torn line is left out."""

    def __init__(self, path: Path):
        self.path = path
        self.made: dict[str, list[dict[str, Any]]] = {}
        whole = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                record = json.loads(line)
                self.made[record["id"]] = record["made"]
                whole += len(line)
            os.truncate(path, whole)

    def add(self, made: dict[str, list[Made]]) -> None:
        with self.path.open("a") as file:
            for id, each in made.items():
                self.made[id] = [asdict(one) for one in each]
                file.write(json.dumps({"id": id, "made": self.made[id]}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def check(self, max_bad_fraction: float, num_rows: int) -> None:
        """Raise DataError `too_many_bad` where more of the rows were set aside than that."""
        errors = [one["said"]["error"] for each in self.made.values() for one in each if "error" in one["said"]]
        if len(errors) > max_bad_fraction * num_rows:
            raise DataError(
                "too_many_bad",
                f"{len(errors)} of {num_rows} rows cannot be used, over data.max_bad_fraction={max_bad_fraction:g}: "
                f"{'; '.join(errors[:3])}",
            )


def write_pairs(records: Records, path: Path, model: str) -> None:
    """Write the pairs and print what became of every question. Raises DataError where there is no pair."""
    made = [one for each in records.made.values() for one in each]
    table = Table("outcome", "questions", title="self-alignment", title_justify="left")
    for outcome, count in Counter(one["outcome"] for one in made).most_common():
        table.add_row(outcome, str(count))
    Console().print(table)
    pairs = [one["row"] for one in made if one["outcome"] == PAIR]
    if not pairs:
        raise DataError("empty", f"none of {len(made)} questions gave a pair; {records.path} says what was answered")
    with publish_rows(str(path), force=True) as write:
        for row in pairs:
            write(row | {"provenance": row["provenance"] | {"model": model}})
    print(f"{path}: {len(pairs)} pairs")


if __name__ == "__main__":
    sys.exit(main(self_align, "self_align"))
