"""Eight rows for each recipe, over twelve clips of coloured squares, with the fields that its rewards read.

They are for rehearsals and tests of a recipe, not for learning. The squares are drawn, so that every time, box, area
and order in a row is the true one. Boxes are in pixels of the stored frame, in `meta.evidence` in shares of its sides;
times are in seconds of the clip.

    python -m videorl.data synth examples --out data/examples

`<recipe>.jsonl` is the rows of `configs/recipe/<recipe>.yaml`.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from videorl.data.phrases import align_phrases
from videorl.data.synth.folder import print_rows, provenance, write_rows, written_once
from videorl.data.synth.footage import Take
from videorl.data.synth.mp4 import write_mp4
from videorl.data.synthetic import COLOURS, FPS, SECONDS, SIDE, SQUARE, Example, Square, draw_example, render_frames

VERSION = 3  # raise when the same seed would give other clips or rows
SCENES = ("first", "count", "first", "ground") * 3  # one clip each
HALF_FRAME = 0.5 / FPS  # seconds: a clip that ends this long before a time does not show what appears then
TUBE_FPS = 2.0  # frames that a tube counts, per second
KEYFRAMES = 6  # frames of a row that asks for one of them

Fields = dict[str, Any]


@dataclass(frozen=True)
class Shot:
    """A clip that was written, and what it shows."""

    path: str
    scene: Example

    @property
    def squares(self) -> list[Square]:
        """In the order in which they appear."""
        return sorted(self.scene.squares, key=lambda square: (square.start, square.colour, square.x, square.y))


@dataclass(frozen=True)
class Question:
    """`make(*shots)` gives the fields of a row; its `videos` are those shots unless it names others.

    The first of the `shots` it takes is of one of the `scenes`, the second looks different.
    """

    make: Callable[..., Fields]
    scenes: tuple[str, ...] = ("first", "count", "ground")
    shots: int = 1


# --- questions of a task ---------------------------------------------------------------------------------------------


def choose(shot: Shot) -> Fields:
    scene = shot.scene
    if scene.choices is None:
        return _choice("Which colour is the square?", list(COLOURS), shot.squares[0].colour)
    return {"task": "mc", "prompt": scene.prompt, "choices": list(scene.choices), "answer": scene.answer}


def describe(shot: Shot) -> Fields:
    return {"task": "open", "prompt": "What happens in this video?", "answer": caption(shot)}


def foresee(shot: Shot) -> Fields:
    """Which square comes next? The clip ends before it appears."""
    _, following = shot.squares
    question = _choice("What happens next?", [_appears(colour) for colour in COLOURS], _appears(following.colour))
    return {**question, "task": "next_event", "videos": _before(following, shot), "meta": {"hop": 1}}


def foretell(shot: Shot) -> Fields:
    """The same in words."""
    _, following = shot.squares
    return {
        "task": "open",
        "prompt": "What will happen next? Describe it in one sentence.",
        "videos": _before(following, shot),
        "answer": _appears(following.colour),
    }


def ground(shot: Shot) -> Fields:
    square = shot.squares[-1]
    return {
        "task": "grounding",
        "prompt": f"Between which seconds is the {square.colour} square visible?",
        "spans": [[square.start, square.end]],
        "meta": {"video_length": float(SECONDS)},
    }


def choose_and_ground(shot: Shot) -> Fields:
    """Which square is it that appears last, and when is it visible?"""
    square = shot.squares[-1]
    question = _choice("Which square appears last, and when is it visible?", list(COLOURS), square.colour)
    return {**ground(shot), **question, "task": "custom"}


def count(shot: Shot) -> Fields:
    return {"task": "numeric", "prompt": "How many squares appear?", "answer": len(shot.squares)}


def count_colours(shot: Shot) -> Fields:
    numbers = Counter(square.colour for square in shot.squares)
    names = list(COLOURS)
    return {
        "task": "open",
        "prompt": f"How many {', '.join(names[:-1])} and {names[-1]} squares appear? Answer with {len(names)} numbers.",
        "answer": ",".join(str(numbers[name]) for name in names),
    }


def time_of(shot: Shot) -> Fields:
    square = shot.squares[-1]
    return {
        "task": "numeric",
        "prompt": f"At which second does the {square.colour} square appear?",
        "answer": square.start,
    }


def name_in_order(shot: Shot) -> Fields:
    return {
        "task": "open",
        "prompt": "Which colours appear? Write their names in order.",
        "answer": " ".join(square.colour for square in shot.squares),
    }


# --- questions of one method -----------------------------------------------------------------------------------------


def order_pieces(shot: Shot) -> Fields:
    """The clip cut where a square appears, its pieces shown in a random order: each begins with one square more."""
    cuts = sorted({0, *(square.start for square in shot.squares), SECONDS})
    pieces = [{"path": shot.path, "start": float(a), "end": b - HALF_FRAME} for a, b in pairwise(cuts)]
    shown = _rng(shot).sample(range(len(pieces)), len(pieces))
    clips = "\n".join(f"Clip {number}: <video>" for number in range(1, len(pieces) + 1))
    return {
        "task": "custom",
        "prompt": f"{clips}\nThese clips are pieces of one video. In which order do they play? Answer with their "
        "numbers, without spaces.",
        "videos": [pieces[piece] for piece in shown],
        "answer": "".join(str(shown.index(piece) + 1) for piece in range(len(pieces))),
    }


def follow(shot: Shot) -> Fields:
    """When is a square there, and where? Frame i of the tube is shown at i / TUBE_FPS seconds."""
    square = shot.squares[-1]
    frames = range(round(square.start * TUBE_FPS), round(square.end * TUBE_FPS))
    tube = {"fps": TUBE_FPS, "size": [SIDE, SIDE], "boxes": {str(frame): _box(square) for frame in frames}}
    prompt = f"When is the {square.colour} square visible, and where? Frames are counted at {TUBE_FPS:g} per second."
    return {**ground(shot), "prompt": prompt, "meta": {"tube": tube}}


def detect(shot: Shot) -> Fields:
    """Every square of one frame, which is all that the clip shows."""
    end = SECONDS - HALF_FRAME
    boxes = [_box(square) for square in shot.squares if square.end == SECONDS]
    return {
        "task": "custom",
        "prompt": f"Find every square. The frame is {SIDE} by {SIDE} pixels.",
        "videos": [{"path": shot.path, "start": end - 2 / FPS, "end": end}],
        "meta": {"boxes": boxes, "labels": [square.colour for square in shot.squares]},
    }


def mark_keyframe(shot: Shot) -> Fields:
    """The frame that shows most of the squares. The row's own rate shows `KEYFRAMES` frames, evenly over the clip."""
    last = SECONDS * FPS - 1
    shown = [round(step * last / (KEYFRAMES - 1)) for step in range(KEYFRAMES)]
    frames = {}
    for number in shown:
        boxes = [_box(square) for square in shot.squares if square.start * FPS <= number < square.end * FPS]
        frames[str(number)] = {"area": len(boxes) * SQUARE**2, "boxes": boxes}
    return {
        "task": "custom",
        "prompt": f"The frames shown are numbers {', '.join(map(str, shown))} of the video, {SIDE} by {SIDE} pixels. "
        "Choose the one that shows the most squares, and mark every square on it.",
        "videos": [{"path": shot.path, "fps": KEYFRAMES / SECONDS}],
        "meta": {"keyframes": frames},
    }


def solve_with_hints(shot: Shot) -> Fields:
    """Five levels, from a concept to the solution."""
    question = choose(shot)
    solution = question["choices"][ascii_uppercase.index(question["answer"])]
    hints = [
        "Squares appear over time on a grey ground.",
        "Go through the frames in order and note what is new in each.",
        "Compare every frame with the one before it.",
        f"At {shot.squares[0].start} s there is a {shot.squares[0].colour} square.",
        f"{caption(shot)} So the answer is {solution}.",
    ]
    return {**question, "meta": {"hints": hints}}


def compare_videos(shot: Shot, other: Shot) -> Fields:
    """Two videos and the caption of one of them."""
    first = _rng(shot).random() < 0.5
    one, two = (shot, other) if first else (other, shot)
    return {
        "task": "custom",
        "prompt": f"Video 1: <video>\nVideo 2: <video>\nWhich of the two was made for this text: {caption(shot)}",
        "videos": [{"path": one.path}, {"path": two.path}],
        "choices": ["Video 1 is better", "Video 2 is better"],
        "answer": "A" if first else "B",
    }


def compare_answers(shot: Shot, other: Shot) -> Fields:
    """Two descriptions of one video."""
    first = _rng(shot).random() < 0.5
    one, two = (shot, other) if first else (other, shot)
    return {
        "task": "custom",
        "prompt": f"Which answer is better? Question: What happens in this video?\n"
        f"Answer 1: {caption(one)}\nAnswer 2: {caption(two)}",
        "choices": ["Answer 1 is better", "Answer 2 is better"],
        "answer": "A" if first else "B",
    }


def rate(shot: Shot, other: Shot) -> Fields:
    """Three scores by rule: the picture is simple, the text is right or that of another clip, and squares that appear
    from nowhere do not vanish again, or do."""
    right = _rng(shot).random() < 0.5
    alignment = 5 if right else 1
    physics = 4 if all(square.end == SECONDS for square in shot.squares) else 2
    return {
        "task": "custom",
        "prompt": f"Rate this video, which was made for the text: {caption(shot if right else other)}",
        "answer": f"3, {alignment}, {physics}",
    }


def prefer_caption(shot: Shot, other: Shot) -> Fields:
    """A pair: the right description, and that of another clip."""
    chosen, rejected = caption(shot), caption(other)
    phrases = align_phrases(chosen, rejected) or None
    return {**describe(shot), "response": chosen, "chosen": chosen, "rejected": rejected, "phrases": phrases}


def look(shot: Shot) -> Fields:
    """Which square appears last? The evidence is when it can be seen."""
    square = shot.squares[-1]
    question = _choice("Which colour is the square that appears last?", list(COLOURS), square.colour)
    return {**question, "spans": [[float(square.start), square.end - HALF_FRAME]]}


def look_at(shot: Shot) -> Fields:
    """The same of the square that appears at a time, as a clock shows it."""
    return {**look(shot), "prompt": f"Which colour is the square that appears at 00:{shot.squares[-1].start:02d}?"}


def look_closely(shot: Shot) -> Fields:
    """The same, with the box of the square halfway through."""
    square = shot.squares[-1]
    box = [round(side / SIDE, 4) for side in _box(square)]
    return {**look(shot), "meta": {"evidence": {"boxes": {str((square.start + square.end) / 2): box}}}}


def prefer(shot: Shot, other: Shot) -> Fields:
    """Two videos for the caption of one of them, by rule: that one is better aligned and better overall, both look
    equally good, and where only one has squares that vanish again, the other moves better."""
    first = _rng(shot).random() < 0.5
    one, two = (shot, other) if first else (other, shot)
    steady, also = (all(square.end == SECONDS for square in each.squares) for each in (one, two))
    right, motion = 1 if first else 2, 0 if steady == also else 1 if steady else 2
    return {
        "task": "custom",
        "prompt": f"Two videos were made for this text: {caption(shot)}",
        "videos": [{"path": one.path}, {"path": two.path}],
        "meta": {"evidence": {"labels": {"TA": right, "VQ": 0, "MQ": motion, "OA": right}}},
    }


def caption(shot: Shot) -> str:
    names = [square.colour for square in shot.squares]
    match shot.scene.kind:
        case "first":
            return f"{_appears(names[0])[:-1]}, then a {names[1]} one."
        case "count":
            return f"{len(names)} {names[0]} squares appear." if len(names) > 1 else _appears(names[0])
        case _:
            return f"A {names[0]} square appears and vanishes again."


def _rng(shot: Shot) -> random.Random:
    return random.Random(repr(shot))


def _choice(prompt: str, choices: Sequence[str], right: str) -> Fields:
    return {"task": "mc", "prompt": prompt, "choices": [*choices], "answer": ascii_uppercase[choices.index(right)]}


def _appears(colour: str) -> str:
    return f"A {colour} square appears."


def _before(square: Square, shot: Shot) -> list[Fields]:
    return [{"path": shot.path, "end": square.start - HALF_FRAME}]


def _box(square: Square) -> list[int]:
    return [square.x, square.y, square.x + SQUARE, square.y + SQUARE]


# --- questions of a recipe -------------------------------------------------------------------------------------------


def _with_meta(question: Question, **meta: Any) -> Question:
    return replace(question, make=lambda *shots: {**question.make(*shots), "meta": meta})


CHOOSE, DESCRIBE = Question(choose), Question(describe)
FORESEE, FORETELL = Question(foresee, ("first",)), Question(foretell, ("first",))
GROUND, CHOOSE_AND_GROUND = (Question(make, ("first", "ground")) for make in (ground, choose_and_ground))
COUNT = Question(count, ("first", "count"))
PAIR = Question(prefer_caption, shots=2)
VIDEO_R1 = (
    _with_meta(CHOOSE, problem_type="multiple choice"),
    _with_meta(COUNT, problem_type="numerical"),
    _with_meta(Question(name_in_order, ("first",)), problem_type="OCR"),
    _with_meta(DESCRIBE, problem_type="free-form"),
    _with_meta(Question(time_of, ("first",)), problem_type="regression"),
)

ROWS = 8
RECIPES: dict[str, tuple[Question, ...]] = {
    "v1_next_event": (*[FORESEE] * 6, *[FORETELL] * 2),
    "v1_tgrpo": (FORESEE,) * ROWS,
    "acre": (CHOOSE,) * ROWS,
    "temporal_rlt": (*(CHOOSE, GROUND) * 3, *[CHOOSE_AND_GROUND] * 2),
    "video_r1": (*VIDEO_R1, *VIDEO_R1[:3]),
    "videorft": (*VIDEO_R1, *VIDEO_R1[:3]),
    "videossr": (GROUND, COUNT, Question(count_colours, ("first", "count")), Question(order_pieces, ("first",))) * 2,
    "stvg_o1": (Question(follow, ("first", "ground")),) * ROWS,
    "vision_r1": (Question(detect, ("first", "count")),) * ROWS,
    "harmo": (CHOOSE, DESCRIBE) * 4,
    "keye_gspo": (Question(solve_with_hints),) * ROWS,
    "unifiedreward_think": (Question(compare_videos, shots=2), Question(compare_answers, shots=2)) * 4,
    "videoscore2": (Question(rate, shots=2),) * ROWS,
    "longvila_r1": (CHOOSE, DESCRIBE) * 4,
    "reagent_v_filter": tuple(_with_meta(CHOOSE, critic_score=score) for score in range(1, ROWS + 1)),
    "veason_r1": (Question(mark_keyframe, ("first", "count")),) * ROWS,
    "video_mtr": (Question(look, ("first", "ground")),) * ROWS,
    "framethinker": (Question(look_at, ("first",)),) * ROWS,
    "video_com": (Question(look_closely, ("first", "ground")),) * ROWS,
    "earl": (Question(look, ("first", "ground")),) * ROWS,
    "vr_thinker": (Question(prefer, shots=2),) * ROWS,
    "videosavi": (PAIR,) * ROWS,
    "rrpo": (PAIR,) * ROWS,
    "base_reward": (PAIR,) * ROWS,
    "ppo_with_reward_model": (CHOOSE, COUNT) * 4,
    "video_utr": (CHOOSE, COUNT) * 4,
}

PAIRS = {"videosavi": "prefer", "rrpo": "prefer", "base_reward": "reward_model"}
"""The recipes whose rows are pairs, and the program that learns from them."""


# --- a data set ------------------------------------------------------------------------------------------------------


def make_rows(recipe: str, shots: Sequence[Shot], seed: int) -> list[Fields]:
    """The canonical rows of a recipe. Questions for the same scenes go through the clips that fit, in turn."""
    asked: Counter[tuple[str, ...]] = Counter()
    rows = []
    for number, question in enumerate(RECIPES[recipe]):
        fitting = [shot for shot in shots if shot.scene.kind in question.scenes]
        shot = fitting[asked[question.scenes] % len(fitting)]
        asked[question.scenes] += 1
        place = shots.index(shot)
        other = next(each for each in (*shots[place:], *shots[:place]) if caption(each) != caption(shot))
        shown = (shot, other)[: question.shots]
        fields = {"videos": [{"path": shot.path}], "meta": {}, **question.make(*shown)}
        made_of = provenance("examples", VERSION, seed, shots=[{"path": s.path, "squares": _drawn(s)} for s in shown])
        meta = {**fields["meta"], "provenance": [made_of]}
        rows.append({"id": f"{recipe}-{number}", **fields, "data_source": f"examples-{recipe}", "meta": meta})
    return rows


def generate(out: Path, *, seed: int) -> None:
    """Write `videos/` and `<recipe>.jsonl` for each of `RECIPES`. Raises ValueError as `written_once`."""
    with written_once(out, {"generator": "examples", "version": VERSION, "seed": seed}) as writing:
        if not writing:
            return
        (out / "videos").mkdir(exist_ok=True)
        times = np.arange(SECONDS * FPS) / FPS
        shots = []
        for number, kind in enumerate(SCENES):
            shot = Shot(f"videos/{number:02d}-{kind}.mp4", draw_example(kind, random.Random(f"{seed}/{number}")))
            write_mp4(out / shot.path, Take(frames=render_frames(shot.scene.squares), times=times, end=SECONDS))
            shots.append(shot)
        for recipe in RECIPES:
            write_rows(out / f"{recipe}.jsonl", make_rows(recipe, shots, seed))


def _drawn(shot: Shot) -> list[Fields]:
    return [asdict(square) for square in shot.squares]


# --- command line ----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    generate(args.out, seed=args.seed)
    print_rows(args.out)
