"""Pairs of a chosen and a rejected response from a model's own rollouts: a better one against a worse one.

    python -m videorl.evaluate recipe=... data.eval_path=train.jsonl eval.samples=8 run.dir=runs/probe
    python -m videorl.data pairs --path train.jsonl --rollouts runs/probe/rollouts.jsonl --out pairs.jsonl

Of a row's distinct responses those pairs are taken that lie furthest apart in `--term`. A row whose responses are all
alike gives none; one that was cut off at its token limit is no response. Where the two of a pair differ is written
beside them, word by word, as `phrases`.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from videorl.data.output import publish_rows
from videorl.data.phrases import align_phrases
from videorl.data.report import histogram, say
from videorl.data.rollouts import REWARD, missing_term, sampled_rollouts, values_of
from videorl.data.schema import load_rows
from videorl.types import DataError

Responses = dict[str, dict[str, float]]
"""{row id: {response: its value}}"""


def read_responses(path: str, term: str) -> Responses:
    """The distinct responses of each row that came to an end, with what `term` gave them.

    Raises:
        DataError: as `sampled_rollouts`, `bad_rollouts` for one without a text, `no_term` where none has the term.
    """
    responses: Responses = defaultdict(dict)
    seen: set[str] = set()
    for record in sampled_rollouts(path):
        values = values_of(record)
        seen |= values.keys()
        if not isinstance(record.get("response"), str):
            raise DataError("bad_rollouts", f"{path}: a rollout of {record['prompt_id']!r} has no response")
        if (value := values.get(term)) is not None and record.get("finish_reason") != "length":
            responses[record["prompt_id"]][record["response"]] = value
    if term not in seen:
        raise missing_term(path, term, seen)
    return responses


def draw_pairs(responses: dict[str, float], count: int, min_gap: float) -> list[tuple[str, str, float]]:
    """Up to `count` pairs (chosen, rejected, gap), the widest gap first; no response is in two of them.

    Equal gaps are ordered by a digest of the texts, so that neither the order of sampling nor length decides.
    """
    usable = [text for text in responses if text.strip()]
    candidates = [
        (responses[chosen] - responses[rejected], chosen, rejected)
        for chosen in usable
        for rejected in usable
        if responses[chosen] - responses[rejected] >= min_gap
    ]
    candidates.sort(key=lambda each: (-each[0], hashlib.sha256(f"{each[1]}\0{each[2]}".encode()).digest()))
    pairs: list[tuple[str, str, float]] = []
    taken: set[str] = set()
    for gap, chosen, rejected in candidates:
        if len(pairs) < count and not {chosen, rejected} & taken:
            pairs.append((chosen, rejected, gap))
            taken |= {chosen, rejected}
    return pairs


# --- the command -----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.add_argument("--path", required=True, help="the rows, as data.path")
    parser.add_argument("--rollouts", required=True, help="rollouts.jsonl with several rollouts of each row")
    parser.add_argument("--out", required=True, help=".jsonl or .parquet")
    parser.add_argument("--term", default=REWARD, help="what says which response is better (default: %(default)s)")
    parser.add_argument("--min-gap", type=_positive, default=0.1, help="least difference (default: %(default)s)")
    parser.add_argument("--per-row", type=_count, default=1, help="pairs of a row at most (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite --out")


def _positive(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0")
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def run(args: argparse.Namespace) -> int:
    console = Console()
    rows = load_rows(args.path)
    responses = read_responses(args.rollouts, args.term)
    if not any(row["id"] in responses for row in rows):
        raise DataError("no_row", f"{args.rollouts} has no rollout of a row of {args.path}; give the rows it came from")
    gaps: list[float] = []
    outcomes: Counter[str] = Counter()
    with publish_rows(args.out, force=args.force) as write:
        for row in rows:
            pairs = draw_pairs(responses.get(row["id"], {}), args.per_row, args.min_gap)
            outcomes["with pairs" if pairs else "alike" if row["id"] in responses else "without rollouts"] += 1
            gaps += [gap for _, _, gap in pairs]
            for made in _rows(row, pairs):
                write(made)
        if not gaps:
            raise DataError("empty", f"no row has responses {args.min_gap:g} apart: nothing was written")
    say(console, f"{args.out}: {len(gaps)} pairs; rows " + ", ".join(f"{n} {what}" for what, n in outcomes.items()))
    say(console, f"difference of {args.term}:")
    for line in histogram(gaps):
        say(console, f"  {line}")
    return 0


def _rows(row: dict[str, Any], pairs: list[tuple[str, str, float]]) -> Iterator[dict[str, Any]]:
    for number, (chosen, rejected, _) in enumerate(pairs, 1):
        id = row["id"] if len(pairs) == 1 else f"{row['id']}#{number}"
        phrases = align_phrases(chosen, rejected) or None
        yield row | {"id": id, "chosen": chosen, "rejected": rejected, "phrases": phrases, "response": None}
