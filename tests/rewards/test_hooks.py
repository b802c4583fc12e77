"""Group hooks against numbers worked by hand."""

import asyncio
from dataclasses import replace

import pytest
from makers import make_group

from videorl.rewards.hooks import HOOKS, is_hook, load_hook, play_tournament
from videorl.rewards.result import Abstained


def group(values, lengths=None, parents=None, **sides):
    """Rollouts with these values of the term `accuracy`, of these lengths; side groups by name."""
    base = make_group("p", [0.0] * len(values))
    rollouts = tuple(
        replace(
            rollout,
            index=i,
            terms={} if value is None else {"accuracy": value},
            abstained={"accuracy": "timeout: slow"} if value is None else {},
            parent=parents[i] if parents else None,
            response_ids=(5,) * (lengths[i] if lengths else 2),
            response_mask=(1,) * (lengths[i] if lengths else 2),
            rollout_log_probs=(-0.5,) * (lengths[i] if lengths else 2),
        )
        for i, (rollout, value) in enumerate(zip(base.rollouts, values, strict=True))
    )
    return replace(base, rollouts=rollouts, sides=sides)


def run(name, group, **params):
    return load_hook(name, ["accuracy"], **params)(group)


@pytest.mark.parametrize(
    ("ordered", "shuffled", "adjustments"),
    [
        ([1.0, 1.0, 0.0, 0.0], [1.0, 0.0], [0.3, 0.3, 0, 0]),  # 0.5 >= 0.8 * 0.5
        ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0], [0, 0, 0, 0]),  # 0.5 < 0.8 * 1.0
        ([0.1, 0.11, 0.0, 0.0], [0.0, 0.0], [0, 0.3, 0, 0]),  # only what is over 0.1
    ],
)
def test_temporal_bonus(ordered, shuffled, adjustments):
    assert run("temporal_bonus", group(ordered, s=group(shuffled)), side="s") == adjustments


def test_temporal_bonus_at_equality_and_without_a_video():
    assert run("temporal_bonus", group([1.0, 0.6], s=group([1.0, 1.0])), side="s") == [0.3, 0.3]  # 0.8 = 0.8 * 1
    assert run("temporal_bonus", group([1.0, 1.0]), side="s") == [0.0, 0.0]


@pytest.mark.parametrize(
    ("ordered", "shuffled", "adjustments"),
    [
        ([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.3, 0.3, 0, 0]),  # 0.8 * 0.5 = 0.4 > 0.25, p > 0.3
        ([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0, 0, 0, 0]),  # p = 0.25 < 0.3
        ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [-1.0, -1.0, 0.0, 0.0]),  # 0.4 < 0.5: taken back
        ([0.3, 0.3], [0.0, 0.0], [-0.3, -0.3]),  # p = 0.3 is not over 0.3
    ],
)
def test_temporal_bonus_of_next_event_prediction(ordered, shuffled, adjustments):
    assert run("temporal_bonus_nep", group(ordered, s=group(shuffled)), side="s") == adjustments


def test_length_window():
    lengths = [319, 320, 512, 513, 400]
    assert run("length_window", group([1.0, 1.0, 1.0, 1.0, 0.0], lengths)) == [0, 0.2, 0.2, 0, 0]
    assert run("length_window", group([0.0, 1.0, 0.0, 0.0, 0.0], lengths)) == [0.0] * 5  # one alone is not enough


def test_length_penalty():
    # correct lengths 10 and 30: mean 20; 30 tokens are 0.5 over it, 60 tokens 2 over it, capped
    found = run("length_penalty", group([1.0, 1.0, 0.0], [10, 30, 60]), most=0.6, scale=2.0)
    assert found == pytest.approx([0.0, -0.25, -0.6])
    assert run("length_penalty", group([0.0, 0.0], [10, 60])) == [0.0, 0.0]


def test_consistency_table():
    second = group([1.0, 0.0, 1.0], parents=[0, 1, 2])  # rollout 3 never closed its reasoning
    table = {"both": 1.0, "first_only": -0.5, "second_only": 0.25, "neither": -1.0}
    found = run("consistency_table", group([1.0, 1.0, 0.0, 0.0], s=second), side="s", **table)
    assert found == [1.0, -0.5, 0.25, -1.0]


async def prefer_the_higher_index(first, second):
    return 0.75 if first.id > second.id else 0.25


def test_tournament():
    # each pair gives its winner 0.5 and its loser -0.5: (-1, 0, 1) over two opponents
    played = play_tournament(group([0.0, 0.0, 0.0]), prefer_the_higher_index)
    assert asyncio.run(played) == [-0.5, 0.0, 0.5]
    assert asyncio.run(play_tournament(group([0.0]), prefer_the_higher_index)) == [0.0]


def test_what_a_hook_cannot_know_is_an_abstention():
    with pytest.raises(Abstained, match="'accuracy' has no value for 1 rollouts: timeout: slow"):
        run("length_window", group([1.0, None]))
    with pytest.raises(Abstained, match="lost_side"):
        side = group([1.0])
        run("temporal_bonus", group([1.0], s=replace(side, rollouts=(), lost=side.rollouts)), side="s")


@pytest.mark.parametrize(
    ("target", "params", "says"),
    [
        ("temporal_bonis", {}, "'temporal_bonis' is not a built-in hook; did you mean 'temporal_bonus'"),
        ("temporal_bonus", {}, "missing a required .*'side'"),
        ("temporal_bonus", {"side": "s", "bonis": 1}, "unexpected keyword argument 'bonis'"),
        ("temporal_bonus", {"side": "s", "bonus": -1}, r"params\.bonus: -1"),
        ("length_window", {"term": "acuracy"}, r"params\.term: 'acuracy' is not a term .*'accuracy'"),
    ],
)
def test_hooks_that_do_not_fit_are_refused(target, params, says):
    with pytest.raises(ValueError, match=says):
        load_hook(target, ["accuracy"], **params)


def own_hook(group, half=0.5):
    return [half] * len(group.rollouts)


def not_a_hook(response, row):
    return 0.0


def test_a_users_function_is_a_hook_by_its_first_argument():
    assert is_hook(f"{__name__}:own_hook") and not is_hook(f"{__name__}:not_a_hook")
    assert all(map(is_hook, HOOKS)) and not is_hook("format")
    assert load_hook(f"{__name__}:own_hook", [], half=2.0)(group([1.0])) == [2.0]
