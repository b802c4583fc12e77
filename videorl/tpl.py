"""Temporal perplexity: how much less a model expects a response when it sees few of the frames (Video-UTR, 2502.12081).

    python -m videorl.data tpl --path rows.jsonl --out scored.jsonl recipe=... model.path=... data.media_root=...
    python -m videorl.data select --path scored.jsonl --keep "column(tpl) > 0.5" --out kept.jsonl

A row that a few frames answer teaches a model to look at few frames ("temporal hacking"). The published form is not
known; here it is, for the tokens y of the row's `response`,

    difference    mean over t of log p(y_t | all frames, y_<t) - log p(y_t | reduced frames, y_<t)
    ratio         exp(difference): the perplexity under the reduced frames over that under all

so that rows which need all frames are high. It is written to `meta.tpl`, beside `tpl_all` and `tpl_reduced`, the two
means. Rows without a video or a response are refused.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

from videorl.cluster import Cluster
from videorl.config import Config, load_config
from videorl.data.batch import Batch, make_given_batch, prompt_row
from videorl.data.output import publish_rows
from videorl.data.prompts import Renderer
from videorl.data.reduced import RULES, reduce_frames
from videorl.data.report import histogram, say
from videorl.data.schema import load_rows
from videorl.launch import config_problems
from videorl.models.base import VideoModel, open_model
from videorl.models.media import open_source
from videorl.types import DataError, RenderedPrompt
from videorl.workers.encoder import Encoders
from videorl.workers.policy import Policy

FORMS: dict[str, Callable[[float, float], float]] = {
    "difference": lambda full, reduced: full - reduced,
    "ratio": lambda full, reduced: math.exp(full - reduced),
}


# --- the rows --------------------------------------------------------------------------------------------------------


def score_rows(
    config: Config, rows: Sequence[dict[str, Any]], rule: str, keep: int, hold: bool = False
) -> Iterator[tuple[float, float]]:
    """Of each row the mean log-probability of its response's tokens, given all frames and given the reduced ones.

    `rollout.prompts_per_step` rows go through the model at a time, each with both sets of frames. Raises DataError for
    a row that cannot be scored.
    """
    model = open_model(config.model)
    source = open_source(config, model)
    renderer = Renderer(config.data, model, source)

    def prompts_of(row: dict[str, Any]) -> list[RenderedPrompt]:
        if not row["videos"] or not row["response"]:
            raise DataError("no_response", f"row {row['id']}: needs a video and a `response`; add them or take it out")
        prompt = renderer.prompt(row)
        return [renderer.render(prompt), renderer.render(reduce_frames(prompt, renderer, rule, keep, hold))]

    with Cluster(config) as cluster:
        encoders = Encoders(cluster, config, source)
        policy = Policy(cluster, config, None, 0)
        cluster.wait(encoders=encoders, policy=policy)
        count = config.rollout.prompts_per_step
        for start in range(0, len(rows), count):
            prompts = [prompt for row in rows[start : start + count] for prompt in prompts_of(row)]
            for failure in encoders.ensure([item for prompt in prompts for item in prompt.media]).values():
                raise failure
            batch = make_batch(model, prompts)
            means = (policy.compute_log_probs(batch).sum(1) / batch.lengths).tolist()
            yield from zip(means[::2], means[1::2], strict=True)


def make_batch(model: VideoModel, prompts: Sequence[RenderedPrompt]) -> Batch:
    responses = [model.tokenizer.encode(prompt.prompt.row["response"], add_special_tokens=False) for prompt in prompts]
    return make_given_batch([prompt_row(prompt) for prompt in prompts], responses)


# --- the command -----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.add_argument("--path", required=True, help="rows with a `response`, as data.path")
    parser.add_argument("--out", required=True, help=".jsonl or .parquet")
    parser.add_argument("--reduced", choices=RULES, default="uniform", help="which frames (default: %(default)s)")
    parser.add_argument(
        "--hold", action="store_true", help="show those in place of the others, so that there are as many frames"
    )
    parser.add_argument("--frames", type=int, default=1, help="how many of them (default: %(default)s)")
    parser.add_argument("--form", choices=FORMS, default="difference", help="(default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite --out")
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="recipe=NAME and overrides, as in training")


def run(args: argparse.Namespace) -> int:
    console = Console()
    if args.frames < 1:
        raise DataError("frames", f"--frames {args.frames}: must be at least 1")
    config = load_config("eval", [*args.overrides, f"data.path={args.path}"])
    if problems := list(config_problems(config)):
        raise DataError("config", "\n".join(problems))
    rows = load_rows(args.path)
    values = []
    with publish_rows(args.out, force=args.force) as write:
        scores = score_rows(config, rows, args.reduced, args.frames, args.hold)
        for row, (full, reduced) in zip(track(rows, "rows", console=Console(stderr=True)), scores, strict=True):
            values.append(FORMS[args.form](full, reduced))
            meta = {"tpl": values[-1], "tpl_all": full, "tpl_reduced": reduced}
            write(row | {"meta": row["meta"] | meta})
    shown = f"{args.frames} {args.reduced} frames of each video{', held' if args.hold else ''}"
    say(console, f"{args.out}: {len(rows)} rows, {args.form} with {shown}")
    for line in histogram(values):
        say(console, f"  {line}")
    return 0
