import asyncio
import json
import re
from collections import Counter

import numpy as np
import pytest
from clips import make_sampling
from env_policies import perfect, play
from gold_responses import gold_response

from videorl.config import load_config
from videorl.data.__main__ import main
from videorl.data.schema import load_rows
from videorl.data.synth.examples import PAIRS, RECIPES, ROWS, SCENES, generate
from videorl.data.synthetic import COLOURS, FPS, SECONDS, SIDE
from videorl.envs.registry import load_env
from videorl.models.families import FAMILIES
from videorl.rewards.hooks import is_hook
from videorl.rewards.registry import TERMS
from videorl.rewards.result import Sample
from videorl.rewards.rubric import Rubric
from videorl.rollout.frames import Openings
from videorl.types import Clip
from videorl.video.reader import VideoReader

COLOUR_NOISE = 40  # of 255, what the encoder may change inside a square; the colours are over 100 apart
EDGE = 2  # pixels that it blurs
ORACLES = {"video_mtr": 1.7, "framethinker": 1.2, "video_com": 2.0, "earl": 2.2, "vr_thinker": 2.0}
"""The recipes of episodes, and what is earned there by looking at the evidence and answering right, at least."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples") / "data"
    generate(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def frames(folder):
    """{path: the frames of the clip, uint8 [64, 56, 56, 3]}."""
    sampling = make_sampling(fps=float(FPS), max_frames=SECONDS * FPS, min_pixels=784, max_pixels=SIDE * SIDE)
    with VideoReader() as reader:
        return {
            f"videos/{path.name}": np.asarray(reader.load(Clip(path=str(path), sampling=sampling)).pixels)
            for path in sorted((folder / "videos").iterdir())
        }


def rows_of(folder, recipe):
    return load_rows(folder / f"{recipe}.jsonl")


def config_of(recipe, *more):
    return load_config("train", [f"recipe={recipe}", "data.path=rows.jsonl", "data.media_root=media", *more])


@pytest.mark.parametrize("recipe", RECIPES)
def test_eight_rows_over_clips_that_are_there(folder, recipe):
    rows = rows_of(folder, recipe)
    assert len(rows) == ROWS
    for row in rows:
        assert all((folder / video["path"]).is_file() for video in row["videos"])
        (made,) = row["meta"]["provenance"]
        assert made["generator"] == "examples" and made["seed"] == 0


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe not in {*ORACLES, *PAIRS}])
@pytest.mark.parametrize("done", [0.0, 1.0], ids=["start", "end"])
def test_the_right_answer_earns_all_that_a_response_can(folder, recipe, done):
    """Of the terms that score a response by itself; a gain over a draft that is right already is 0."""
    rewards = config_of(recipe).rewards
    rubric = Rubric(rewards)
    terms = {name: term for name, term in rewards.terms.items() if term and term.target in TERMS}
    used = set()
    for row in rows_of(folder, recipe):
        sample = Sample(id=row["id"], response=gold_response(recipe, row), row=row)
        score = asyncio.run(rubric.score(sample, done))
        expected = {
            name: 0.0 if term.target == "tube_gain" else TERMS[term.target].high
            for name, term in terms.items()
            if term.tasks is None or row["task"] in term.tasks
        }
        found = {name: score.terms.get(name) for name in expected}
        assert found == pytest.approx(expected), (row["id"], score.abstained, score.failures)
        assert score.failures == {} and set(score.abstained).isdisjoint(expected)
        used |= expected.keys()
    assert used == terms.keys()


def test_every_hook_has_a_row_and_the_judges_are_asked_in_two_recipes(folder):
    judged = set()
    for recipe in RECIPES:
        tasks = {row["task"] for row in rows_of(folder, recipe)}
        for name, term in config_of(recipe).rewards.terms.items():
            if term is None:
                continue
            applies = term.tasks is None or not tasks.isdisjoint(term.tasks)
            assert applies or not is_hook(term.target), f"{recipe}: {name}"
            judged |= {recipe} if term.target == "judge" and applies else set()
    assert judged == {"v1_next_event", "longvila_r1"}


@pytest.mark.parametrize("recipe", PAIRS)
def test_the_two_of_a_pair_differ_in_their_phrases(folder, recipe):
    for row in rows_of(folder, recipe):
        assert row["chosen"] == row["response"] == row["answer"]
        cut = {side: row[side] for side in ("chosen", "rejected")}
        for phrase in reversed(row["phrases"]):
            for side, (start, end) in phrase.items():
                cut[side] = cut[side][:start] + cut[side][end:]
        assert re.findall(r"\w+|\S", cut["chosen"]) == re.findall(r"\w+|\S", cut["rejected"])


def test_boxes_are_where_the_squares_are(folder, frames):
    (row, *_) = rows_of(folder, "stvg_o1")
    tube = row["meta"]["tube"]
    colour = row["prompt"].split("the ")[1].split()[0]
    clip = frames[row["videos"][0]["path"]]
    step = round(FPS / tube["fps"])
    assert tube["size"] == [clip.shape[2], clip.shape[1]]
    for number in range(round(SECONDS * tube["fps"])):
        seen = covers(clip[number * step], colour)
        box = tube["boxes"].get(str(number))
        assert (hull(seen) == pytest.approx(box, abs=EDGE)) if box else not seen.any()


@pytest.mark.parametrize("recipe", ["vision_r1", "veason_r1"])
def test_boxes_and_areas_of_a_frame_are_the_drawn_ones(folder, frames, recipe):
    for row in rows_of(folder, recipe):
        clip = frames[row["videos"][0]["path"]]
        shown = row["meta"].get("keyframes") or {str(len(clip) - 2): {"boxes": row["meta"]["boxes"]}}
        for number, frame in shown.items():
            wanted, inside = np.zeros((2, SIDE, SIDE), bool)
            for x1, y1, x2, y2 in frame["boxes"]:
                wanted[y1:y2, x1:x2] = True
                inside[y1 + EDGE : y2 - EDGE, x1 + EDGE : x2 - EDGE] = True
            seen = np.any([covers(clip[int(number)], colour) for colour in COLOURS], axis=0)
            assert seen[inside].all() and wanted[seen].all(), (row["id"], number)
            assert "area" not in frame or frame["area"] == wanted.sum()


def test_the_frames_of_a_keyframe_row_are_those_it_names(folder):
    """At the recipe's own sampling and at that of a rehearsal."""
    (row, *_) = rows_of(folder, "veason_r1")
    (video,) = row["videos"]
    with VideoReader() as reader:
        for min_frames, num_frames in ((2, None), (4, None), (2, 6)):
            fps = video["fps"] if num_frames is None else None
            sampling = make_sampling(fps=fps, num_frames=num_frames, min_frames=min_frames)
            plan = reader.plan(Clip(path=str(folder / video["path"]), sampling=sampling))
            assert [str(index) for index in plan.indices] == list(row["meta"]["keyframes"])


def test_a_clip_ends_before_what_comes_next(folder, frames):
    for row in rows_of(folder, "v1_next_event"):
        (video,) = row["videos"]
        last = int(video["end"] * FPS)
        following = row["choices"]["ABCD".index(row["answer"])] if row["choices"] else row["answer"]
        colour = following.split()[1]
        assert not covers(frames[video["path"]][: last + 1], colour).any()
        assert covers(frames[video["path"]][last + 1], colour).any()


def test_the_pieces_of_a_jigsaw_tell_their_order(folder, frames):
    """Every piece begins with one square more than the one before."""
    rows = [row for row in rows_of(folder, "videossr") if len(row["videos"]) > 1]
    assert len(rows) == 2
    for row in rows:
        in_order = [row["videos"][int(digit) - 1] for digit in row["answer"]]
        starts = [video["start"] for video in in_order]
        assert starts == sorted(starts) and starts[0] == 0
        areas = [
            sum(covers(frames[video["path"]][round(video["start"] * FPS) + 1], colour).sum() for colour in COLOURS)
            for video in in_order
        ]
        assert areas == sorted(areas) and len(set(areas)) == len(areas)


def test_all_five_types_of_problem_are_there(folder):
    types = Counter(row["meta"]["problem_type"] for row in rows_of(folder, "video_r1"))
    assert types.keys() == {"multiple choice", "numerical", "OCR", "free-form", "regression"}


@pytest.mark.parametrize("scale", ["full", "tiny"])
@pytest.mark.parametrize("recipe", ORACLES)
def test_the_oracle_finds_the_evidence_of_a_row(folder, recipe, scale):
    config = config_of(recipe, f"scale={scale}", f"data.media_root={folder}")
    family = FAMILIES[config.model.family]
    env = load_env(config.rollout.env.target, config.rollout.env.params)
    with VideoReader() as reader:
        openings = Openings(config, reader.plan, family.spatial_factor, family.temporal)
        episodes = [play(env, openings.task(row), perfect) for row in rows_of(folder, recipe)]
    assert all(env.score(episode).parts["accuracy"] == 1 for episode in episodes)
    # a rehearsal shows so few frames that a look need not come nearer than the first ones
    assert recipe == "video_mtr" or all(env.score(each).total >= ORACLES[recipe] for each in episodes)


@pytest.mark.parametrize("recipe", sorted(ORACLES.keys() - {"vr_thinker"}))
def test_evidence_is_when_and_where_the_square_is_seen(folder, frames, recipe):
    boxes = 0
    for row in rows_of(folder, recipe):
        clip = frames[row["videos"][0]["path"]]
        colour = row["choices"]["ABCD".index(row["answer"])]
        ((start, end),) = row["spans"]
        assert [covers(frame, colour).any() for frame in clip] == [start <= n / FPS <= end for n in range(len(clip))]
        for seconds, box in row["meta"].get("evidence", {}).get("boxes", {}).items():
            seen = covers(clip[round(float(seconds) * FPS)], colour)
            assert hull(seen) == pytest.approx([side * SIDE for side in box], abs=EDGE)
            boxes += 1
    assert boxes == (ROWS if recipe == "video_com" else 0)


def test_the_preferred_video_is_the_one_that_the_text_is_about(folder):
    places = set()
    for row in rows_of(folder, "vr_thinker"):
        labels = row["meta"]["evidence"]["labels"]
        ((about, other), chosen) = row["meta"]["provenance"][0]["shots"], labels["TA"] - 1
        assert [video["path"] for video in row["videos"]][chosen] == about["path"] != other["path"]
        assert labels == {"TA": labels["OA"], "VQ": 0, "MQ": labels["MQ"], "OA": labels["OA"]}
        shots = [about, other] if chosen == 0 else [other, about]
        steady, also = (all(square["end"] == SECONDS for square in shot["squares"]) for shot in shots)
        assert labels["MQ"] == (0 if steady == also else 1 if steady else 2)
        places.add(chosen)
    assert places == {0, 1}


@pytest.mark.parametrize("recipe", ["unifiedreward_think", "acre"])
def test_no_place_is_always_right(folder, recipe):
    assert len({row["answer"] for row in rows_of(folder, recipe)}) > 1


def test_the_seed_decides(folder, tmp_path):
    generate(tmp_path / "same", seed=0)
    generate(tmp_path / "other", seed=1)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == len(SCENES) + len(RECIPES) + 1
    assert all((folder / path).read_bytes() == (tmp_path / "same" / path).read_bytes() for path in files)
    for recipe in RECIPES:
        assert rows_of(folder, recipe) != rows_of(tmp_path / "other", recipe)
    before = (folder / "manifest.json").stat().st_mtime_ns
    generate(folder, seed=0)
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="'seed': 0"):
        generate(folder, seed=2)
    assert json.loads((folder / "manifest.json").read_text())["seed"] == 0


def test_the_command_needs_no_more_than_a_folder(folder, tmp_path, capsys):
    assert main(["synth", "examples", "--out", str(tmp_path / "data")]) == 0
    assert (tmp_path / "data" / "acre.jsonl").read_bytes() == (folder / "acre.jsonl").read_bytes()
    assert "veason_r1.jsonl" in capsys.readouterr().out


def covers(pixels: np.ndarray, colour: str) -> np.ndarray:
    """Where a colour is: bool of the shape of `pixels` without its last axis."""
    return (np.abs(pixels.astype(int) - COLOURS[colour]) < COLOUR_NOISE).all(axis=-1)


def hull(seen: np.ndarray) -> list[int]:
    """The box around what is True."""
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
