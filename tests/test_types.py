"""What the types refuse, the expansion of placeholders, and what travels."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
from clips import make_sampling
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import make_clip, make_group, make_media, make_rendered, make_rollout

from videorl.types import (
    EQUAL_REWARDS,
    Clip,
    DataError,
    Generation,
    RolloutGroup,
    VideoError,
    expand_placeholders,
)

VIDEO = 9  # the placeholder's id in these tests
fixed = settings(derandomize=True, deadline=None, max_examples=100)


def test_an_error_keeps_its_reason_between_processes():
    error = pickle.loads(pickle.dumps(VideoError("truncated", "a.mp4: cut")))
    assert (type(error), error.reason, str(error)) == (VideoError, "truncated", "a.mp4: cut")
    assert isinstance(error, DataError) and isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": None}, "fps=None, num_frames=None: give exactly one"),
        ({"num_frames": 4}, "fps=5.0, num_frames=4: give exactly one"),
        ({"fps": 0.0}, "fps=0.0 must be a positive finite number"),
        ({"fps": -1.0}, "fps=-1.0 must be"),
        ({"fps": float("nan")}, "fps=nan must be"),
        ({"fps": float("inf")}, "fps=inf must be"),
        ({"min_frames": 0}, "min_frames=0"),
        ({"min_frames": 65}, "min_frames=65 <= max_frames=64 does not hold"),
        ({"fps": None, "num_frames": 0}, r"num_frames=0 must be in 1\.\.max_frames=64"),
        ({"fps": None, "num_frames": 65}, r"num_frames=65 must be in 1\.\.max_frames=64"),
        ({"min_pixels": 0}, "min_pixels=0"),
        ({"min_pixels": 50177}, "min_pixels=50177 <= max_pixels=50176"),
        ({"total_pixels": 50175}, "max_pixels=50176 <= total_pixels=50175 does not hold"),
    ],
)
def test_a_sampling_rule_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_sampling(**changes)


def test_a_sampling_rule_may_sit_on_its_bounds():
    assert make_sampling(fps=None, num_frames=64, min_frames=64).num_frames == 64
    assert make_sampling(min_pixels=784, max_pixels=784, total_pixels=784).total_pixels == 784


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (-0.1, None, "start=-0.1 must be a finite number of seconds >= 0"),
        (None, float("inf"), "end=inf must be"),
        (float("nan"), None, "start=nan must be"),
        (2.0, 2.0, "end=2.0 must be greater than start=2.0"),
        (2.0, 1.0, "end=1.0 must be greater than start=2.0"),
    ],
)
def test_a_span_is_refused(start, end, message):
    with pytest.raises(VideoError, match=f"a.mp4: {message}") as caught:
        make_clip("a.mp4", start=start, end=end)
    assert caught.value.reason == "bad_span"


def test_clips_are_equal_by_value():
    assert {make_clip("a.mp4", end=1.0), make_clip("a.mp4", end=1.0)} == {make_clip("a.mp4", end=1.0)}
    assert make_clip("a.mp4") != make_clip("a.mp4", end=1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_clip("a.mp4").path = "b.mp4"


def test_placeholders_are_expanded_in_order():
    media = [make_media("a", grid=(1, 2, 4)), make_media("b", grid=(3, 2, 2))]  # 2 and 3 tokens
    assert expand_placeholders([1, VIDEO, 2, VIDEO, 3], media, VIDEO) == [1, 9, 9, 2, 9, 9, 9, 3]
    assert expand_placeholders((), (), VIDEO) == []


@pytest.mark.parametrize(
    ("ids", "count", "word"), [([VIDEO, VIDEO], 1, "more"), ([1], 1, "fewer"), ([VIDEO], 0, "more")]
)
def test_placeholders_and_videos_must_be_as_many(ids, count, word):
    with pytest.raises(ValueError, match=f"{word} video placeholders in the prompt than its {count} videos"):
        expand_placeholders(ids, [make_media(str(i)) for i in range(count)], VIDEO)


@fixed
@given(
    ids=st.lists(st.integers(0, VIDEO), max_size=30),
    steps=st.lists(st.integers(1, 5), min_size=30, max_size=30),
)
def test_the_length_of_a_prompt_is_known_without_expanding_it(ids, steps):
    media = [make_media(str(i), grid=(t, 2, 2)) for i, t in enumerate(steps[: ids.count(VIDEO)])]
    prompt = make_rendered("p", ids, media)
    expanded = expand_placeholders(ids, media, VIDEO)
    assert prompt.num_tokens == len(expanded)
    assert [token for token in expanded if token != VIDEO] == [token for token in ids if token != VIDEO]
    assert expanded.count(VIDEO) == sum(item.num_tokens for item in media)


@pytest.mark.parametrize("name", ["media", "frame_times", "origins", "durations"])
def test_a_prompt_knows_as_much_of_each_video(name):
    prompt = make_rendered("p", (1, VIDEO), (make_media("a"),))
    with pytest.raises(ValueError, match=f"RenderedPrompt of p: .*'{name}': 0.*must be equally long"):
        dataclasses.replace(prompt, **{name: ()})


@pytest.mark.parametrize("size", [2, 4000])
def test_what_is_sent_does_not_grow_with_the_length_of_the_video(size):
    media = make_media("a", grid=(size, 8, 8))
    assert len(pickle.dumps(media)) < 600


@pytest.mark.parametrize("ids", [(1, 2), ()])
def test_a_generation_has_a_log_prob_for_each_token(ids):
    with pytest.raises(ValueError, match=f"{len(ids)} tokens but 1 log-probs"):
        make_generation(token_ids=ids, log_probs=(-0.5,))


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf"), 0.01])
def test_a_generation_has_log_probs_that_are_some(value):
    with pytest.raises(ValueError, match=r"log-probs must be finite and <= 0, got .*\.\."):
        make_generation(token_ids=(1, 2), log_probs=(-0.5, value))
    make_generation(token_ids=(1, 2), log_probs=(-0.5, 1e-7))  # rounding of an engine


def make_generation(**fields) -> Generation:
    return Generation(**{"finish_reason": "stop", "weight_version": 0, "seen": "", **fields})


def test_a_rollout_is_refused():
    with pytest.raises(ValueError, match="Rollout of p: empty response"):
        make_rollout(response=())
    with pytest.raises(ValueError, match="Rollout of p: 2 response_ids, 1 response_mask, 2 rollout_log_probs"):
        make_rollout(response=(1, 2), mask=(1,))
    with pytest.raises(ValueError, match="2 response_ids, 2 response_mask, 3 rollout_log_probs"):
        make_rollout(response=(1, 2), log_probs=(0.0,) * 3)
    for mask in ((0, 0), (1, 2)):
        with pytest.raises(ValueError, match=r"Rollout of p: response_mask holds .* 1 at least once"):
            make_rollout(response=(1, 2), mask=mask)
    for reward in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"Rollout of p: reward {reward} is not finite"):
            make_rollout(reward=reward)


def test_a_group_holds_rollouts_of_one_prompt():
    with pytest.raises(ValueError, match="RolloutGroup of p is empty"):
        RolloutGroup(prompt=make_rendered("p"), rollouts=())
    video = make_media("a")
    prompt = make_rendered("p", (1, VIDEO), (video,))
    for other in (
        make_rendered("q", (2, VIDEO), (video,)),
        make_rendered("q", (1, VIDEO), (dataclasses.replace(video, key="b"),)),
        make_rendered("q", (1, VIDEO), (dataclasses.replace(video, seconds_per_grid=2.0),)),
    ):
        with pytest.raises(ValueError, match="RolloutGroup of p holds a rollout of q with another prompt"):
            RolloutGroup(prompt=prompt, rollouts=(make_rollout(prompt), make_rollout(other)))


def test_a_group_without_variance():
    assert make_group("p", [0.5]).zero_variance
    assert make_group("p", [0.1 + 0.2, 0.3]).zero_variance  # the sums differ in the last bit
    assert make_group("p", [0.0, EQUAL_REWARDS]).zero_variance
    assert not make_group("p", [0.0, 2 * EQUAL_REWARDS]).zero_variance
    assert not make_group("p", [1.0, 1.0, 0.0]).zero_variance
    assert make_group("p", [1.0, 0.0]).rewards == (1.0, 0.0)


def test_an_unknown_field_is_refused():
    with pytest.raises(TypeError, match="stop"):
        Clip(path="a.mp4", sampling=make_sampling(), stop=1.0)  # type: ignore[call-arg]
