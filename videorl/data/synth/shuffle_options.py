"""The same multiple-choice questions with their options in another order; the gold answer follows its text.

For training against a preference for a letter, and for consistency checks. Rows without options are copied.

    python -m videorl.data synth shuffle_options --path train.jsonl --out data/shuffled --seed 0 --no-identity
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from videorl.data.schema import fingerprint, load_rows
from videorl.data.synth.folder import print_rows, provenance, write_rows, written_once
from videorl.types import DataError

VERSION = 1  # raise when the same seed would give other rows

_REFERS = re.compile(r"\b(above|below|previous|preceding|both [a-z] and [a-z])\b", re.IGNORECASE)
"""An option about other options means something else in another order."""


def shuffle_row(row: Mapping[str, Any], *, seed: int, copy: int = 0, identity: bool = True) -> dict[str, Any]:
    """A canonical row with its options permuted: option i of the new row is option `permutation[i]` of the old one.

    Where `copy` is not 0 the row gets another id, `id#copy`, and a permutation drawn anew. Without `identity` the order
    always changes. A row without options, or with one such as "all of the above", keeps what it has; `permutation` in
    its provenance is None.

    Raises:
        DataError: `has_response`, the row has responses that may name a letter; `ambiguous_answer`, the answer is a
            letter and so is the text of an option.
    """
    choices = row["choices"]
    shuffled = dict(row) | ({"id": f"{row['id']}#{copy}"} if copy else {})
    permutation = None
    if choices and not any(_REFERS.search(choice) for choice in choices):
        if said := next((name for name in ("response", "chosen") if row.get(name) is not None), None):
            raise DataError(
                "has_response",
                f"row {row['id']!r}: {said} may name the old letters; shuffle before responses are made",
            )
        rng = random.Random(f"{seed}/{copy}/{row['id']}")
        permutation = _draw_permutation(len(choices), rng, identity)
        gold = _gold_index(row)
        shuffled["choices"] = [choices[index] for index in permutation]
        if row["answer"] not in choices:
            shuffled["answer"] = ascii_uppercase[permutation.index(gold)]
    step = provenance("shuffle_options", VERSION, seed, source=row["id"], permutation=permutation)
    meta = row.get("meta") or {}
    shuffled["meta"] = meta | {"provenance": [*meta.get("provenance", []), step]}
    return shuffled


def generate(path: str, out: Path, *, seed: int, copies: int = 1, identity: bool = True) -> None:
    """Write `rows.jsonl` with `copies` permutations of each row.

    Raises:
        ValueError: copies < 1, or as `written_once`.
        DataError: as `load_rows` and `shuffle_row`.
    """
    if copies < 1:
        raise ValueError(f"copies={copies} must be at least 1")
    rows = load_rows(path)
    parameters = {
        "generator": "shuffle_options",
        "version": VERSION,
        "seed": seed,
        "copies": copies,
        "identity": identity,
        "rows": fingerprint(rows),
    }
    with written_once(out, parameters) as writing:
        if writing:
            write_rows(
                out / "rows.jsonl",
                (shuffle_row(row, seed=seed, copy=copy, identity=identity) for copy in range(copies) for row in rows),
            )


def _draw_permutation(count: int, rng: random.Random, identity: bool) -> list[int]:
    order = list(range(count))
    while True:
        rng.shuffle(order)
        if identity or order != sorted(order):
            return order


def _gold_index(row: Mapping[str, Any]) -> int:
    choices, answer = row["choices"], row["answer"]
    letters = ascii_uppercase[: len(choices)]
    by_letter = letters.find(answer.upper()) if isinstance(answer, str) and len(answer) == 1 else -1
    if by_letter < 0:
        return choices.index(answer)
    if any(choice.strip().upper() in letters for choice in choices):
        raise DataError(
            "ambiguous_answer",
            f"row {row['id']!r}: answer={answer!r} may be a letter or the text of an option in choices={choices!r}; "
            "change the options so that none is a letter",
        )
    return by_letter


# --- command line ----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", required=True, help="rows, as data.path: .jsonl, .parquet, a folder or hf:NAME:SPLIT")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--copies", type=int, default=1, help="permutations of each row (default: %(default)s)")
    parser.add_argument(
        "--identity", action=argparse.BooleanOptionalAction, default=True, help="allow the order to stay as it is"
    )


def run(args: argparse.Namespace) -> None:
    generate(args.path, args.out, seed=args.seed, copies=args.copies, identity=args.identity)
    print_rows(args.out)
