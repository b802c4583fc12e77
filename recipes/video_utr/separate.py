"""Does temporal perplexity tell rows that one frame answers from rows that need more?

The quickstart's clips settle it by construction: squares of `count` stay until the end, so that the last frame shows
them all; which of the two squares of `first` came first, and when the square of `ground` was there, no frame tells.
The responses are right ones of the model's own.

    python -m videorl.evaluate recipe=quickstart model.path=runs/quickstart/export eval.samples=8 run.dir=runs/exam
    python recipes/video_utr/separate.py rows --path data/quickstart/eval.jsonl --rollouts runs/exam/rollouts.jsonl \
        --out data/quickstart/right.jsonl
    python -m videorl.data tpl --path data/quickstart/right.jsonl --out data/quickstart/scored.jsonl \
        --reduced last --frames 2 recipe=quickstart model.path=runs/quickstart/export
    python recipes/video_utr/separate.py auc --path data/quickstart/scored.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

from videorl.data.pairs import read_responses
from videorl.data.schema import load_rows

ONE_FRAME = "synthetic-count"
RIGHT = 0.7  # accuracy; the temporal IoU of a span


def right_rows(path: str, rollouts: str) -> Iterator[dict[str, Any]]:
    """Rows with the best of the model's responses, where that is a right one."""
    responses = read_responses(rollouts, "accuracy")
    for row in load_rows(path):
        best, value = max(responses.get(row["id"], {"": 0.0}).items(), key=lambda each: each[1])
        if value >= RIGHT:
            yield row | {"response": best}


def compute_auc(low: list[float], high: list[float]) -> float:
    """The chance that one of `high` is above one of `low`; ties count half."""
    wins = sum((b > a) + (b == a) / 2 for a in low for b in high)
    return wins / (len(low) * len(high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    rows = commands.add_parser("rows")
    rows.add_argument("--path", required=True)
    rows.add_argument("--rollouts", required=True)
    rows.add_argument("--out", type=Path, required=True)
    auc = commands.add_parser("auc")
    auc.add_argument("--path", required=True)
    args = parser.parse_args()
    if args.command == "rows":
        made = right_rows(args.path, args.rollouts)
        args.out.write_text("".join(json.dumps(row) + "\n" for row in made))
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
