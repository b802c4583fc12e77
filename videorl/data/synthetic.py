"""Video questions made on the spot: real mp4 files with coloured squares, easy enough for a tiny model on a CPU.

Three kinds, in equal shares: `first` (which of two colours appears first), `count` (how many squares appear) and
`ground` (between which seconds is the square visible). The first two are multiple choice with options in a fixed
order: a two-layer model does not learn to copy from shuffled ones. Everything follows from the seed.

    python -m videorl.data.synthetic --out data/quickstart --seed 0
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from videorl.data.processes import map_on_all_cores

FORMAT = 1  # raise when the same seed would give other clips or rows

SECONDS, FPS = 8, 8
SIDE, SQUARE = 56, 20  # pixels
BACKGROUND = 90
COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 80, 230), "yellow": (230, 210, 40)}
KINDS = ("first", "count", "ground")
NUMBERS = ("1", "2", "3", "4")
CLIPS_PER_TASK = 50  # half a second of work
SPAN_LENGTHS = (2, 3, 4)  # seconds; the longer they are, the better the best constant answer: mean IoU 0.43 with these


@dataclass(frozen=True)
class Square:
    """A square of `SQUARE` pixels with its top left corner at (x, y), visible for start <= t < end seconds."""

    colour: str
    x: int
    y: int
    start: int
    end: int


@dataclass(frozen=True)
class Example:
    """One clip and its question, with the true `think` and `answer`. Either `choices` or `span` (seconds) is given."""

    kind: str
    squares: tuple[Square, ...]
    prompt: str
    choices: tuple[str, ...] | None
    think: str
    answer: str
    span: tuple[int, int] | None = None


def draw_example(kind: str, rng: random.Random) -> Example:
    """Draw a scene and its question.

    The options of a kind are equally likely; so are the lengths of a span, and the starts of a length. Squares of
    `first` and `count` stay until the end.

    Raises:
        ValueError: no such kind.
    """
    if kind == "first":
        colours = rng.sample(tuple(COLOURS), 2)
        starts = sorted(rng.sample(range(SECONDS - 1), 2))
        squares = tuple(
            draw_square(colour, cell, start, SECONDS, rng)
            for colour, cell, start in zip(colours, rng.sample(range(4), 2), starts, strict=True)
        )
        choices = tuple(COLOURS)
        return Example(kind, squares, "Which colour appears first?", choices, colours[0], _letter(choices, colours[0]))
    if kind == "count":
        number, colour = rng.choice(NUMBERS), rng.choice(tuple(COLOURS))
        squares = tuple(
            draw_square(colour, cell, rng.randrange(SECONDS - 1), SECONDS, rng)
            for cell in rng.sample(range(4), int(number))
        )
        return Example(kind, squares, "How many squares appear?", NUMBERS, number, _letter(NUMBERS, number))
    if kind == "ground":
        colour, span = rng.choice(tuple(COLOURS)), _draw_span(rng)
        squares = (draw_square(colour, rng.randrange(4), *span, rng),)
        prompt = "Between which seconds is the square visible?"
        return Example(kind, squares, prompt, None, colour, _span_text(span), span)
    raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")


def render_frames(squares: Sequence[Square]) -> np.ndarray:
    """Draw the whole clip at `FPS`: uint8 [SECONDS * FPS, SIDE, SIDE, 3], RGB."""
    frames = np.full((SECONDS * FPS, SIDE, SIDE, 3), BACKGROUND, dtype=np.uint8)
    for square in squares:
        area = slice(square.y, square.y + SQUARE), slice(square.x, square.x + SQUARE)
        frames[square.start * FPS : square.end * FPS, *area] = COLOURS[square.colour]
    return frames


def draw_response(example: Example, label_noise: float, rng: random.Random) -> str:
    """Draw the SFT target of an example: `<think>green</think><answer>B</answer>`.

    With probability `label_noise` think and answer are two independent random draws over the valid values instead of
    the truth. The policy then starts RL unsure of its answers, not confident in wrong ones.
    """
    think, answer = example.think, example.answer
    if rng.random() < label_noise:
        think = rng.choice(NUMBERS if example.kind == "count" else tuple(COLOURS))
        if example.choices is None:
            answer = _span_text(_draw_span(rng))
        else:
            answer = _letter(example.choices, rng.choice(example.choices))
    return f"<think>{think}</think><answer>{answer}</answer>"


def generate(
    out_dir: str | Path,
    *,
    seed: int,
    num_train: int = 1200,
    num_eval: int = 300,
    sft_copies: int = 8,
    label_noise: float = 0.5,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> None:
    """Write `videos/`, `train.jsonl`, `eval.jsonl` and `sft.jsonl`, then `manifest.json` as the sign that all is there.

    Rows are canonical; media paths are relative to `out_dir`. `sft.jsonl` holds `sft_copies` rows of every training
    clip, each with a `response` whose noise is drawn afresh. A finished folder with the same parameters is left as it
    is, an unfinished one is written again. `progress` wraps the list of clip ids while clips are written.

    Raises:
        ValueError: a parameter is out of range, or the folder is finished and was made with other parameters.
    """
    for name, value, least in (("num_train", num_train, 1), ("num_eval", num_eval, 0), ("sft_copies", sft_copies, 0)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise={label_noise} is a probability: give 0..1")
    out_dir = Path(out_dir)
    manifest = {
        "format": FORMAT,
        "seed": seed,
        "num_train": num_train,
        "num_eval": num_eval,
        "sft_copies": sft_copies,
        "label_noise": label_noise,
    }
    if (out_dir / "manifest.json").exists():
        found = json.loads((out_dir / "manifest.json").read_text())
        if found != manifest:
            raise ValueError(f"{out_dir} was made with {found}, not {manifest}: name another folder or delete this one")
        return

    (out_dir / "videos").mkdir(parents=True, exist_ok=True)
    train, held_out = _draw_split("train", num_train, seed), _draw_split("eval", num_eval, seed)
    examples = train | held_out
    clips = [(out_dir / _video_path(clip_id), example.squares) for clip_id, example in examples.items()]
    written = map_on_all_cores(_write_clip, clips, CLIPS_PER_TASK)
    for _ in zip(progress(list(examples)), written, strict=True):
        pass
    noise = random.Random(f"{seed}/sft")
    _write_rows(out_dir / "train.jsonl", (_row(*item) for item in train.items()))
    _write_rows(out_dir / "eval.jsonl", (_row(*item) for item in held_out.items()))
    _write_rows(
        out_dir / "sft.jsonl",
        (
            _row(clip_id, example) | {"id": f"{clip_id}#{copy}", "response": draw_response(example, label_noise, noise)}
            for copy in range(sft_copies)
            for clip_id, example in train.items()
        ),
    )
    unpublished = out_dir / "manifest.json.tmp"
    unpublished.write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(unpublished, out_dir / "manifest.json")


def _draw_split(split: str, number: int, seed: int) -> dict[str, Example]:
    """Each clip has a generator of its own, so that a split does not depend on the size of any."""
    kinds = [KINDS[index % len(KINDS)] for index in range(number)]
    return {
        f"{split}-{kind}-{index:04d}": draw_example(kind, random.Random(f"{seed}/{split}/{index}"))
        for index, kind in enumerate(kinds)
    }


def _draw_span(rng: random.Random) -> tuple[int, int]:
    length = rng.choice(SPAN_LENGTHS)
    start = rng.randint(0, SECONDS - length)
    return start, start + length


def draw_square(colour: str, cell: int, start: int, end: int, rng: random.Random) -> Square:
    """Somewhere inside one of the four quarters of the frame, so that squares never overlap."""
    row, column = divmod(cell, 2)
    slack = SIDE // 2 - SQUARE
    x, y = column * SIDE // 2 + rng.randint(0, slack), row * SIDE // 2 + rng.randint(0, slack)
    return Square(colour, x, y, start, end)


def _letter(choices: Sequence[str], choice: str) -> str:
    return "ABCD"[choices.index(choice)]


def _span_text(span: tuple[int, int]) -> str:
    return f"{span[0]} to {span[1]}"


def _video_path(clip_id: str) -> str:
    return f"videos/{clip_id}.mp4"


def _row(clip_id: str, example: Example) -> dict[str, Any]:
    grounding = example.span is not None
    return {
        "id": clip_id,
        "task": "grounding" if grounding else "mc",
        "prompt": example.prompt,
        "videos": [{"path": _video_path(clip_id)}],
        "choices": example.choices,
        "answer": None if grounding else example.answer,
        "spans": [example.span] if grounding else None,
        "data_source": f"synthetic-{example.kind}",
        "meta": {},
    }


def _write_clip(clip: tuple[Path, Sequence[Square]]) -> None:
    path, squares = clip
    _write_video(path, render_frames(squares))


def _write_video(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        # One thread: the bytes do not depend on the number of cores, and a clip takes milliseconds anyway.
        options = {"crf": "18", "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a synthetic video data set.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--train", type=int, default=1200, help="training clips (default: %(default)s)")
    parser.add_argument("--eval", type=int, default=300, help="held-out clips (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        generate(
            args.out,
            seed=args.seed,
            num_train=args.train,
            num_eval=args.eval,
            progress=partial(track, description="clips"),
        )
    except ValueError as error:
        parser.error(str(error))
    table = Table("file", "rows", title=str(args.out), title_justify="left")
    for name in ("train.jsonl", "eval.jsonl", "sft.jsonl"):
        table.add_row(name, str(len(_read_rows(args.out / name))))
    Console().print(table)


if __name__ == "__main__":
    main()
