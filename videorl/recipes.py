"""The table of published methods: which recipe, from which parts, and how near to the paper.

    python -m videorl.recipes                            # print it
    python -m videorl.recipes --write docs/methods.md    # write it

The parts are read from the composed configuration; what is faithful, what differs and what the paper does not say from
`recipes/<recipe>/method.yaml`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from videorl.algorithms.names import PAIR_LOSSES
from videorl.config import AlgorithmConfig, Config, RewardsConfig, Section, TermConfig, compose_config
from videorl.rewards.hooks import is_hook
from videorl.rewards.registry import find_scorer

RECIPES = Path(__file__).parent.parent / "recipes"
COMMAND = "python -m videorl.recipes --write docs/methods.md"

Clause = Annotated[str, Field(pattern=r"\S")]


class Method(Section):
    """`method.yaml` of a recipe."""

    method: Clause = Field(description="name of the published method")
    paper: Annotated[str, Field(pattern=r"^[0-9]{4}\.[0-9]{5}$")] = Field(description="arXiv id, quoted")
    faithful: list[Clause] = Field(description="what is done as in the paper or its code")
    differs: list[Clause] = Field(description="what is done otherwise")
    unknown: list[Clause] = Field(description="what the sources do not say; a value of the configuration stands for it")


def load_methods() -> dict[str, Method]:
    """The methods by recipe, in the order of their names. Raises ValueError, naming the file and the key."""
    return {path.parent.name: _read(path) for path in sorted(RECIPES.glob("*/method.yaml"))}


@cache
def load_parts(recipe: str) -> Config:
    """A recipe at full size; what only the user knows stays "???"."""
    values, _ = compose_config("train", [f"recipe={recipe}"])
    return Config.model_validate(values)


def describe_parts(config: Config) -> Iterator[tuple[str, str]]:
    """(what, which) for each part that a recipe is made of; parts that are off are left out."""
    algorithm, rewards = config.algorithm, config.rewards
    if algorithm.loss in PAIR_LOSSES:
        if config.self_align:
            yield "pairs", f"`{config.self_align.target}`"
        yield "loss", ", ".join([algorithm.loss, *(f"{key} {value}" for key, value in algorithm.loss_options.items())])
        return
    yield "advantage", _advantage(algorithm)
    yield "loss", ", ".join([algorithm.loss, algorithm.loss_agg, *_clip(algorithm)])
    if algorithm.kl:
        yield "KL", f"{algorithm.kl.estimator} x {algorithm.kl.coef:g} in the {algorithm.kl.where}"
    if algorithm.dynamic_sampling:
        yield "dynamic sampling", f"up to {algorithm.dynamic_sampling.max_batches} batches a step"
    if algorithm.overlong:
        yield "overlong penalty", f"{algorithm.overlong.penalty:g} over the last {algorithm.overlong.buffer} tokens"
    kinds: dict[str, list[str]] = {}
    for name, term in rewards.terms.items():
        if term is not None:
            kinds.setdefault(_kind(term), []).append(_term(name, term))
    yield from ((kind, "; ".join(terms)) for kind, terms in kinds.items())
    passes = [
        f"{name}: `{one.target}`{', trained on' if one.join else ''}"
        for name, one in config.rollout.passes.items()
        if one is not None
    ]
    if passes:
        yield "second passes", "; ".join(passes)
    if stages := list(_stages(rewards)):
        yield "stages", "; ".join(stages)


def make_page() -> str:
    """The whole of docs/methods.md."""
    lines = [
        "# Published methods",
        "",
        f"Written by `{COMMAND}` from the recipes; do not edit it by hand.",
        "",
        "*Faithful* is what a recipe does as the paper or its public code does. *Unknown* is what neither says: a",
        "value of the configuration stands for it, and nothing is claimed about it. Numbers after x are weights.",
        "",
        "| method | recipe | parts | faithful | differs | unknown |",
        "|---|---|---|---|---|---|",
    ]
    for recipe, method in load_methods().items():
        parts = [f"**{what}** {which}" for what, which in describe_parts(load_parts(recipe))]
        name = f"{method.method} ([{method.paper}](https://arxiv.org/abs/{method.paper}))"
        page = f"[{recipe}](../recipes/{recipe}/README.md)"
        cells = ([name], [page], parts, method.faithful, method.differs, method.unknown)
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines) + "\n"


def _read(path: Path) -> Method:
    try:
        return Method.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ValueError(f"{path}: {wrong}; correct it") from error


def _advantage(algorithm: AlgorithmConfig) -> str:
    centred = algorithm.advantage == "grpo" and not algorithm.norm_by_std
    return f"{algorithm.advantage}{', not divided by the standard deviation' if centred else ''}"


def _clip(algorithm: AlgorithmConfig) -> Iterator[str]:
    low, high = algorithm.clip_low, algorithm.clip_high
    yield f"clip {low:g}" if low == high else f"clip {low:g} / {high:g}"
    if algorithm.entropy_coef:
        yield f"entropy x {algorithm.entropy_coef:g}"


def _kind(term: TermConfig) -> str:
    if is_hook(term.target):
        return "group hooks"
    return "scorers" if find_scorer(term.target, **term.params) else "terms"


def _term(name: str, term: TermConfig) -> str:
    """`name: target x weight (notes)`; the name where the target has another."""
    shown = f"`{term.target}`" if term.target == name else f"{name}: `{term.target}`"
    weight = f" x {term.weight:g}" if term.weight else ""
    notes = [] if term.weight else ["logged"]
    notes += [f"on {', '.join(term.tasks)}"] if term.tasks else []
    notes += [f"if {term.requires} > 0"] if term.requires else []
    return f"{shown}{weight}" + (f" ({', '.join(notes)})" if notes else "")


def _stages(rewards: RewardsConfig) -> Iterator[str]:
    for name, term in rewards.terms.items():
        for stage in term.stages if term else ():
            changes = {**({} if stage.weight is None else {"weight": stage.weight}), **stage.params}
            values = ", ".join(f"{key} {value}" for key, value in changes.items())
            yield f"{name} from {stage.after:.0%} of the steps: {values}"


def _cell(items: Iterable[str]) -> str:
    return "<br>".join(item.strip().replace("|", "\\|") for item in items)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m videorl.recipes", description="The table of published methods.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write it there instead of printing it")
    args = parser.parse_args(argv)
    page = make_page()
    if args.write is None:
        print(page, end="")
    else:
        args.write.write_text(page)


if __name__ == "__main__":
    main()
