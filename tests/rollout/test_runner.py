"""Groups come back in order, scored, with seeds that name their requests; failures come back as themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import FAKE_MODEL, FakeEngine, FakeRenderer, FakeTokenizer
from makers import make_media, make_rendered

from videorl.config import Config, PassConfig, load_config
from videorl.rewards.rubric import Rubric
from videorl.rollout.passes import Passes
from videorl.rollout.runner import Runner, Training, rollout_seed
from videorl.types import RolloutGroup

PROMPTS = [make_rendered("p", (97,)), make_rendered("q", (98, 9), [make_media()]), make_rendered("r", (99,))]


@pytest.fixture(scope="module")
def config() -> Config:
    length = "{target: fakes:count_letters, weight: 2.0, requires: null, params: {}}"
    return load_config(
        "train",
        [
            "recipe=quickstart",
            "seed=5",
            "rollout.max_response_tokens=11",
            "rollout.max_concurrency=2",
            "rollout.num_engines=2",
            f"+rewards.terms.length={length}",
            "~rewards.terms.accuracy",
        ],
    )


def collect(config, engine, prompts=PROMPTS, progress=lambda done: None, **changes) -> list[RolloutGroup]:
    runner = Runner(config, FAKE_MODEL, engine, Rubric(config.rewards))
    arguments = {"group_size": 3, "temperature": 0.9, "label": "step 1"} | changes
    return runner.collect(prompts, progress=progress, **arguments)


def echo(request):
    """The prompt's first token, twice."""
    return [request.token_ids[0]] * 2


def test_groups_come_in_the_order_of_the_prompts_whoever_is_finished_first(config):
    engine = FakeEngine(echo, turns=lambda number: 20 - 2 * number)
    groups = collect(config, engine)
    assert [group.prompt for group in groups] == PROMPTS
    assert [[rollout.text for rollout in group.rollouts] for group in groups] == [["aa"] * 3, ["bb"] * 3, ["cc"] * 3]
    assert all(rollout.prompt is group.prompt for group in groups for rollout in group.rollouts)


def test_a_rollout_holds_what_the_engine_said_and_its_score(config):
    ((rollout,), *_) = (group.rollouts for group in collect(config, FakeEngine(echo), group_size=1))
    assert rollout.response_ids == (97, 97) and rollout.response_mask == (1, 1)
    assert rollout.rollout_log_probs == (-0.5, -0.5) and rollout.finish_reason == "stop"
    assert (rollout.weight_version, rollout.seen, rollout.cached_tokens) == (7, "seen", 3)
    assert rollout.terms["length"] == 2.0 and rollout.terms["format"] == 0.0
    assert rollout.reward == 2.0 * 2.0 + 0.1 * 0.0


def test_a_request_shows_the_prompt_and_is_sampled_as_configured(config):
    engine = FakeEngine(echo)
    collect(config, engine, prompts=PROMPTS[1:2])
    for request in engine.requests:
        assert request.token_ids == (98, 9) and request.media == PROMPTS[1].media
        assert (request.sampling.max_tokens, request.sampling.temperature) == (11, 0.9)


def seeds(config, **changes) -> dict[tuple[int, ...], list[int | None]]:
    """The seeds of each prompt's requests."""
    engine = FakeEngine(echo)
    collect(config, engine, **changes)
    found: dict[tuple[int, ...], list[int | None]] = {}
    for request in engine.requests:
        found.setdefault(request.token_ids, []).append(request.sampling.seed)
    return found


def test_seeds_are_distinct_and_the_same_again(config):
    first = seeds(config)
    flat = [seed for group in first.values() for seed in group]
    assert len(set(flat)) == len(flat) == 9
    assert all(0 <= seed < 2**31 for seed in flat)  # what vLLM and torch accept
    assert seeds(config) == first
    backwards = seeds(config, prompts=PROMPTS[::-1], group_size=5)
    assert {ids: group[:3] for ids, group in backwards.items()} == first  # neither order nor group size matters


def test_seeds_differ_between_steps_and_runs(config):
    other_run = config.model_copy(update={"seed": 6})
    flat = [
        {seed for group in found.values() for seed in group}
        for found in (seeds(config), seeds(config, label="step 2"), seeds(other_run))
    ]
    assert len(set.union(*flat)) == 27
    assert rollout_seed(1, 23) != rollout_seed(12, 3)


def test_greedy_sampling_has_no_seed(config):
    assert seeds(config, temperature=0.0) == {prompt.token_ids: [None] * 3 for prompt in PROMPTS}


def test_progress_counts_finished_rollouts(config):
    told: list[int] = []
    collect(config, FakeEngine(echo), progress=told.append)
    assert told == list(range(1, 10))


@pytest.mark.parametrize("group_size", [1, 8])
def test_as_many_requests_are_under_way_as_all_engines_take(config, group_size):
    engine = FakeEngine(echo, turns=lambda number: 5)
    collect(config, engine, group_size=group_size)
    assert engine.most == min(4, 3 * group_size) and len(engine.requests) == 3 * group_size


def test_a_failure_of_the_engine_comes_back_as_itself(config):
    engine = FakeEngine(lambda request: TimeoutError("engine 0 gave no response") if request.media else [97])
    with pytest.raises(TimeoutError, match="engine 0 gave no response"):
        collect(config, engine)
    assert engine.under_way == 0  # the others were given up


def test_a_failure_of_a_reward_costs_that_rollout_alone_and_names_it(config):
    whole, lost = collect(config, FakeEngine(echo), prompts=[PROMPTS[0], make_rendered("broken")])
    assert len(whole.rollouts) == 3 and whole.lost == ()
    assert lost.rollouts == () and [rollout.index for rollout in lost.lost] == [0, 1, 2]
    assert lost.lost[1].abstained == {"length": "raised: KeyError: 'answer' (sample broken#1)"}


def test_a_second_pass_goes_on_after_what_stands_already(config):
    """The response is `t</think>A`; its reasoning goes behind the changed question, and the engine adds one token."""
    row = {"id": "p", "task": "mc", "prompt": "?", "choices": ["x", "y"], "answer": "A", "meta": {}}
    prompt = replace(PROMPTS[0], prompt=replace(PROMPTS[0].prompt, row=row))
    trace = [ord(c) for c in "t</think>"]
    engine = FakeEngine(lambda request: [66] if request.start else [*trace, 65])
    passes = Passes(
        {"options": PassConfig.model_validate({"target": "shuffled_options"})}, FakeRenderer(), FakeTokenizer(), 0,
        lambda media: {},
    )  # fmt: skip
    (group,) = collect(config, engine, prompts=[prompt], training=Training(0.5, passes), group_size=2)
    side = group.sides["options"]
    assert side.prompt.prompt.row["choices"] == ["y", "x"] and side.prompt.prompt.row["answer"] == "B"
    for index, rollout in enumerate(side.rollouts):
        assert rollout.response_ids == (*trace, 66) and rollout.text == "t</think>B"
        assert rollout.response_mask == (0,) * len(trace) + (1,)
        assert rollout.rollout_log_probs == (0.0,) * len(trace) + (-0.5,)
        assert rollout.parent == index
    again = [request for request in engine.requests if request.start]
    assert {request.sampling.max_tokens for request in again} == {11 - len(trace)}
    assert len({request.sampling.seed for request in engine.requests}) == 4


def test_evaluation_has_neither_second_passes_nor_hooks(config):
    (group,) = collect(config, FakeEngine(echo), prompts=PROMPTS[:1])
    assert group.sides == {}
