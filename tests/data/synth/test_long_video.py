import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import av
import numpy as np
import pytest
from clips import make_sampling

from videorl.data.__main__ import main
from videorl.data.schema import load_rows
from videorl.data.synth.long_video import VALUES, X264, LongVideoRule, draw_scene, generate, render_frames
from videorl.data.synthetic import COLOURS
from videorl.types import Clip
from videorl.video.reader import VideoReader
from videorl.video.sampling import choose_frames

RULES = {
    "colour": LongVideoRule(seconds=(16, 24), fps=4, segments=4),
    "flashes": LongVideoRule(kind="flashes", seconds=(24, 40), fps=8, segments=5),
}
LONG = (LongVideoRule(), LongVideoRule(kind="flashes", fps=3))
SIZES: dict[str, Any] = {"num_train": 5, "num_eval": 2}  # too few to start processes
kinds = pytest.mark.parametrize("kind", RULES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{kind: a finished data set}."""
    made = {kind: tmp_path_factory.mktemp(kind) / "data" for kind in RULES}
    for kind, folder in made.items():
        generate(folder, seed=3, rule=RULES[kind], **SIZES)
    return made


@pytest.fixture(scope="module")
def reader():
    with VideoReader() as reader:
        yield reader


def rows_of(folder):
    return [row for split in ("train", "eval") for row in load_rows(folder / f"{split}.jsonl")]


def clip_of(folder, row, *, num_frames, factor=1, pick=None):
    budget = {"min_pixels": 784, "max_pixels": 56 * 56, "total_pixels": 56 * 56 * num_frames}
    sampling = make_sampling(fps=None, num_frames=num_frames, max_frames=num_frames, temporal_factor=factor, **budget)
    return Clip(path=str(folder / row["videos"][0]["path"]), sampling=sampling, pick=pick)


def scenes(rule, number):
    return [draw_scene(rule, index, np.random.default_rng(index)) for index in range(number)]


# What is seen in a frame, from its pixels alone: they are grey and even, but for the square and the noise.


def read_light(frame):
    level = np.median(frame.mean(-1))
    return "dark" if level < 65 else "bright" if level > 182 else "grey"


def find_square(frame, kind):
    """Which pixels are part of a square: bool [H, W]."""
    if kind == "colour":
        return np.ptp(frame.astype(int), axis=-1) > 60
    return np.abs(frame.mean(-1) - np.median(frame.mean(-1))) > 100


def read_colour(frame):
    seen = frame[find_square(frame, "colour")].mean(0)
    return min(COLOURS, key=lambda name: np.abs(seen - COLOURS[name]).sum())


def find_spells(shown):
    """[first, last) of each run of true values."""
    edges = np.flatnonzero(np.diff([0, *shown, 0]))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@kinds
def test_the_whole_video_shows_what_its_row_says(folders, reader, kind):
    rule, folder = RULES[kind], folders[kind]
    for row in rows_of(folder):
        frames = reader.load(clip_of(folder, row, num_frames=1000))
        assert frames.pts == pytest.approx(np.arange(len(frames.pts)) / rule.fps)
        areas = np.array([find_square(frame, kind).sum() for frame in frames.pixels])
        assert set((areas / rule.side**2).round()) == {0, 1}
        assert areas[areas > rule.side] == pytest.approx(rule.side**2, rel=0.15)  # its edges are blurred
        lights = [read_light(frame) for frame in frames.pixels]
        decoy = row["meta"]["decoy"]
        asked = row["choices"]["ABCD".index(row["answer"])], row["spans"][0], row["meta"]["segment"]
        expected = {"dark": asked, "bright": (decoy["value"], decoy["span"], decoy["segment"])}
        if "bright" in row["prompt"]:
            expected = dict(zip(expected, reversed(expected.values()), strict=True))
        length = (len(lights) - 1) / (rule.segments - 1)
        for light, (value, span, segment) in expected.items():
            here = [each == light for each in lights]
            # From one border to the next; they are halfway between the centres.
            ((first, last),) = find_spells(here)
            assert first == max(0, np.ceil((segment - 0.5) * length))
            assert last == min(len(lights), np.ceil((segment + 0.5) * length))
            spells = find_spells((areas > rule.side**2 / 2) & here)
            assert [spells[0][0] / rule.fps, spells[-1][1] / rule.fps] == pytest.approx(span)
            if kind == "colour":
                assert len(spells) == 1
                assert {read_colour(frame) for frame in frames.pixels[slice(*spells[0])]} == {value}
                assert spells[0][1] - spells[0][0] == int(rule.visible * length)
            else:
                assert len(spells) == int(value)
                assert len({end - start for start, end in spells}) == 1 and spells[0][1] - spells[0][0] >= 2
                assert all(start - end >= 2 for (_, end), (start, _) in pairwise(spells))
        assert set(lights) == {"dark", "bright", "grey"}
        assert decoy["value"] != asked[0]
        changes = np.abs(np.diff(frames.pixels[:, 0].mean(-1), axis=0))  # few of them are those of a light or a square
        assert np.median(changes) / 0.6745 / np.sqrt(2) == pytest.approx(rule.noise, rel=0.5)  # the encoder smooths


@kinds
def test_first_frames_show_the_light_and_no_square(folders, reader, kind):
    """Whether they are chosen among all frames, or among candidates in which they have to be looked for."""
    rule, folder = RULES[kind], folders[kind]
    for row in rows_of(folder):
        clips = [clip_of(folder, row, num_frames=rule.segments)]
        pool = len(reader.plan(clip_of(folder, row, num_frames=1000, factor=2)).indices)
        for candidates in (pool, 8 * rule.segments):
            pick = tuple(round(place * (candidates - 1) / (rule.segments - 1)) for place in range(rule.segments))
            clips.append(clip_of(folder, row, num_frames=candidates, factor=2, pick=pick))
        for clip in clips:
            frames = reader.load(clip)
            lights = [read_light(frame) for frame in frames.pixels]
            light = "dark" if "dark" in row["prompt"] else "bright"
            other = "bright" if light == "dark" else "dark"
            assert lights.index(light) == row["meta"]["segment"]
            assert lights.index(other) == row["meta"]["decoy"]["segment"]
            assert lights.count("grey") == rule.segments - 2
            assert not any(find_square(frame, kind).any() for frame in frames.pixels)


@kinds
def test_frames_of_the_span_show_the_square(folders, reader, kind):
    rule, folder = RULES[kind], folders[kind]
    for row in rows_of(folder):
        ((start, end),) = row["spans"]
        clip = clip_of(folder, row, num_frames=1000)
        shown = reader.load(replace(clip, start=start, end=end - 0.5 / rule.fps)).pixels
        seen = [find_square(frame, kind).any() for frame in shown]
        assert seen[0] and seen[-1] and (kind == "flashes" or all(seen))


@pytest.mark.parametrize("rule", [*LONG, *RULES.values()], ids=lambda rule: f"{rule.kind}-{rule.seconds[1]}")
def test_evidence_keeps_inside_its_segment_and_away_from_first_frames(rule):
    """Whatever the candidates among which those are chosen, up to twice the margin apart, less a frame."""
    places, lengths = Counter(), []
    for scene in scenes(rule, 100):
        lengths.append(scene.num_frames / rule.fps)
        step = (scene.num_frames - 1) / (rule.segments - 1)
        evidence = set()
        for each in (scene.asked, scene.decoy):
            first, last = each.frames
            assert abs(first - each.segment * step) < step / 2 and abs(last - 1 - each.segment * step) < step / 2
            evidence |= set(range(first, last))
            assert min(each.x, each.y) >= 0 and max(each.x, each.y) <= rule.size - rule.side
            places[each.segment] += 1
        ticks = np.arange(scene.num_frames) * 1000
        thinnest = int(np.ceil((scene.num_frames - 1) / (2 * rule.margin * step - 1))) + 1
        pools = [scene.num_frames, scene.num_frames - 1, scene.num_frames - 2]
        pools += [thinnest, thinnest + 1] if thinnest < scene.num_frames else []
        for size in pools:
            candidates = choose_frames(ticks, size, 1)
            first_look = candidates[choose_frames(ticks[candidates], rule.segments, 1)]
            assert not evidence & set(first_look.tolist())
    assert min(lengths) < rule.seconds[0] + 0.1 * np.ptp(rule.seconds) and max(lengths) <= rule.seconds[1]
    assert max(lengths) > rule.seconds[1] - 0.1 * np.ptp(rule.seconds)
    # 200 / segments are expected; five standard deviations of a binomial.
    share = 1 / rule.segments
    assert all(abs(places[k] - 200 * share) < 5 * np.sqrt(200 * share * (1 - share)) for k in range(rule.segments))


@kinds
def test_neither_the_light_nor_the_decoy_tells_the_answer(kind):
    drawn = scenes(RULES[kind], 240)
    pairs = Counter((scene.asked.light, scene.asked.value) for scene in drawn)
    assert pairs == {(light, value): 30 for light in ("dark", "bright") for value in VALUES[kind]}
    # Of each answer's 60 scenes a third has each of the other values as its decoy; five standard deviations are 18.
    decoys = Counter((scene.asked.value, scene.decoy.value) for scene in drawn)
    assert len(decoys) == 12 and all(value != other and abs(n - 20) <= 18 for (value, other), n in decoys.items())
    # The asked one is as often the first of the two, whatever the light.
    for light in ("dark", "bright"):
        before = sum(s.asked.segment < s.decoy.segment for s in drawn if s.asked.light == light)
        assert abs(before - 60) < 28  # five standard deviations of 120 tosses
    for value in VALUES[kind]:
        places = [scene.asked.segment for scene in drawn if scene.asked.value == value]
        assert abs(np.mean(places) - (RULES[kind].segments - 1) / 2) < 1  # of 60, whose own deviation is 0.2


@kinds
def test_rows(folders, kind):
    folder = folders[kind]
    rows = rows_of(folder)
    assert [len(load_rows(folder / f"{split}.jsonl")) for split in ("train", "eval")] == [5, 2]
    for row in rows:
        assert row["task"] == "mc" and row["data_source"] == f"long_{kind}"
        assert row["choices"] == [*VALUES[kind]] and row["answer"] in "ABCD"
        assert (folder / row["videos"][0]["path"]).is_file()
        assert row["meta"]["segment"] != row["meta"]["decoy"]["segment"]
        assert row["meta"]["provenance"][0]["seed"] == 3
    prompt = {"colour": "Which colour is the square", "flashes": "How often does it flash"}[kind]
    assert [row["prompt"] for row in rows[:2]] == [f"{prompt} while it is {light}?" for light in ("dark", "bright")]
    assert len({row["id"] for row in rows}) == len({str(row["spans"]) for row in rows}) == 7


def test_the_same_seed_gives_the_same_files(folders, tmp_path):
    rule, folder = RULES["colour"], folders["colour"]
    generate(tmp_path / "again", seed=3, rule=rule, num_train=3, num_eval=2)  # fewer questions, the same ones
    generate(tmp_path / "other", seed=4, rule=rule, num_train=1, num_eval=0)
    for name in ("train-colour-0000", "train-colour-0002", "eval-colour-0001"):
        video = f"videos/{name}.mp4"
        assert (tmp_path / "again" / video).read_bytes() == (folder / video).read_bytes()
    again = (tmp_path / "again" / "train.jsonl").read_text()
    assert (folder / "train.jsonl").read_text().startswith(again)
    first, other = (load_rows(each / "train.jsonl")[0] for each in (folder, tmp_path / "other"))
    held_out = load_rows(folder / "eval.jsonl")[0]
    drawn = [json.dumps(row["meta"]["provenance"][0]["parameters"]) for row in (first, other, held_out)]
    assert len(set(drawn)) == 3
    before = (folder / "train.jsonl").stat().st_mtime_ns
    generate(folder, seed=3, rule=rule, **SIZES)  # finished: left alone
    assert (folder / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="name another folder or delete this one"):
        generate(folder, seed=4, rule=rule, **SIZES)


def test_the_same_scene_and_generator_give_the_same_pixels():
    scene = draw_scene(RULES["colour"], 0, np.random.default_rng(0))
    one, two, other = (np.stack([*render_frames(scene, np.random.default_rng(seed))]) for seed in (0, 0, 1))
    assert one.shape == (scene.num_frames, 56, 56, 3) and one.dtype == np.uint8
    assert (one == two).all() and (one != other).any()


def test_a_keyframe_is_near(folders):
    for path in (folders["colour"] / "videos").iterdir():
        with av.open(str(path)) as container:
            keys = [n for n, packet in enumerate(container.demux(video=0)) if packet.size and packet.is_keyframe]
        assert keys[0] == 0 and len(keys) > 3 and max(np.diff(keys)) <= int(X264["g"])


def test_ten_minutes_need_a_few_megabytes():
    scene = draw_scene(LongVideoRule(seconds=(600, 600)), 0, np.random.default_rng(0))
    tracemalloc.start()
    assert sum(1 for _ in render_frames(scene, np.random.default_rng(0))) == 600
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "sound"}, "kind='sound' does not hold: kind is one of colour, flashes"),
        ({"seconds": (600, 120)}, r"seconds=\(600, 120\) does not hold: seconds is LOW HIGH"),
        ({"fps": 0}, "fps=0 does not hold: fps is positive"),
        ({"size": 55}, "size=55 does not hold: size is even"),
        ({"segments": 2}, "segments=2 does not hold: segments is at least 3"),
        ({"visible": 0.5}, "visible=0.5 does not hold: visible is a share of a segment below its half"),
        ({"margin": -0.1}, "margin=-0.1 does not hold"),
        ({"square": 0.01}, "square=0.01 does not hold: square is a share of size and at least 4 pixels"),
        ({"noise": float("nan")}, "noise=nan does not hold"),
        ({"fps": -1, "noise": -1}, "fps=-1 .*; noise=-1"),
        (
            {"seconds": (30, 60)},
            "segments=8: 4.1 frames each, of which visible=0.3 is fewer than the 2 .*raise seconds",
        ),
        ({"kind": "flashes"}, "17.0 frames each, of which visible=0.3 is fewer than the 14 .*; raise seconds, fps or"),
        (
            {"visible": 0.35, "margin": 0.15},
            "too short for visible=0.35 beside margin=0.15 .*; lower visible or margin",
        ),
        ({"seconds": (90, 600)}, "too short for visible=0.3 .*raise seconds or fps"),
    ],
)
def test_rules_that_cannot_be_drawn(change, message):
    with pytest.raises(ValueError, match=message):
        LongVideoRule(**change)


@pytest.mark.parametrize("numbers", [{"num_train": 0}, {"num_eval": -1}])
def test_numbers_out_of_range(numbers, tmp_path):
    ((name, value),) = numbers.items()
    with pytest.raises(ValueError, match=f"{name}={value} does not hold: {name} is at least"):
        generate(tmp_path / "none", seed=0, rule=LongVideoRule(), **numbers)
    assert not (tmp_path / "none").exists()


@kinds
def test_the_command(kind, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--train", "1", "--eval", "1", "--kind", kind, "--min-seconds", "120", "--max-seconds", "121"]
    assert main(["synth", "long_video", "--out", str(out), "--seed", "5", *arguments, "--size", "28"]) == 0
    assert "train.jsonl" in capsys.readouterr().out
    made = json.loads((out / "manifest.json").read_text())
    assert made["seed"] == 5 and made["size"] == 28 and made["fps"] == {"colour": 1, "flashes": 3}[kind]
    (row,) = load_rows(out / "train.jsonl")
    with av.open(str(out / row["videos"][0]["path"])) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (28, 28)
        assert 120 * made["fps"] <= stream.frames <= 121 * made["fps"]
    assert main(["synth", "long_video", "--out", str(tmp_path / "no"), "--seed", "0", "--min-seconds", "9"]) == 1
    assert "raise seconds" in capsys.readouterr().err and not (tmp_path / "no").exists()
