"""The runner of episodes with a fake engine, model and frames: ids written out, and what each fault costs."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from env_policies import make_task
from fakes import FakeEngine
from makers import make_media, make_rendered

from videorl.config import load_config
from videorl.envs.records import Message
from videorl.envs.video_mtr import VideoMTR
from videorl.rollout.episodes import Episodes, PolicySpeaker
from videorl.rollout.runner import Training
from videorl.types import Failed, Prompt, Rollout, RolloutGroup

STOP, CLIP = 0, 1
LOOK, ANSWER = "<think>l</think><retrieve>40,43</retrieve>", "<think>x</think><answer>B</answer>"


class FakeModel:
    """A token is a character; 0 ends a response, 1 stands for a clip of two tokens."""

    placeholder_id, stop_ids = CLIP, (STOP,)

    def __init__(self):
        self.tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "".join(map(chr, ids[:-1])))

    def user_turn(self, parts: Sequence[dict[str, str]]) -> list[int]:
        shown = [[CLIP] if part["type"] == "video" else map(ord, part["text"]) for part in parts]
        return [ord("<"), *(token for each in shown for token in each)]

    def response_end(self, ended: bool) -> list[int]:
        return [ord(">")] if ended else [STOP, ord(">")]


class FakeFrames:
    """Frames without files: one clip each."""

    def __init__(self, refuse: int | None = None):
        self.refuse, self.asked = refuse, 0

    def seed(self, row: dict[str, Any]) -> int:
        return 0

    def task(self, row: dict[str, Any]):
        return make_task()

    def open(self, row: dict[str, Any], messages: Sequence[Message]) -> Prompt:
        parts = [{"type": "video"} for _ in messages[-1].refs] + [{"type": "text", "text": "?"}]
        return Prompt(id=row["id"], task="mc", messages=({"role": "user", "content": parts},), clips=(), row=row)

    def resolve(self, row: dict[str, Any], message: Message):
        media = tuple(make_media(f"{ref.index}", grid=(1, 2, 4)) for ref in message.refs)
        return [{"type": "video"} for _ in media] + [{"type": "text", "text": "!"}], media

    def ensure(self, asked):
        self.asked += 1
        failure = RuntimeError("unreadable") if self.refuse == self.asked else None
        return [failure for _ in asked]


def run(
    *texts: str, env: str = "video_mtr", size: int = 1, context: str = "concat", frames: Any = None, limit: int = 512,
    training: bool = False, script: Any = None, cached: int = 3,
) -> tuple[RolloutGroup, FakeEngine]:  # fmt: skip
    config = load_config("train", [
        "recipe=quickstart", "rewards.terms.format=null", "rewards.terms.accuracy=null",
        f"rollout.env={{target: '{env}', params: {{budget: {{initial: 2, per_turn: 2}}}}}}",
        f"+rollout.env.context={{target: {context}}}",
        f"rollout.max_model_len={limit}", "rollout.max_response_tokens=64",
    ])  # fmt: skip
    said = iter(texts * size)
    engine = FakeEngine(script or (lambda request: [*map(ord, next(said)), STOP]), cached=cached)
    model: Any = FakeModel()
    store: Any = frames or FakeFrames()
    episodes = Episodes(config, model, store, PolicySpeaker(engine))
    rendered = make_rendered("p", (90, 91, *model.user_turn([{"type": "video"}] * 2 + [{"type": "text", "text": "?"}])))
    opened = VideoMTR(episodes.make_env().budget)
    opened.task, opened.shown, opened.turns, opened.tokens_used = make_task(), [], [], 0
    prompt = store.open(rendered.prompt.row, opened.opening())
    media = tuple(make_media(str(n), grid=(1, 2, 4)) for n in range(2))
    rendered = type(rendered)(
        prompt=prompt, token_ids=rendered.token_ids, media=media, frame_times=((0.0,),) * 2, origins=(0.0,) * 2,
        durations=(1.0,) * 2,
    )  # fmt: skip
    (group,) = episodes.collect(
        [rendered], group_size=size, temperature=1.0, label="t", progress=lambda done: None,
        training=Training(done=0.5, passes=SimpleNamespace()) if training else None,  # type: ignore[arg-type]
    )  # fmt: skip
    return group, engine


def only(group: RolloutGroup) -> Rollout:
    assert not group.failed
    (rollout,) = group.rollouts
    return rollout


def test_ids_are_appended():
    group, engine = run(LOOK, ANSWER)
    rollout = only(group)
    look, answer = [*map(ord, LOOK), STOP], [*map(ord, ANSWER), STOP]
    shown = [ord(">"), ord("<"), CLIP, CLIP, ord("!")]
    assert list(rollout.response_ids) == look + shown + answer
    assert list(rollout.response_mask) == [1] * len(look) + [0] * len(shown) + [1] * len(answer)
    assert [media.key for media in rollout.later] == ["40", "43"]
    first, second = engine.requests
    assert second.token_ids == (*first.token_ids, *look, *shown) and second.media == (*first.media, *rollout.later)
    assert rollout.num_turns == 2 and rollout.turn_rewards == pytest.approx((0.6, 0.1)) and rollout.reward == 1.7
    assert rollout.measures["frames"] == 4 and rollout.measures["malformed"] == 0
    assert rollout.text == f"{LOOK}\n{ANSWER}" and rollout.weight_version == 7
    assert rollout.episode is not None and rollout.episode["progress"] == 1.0


@pytest.mark.parametrize("cached", [3, 10**6])
def test_prefix_hits_are_of_what_the_episode_had_shown(cached):
    """What siblings have shown may go on in the same way, and is cached as well."""
    group, engine = run(LOOK, ANSWER, cached=cached)
    before = len(engine.requests[0].token_ids) + len(LOOK) + 1 + 2  # a clip is two tokens
    assert only(group).measures["prefix_hit"] == pytest.approx(min(cached, before) / before)


def test_a_window_begins_another_row():
    group, engine = run(LOOK, LOOK.replace("40,43", "41,42"), ANSWER, context="window, params: {turns: 1}")
    rollout = only(group)
    assert rollout.num_turns == 3 and len(rollout.further) == 1
    third, row = engine.requests[2], rollout.further[0]
    assert (row.token_ids, row.media) == (third.token_ids, third.media)
    assert row.token_ids[:2] == engine.requests[0].token_ids[:2]  # the head
    assert [media.key for media in third.media] == ["40", "43", "41", "42"]


def test_an_episode_that_would_not_fit_is_cut_before_the_call():
    group, engine = run(LOOK, ANSWER, limit=120)
    rollout = only(group)
    assert len(engine.requests) == 1 and rollout.num_turns == 1
    assert rollout.measures["over_length"] == 1 and rollout.measures["ended"] == 0 and rollout.reward <= 0.1


def test_faults_cost_their_episode_and_nothing_else():
    numbers = iter(range(9))

    def script(request):
        return RuntimeError("engine") if next(numbers) == 1 else [*map(ord, ANSWER), STOP]

    group, _ = run(size=3, script=script)
    assert len(group.rollouts) == 2 and len(group.failed) == 1
    (failed,) = group.failed
    assert "RuntimeError: engine (sample p#1, turn 1)" in failed.why
    assert failed.episode is not None and failed.episode["score"] is None
    assert failed.episode["episode"]["status"] == "errored"


def test_a_clip_that_cannot_be_read_fails_the_episode():
    group, _ = run(LOOK, ANSWER, frames=FakeFrames(refuse=1))
    assert not group.rollouts and "unreadable" in group.failed[0].why and "turn 2" in group.failed[0].why


def test_an_opening_that_changes_is_refused():
    group, _ = run(ANSWER, env="env_policies:Wanton")
    assert "began in another way than before; make it follow" in group.failed[0].why


def test_scores_that_cannot_be_shaped_fail_their_episodes():
    group, _ = run(ANSWER, ANSWER, size=2, env="env_policies:ShapedToFail", training=True)
    assert not group.rollouts and [type(each) for each in group.failed] == [Failed, Failed]
    assert all("ConnectionError: gone" in each.why and each.episode for each in group.failed)


def test_shaping_is_for_training_and_the_record_keeps_the_score_before_it():
    bonus = only(run(LOOK, ANSWER, training=True)[0])
    plain = only(run(LOOK, ANSWER)[0])
    assert bonus.reward == plain.reward  # the only episode retrieves: no bonus
    none = only(run(env="env_policies:Generous", script=lambda request: [*map(ord, ANSWER), STOP], training=True)[0])
    assert none.reward == plain.reward - 0.6 + 5 and none.episode is not None  # without the look, with the bonus
    assert none.episode["score"]["rollout"] == 1.0
