"""Does temporal perplexity tell rows that one frame answers from rows that need more?

The quickstart's clips settle it by construction: squares of `count` stay until the end, so that the last second shows
them all; which of the two squares of `first` came first, and when the square of `ground` was there, it does not tell.
The model is taught the right answers, and those of `count` from the last second alone as well: one that has never seen
two frames makes nothing of them, whatever they show.

    python recipes/video_utr/separate.py rows --data data/quickstart
    python -m videorl.sft recipe=quickstart sft.path=data/quickstart/tpl_train.jsonl run.dir=runs/tpl-sft
    python -m videorl.data tpl --path data/quickstart/tpl_eval.jsonl --out data/quickstart/tpl_scored.jsonl \
        --reduced last --frames 2 recipe=quickstart model.path=runs/tpl-sft/export
    python recipes/video_utr/separate.py auc --path data/quickstart/tpl_scored.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

from videorl.data.schema import load_rows
from videorl.data.synthetic import SECONDS

ONE_FRAME = "synthetic-count"


def with_gold(row: dict[str, Any]) -> dict[str, Any]:
    if row["spans"]:
        ((start, end),) = row["spans"]
        return row | {"response": f"<answer>{start:g} to {end:g}</answer>"}
    think = row["choices"]["ABCD".index(row["answer"])]
    return row | {"response": f"<think>{think}</think><answer>{row['answer']}</answer>"}


def taught(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield row
        if row["data_source"] == ONE_FRAME:
            (video,) = row["videos"]
            yield row | {"id": f"{row['id']}#end", "videos": [video | {"start": SECONDS - 1.0}]}


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
        train, held_out = (list(map(with_gold, load_rows(args.data / f"{name}.jsonl"))) for name in ("train", "eval"))
        for name, made in (("train", taught(train)), ("eval", held_out)):
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
