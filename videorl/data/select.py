"""Keep the rows that teach: by repeated rollouts of the model to be trained, or by a critic's score in a column.

    python -m videorl.evaluate recipe=... data.eval_path=train.jsonl eval.samples=8 run.dir=runs/probe
    python -m videorl.data select --path train.jsonl --rollouts runs/probe/rollouts.jsonl --preset keye --out kept.jsonl

A rule is `[TASKS:] [LOW <] STATISTIC(NAME) [< HIGH]`, such as "mc,next_event: 0 < mean(accuracy) < 1"; `<=`, `>` and
`>=` are read too. STATISTIC is mean, std (of the population), min, max or spread (max - min) of the reward term NAME
over a row's rollouts (`reward`: the reward itself); `column`, the number under NAME in the row's `meta`; or `ratio`:
how many `words` or `characters` has a pair's chosen response for one of the rejected? The first rule for a row's
task decides; a row that none decides is dropped too, and counted.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from videorl.data.output import publish_rows
from videorl.data.report import histogram, say
from videorl.data.rollouts import REWARD, missing_term, sampled_rollouts, values_of
from videorl.data.schema import CanonicalRow, load_rows
from videorl.types import DataError

COLUMN, RATIO = "column", "ratio"
LENGTHS: dict[str, Callable[[str], int]] = {"words": lambda text: len(text.split()), "characters": len}
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": fmean,
    "std": pstdev,
    "min": min,
    "max": max,
    "spread": lambda values: max(values) - min(values),
}
TASKS = get_args(CanonicalRow.model_fields["task"].annotation)


@dataclass(frozen=True)
class Preset:
    """Rules of a published method, and which of their numbers are ours."""

    rules: tuple[str, ...]
    source: str


_BETWEEN = "0 < mean(accuracy) < 1"
PRESETS = {
    "temporal-rlt": Preset(
        (f"mc,next_event: {_BETWEEN}", "grounding: std(accuracy) >= 0.1"),
        "Temporal-RLT (2506.01908): mixed outcomes, high spread of the IoU; number of rollouts and threshold not "
        "published, 0.1 is ours",
    ),
    "keye": Preset((_BETWEEN,), "Keye-VL-1.5: accuracy strictly between 0 and 1"),
    "longvila": Preset((_BETWEEN,), "LongVILA-R1 (2507.07966): neither all right nor all wrong"),
    "reagent-v-grpo": Preset(("column(critic_score) < 5",), "ReAgent-V: critic's score of 10 below 5, for GRPO"),
    "reagent-v-sft": Preset(
        ("column(critic_score) >= 8",),
        "ReAgent-V: high critic's score of 10, for SFT; threshold not published, 8 is ours",
    ),
    "video-utr": Preset(
        ("column(tpl) > 0",),
        "Video-UTR (2502.12081): rows whose response one expects less without the frames; threshold not published, 0 "
        "is ours",
    ),
    "ixc": Preset(
        ("ratio(words) <= 1.5",),
        "IXC-2.5-Reward (2501.12368): no pair whose chosen response is much longer; how much is not published, 1.5 is "
        "ours",
    ),
}


# --- rules -----------------------------------------------------------------------------------------------------------

_BOUND = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_RULE = re.compile(
    rf"(?:(?P<tasks>[a-z_,\s]+):)?\s*(?:(?P<low>{_BOUND})\s*(?P<from><=?))?\s*"
    rf"(?P<statistic>[a-z]+)\((?P<name>[^()]+)\)\s*(?:(?P<to><=?|>=?)\s*(?P<high>{_BOUND}))?\s*"
)


@dataclass(frozen=True)
class Rule:
    """Which values of a statistic keep a row. An open bound is not itself kept."""

    text: str
    tasks: frozenset[str]
    statistic: str
    name: str
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = True
    high_open: bool = True

    def judge(self, value: float) -> str:
        """`kept`, `too low` or `too high`."""
        if value < self.low or (self.low_open and value == self.low):
            return "too low"
        return "too high" if value > self.high or (self.high_open and value == self.high) else "kept"


def parse_rule(text: str) -> Rule:
    """Raises DataError `rule`."""
    match = _RULE.fullmatch(text.strip())
    if match is None or (match["low"] is None and match["high"] is None):
        raise DataError(
            "rule", f"{text!r} is no rule; write one like 'mc: 0 < mean(accuracy) < 1' or 'std(reward) >= 0.1'"
        )
    if match["statistic"] not in (known := (*STATISTICS, COLUMN, RATIO)):
        raise DataError("rule", f"{text!r}: {match['statistic']!r} must be one of {', '.join(known)}")
    if match["statistic"] == RATIO and match["name"].strip() not in LENGTHS:
        raise DataError("rule", f"{text!r}: {match['name']!r} must be one of {', '.join(LENGTHS)}")
    tasks = frozenset(task.strip() for task in match["tasks"].split(",")) if match["tasks"] else frozenset(TASKS)
    if unknown := sorted(tasks - set(TASKS)):
        raise DataError("rule", f"{text!r}: {unknown[0]!r} is no task; choose from {', '.join(TASKS)}")
    bounds: dict[str, Any] = {}
    if match["low"] is not None:
        bounds = {"low": float(match["low"]), "low_open": match["from"] == "<"}
    if match["high"] is not None:
        side = "low" if match["to"].startswith(">") else "high"
        if side in bounds:
            raise DataError("rule", f"{text!r} gives two lower bounds; turn one of them round")
        bounds |= {side: float(match["high"]), f"{side}_open": len(match["to"]) == 1}
    return Rule(text.strip(), tasks, match["statistic"], match["name"].strip(), **bounds)


# --- rollouts --------------------------------------------------------------------------------------------------------

Values = dict[str, dict[str, list[float]]]
"""{row id: {term: its value in each rollout}}"""


def read_rollouts(path: str, names: Iterable[str]) -> Values:
    """The values of some terms, and of `reward`, in a `rollouts.jsonl`.

    Raises:
        DataError: as `sampled_rollouts`, or `no_term` where no rollout has one of the terms.
    """
    wanted = {REWARD, *names}
    values: Values = defaultdict(lambda: defaultdict(list))
    seen = {REWARD}
    for record in sampled_rollouts(path):
        terms = values_of(record)
        seen |= terms.keys()
        for name in wanted:
            if (value := terms.get(name)) is not None:
                values[record["prompt_id"]][name].append(value)
    for name in sorted(wanted - seen):
        raise missing_term(path, name, seen)
    return values


# --- the selection ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a rule says of a row: `kept`, or why not. `value` is what it judged; k, mean and std are of its rollouts."""

    outcome: str
    rule: Rule | None = None
    value: float | None = None
    rollouts: dict[str, float] | None = None

    def provenance(self) -> dict[str, Any]:
        return {"rule": self.rule.text if self.rule else None, "value": self.value, **(self.rollouts or {})}


def judge_row(row: dict[str, Any], rules: Sequence[Rule], values: Values, min_rollouts: int) -> Verdict:
    """By the first rule for the row's task."""
    rule = next((rule for rule in rules if row["task"] in rule.tasks), None)
    if rule is None:
        return Verdict("no rule for its task")
    if rule.statistic == COLUMN:
        value = row["meta"].get(rule.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return Verdict("no number in the column", rule)
        return Verdict(rule.judge(value), rule, value)
    if rule.statistic == RATIO:
        if row["chosen"] is None:
            return Verdict("no pair", rule)
        length = LENGTHS[rule.name]
        value = length(row["chosen"]) / max(1, length(row["rejected"]))
        return Verdict(rule.judge(value), rule, value)
    numbers = values[row["id"]][rule.name] if row["id"] in values else []
    if len(numbers) < min_rollouts:
        return Verdict("too few rollouts", rule)
    value = STATISTICS[rule.statistic](numbers)
    return Verdict(rule.judge(value), rule, value, {"k": len(numbers), "mean": fmean(numbers), "std": pstdev(numbers)})


def with_provenance(row: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    """The row with `meta.selection`, a list: a row may be selected again. Raises DataError `clash`."""
    earlier = row["meta"].get("selection", [])
    if not isinstance(earlier, list):
        raise DataError("clash", f"row {row['id']!r}: meta.selection={earlier!r:.80} is not from here; rename it")
    return row | {"meta": row["meta"] | {"selection": [*earlier, verdict.provenance()]}}


# --- the command -----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    presets = "\n".join(
        f"  {name:15} {'; '.join(preset.rules)}\n    {preset.source}" for name, preset in PRESETS.items()
    )
    parser.description = f"{__doc__}\npresets:\n{presets}"
    parser.add_argument("--path", required=True, help="the rows, as data.path")
    parser.add_argument("--rollouts", help="rollouts.jsonl with several rollouts of each row")
    parser.add_argument("--out", required=True, help=".jsonl or .parquet")
    rules = parser.add_mutually_exclusive_group(required=True)
    rules.add_argument("--keep", action="append", metavar="RULE", help="may be given for several tasks")
    rules.add_argument("--preset", choices=PRESETS, help="the rules of a published method")
    parser.add_argument("--term", help="what the preset's `accuracy` or `critic_score` is called in your data")
    parser.add_argument(
        "--min-rollouts", type=int, default=2, help="a row with fewer is dropped (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite --out")


def run(args: argparse.Namespace) -> int:
    console = Console()
    rules = [parse_rule(text) for text in _rule_texts(args)]
    terms = {rule.name for rule in rules if rule.statistic in STATISTICS}
    if terms and args.rollouts is None:
        raise DataError("rule", f"{', '.join(sorted(terms))} must come from rollouts; give --rollouts")
    rows = load_rows(args.path)
    values = read_rollouts(args.rollouts, terms) if args.rollouts is not None else {}
    verdicts = [judge_row(row, rules, values, args.min_rollouts) for row in rows]
    if args.preset:
        say(console, PRESETS[args.preset].source)
    if strangers := values.keys() - {row["id"] for row in rows}:
        say(console, f"{len(strangers)} ids of the rollouts are no rows of the data, for example {min(strangers)!r}")
    _show(verdicts, rules, console)
    kept = [(row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if verdict.outcome == "kept"]
    if not kept:
        raise DataError("empty", f"none of {len(rows)} rows is kept: nothing was written")
    with publish_rows(args.out, force=args.force) as write:
        for row, verdict in kept:
            write(with_provenance(row, verdict))
    say(console, f"{args.out}: {len(kept)} of {len(rows)} rows")
    return 0


def _rule_texts(args: argparse.Namespace) -> list[str]:
    if args.keep:
        return args.keep
    texts = PRESETS[args.preset].rules
    return [re.sub(r"\([a-z_]+\)", lambda _: f"({args.term})", text) if args.term else text for text in texts]


def _show(verdicts: Sequence[Verdict], rules: Sequence[Rule], console: Console) -> None:
    table = Table("rule", "outcome", "rows", title="selection", title_justify="left")
    for (rule, outcome), count in Counter((verdict.rule, verdict.outcome) for verdict in verdicts).most_common():
        table.add_row(Text(rule.text if rule else "-"), outcome, str(count))
    console.print(table)
    for rule in rules:
        judged = [verdict.value for verdict in verdicts if verdict.rule == rule and verdict.value is not None]
        if judged:
            say(console, f"{rule.statistic}({rule.name}) of {len(judged)} rows, for {rule.text!r}")
            for line in histogram(judged):
                say(console, f"  {line}")
