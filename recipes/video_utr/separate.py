"""Does temporal perplexity tell rows that one frame answers from rows that need more?

The quickstart's clips settle it by construction: squares of `count` stay until the end, so that the last second shows
them all; which of the two squares of `first` came first, and when the square of `ground` was there, it does not tell.
The model is taught the right answers. It is taught clips of their last second too, for one that has never seen two
frames makes nothing of them: there with the right answer to `count`, and answers at random to what is not to be seen.

    python recipes/video_utr/separate.py rows --data data/quickstart
    python -m videorl.sft recipe=quickstart sft.path=data/quickstart/tpl_train.jsonl sft.steps=300 run.dir=runs/tpl-sft
    python -m videorl.data tpl --path data/quickstart/tpl_eval.jsonl --out data/quickstart/tpl_scored.jsonl \
        --reduced last --frames 2 recipe=quickstart model.path=runs/tpl-sft/export
    python recipes/video_utr/separate.py auc --path data/quickstart/tpl_scored.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

from videorl.data.schema import load_rows
from videorl.data.synthetic import SECONDS, Example, draw_example, draw_response

ONE_FRAME = "synthetic-count"


def scene(row: dict[str, Any], seed: int) -> Example:
    split, kind, index = row["id"].split("-")
    return draw_example(kind, random.Random(f"{seed}/{split}/{int(index)}"))


def right(rows: Iterable[dict[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield row | {"response": draw_response(scene(row, seed), 0.0, random.Random(0))}


def last_second(rows: Iterable[dict[str, Any]], seed: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Without what happened before: the right response to `count`, to the others one that fits what is seen."""
    for row in rows:
        example = scene(row, seed)
        if example.kind == "first":
            seen = rng.choice(example.squares).colour
            response = f"<think>{seen}</think><answer>{'ABCD'[row['choices'].index(seen)]}</answer>"
        else:
            response = draw_response(example, float(example.kind == "ground"), rng)
        (video,) = row["videos"]
        end = {"id": f"{row['id']}#end", "videos": [video | {"start": SECONDS - 1.0}], "response": response}
        if example.kind == "ground":
            end |= {"task": "open", "spans": None}  # the right interval is outside of what is shown
        yield row | end


def compute_auc(low: list[float], high: list[float]) -> float:
    """The chance that one of `high` is above one of `low`; ties count half."""
    wins = sum((b > a) + (b == a) / 2 for a in low for b in high)
    return wins / (len(low) * len(high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    rows = commands.add_parser("rows")
    rows.add_argument("--data", type=Path, required=True)
    auc = commands.add_parser("auc")
    auc.add_argument("--path", required=True)
    args = parser.parse_args()
    if args.command == "rows":
        seed = json.loads((args.data / "manifest.json").read_text())["seed"]
        train, held_out = (load_rows(args.data / f"{name}.jsonl") for name in ("train", "eval"))
        taught = [*right(train, seed), *last_second(train, seed, random.Random(seed))]
        for name, made in (("train", taught), ("eval", right(held_out, seed))):
            (args.data / f"tpl_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        return
    values: dict[str, list[float]] = defaultdict(list)
    for row in load_rows(args.path):
        values[row["data_source"]].append(row["meta"]["tpl"])
    for source, each in sorted(values.items()):
        print(f"{source:18} {len(each):4} rows, mean {fmean(each):6.3f}, median {median(each):6.3f}")
        if source != ONE_FRAME:
            print(f"{'':18} AUC against {ONE_FRAME}: {compute_auc(values[ONE_FRAME], each):.3f}")
    needing = [value for source, each in values.items() if source != ONE_FRAME for value in each]
    print(f"all that need more than one frame against {ONE_FRAME}: AUC {compute_auc(values[ONE_FRAME], needing):.3f}")


if __name__ == "__main__":
    main()
