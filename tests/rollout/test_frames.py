"""What an environment is told of a row, and which clips stand for the frames that it shows."""

from __future__ import annotations

import pytest

from videorl.config import load_config
from videorl.envs.records import FrameRef, Frames, Message, Text
from videorl.rollout.frames import Openings
from videorl.types import Clip, DataError
from videorl.video.frames import FramePlan

ENV = "rollout.env={target: video_mtr, params: {budget: {initial: 4, per_turn: 2, total: null}}}"


def plan(clip: Clip) -> FramePlan:
    """Of a fake file: eight frames from 100 s on, half a second apart, 640 x 360 pixels."""
    return FramePlan(
        clip=clip, media_sha256="0", indices=tuple(range(8)), pts=tuple(100.0 + 0.5 * k for k in range(8)), height=28,
        width=56, crop=(0, 0, 640, 360), origin=100.0, duration=4.0,
    )  # fmt: skip


@pytest.fixture
def openings(tmp_path) -> Openings:
    (tmp_path / "a.mp4").touch()
    overrides = ["recipe=quickstart", f"data.media_root={tmp_path}", ENV]
    return Openings(load_config("train", overrides), plan, 28, 2)


ROW = {
    "id": "a", "task": "mc", "prompt": "<video> Which?", "choices": ["red", "green"], "answer": "B", "meta": {},
    "spans": [[1.0, 2.0]], "data_source": "d", "response": None,
    "videos": [{"path": "a.mp4", "start": None, "end": None, "fps": None, "sha256": None}],
}  # fmt: skip


def test_a_row_becomes_a_task(openings):
    task = openings.task(ROW)
    (video,) = task.videos
    assert video.times == tuple(0.5 * k for k in range(8)) and (video.width, video.height) == (640, 360)
    assert (task.question, task.options, task.answer) == ("Which?", ("red", "green"), "B")
    assert task.evidence.spans == ((1.0, 2.0),)


def test_evidence_of_the_row_is_added(openings):
    evidence = {"boxes": {"1.5": [0, 0, 0.5, 0.5]}, "labels": {"TA": 1}}
    task = openings.task(ROW | {"meta": {"evidence": evidence}})
    assert task.evidence.boxes == {1.5: (0, 0, 0.5, 0.5)} and task.evidence.labels == {"TA": 1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"videos": [], "prompt": "Which?"}, "no_video"),
        ({"spans": [[4.5, 5.0]]}, "span_outside_clip"),
        ({"meta": {"evidence": {"boxes": {"1.5": [0, 0, 3, 3]}}}}, "bad_evidence"),
        ({"meta": {"evidence": "there"}}, "bad_evidence"),
    ],
)
def test_a_row_that_is_none_is_refused(openings, changes, reason):
    with pytest.raises(DataError) as error:
        openings.task(ROW | changes)
    assert error.value.reason == reason


def ref(index: int, **changes) -> FrameRef:
    return FrameRef(**{"video": "0", "index": index, "max_pixels": 1568, "label": f"f{index}: "} | changes)


def test_images_are_clips_of_one_frame_behind_their_labels(openings):
    message = Message(role="user", parts=(Frames(refs=(ref(5), ref(2, box=(0, 0, 0.5, 1)))), Text(text="Now?")))
    shown = openings.show(ROW, message)
    assert shown.parts == [
        {"type": "text", "text": "f5: "}, {"type": "video"}, {"type": "text", "text": "f2: "}, {"type": "video"},
        {"type": "text", "text": "Now?"},
    ]  # fmt: skip
    assert [(clip.pick, clip.box) for clip in shown.clips] == [((5,), None), ((2,), (0, 0, 0.5, 1))]
    assert all(clip.sampling.max_pixels == 1568 for clip in shown.clips)


def test_a_video_is_one_clip(openings):
    shown = openings.show(ROW, Message(role="user", parts=(Frames(refs=(ref(6), ref(2), ref(4)), as_video=True),)))
    assert shown.parts == [{"type": "video"}] and [clip.pick for clip in shown.clips] == [(2, 4, 6)]


def test_no_more_pixels_than_the_data_allow(openings):
    shown = openings.show(ROW, Message(role="user", parts=(Frames(refs=(ref(1, max_pixels=10**6),)),)))
    assert shown.clips[0].sampling.max_pixels == openings.config.data.sampling.max_pixels
    small = openings.show(ROW, Message(role="user", parts=(Frames(refs=(ref(1, max_pixels=100),)),)))
    assert small.clips[0].sampling.min_pixels == small.clips[0].sampling.max_pixels == 100


@pytest.mark.parametrize(
    "refs", [(ref(1), ref(2, max_pixels=784)), (ref(1), ref(2, video="1")), (ref(1, video="7"),), (ref(1, video="x"),)]
)
def test_frames_that_make_no_video_are_refused(openings, refs):
    with pytest.raises(ValueError, match=r"frames of one video must be|there is no such video"):
        openings.show(ROW, Message(role="user", parts=(Frames(refs=refs, as_video=True),)))


def test_the_opening_is_the_environments_first_message(openings):
    prompt = openings.prompt(ROW)
    assert [clip.pick for clip in prompt.clips] == [(0,), (2,), (5,), (7,)]
    (message,) = prompt.messages
    assert message["role"] == "user" and [part["type"] for part in message["content"]].count("video") == 4
    assert message["content"][0] == {"type": "text", "text": "frame_idx:0, "}
    assert prompt == openings.prompt(ROW) and prompt.row == ROW
