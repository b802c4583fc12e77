import pytest

from videorl.rewards.report import describe_batch
from videorl.types import Prompt, RenderedPrompt, Rollout, RolloutGroup


def make_group(name, *rollouts, **row):
    """Each rollout: (text, reward, terms, failures, finish_reason)."""
    prompt = Prompt(id=name, task="mc", messages=(), clips=(), row={"id": name, "answer": "B", **row})
    rendered = RenderedPrompt(prompt=prompt, token_ids=(1,), media=(), frame_times=(), origins=(), durations=())
    return RolloutGroup(
        prompt=rendered,
        rollouts=tuple(
            Rollout(
                prompt=rendered,
                response_ids=(2,),
                response_mask=(1,),
                rollout_log_probs=(-0.5,),
                text=text,
                finish_reason=finish_reason,
                weight_version=0,
                seen="",
                reward=reward,
                terms=terms,
                failures=failures,
            )
            for text, reward, terms, failures, finish_reason in rollouts
        ),
    )


GOOD = ("right", 1.0, {"format": 1.0, "accuracy": 1.0}, {}, "stop")
WRONG = ("wrong", 0.1, {"format": 1.0, "accuracy": 0.0, "accuracy/parts": 0.0}, {}, "stop")
CUT = (
    "cut\x1b[31m",
    0.0,
    {"format": 0.0, "accuracy": 0.0},
    {"format": "wrong_tags", "accuracy": "unclosed_think"},
    "length",
)
VAGUE = ("vague", 0.1, {"format": 1.0, "accuracy": 0.0}, {"accuracy": "no_letter: 'x'"}, "stop")
ODD = ("odd", 0.1, {"format": 1.0, "accuracy": 0.0}, {"accuracy": "my_reason: 'y'"}, "stop")


def test_report():
    groups = [make_group("p1", GOOD, WRONG, CUT, CUT), make_group("p2", VAGUE, ODD, VAGUE, VAGUE)]
    assert describe_batch(groups, worst=2) == [
        "8 responses to 2 prompts; reward 0.188 on average, 0.000 to 1.000",
        "25% (2 of 8) of the responses cannot be read by 'format'",
        "    2 x a think or answer tag is missing, repeated or out of order (wrong_tags)",
        "75% (6 of 8) of the responses cannot be read by 'accuracy'",
        "    3 x no option is named (no_letter)",
        "    2 x the reasoning is never closed (unclosed_think)",
        "    1 x my_reason (my_reason)",
        "25% (2 of 8) of the responses were cut off at the token limit",
        "50% (1 of 2) of the prompts have equal rewards in all responses: nothing to learn from them",
        "the 2 worst responses:",
        "    'p1': reward 0.000 (format 0.000, accuracy 0.000); gold 'B'; wrote 'cut\\x1b[31m'",
        "    'p1': reward 0.000 (format 0.000, accuracy 0.000); gold 'B'; wrote 'cut\\x1b[31m'",
    ]


def test_worst_five_come_worst_first():
    rewards = [0.5, 0.25, 1.0, 0.0, 0.75, 0.125]
    group = make_group("p", *[(f"r{reward}", reward, {"a": reward}, {}, "stop") for reward in rewards])
    lines = describe_batch([group])
    assert lines[-6] == "the 5 worst responses:"
    assert [line.rpartition("wrote ")[2] for line in lines[-5:]] == [
        "'r0.0'",
        "'r0.125'",
        "'r0.25'",
        "'r0.5'",
        "'r0.75'",
    ]


def test_a_term_is_counted_where_it_was_scored():
    group = make_group("p", GOOD, ("x", 0.0, {"rare": 0.0}, {"rare": "no_number"}, "stop"))
    lines = describe_batch([group])
    assert "100% (1 of 1) of the responses cannot be read by 'rare'" in lines
    assert "0% (0 of 1) of the prompts have equal rewards in all responses: nothing to learn from them" in lines


@pytest.mark.parametrize(("length", "quoted"), [(160, 160), (161, 163), (10**6, 163)])
def test_long_responses_keep_both_ends(length, quoted):
    text = ("a" * length)[:-1] + "z"
    line = describe_batch([make_group("p", (text, 0.0, {}, {}, "stop"), answer=None, spans=[[1, 2]])])[-1]
    body = line.rpartition("wrote ")[2][1:-1]
    assert len(body) == quoted and body[0] == "a" and body[-1] == "z"
    assert "gold [[1, 2]]" in line
