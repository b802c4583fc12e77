"""Messages of a row; order, resuming and quarantine of a stream."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clips import make_sampling
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.config import DataConfig
from videorl.data.prompts import PromptStream, check_spans, make_prompt
from videorl.data.schema import CanonicalRow
from videorl.types import DataError, Media, RenderedPrompt, VideoError

NUM_FILES = 12
fixed = settings(derandomize=True, deadline=None, max_examples=100)


@dataclass(frozen=True)
class FakePlan:
    """Ten frames of a file at 4 fps, every other one shown: half a frame of the file is 0.125 s."""

    duration: float = 2.5
    indices: tuple[int, ...] = (0, 2, 4, 6, 8)
    pts: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    origin: float = 0.0


class FakeSource:
    """Plans without files: every clip is a `FakePlan` of 10 tokens, except those whose names are in `broken`."""

    def __init__(self, broken=()):
        self.broken = set(broken)

    def plan(self, clip):
        name = Path(clip.path).stem
        if name in self.broken:
            raise VideoError("truncated", f"{clip.path}: cut")
        return FakePlan(), Media(clip=clip, key=name, grid=(5, 2, 4), num_tokens=10, seconds_per_grid=1.0, tower="t")

    room = 4  # clips

    def fits(self, media):
        return len({item.key for item in media}) <= self.room


class FakeModel:
    """One token for each word and each video."""

    spatial_factor, temporal_factor = 28, 2

    def render(self, prompt, media, plans):
        words = [
            word for message in prompt.messages for part in message["content"] for word in part.get("text", "v").split()
        ]
        return RenderedPrompt(
            prompt=prompt,
            token_ids=tuple(range(len(words))),
            media=tuple(media),
            frame_times=tuple(plan.pts for plan in plans),
            origins=tuple(plan.origin for plan in plans),
            durations=tuple(plan.duration for plan in plans),
        )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    for number in range(NUM_FILES):
        (folder / f"{number}.mp4").touch()
    return folder


def make_config(root, **changes):
    sampling = {"fps": 2.0, "num_frames": None, "min_frames": 2, "max_frames": 16}
    pixels = {"min_pixels": 784, "max_pixels": 50176, "total_pixels": 802816}
    limits = {"duration": 60.0, "frames": 1000, "frame_pixels": 10**6, "deadline": 10.0, "memory_gb": 4.0}
    values = {
        "path": "train.jsonl",
        "eval_path": None,
        "media_root": str(root),
        "system_prompt": None,
        "instructions": {},
        "sampling": sampling | pixels,
        "limits": limits,
        "decoder": "pyav",
        "decode_workers": 1,
        "max_prompt_tokens": 100,
        "max_bad_fraction": 1.0,
        "shuffle": True,
    }
    return DataConfig.model_validate(values | changes)


def make_row(id="x", **fields):
    return CanonicalRow.model_validate({"id": id, "task": "open", "prompt": "Why?"} | fields).model_dump()


def make_rows(count=NUM_FILES):
    """Row i shows file i."""
    return [make_row(str(number), videos=[{"path": f"{number}.mp4"}]) for number in range(count)]


def make_stream(root, rows, broken=(), seed=0, limit=None, **changes):
    fakes: Any = FakeModel(), FakeSource(broken)
    return PromptStream(rows, make_config(root, **changes), *fakes, seed=seed, limit=limit)


def provide(media):
    return {}


def ids(prompts):
    return [prompt.prompt.id for prompt in prompts]


# --- one row ---------------------------------------------------------------------------------------------------------

SAMPLING = make_sampling(fps=None, num_frames=8)


def content_of(root, config=None, **fields):
    """The parts of the last message, with None for a video."""
    prompt = make_prompt(make_row(**fields), make_config(root, **(config or {})), SAMPLING)
    return [part.get("text") for part in prompt.messages[-1]["content"]]


ONE, TWO = [{"path": "0.mp4"}], [{"path": "0.mp4"}, {"path": "1.mp4"}]
COLOURS = {"task": "mc", "choices": ["red", "green", "blue", "yellow"], "answer": "A"}


def test_the_prompt_the_tiny_model_learned(root):
    prompt = make_prompt(
        make_row(prompt="Which colour appears first?", videos=ONE, **COLOURS), make_config(root), SAMPLING
    )
    text = "Which colour appears first? (A) red (B) green (C) blue (D) yellow"
    content = [{"type": "video"}, {"type": "text", "text": text}]
    assert prompt.messages == ({"role": "user", "content": content},)
    assert prompt.row["answer"] == "A" and prompt.task == "mc"


def test_videos_stand_where_placeholders_do(root):
    assert content_of(root, prompt="Compare.", videos=TWO) == [None, None, "Compare."]
    assert content_of(root, prompt="First <video> then <video>!", videos=TWO) == ["First ", None, " then ", None, "!"]
    parts = [{"type": "text", "text": "See"}, {"type": "video"}, {"type": "text", "text": "?"}]
    assert content_of(root, prompt=[{"role": "user", "content": parts}], videos=ONE) == ["See", None, "?"]
    assert content_of(root, prompt="No video") == ["No video"]


def test_options_and_instruction_follow_the_question(root):
    config = {"instructions": {"mc": "Answer with a letter.", "open": "Think."}}
    line = "Which? (A) red (B) green (C) blue (D) yellow"
    assert content_of(root, config, prompt="Which? \n", **COLOURS) == [line + "\nAnswer with a letter."]
    assert content_of(root, config, prompt="Why?") == ["Why?\nThink."]
    assert content_of(root, config, prompt="Look: <video>", videos=ONE) == ["Look: ", None, "Think."]
    assert content_of(root, config, task="custom") == ["Why?"]


def test_an_option_cannot_forge_a_video(root):
    row = {"task": "mc", "choices": ["<video>", "none"], "answer": "A"}
    assert content_of(root, prompt="Which tag?", videos=ONE, **row) == [None, "Which tag? (A) <video> (B) none"]


def test_messages_keep_their_roles_and_their_own_system_prompt(root):
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "So?"},
    ]
    config = make_config(root, system_prompt="Be brief.")
    messages = make_prompt(make_row(prompt=turns, videos=ONE), config, SAMPLING).messages
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == [{"type": "text", "text": "Be brief."}]
    assert messages[1]["content"] == [{"type": "video"}, {"type": "text", "text": "Hi"}]
    own = [{"role": "system", "content": "Be exact."}, turns[0]]
    messages = make_prompt(make_row(prompt=own, videos=ONE), config, SAMPLING).messages
    assert [message["content"][0].get("text") for message in messages] == ["Be exact.", None]


def test_clips_have_their_span_digest_and_rate(root):
    video = {"path": "3.mp4", "start": 1.0, "end": 2.0, "fps": 5.0, "sha256": "A" * 64}
    own, shared = make_prompt(make_row(videos=[video, *ONE]), make_config(root), SAMPLING).clips
    assert (own.start, own.end, own.sha256) == (1.0, 2.0, "A" * 64)
    assert (own.sampling.fps, own.sampling.num_frames) == (5.0, None)
    assert shared.sampling == SAMPLING and Path(shared.path).name == "0.mp4" and Path(shared.path).is_absolute()


@pytest.mark.parametrize(("path", "reason"), [("../x.mp4", "outside_root"), ("none.mp4", "missing")])
def test_paths_stay_under_the_media_root(root, path, reason):
    with pytest.raises(VideoError) as error:
        make_prompt(make_row(videos=[{"path": path}]), make_config(root), SAMPLING)
    assert error.value.reason == reason


@pytest.mark.parametrize(("end", "inside"), [(2.5, True), (2.624, True), (2.626, False), (9.0, False)])
def test_spans_may_leave_the_clip_by_half_a_frame(end, inside):
    row = make_row(task="grounding", videos=ONE, spans=[[0.0, 1.0], [1.0, end]])
    plan: Any = FakePlan()
    if inside:
        check_spans(row, [plan])
    else:
        with pytest.raises(DataError, match="leaves its clip") as error:
            check_spans(row, [plan])
        assert error.value.reason == "span_outside_clip"


# --- order -----------------------------------------------------------------------------------------------------------


def test_each_epoch_shows_every_row_once_in_another_order(root):
    stream = make_stream(root, make_rows())
    epochs = [ids(stream.take(NUM_FILES, provide)) for _ in range(3)]
    assert all(sorted(epoch, key=int) == [str(number) for number in range(NUM_FILES)] for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert stream.metrics() == {"epoch": 2, "consumed": 36, "bad": 0, "too_long": 0}


def test_the_order_depends_on_the_seed_and_not_on_the_file(root):
    order = ids(make_stream(root, make_rows()).take(NUM_FILES, provide))
    assert ids(make_stream(root, make_rows()[::-1]).take(NUM_FILES, provide)) == order
    assert ids(make_stream(root, make_rows(), seed=1).take(NUM_FILES, provide)) != order
    without_five = [row for row in make_rows() if row["id"] != "5"]
    assert ids(make_stream(root, without_five).take(NUM_FILES - 1, provide)) == [id for id in order if id != "5"]


def test_without_shuffle_rows_come_in_the_order_of_the_file(root):
    stream = make_stream(root, make_rows(3), shuffle=False)
    assert [ids(stream.take(1, provide)) for _ in range(4)] == [["0"], ["1"], ["2"], ["0"]]


@fixed
@given(st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_the_prompts_of_one_take_are_of_different_rows(root, counts):
    stream = make_stream(root, make_rows(4))
    taken = [ids(stream.take(count, provide)) for count in counts]
    assert all(len(set(prompts)) == len(prompts) == count for prompts, count in zip(taken, counts, strict=True))
    shown = Counter(id for prompts in taken for id in prompts)
    assert max(shown.values()) - min(shown[str(number)] for number in range(4)) <= 2  # a repeat waits for one take


@pytest.mark.parametrize("room", [True, False])
def test_looking_ahead_asks_for_what_comes_next_and_draws_nothing(root, room):
    stream, plain = make_stream(root, make_rows(6)), make_stream(root, make_rows(6))
    asked: list[list[str]] = []

    def ensure(media):
        asked.append([item.key for item in media])
        return {}

    if not room:
        stream.renderer.source.room = 3  # two are in use, two come next
    shown = stream.take(2, provide)
    assert shown == plain.take(2, provide)
    stream.look_ahead(2, ensure, [item for prompt in shown for item in prompt.media])
    assert stream.state() == plain.state()
    following = stream.take(2, provide)
    assert following == plain.take(2, provide)
    assert asked == ([[item.key for prompt in following for item in prompt.media]] if room else [])
    assert 0 <= stream.metrics()["hidden"] <= 1


def test_what_fails_ahead_is_set_aside_when_it_is_drawn(root):
    stream = make_stream(root, make_rows(4), broken={"1"}, shuffle=False, max_bad_fraction=0.5)
    stream.look_ahead(2, provide, [])
    assert stream.quarantined == {}
    assert ids(stream.take(2, provide)) == ["0", "2"]
    assert stream.quarantined["1"][0] == "truncated"


@fixed
@given(data=st.data(), shuffle=st.booleans())
def test_a_resumed_run_gives_the_prompts_of_one_that_never_stopped(root, data, shuffle):
    rows = make_rows(8)
    names = [row["id"] for row in rows]
    broken = data.draw(st.sets(st.sampled_from(names), max_size=2), "broken headers")
    failing = data.draw(st.sets(st.sampled_from(names), max_size=2), "failing to decode")
    counts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=8), "takes")
    stop = data.draw(st.integers(0, len(counts)), "stop")

    def ensure(media):
        return {item.key: VideoError("corrupt", item.key) for item in media if item.key in failing}

    whole, first = (make_stream(root, rows, broken, shuffle=shuffle) for _ in range(2))
    expected = [whole.take(count, ensure) for count in counts]
    for count in counts[:stop]:
        first.take(count, ensure)
    resumed = make_stream(root, data.draw(st.permutations(rows)) if shuffle else rows, broken, shuffle=shuffle)
    resumed.load_state(json.loads(json.dumps(first.state())))
    assert [resumed.take(count, ensure) for count in counts[stop:]] == expected[stop:]
    assert resumed.state()["quarantined"] == whole.state()["quarantined"]
    assert resumed.metrics() == whole.metrics()


def test_a_state_belongs_to_its_rows_and_its_seed(root):
    state = make_stream(root, make_rows()).state()
    with pytest.raises(DataError, match="start a new run") as error:
        make_stream(root, make_rows(3)).load_state(state)
    assert error.value.reason == "changed_data"
    with pytest.raises(DataError, match="seed=1, in the checkpoint 0") as error:
        make_stream(root, make_rows(), seed=1).load_state(state)
    assert error.value.reason == "changed_seed"


# --- what is set aside -----------------------------------------------------------------------------------------------


def test_a_bad_clip_is_set_aside_with_its_reason_and_another_row_is_drawn(root):
    stream = make_stream(root, make_rows(4), broken=["1"], shuffle=False)
    asked = []

    def ensure(media):
        asked.append([item.key for item in media])
        return {"2": VideoError("corrupt", "frame 7 does not decode")}

    assert ids(stream.take(2, ensure)) == ["0", "3"]
    assert asked == [["0", "2"], ["3"]]
    assert stream.quarantined["2"] == ("corrupt", "frame 7 does not decode")
    assert stream.quarantined["1"][0] == "truncated"
    assert ids(stream.take(2, provide)) == ["0", "3"], "in the next epoch they are not tried again"
    assert stream.metrics() == {"epoch": 1, "consumed": 4, "bad": 2, "too_long": 0, "corrupt": 1, "truncated": 1}


def test_long_prompts_are_set_aside_but_are_not_bad(root):
    rows = [make_row("short", prompt="one two"), make_row("video", videos=ONE), make_row("long", prompt="a " * 11)]
    stream = make_stream(root, rows, shuffle=False, max_prompt_tokens=10, max_bad_fraction=0.0)
    assert ids(stream.take(1, provide)) == ["short"]
    assert ids(stream.all(provide)) == ["short"]
    assert stream.quarantined["video"] == (
        "too_long",
        "11 tokens, over data.max_prompt_tokens=10; show fewer frames or raise it",
    )
    assert stream.metrics() == {"epoch": 0, "consumed": 1, "bad": 0, "too_long": 2}


def test_spans_outside_the_clip_are_bad_rows(root):
    spans = {"task": "grounding", "videos": ONE}
    rows = [make_row("in", spans=[[0, 2]], **spans), make_row("out", spans=[[0, 3]], **spans)]
    stream = make_stream(root, rows)
    assert ids(stream.all(provide)) == ["in"]
    assert stream.quarantined["out"][0] == "span_outside_clip"


def test_the_run_stops_above_the_bad_fraction(root):
    allowed = make_stream(root, make_rows(10), broken=["1", "4"], max_bad_fraction=0.2)
    assert len(allowed.all(provide)) == 8
    stream = make_stream(root, make_rows(10), broken=["1", "4"], max_bad_fraction=0.19)
    with pytest.raises(DataError, match=r"(?s)of 10 rows, 2 truncated .* 2 bad .*0\.19.*1: truncated: .*4: ") as error:
        stream.all(provide)
    assert error.value.reason == "too_many_bad"


@pytest.mark.parametrize("draw", [lambda stream: stream.take(1, provide), lambda stream: stream.all(provide)])
@pytest.mark.parametrize("changes", [{"broken": ["0", "1"]}, {"max_prompt_tokens": 1}])
def test_the_run_stops_without_a_usable_row(root, draw, changes):
    stream = make_stream(root, make_rows(2), **changes)
    with pytest.raises(DataError, match=r"of 2 rows, 2 (truncated|too_long) .* no row can be used") as error:
        draw(stream)
    assert error.value.reason == "too_many_bad"


def test_one_take_cannot_ask_for_more_than_the_usable_rows(root):
    stream = make_stream(root, make_rows(4), broken=["1"])
    with pytest.raises(DataError, match="3 rows can be used, fewer than one step takes") as error:
        stream.take(4, provide)
    assert error.value.reason == "too_few_rows"


def test_errors_that_are_not_about_data_are_not_hidden(root, monkeypatch):
    class Stopped(RuntimeError):
        pass

    def stop(*_):
        raise Stopped

    stream = make_stream(root, make_rows(1))
    monkeypatch.setattr(stream.renderer.model, "render", stop)
    with pytest.raises(Stopped):
        stream.all(provide)


# --- held-out rows ---------------------------------------------------------------------------------------------------


def test_all_gives_the_first_usable_rows_in_the_order_of_the_file(root):
    stream = make_stream(root, make_rows(), broken=["1"], limit=4)

    def ensure(media):
        return {item.key: VideoError("corrupt", "") for item in media if item.key == "3"}

    assert ids(stream.all(ensure)) == ["0", "2", "4", "5"]
    assert ids(stream.all(ensure)) == ["0", "2", "4", "5"]
    assert stream.metrics()["consumed"] == 0


def test_streams_of_a_configuration(root, tmp_path):
    for name, count in (("train", 5), ("eval", 3)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(count)))
    paths = {"path": str(tmp_path / "train.jsonl"), "eval_path": str(tmp_path / "eval.jsonl")}
    fakes: Any = FakeModel(), FakeSource()
    config: Any = SimpleNamespace(data=make_config(root, **paths), seed=3, eval=SimpleNamespace(max_prompts=2))
    train = PromptStream.train(config, *fakes)
    assert ids(train.take(5, provide)) == ids(make_stream(root, make_rows(5), seed=3).take(5, provide))
    held_out = PromptStream.held_out(config, *fakes)
    assert held_out is not None and ids(held_out.all(provide)) == ["0", "1"] and len(held_out) == 3
    config.data = make_config(root)
    assert PromptStream.held_out(config, *fakes) is None
