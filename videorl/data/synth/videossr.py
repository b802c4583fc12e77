"""VideoSSR's three tasks (2511.06281) from any folder of real videos: the answer is known because we made the question.

    grounding  a perturbation of some consecutive frames: between which seconds?
    count      shapes drawn on a few frames: how many of each?
    jigsaw     consecutive pieces of a video, each a clip of its own, shuffled: in which order do they play?

The defaults are the settings of the published code (lcqysl/VideoSSR), which differs in one thing that matters: it
divides frame indices by (number of frames / whole duration), although its frames span only the middle 90 % of the
video, so that its times are stretched by a ninth. Here a clip is an MP4 file that shows each frame at its real time,
and answers are on that clock. `SMALL` is what a model of 0.7 million parameters learns on a CPU.

    python -m videorl.data synth videossr --videos my_videos --out data/videossr --seed 0
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from rich.console import Console
from rich.progress import track

from videorl.data.processes import map_on_all_cores
from videorl.data.synth.folder import print_rows, provenance, write_rows, written_once
from videorl.data.synth.footage import (
    Footage,
    Part,
    Take,
    TakeRule,
    check_part,
    choose_held_out,
    draw_take,
    duration_of,
    find_videos,
    load_footage,
    split_in_time,
)
from videorl.data.synth.mp4 import write_mp4
from videorl.data.synth.perturb import PERTURBATIONS, fit
from videorl.data.synth.shapes import SHAPES, ShapeRule, draw_shapes, paint
from videorl.types import VideoError
from videorl.video.reader import VideoReader

VERSION = 1  # raise when the same seed would give other clips or rows
KINDS = (*PERTURBATIONS, "count", "jigsaw")
SPLITS = ("train", "time", "source")
JOBS_PER_TASK = 64


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What may be asked for; each field is an option of the command line. Raises ValueError for what cannot be made."""

    kinds: tuple[str, ...] = _setting(
        ("channel_swap", "mirror", "zoom_out", "rotate180", "jigsaw", "count"),
        f"in equal shares, one named twice has twice its share; of {', '.join(KINDS)}",
    )
    num_train: int = _setting(30_000, "training questions")
    num_eval: int = _setting(300, "questions of each held-out split")
    held_out: tuple[str, ...] = _setting(
        (), "patterns of videos never trained on, as 'b*.mp4'; default: the last tenth by name"
    )
    eval_share: float = _setting(0.2, "of each training video, its end: held out by time")
    keep: float = _setting(0.9, "middle part of each video that is used")
    source_frames: int = _setting(48, "most frames decoded of a part of a video")
    max_pixels: int = _setting(256 * 256, "of a decoded frame")
    num_frames: int = _setting(48, "of a clip")
    step: tuple[float, float] | None = _setting(
        None, "range of seconds between the frames of a clip; default: evenly over the part"
    )
    fps: float | None = _setting(None, "frames per second at which a clip is shown; default: each at its real time")
    side: int | None = _setting(None, "pixels: cut out random squares and scale them to this; default: whole frames")
    crop: tuple[float, float] = _setting((1.0, 1.0), "range of the square's side, of the shorter side of the frame")
    span_frames: tuple[int, int] = _setting((8, 16), "range of consecutive frames that are perturbed")
    span_grid: int = _setting(1, "starts and lengths of perturbed spans are multiples of this many frames")
    shapes: tuple[str, ...] = _setting(SHAPES, "shapes to count; one alone is a numeric question")
    shape_frames: tuple[int, int] = _setting((1, 3), "range of frames with a kind of shape")
    shapes_per_frame: tuple[int, int] = _setting((1, 3), "range of shapes on such a frame")
    shape_gap: int = _setting(8, "frames with the same kind of shape are more than this many frames apart")
    shape_size: tuple[float, float] = _setting((0.2, 0.4), "range of a shape's size, of the shorter side of the frame")
    shape_area: float = _setting(0.7, "central part of the frame that shapes stay inside, of each side")
    shapes_stay: bool = _setting(False, "a shape stays to the end of the clip")
    shapes_vivid: bool = _setting(False, "magenta, cyan or yellow and upright, instead of any colour and angle")
    pieces: int = _setting(6, "of a jigsaw")
    sft_clean: int = _setting(0, "rows of sft.jsonl with the right response for each training question, written first")
    sft_noisy: int = _setting(0, "rows of sft.jsonl that follow, with noise")
    label_noise: float = _setting(0.4, "probability that a noisy row has the answer of another question of its task")

    def __post_init__(self):
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        shapes = set(self.shapes)
        rules = (
            ("kinds", bool(self.kinds) and not unknown, f"are some of {', '.join(KINDS)}"),
            ("num_train", self.num_train >= 1, "is at least 1"),
            ("num_eval", self.num_eval >= 0, "is at least 0"),
            ("eval_share", 0 <= self.eval_share <= 0.9, "is within 0..0.9"),
            ("keep", 0 < self.keep <= 1, "is within 0..1"),
            ("num_frames", self.num_frames >= 2, "is at least 2"),
            ("source_frames", self.source_frames >= self.num_frames, "is at least num_frames"),
            ("max_pixels", self.max_pixels >= 256, "is at least 256"),
            ("step", self.step is None or 0 < self.step[0] <= self.step[1], "is LOW HIGH with 0 < LOW <= HIGH"),
            ("fps", self.fps is None or self.fps > 0, "is positive"),
            ("side", self.side is None or (self.side >= 16 and self.side % 2 == 0), "is even and at least 16"),
            ("crop", 0 < self.crop[0] <= self.crop[1] <= 1, "is LOW HIGH with 0 < LOW <= HIGH <= 1"),
            ("span_grid", self.span_grid >= 1, "is at least 1"),
            (
                "span_frames",
                2 <= self.span_frames[0] <= self.span_frames[1] < self.num_frames
                and self.span_grid <= self.span_frames[1],
                "is LOW HIGH with 2 <= LOW <= HIGH < num_frames and HIGH at least span_grid",
            ),
            ("shapes", bool(shapes) and shapes <= set(SHAPES), f"are some of {', '.join(SHAPES)}"),
            ("shape_frames", 1 <= self.shape_frames[0] <= self.shape_frames[1], "is LOW HIGH with 1 <= LOW <= HIGH"),
            (
                "shapes_per_frame",
                1 <= self.shapes_per_frame[0] <= self.shapes_per_frame[1],
                "is LOW HIGH with 1 <= LOW <= HIGH",
            ),
            ("shape_gap", self.shape_gap >= 0, "is at least 0"),
            ("shape_size", 0 < self.shape_size[0] <= self.shape_size[1] < 1, "is LOW HIGH with 0 < LOW <= HIGH < 1"),
            ("shape_area", 0 < self.shape_area <= 1, "is within 0..1"),
            (
                "pieces",
                2 <= self.pieces <= 9 and self.num_frames % self.pieces == 0,
                "is within 2..9 (its answer has a digit for each) and divides num_frames",
            ),
            ("sft_clean", self.sft_clean >= 0, "is at least 0"),
            ("sft_noisy", self.sft_noisy >= 0, "is at least 0"),
            ("label_noise", 0 <= self.label_noise <= 1, "is a probability"),
        )
        broken = [
            f"{name}={getattr(self, name)!r} does not hold: {name} {rule}" for name, holds, rule in rules if not holds
        ]
        if broken:
            raise ValueError("; ".join(broken))

    @property
    def takes(self) -> TakeRule:
        return TakeRule(num_frames=self.num_frames, step=self.step, fps=self.fps, side=self.side, crop=self.crop)

    @property
    def drawing(self) -> ShapeRule:
        return ShapeRule(
            shapes=self.shapes,
            frames=self.shape_frames,
            per_frame=self.shapes_per_frame,
            gap=self.shape_gap,
            size=self.shape_size,
            area=self.shape_area,
            stay=self.shapes_stay,
            vivid=self.shapes_vivid,
        )


SMALL = Settings(
    kinds=("grayscale", "invert", "channel_swap", "count", "count"),
    num_train=4000,
    num_eval=240,
    eval_share=0.4,
    keep=1.0,
    source_frames=1500,
    max_pixels=36_000,
    num_frames=16,
    step=(0.12, 0.5),
    fps=2.0,
    side=56,
    crop=(0.45, 1.0),
    span_frames=(2, 6),
    span_grid=2,
    shapes=("square",),
    shape_frames=(1, 4),
    shapes_per_frame=(1, 1),
    shape_gap=0,
    shape_size=(0.36, 0.36),
    shape_area=1.0,
    shapes_stay=True,
    shapes_vivid=True,
    pieces=4,
    sft_clean=3,
    sft_noisy=1,
)


# --- one question ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about one or more clips to be written. `text` is the true answer as a response spells it."""

    task: str
    takes: tuple[Take, ...]
    prompt: str
    text: str
    fields: dict[str, Any]  # of the canonical row: its task and its answer or spans
    parameters: dict[str, Any]


def ground(take: Take, kind: str, other: Take, settings: Settings, rng: np.random.Generator) -> Question:
    """Perturb a span of frames. It ends where the first frame after it appears. `other` is for `swap`."""
    low, high = (length // settings.span_grid for length in settings.span_frames)
    length = int(rng.integers(max(1, low), high, endpoint=True)) * settings.span_grid
    first = int(rng.integers((settings.num_frames - length) // settings.span_grid, endpoint=True)) * settings.span_grid
    last = first + length
    changed, drawn = PERTURBATIONS[kind].apply(take.frames[first:last], other.frames[first:last], rng)
    frames = np.concatenate([take.frames[:first], changed, take.frames[last:]])
    span = [round(take.at(first), 6), round(take.at(last), 6)]
    return Question(
        task="grounding",
        takes=(replace(take, frames=frames),),
        prompt=f"Between which seconds {PERTURBATIONS[kind].phrase}?",
        text="-".join(f"{round(time, 1):g}" for time in span),
        fields={"task": "grounding", "spans": [span]},
        parameters={"frames": [first, last], **drawn},
    )


def count(take: Take, settings: Settings, rng: np.random.Generator) -> Question:
    """Draw shapes on frames. One kind is asked for as a number, several as "circles,squares,triangles".

    Those rows are of task `open`, so that a rubric tells them from the jigsaw's, which are `custom`.
    """
    num_frames, height, width, _ = take.frames.shape
    shapes = draw_shapes(num_frames, height, width, settings.drawing, rng)
    numbers = Counter(shape.name for shape in shapes)
    names = [f"{name}s" for name in settings.shapes]
    if len(names) == 1:
        prompt, task, answer = f"How many {names[0]} appear?", "numeric", numbers[settings.shapes[0]]
    else:
        prompt = (
            f"How many {', '.join(names[:-1])} and {names[-1]} have been drawn into the video? They have any colour "
            f"and angle and may be on one frame only. Answer with {len(names)} numbers, as in {','.join(names)}."
        )
        task, answer = "open", ",".join(str(numbers[name]) for name in settings.shapes)
    return Question(
        task="count",
        takes=(replace(take, frames=paint(take.frames, shapes, settings.shapes_stay)),),
        prompt=prompt,
        text=str(answer),
        fields={"task": task, "answer": answer},
        parameters={"shapes": [asdict(shape) for shape in shapes]},
    )


def jigsaw(take: Take, settings: Settings, rng: np.random.Generator) -> Question:
    """Show equal pieces in a random order, which may be the right one. Digit k of the answer is the clip of the k-th
    piece in time; every clip's clock starts at 0."""
    size = len(take.frames) // settings.pieces
    shown = rng.permutation(settings.pieces).tolist()  # shown[i] is the piece that clip i shows
    answer = "".join(str(shown.index(piece) + 1) for piece in range(settings.pieces))
    clips = "\n".join(f"Clip {number}: <video>" for number in range(1, settings.pieces + 1))
    return Question(
        task="jigsaw",
        takes=tuple(take.cut(piece * size, (piece + 1) * size) for piece in shown),
        prompt=f"{clips}\nThese clips are consecutive pieces of one video in a shuffled order. In which order do they "
        "play? Answer with their numbers from the first piece to the last, without spaces.",
        text=answer,
        fields={"task": "custom", "answer": answer},
        parameters={"shown": shown},
    )


# --- a data set ------------------------------------------------------------------------------------------------------


def generate(
    videos: Path,
    out: Path,
    *,
    seed: int,
    settings: Settings,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> None:
    """Write `videos/`, `train.jsonl`, `eval_time.jsonl`, `eval_source.jsonl`, both of them as `eval.jsonl`, and
    `sft.jsonl`; a file without rows is not written. What could not be used of `videos` is listed in `skipped.jsonl`.

    Rows are canonical and their paths relative to `out`. `data_source` is the task, `videossr-grounding`, and in
    held-out rows also the split: `videossr-grounding-time` is from parts of the training videos that were not trained
    on, `videossr-grounding-source` from other videos. The rows of `sft.jsonl` are in the order in which they should be
    shown: right ones first, then noisy ones. Every kind meets every video equally often.

    Raises:
        ValueError: no usable video, or as `Settings` and `written_once`.
        VideoError: a file fails to decode although its header is fine.
    """
    paths = find_videos(videos)
    sizes = {path: (videos / path).stat().st_size for path in paths}
    parameters = {"generator": "videossr", "version": VERSION, "seed": seed, **asdict(settings), "videos": sizes}
    with written_once(out, parameters) as writing:
        if not writing:
            return
        (out / "videos").mkdir(exist_ok=True)
        with VideoReader() as reader:
            parts, skipped = _usable_parts(reader, videos, paths, settings)
            jobs = _schedule(parts, settings)
        shares = [jobs[start : start + JOBS_PER_TASK] for start in range(0, len(jobs), JOBS_PER_TASK)]
        make = partial(_make_share, videos=videos, out=out, seed=seed, settings=settings)
        results = (result for share in map_on_all_cores(make, shares, 1) for result in share)
        made = {job.id: result for job, result in zip(progress(jobs), results, strict=True)}
        jobs.sort(key=attrgetter("index"))
        rows = {split: [made[job.id] for job in jobs if job.split == split] for split in SPLITS}
        files = {
            "train": [row for row, _ in rows["train"]],
            "eval_time": [row for row, _ in rows["time"]],
            "eval_source": [row for row, _ in rows["source"]],
            "eval": [row for row, _ in rows["time"] + rows["source"]],
            "sft": list(sft_rows(rows["train"], settings, random.Random(f"{seed}/sft"))),
            "skipped": skipped,
        }
        for name, content in files.items():
            path = out / f"{name}.jsonl"
            if content:
                write_rows(path, content)
            else:
                path.unlink(missing_ok=True)  # left by an interrupted run with other settings


@dataclass(frozen=True)
class _Job:
    """A question to be made: from which part, and for `swap` with which other part."""

    split: str
    index: int
    kind: str
    part: Part
    other: Part

    @property
    def id(self) -> str:
        return f"{self.split}-{self.kind}-{self.index:05d}"


def _usable_parts(
    reader: VideoReader, folder: Path, paths: Sequence[str], settings: Settings
) -> tuple[dict[str, list[Part]], list[dict[str, str]]]:
    """The parts of each split whose header promises enough frames, and what was left out and why."""
    held_out = choose_held_out(paths, settings.held_out)
    parts: dict[str, list[Part]] = {split: [] for split in SPLITS}
    skipped: list[dict[str, str]] = []
    for path in paths:
        try:
            duration = duration_of(reader, folder, path)
        except VideoError as error:
            skipped.append({"path": path, "reason": error.reason, "message": str(error)})
            continue
        whole = path in held_out
        training, later = split_in_time(path, duration, settings.keep, 0.0 if whole else settings.eval_share)
        for split, part in (("source" if whole else "train", training), ("time", later)):
            if part is None:
                continue
            try:
                check_part(reader, folder, part, settings.source_frames, settings.takes)
            except VideoError as error:
                skipped.append({"path": path, "split": split, "reason": error.reason, "message": str(error)})
            else:
                parts[split].append(part)
    if not parts["train"]:
        raise ValueError(f"none of {len(paths)} videos can be used for training: {skipped[0]['message']}")
    return parts, skipped


def _schedule(parts: Mapping[str, Sequence[Part]], settings: Settings) -> list[_Job]:
    """Questions in the order in which they are made: those of one part together, so that it is decoded once."""
    jobs = []
    for split, usable in parts.items():
        number = 0 if not usable else settings.num_train if split == "train" else settings.num_eval
        for index in range(number):
            turn, kind = divmod(index, len(settings.kinds))
            part, other = (usable[(turn + step) % len(usable)] for step in (0, 1))
            jobs.append(_Job(split, index, settings.kinds[kind], part, other))
        if number and "swap" in settings.kinds and len(usable) == 1:
            raise ValueError(f"kind 'swap' shows another video, and split {split!r} has one; give more or leave it out")
    return sorted(jobs, key=lambda job: (job.split, job.part.path))


def _make_share(
    jobs: Sequence[_Job], *, videos: Path, out: Path, seed: int, settings: Settings
) -> list[tuple[dict[str, Any], str]]:
    """`_make` for jobs that come one after another, most of them about one part of a video: it is decoded once."""
    with VideoReader() as reader:
        load = lru_cache(maxsize=2)(
            partial(load_footage, reader, videos, num_frames=settings.source_frames, max_pixels=settings.max_pixels)
        )
        return [_make(job, load, out, seed, settings) for job in jobs]


def _make(
    job: _Job, load: Callable[[Part], Footage], out: Path, seed: int, settings: Settings
) -> tuple[dict[str, Any], str]:
    """Write the clips of a question. Returns its row and its true answer as a response spells it.

    Each question has a generator of its own, so that it does not depend on how many there are.
    """
    rng = np.random.default_rng(list(f"{seed}/{job.split}/{job.index}".encode()))
    footage = load(job.part)
    take, how = draw_take(footage, settings.takes, rng)
    sources = [{"path": footage.part.path, "sha256": footage.sha256, **how}]
    if job.kind == "count":
        question = count(take, settings, rng)
    elif job.kind == "jigsaw":
        question = jigsaw(take, settings, rng)
    else:
        other = take
        if job.kind == "swap":
            footage = load(job.other)
            other, how = draw_take(footage, settings.takes, rng)
            other = replace(other, frames=fit(other.frames, *take.frames.shape[1:3]))
            sources.append({"path": footage.part.path, "sha256": footage.sha256, **how})
        question = ground(take, job.kind, other, settings, rng)
    names = [
        f"videos/{job.id}{f'-{n}' if len(question.takes) > 1 else ''}.mp4" for n in range(1, len(question.takes) + 1)
    ]
    for name, clip in zip(names, question.takes, strict=True):
        write_mp4(out / name, clip)
    details = {"kind": job.kind, "split": job.split, "sources": sources, "parameters": question.parameters}
    row = {
        "id": job.id,
        "prompt": question.prompt,
        "videos": [{"path": name} for name in names],
        **question.fields,
        "data_source": f"videossr-{question.task}" + ("" if job.split == "train" else f"-{job.split}"),
        "meta": {"provenance": [provenance("videossr", VERSION, seed, **details)]},
    }
    return row, question.text


def sft_rows(
    made: Sequence[tuple[dict[str, Any], str]], settings: Settings, rng: random.Random
) -> Iterable[dict[str, Any]]:
    """Training rows with a `response`, pass after pass, each in a random order: right ones, then noisy ones.

    The think block names the kind of question. A noisy answer is that of a random row of the same task.
    """
    by_task: dict[str, list[str]] = {}
    for row, text in made:
        by_task.setdefault(row["data_source"], []).append(text)
    for number in range(settings.sft_clean + settings.sft_noisy):
        for row, text in rng.sample(made, len(made)):
            noisy = number >= settings.sft_clean and rng.random() < settings.label_noise
            answer = rng.choice(by_task[row["data_source"]]) if noisy else text
            kind = row["meta"]["provenance"][-1]["kind"]
            yield row | {"id": f"{row['id']}#{number}", "response": f"<think>{kind}</think><answer>{answer}</answer>"}


# --- command line ----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--videos", type=Path, required=True, help="folder of real videos, searched with its subfolders"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument(
        "--small", action="store_true", help="start from settings that a tiny model learns, instead of the paper's"
    )
    hints = get_type_hints(Settings)
    for setting in fields(Settings):
        values = [getattr(base, setting.name) for base in (Settings, SMALL)]
        shown = " ".join(map(str, values[0])) if isinstance(values[0], tuple) else values[0]
        small = " ".join(map(str, values[1])) if isinstance(values[1], tuple) else values[1]
        default = "" if values[0] in (None, ()) else f" (default: {shown})"
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=setting.metadata["help"] + default + (f" (small: {small})" if values[0] != values[1] else ""),
            **_reading(hints[setting.name]),
        )


def _reading(hint: Any) -> dict[str, Any]:
    """How argparse reads a value of a type: a scalar or a tuple of them, optional or not."""
    if type(None) in get_args(hint):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is not tuple:
        return {"type": hint, "metavar": hint.__name__.upper()}
    kind, last = get_args(hint)[0], get_args(hint)[-1]
    if last is Ellipsis:
        return {"nargs": "+", "type": kind, "metavar": "NAME"}
    return {"nargs": 2, "type": kind, "metavar": ("LOW", "HIGH")}


def run(args: argparse.Namespace) -> None:
    given = {
        setting.name: tuple(value) if isinstance(value := getattr(args, setting.name), list) else value
        for setting in fields(Settings)
        if hasattr(args, setting.name)
    }
    settings = replace(SMALL if args.small else Settings(), **given)
    console = Console(stderr=True)
    progress = partial(track, description="questions", console=console)
    generate(args.videos, args.out, seed=args.seed, settings=settings, progress=progress)
    print_rows(args.out)
    skipped = args.out / "skipped.jsonl"
    if skipped.exists():
        for line in skipped.read_text().splitlines()[:3]:
            console.print(f"left out: {json.loads(line)['message']}", markup=False, highlight=False, soft_wrap=True)
