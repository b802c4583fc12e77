import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import make_group

from videorl.config import RewardsConfig
from videorl.rewards.result import Abstained, RewardResult, Sample
from videorl.rewards.rubric import RewardError, Rubric, Score

fixed = settings(derandomize=True, deadline=None, max_examples=200)
MC = {
    "id": "clip-7",
    "task": "mc",
    "prompt": "?",
    "choices": ["red", "green"],
    "answer": "B",
    "spans": None,
    "meta": {},
}
GROUNDING = {**MC, "task": "grounding", "answer": None, "choices": None, "spans": [[2, 6]]}


def make(on_abstain="drop", elsewhere=None, **terms):
    """name = (target, weight, requires, params) or a dict"""
    keys = ("target", "weight", "requires", "params")
    made = {n: t if isinstance(t, dict) else dict(zip(keys, t, strict=True)) for n, t in terms.items()}
    config = RewardsConfig.model_validate({"terms": made, "deadline": 1, "on_abstain": on_abstain})
    return Rubric(config, elsewhere)


def default():
    return make(format=("format", 0.1, None, {}), accuracy=("accuracy", 0.9, "format", {}))


def scored(rubric, response, row, done=0.0):
    """(score, total)"""
    score = asyncio.run(rubric.score(Sample(id=row["id"], response=response, row=row), done))
    return score, rubric.total(score.terms, score.abstained, done)


def of(terms, failures=None, abstained=None):
    return Score(terms=terms, failures=failures or {}, abstained=abstained or {})


def constant(response, row, value):
    return value


def with_parts(response, row):
    return RewardResult(0.5, {"speed": 2.0})


def broken(response, row, value=None):
    raise KeyError("speed")


def fixed_value(value):
    return f"{__name__}:constant", {"value": value}


def gated(weight, requires, value):
    target, params = fixed_value(value)
    return target, weight, requires, params


@pytest.mark.parametrize(
    ("row", "response", "total", "terms", "failures"),
    [
        (MC, "<think>x</think><answer>B</answer>", 1.0, (1.0, 1.0), {}),
        (MC, "<think>x</think><answer>A</answer>", 0.1, (1.0, 0.0), {}),
        (MC, "<answer>B</answer>", 0.0, (0.0, 1.0), {"format": "wrong_tags"}),  # right, but not in the format
        (MC, "B", 0.0, (0.0, 0.0), {"format": "wrong_tags", "accuracy": "no_answer"}),
        (MC, "<think>x</think><answer>?</answer>", 0.1, (1.0, 0.0), {"accuracy": "no_letter: '?'"}),
        (GROUNDING, "<think>x</think><answer>3 to 5</answer>", 0.1 + 0.9 * 0.5, (1.0, 0.5), {}),
        (GROUNDING, "<think>x</think><answer>0 to 20</answer>", 0.1 + 0.9 * 0.2, (1.0, 0.2), {}),
    ],
)
def test_default_composition(row, response, total, terms, failures):
    score, found = scored(default(), response, row)
    assert found == pytest.approx(total, abs=1e-12)
    assert score == of(dict(zip(("format", "accuracy"), terms, strict=True)), failures)


def test_a_right_answer_in_the_right_format_is_worth_exactly_one():
    assert scored(default(), "<think>x</think><answer>B</answer>", MC)[1] == 1.0


def test_weights_signs_and_logging_only():
    rubric = make(a=gated(2.0, None, 0.5), b=gated(-1.0, None, 0.25), c=gated(0, None, 7.0))
    assert scored(rubric, "", MC) == (of({"a": 0.5, "b": 0.25, "c": 7.0}), 0.75)


def test_requires_gates_the_total_and_not_the_log():
    for value, total in ((1.0, 3.0), (0.0, 0.0), (-1.0, -1.0)):
        rubric = make(bonus=gated(2.0, "base", 1.0), base=gated(1.0, None, value))
        assert scored(rubric, "", MC) == (of({"bonus": 1.0, "base": value}), total)


def test_requires_is_transitive():
    rubric = make(a=gated(1.0, None, 0.0), b=gated(1.0, "a", 1.0), c=gated(1.0, "b", 1.0))
    assert scored(rubric, "", MC)[1] == 0.0


def test_a_gate_may_have_weight_0():
    assert scored(make(a=gated(0, None, 1.0), b=gated(1.0, "a", 1.0)), "", MC)[1] == 1.0
    assert scored(make(a=gated(0, None, 0.0), b=gated(1.0, "a", 1.0)), "", MC)[1] == 0.0


def test_parts_are_logged_and_do_not_count():
    rubric = make(mine=(f"{__name__}:with_parts", 1.0, None, {}))
    assert scored(rubric, "", MC) == (of({"mine": 0.5, "mine/speed": 2.0}), 0.5)


values = st.floats(-10, 10)


@fixed
@given(values, values, values, values)
def test_total_is_the_weighted_sum_of_what_counts(a, b, weight_a, weight_b):
    _, total = scored(make(a=gated(weight_a, None, a), b=gated(weight_b, "a", b)), "", MC)
    assert total == pytest.approx(weight_a * a + (weight_b * b if a > 0 else 0.0), abs=1e-9)


# --- what cannot be scored is never worth 0 ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None])
def test_what_is_not_a_finite_number_is_an_abstention_and_not_a_zero(value):
    score, total = scored(make(mine=gated(1, None, value)), "", MC)
    assert total is None and score.terms == {}
    assert score.abstained["mine"].startswith("raised: ") and "(sample clip-7)" in score.abstained["mine"]


def test_an_exception_names_its_kind_and_the_sample():
    score, total = scored(make(mine=(f"{__name__}:broken", 1.0, None, {})), "", MC)
    assert (score, total) == (of({}, abstained={"mine": "raised: KeyError: 'speed' (sample clip-7)"}), None)


def test_an_abstention_counts_only_where_the_total_depends_on_it():
    broken_term = f"{__name__}:broken"
    assert scored(make(a=gated(1, None, 0.5), mine=(broken_term, 0.0, None, {})), "", MC)[1] == 0.5  # logged only
    assert scored(make(a=gated(1, None, 0.0), mine=(broken_term, 1.0, "a", {})), "", MC)[1] == 0.0  # gated off
    assert scored(make(a=gated(1, None, 0.5), mine=(broken_term, 1.0, "a", {})), "", MC)[1] is None
    assert scored(make(a=gated(1, "mine", 0.5), mine=(broken_term, 0.0, None, {})), "", MC)[1] is None  # the gate


def test_bad_gold_and_unscorable_tasks_abstain_with_the_row():
    score, total = scored(default(), "", {**MC, "answer": "Z"})
    assert total == 0.0  # nothing hangs on it: the response has no format
    assert "bad_gold: row 'clip-7': answer='Z'" in score.abstained["accuracy"]
    score, total = scored(default(), "<think>x</think><answer>B</answer>", {**MC, "task": "open"})
    assert total is None and "no_scorer: row 'clip-7'" in score.abstained["accuracy"]


def rollouts(*terms, abstained=()):
    """A group whose rollouts have these terms; those named by index abstain from `a`."""
    group = make_group("p", [0.0] * len(terms))
    return replace(
        group,
        rollouts=tuple(
            replace(rollout, index=i, terms=t, abstained={"a": "timeout: too slow"} if i in abstained else {})
            for i, (rollout, t) in enumerate(zip(group.rollouts, terms, strict=True))
        ),
    )


def settle(rubric, group, hooks=True, done=0.0):
    return asyncio.run(rubric.settle(group, hooks=hooks, done=done))


@pytest.mark.parametrize(
    ("policy", "rewards", "lost"),
    [("drop", (1.5, 2.5), (1,)), ("mean", (1.5, 2.0, 2.5), ())],  # the mean of a over 1 and 2 is 1.5, and b is 0.5
)
def test_a_rollout_that_could_not_be_scored_follows_the_policy(policy, rewards, lost):
    rubric = make(policy, a=gated(1, None, 9.0), b=gated(1, None, 9.0))
    group = settle(rubric, rollouts({"a": 1.0, "b": 0.5}, {"b": 0.5}, {"a": 2.0, "b": 0.5}, abstained=[1]))
    assert group.rewards == rewards
    assert tuple(rollout.index for rollout in group.lost) == lost


def test_the_policy_stop_ends_the_run_with_the_reason():
    rubric = make("stop", a=gated(1, None, 9.0))
    with pytest.raises(RewardError, match=r"timeout: too slow; rewards\.on_abstain=stop"):
        settle(rubric, rollouts({"a": 1.0}, {}, abstained=[1]))


def test_a_row_that_no_term_scores_is_lost_and_says_so():
    rubric = make(
        accuracy={"target": "accuracy", "weight": 1, "tasks": ["mc"]},
        logged=gated(0, None, 1.0),
        rank={"target": f"{__name__}:ranks", "weight": 1},
    )
    group = settle(rubric, rollouts({"logged": 1.0}))  # of task `open`
    assert group.rollouts == ()
    assert (
        group.lost[0].abstained["reward"].startswith("no_term: no term of rewards.terms has a weight for task 'open'")
    )


def test_where_all_abstained_the_mean_is_unknown_too():
    group = settle(make("mean", a=gated(1, None, 9.0)), rollouts({}, {}, abstained=[0, 1]))
    assert group.rewards == () and len(group.lost) == 2


def test_a_total_that_overflows_is_lost_and_says_so():
    group = settle(make(a=gated(1e300, None, 1.0)), rollouts({"a": 1e300}, {"a": 1.0}))
    assert group.rewards == (1e300,)
    assert "garbage" in group.lost[0].abstained["total"]


# --- tasks, stages and group hooks ------------------------------------------------------------------------------------


def test_a_term_scores_the_rows_of_its_tasks_alone():
    rubric = make(
        accuracy={"target": "accuracy", "weight": 1, "tasks": ["mc"]},
        iou={"target": "temporal_iou", "weight": 10, "tasks": ["grounding"]},
    )
    assert scored(rubric, "<answer>B</answer>", MC) == (of({"accuracy": 1.0}), 1.0)
    assert scored(rubric, "<answer>2 to 4</answer>", GROUNDING) == (of({"iou": 0.5}), 5.0)


def test_stages_change_weight_and_parameters_once_a_share_of_the_training_is_done():
    rubric = make(
        a={
            "target": f"{__name__}:constant",
            "weight": 1,
            "params": {"value": 1.0},
            "stages": [{"after": 0.5, "params": {"value": 4.0}}, {"after": 0.75, "weight": 3}],
        }
    )
    totals = [scored(rubric, "", MC, done)[1] for done in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)]
    assert totals == [1.0, 1.0, 4.0, 4.0, 3.0, 3.0]  # a later stage starts from the term, not from the stage before


def test_stages_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"rewards\.terms\.a: stages: \[0\.5, 0\.2\] must grow"):
        make(a={"target": "format", "weight": 1, "stages": [{"after": 0.5}, {"after": 0.2}]})


def ranks(group, step=1.0):
    return [step * rollout.index for rollout in group.rollouts]


def silent(group):
    raise Abstained("unavailable", "nobody there")


def test_a_hook_is_a_term_of_the_group():
    rubric = make(
        a=gated(1, None, 9.0),
        rank={"target": f"{__name__}:ranks", "weight": 0.1, "requires": "a", "params": {"step": 2.0}},
    )
    group = settle(rubric, rollouts({"a": 1.0}, {"a": 0.0}, {"a": 1.0}))
    assert [rollout.terms["rank"] for rollout in group.rollouts] == [0.0, 2.0, 4.0]
    assert group.rewards == pytest.approx((1.0, 0.0, 1.4))  # the second is gated off
    assert settle(rubric, rollouts({"a": 1.0}), hooks=False).rollouts[0].terms == {"a": 1.0}


def test_a_hook_does_not_see_rollouts_without_a_reward():
    rubric = make(a=gated(1, None, 9.0), rank={"target": f"{__name__}:ranks", "weight": 1})
    group = settle(rubric, rollouts({"a": 1.0}, {}, {"a": 1.0}, abstained=[1]))
    assert group.rewards == (1.0, 3.0)
    assert "rank" not in group.lost[0].terms


def test_where_a_hook_abstains_no_reward_of_the_group_is_known():
    rubric = make(a=gated(1, None, 9.0), b={"target": f"{__name__}:silent", "weight": 1})
    group = settle(rubric, rollouts({"a": 1.0}, {"a": 0.0}))
    assert group.rewards == ()
    assert group.lost[0].abstained == {"b": "unavailable: nobody there (group p)"}


class FakeElsewhere:
    async def score(self, term, params, sample):
        if sample.response == "slow":
            raise Abstained("timeout", "took too long")
        return RewardResult(params["value"])

    async def compare(self, term, first, second):
        return 0.5


def test_functions_by_import_string_are_called_elsewhere_where_there_is_such_a_place():
    rubric = make(elsewhere=FakeElsewhere(), mine=(f"{__name__}:broken", 1.0, None, {"value": 3.0}))
    assert scored(rubric, "", MC)[1] == 3.0
    assert scored(rubric, "slow", MC)[0].abstained == {"mine": "timeout: took too long (sample clip-7)"}


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"a": ("formatt", 1, None, {})}, r"rewards\.terms\.a: 'formatt' is not .* did you mean 'format'"),
        ({"a": ("format", 1, None, {"strict": True})}, r"rewards\.terms\.a: params\.strict is not a parameter"),
        (
            {"format": ("format", 1, None, {}), "acc": ("accuracy", 1, "fromat", {})},
            r"rewards\.terms\.acc\.requires: 'fromat' is not .* did you mean 'format'",
        ),
        ({"a": ("format", 1, "a", {})}, r"rewards\.terms\.a\.requires: a -> a is a cycle"),
        (
            {"a": ("format", 1, "b", {}), "b": ("format", 1, "c", {}), "c": ("format", 1, "b", {})},
            r"rewards\.terms\.b\.requires: b -> c -> b is a cycle",
        ),
    ],
)
def test_terms_that_do_not_fit_are_refused_at_construction(terms, says):
    with pytest.raises(ValueError, match=says):
        make(**terms)
