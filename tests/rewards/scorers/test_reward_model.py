"""The scalar reward model: what it reads, what becomes of its number, and when it is asked."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import COLOURS, fixed, make_row, say
from tiny_networks import build_reward_model

from videorl.answers.gold import RowError
from videorl.rewards.registry import find_scorer
from videorl.rewards.result import Abstained, Sample
from videorl.rewards.scorers import networks
from videorl.rewards.scorers.checkpoint import Checkpoint
from videorl.rewards.scorers.networks import RewardHead
from videorl.rewards.scorers.reward_model import RewardModel, compute_sigmoid, make_conversation


def make_sample(response: str, **fields) -> Sample:
    return Sample(id="clip-7#0", response=response, row={**make_row("open"), **fields})


def make_choice(response: str, **fields) -> Sample:
    return make_sample(response, **{"task": "mc", "choices": COLOURS, "answer": "B", **fields})


def score(scorer, *samples: Sample) -> list:
    async def score_all():
        return await asyncio.gather(*map(scorer, samples), return_exceptions=True)

    return asyncio.run(score_all())


# --- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logit", "value"),
    [
        (0.0, 0.5),
        (math.log(3), 0.75),  # 1 / (1 + 1/3)
        (-math.log(3), 0.25),
        (1e4, 1.0),
        (-1e4, 0.0),
    ],
)
def test_sigmoid(logit, value):
    assert compute_sigmoid(logit) == pytest.approx(value)


@fixed
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_sigmoid_stays_in_its_range(logit):
    assert 0.0 <= compute_sigmoid(logit) <= 1.0
    assert compute_sigmoid(logit) + compute_sigmoid(-logit) == pytest.approx(1.0)


# --- what it reads ---------------------------------------------------------------------------------------------------


def test_a_question_is_read_with_its_options_and_without_its_video():
    row = {**make_row("mc"), "prompt": "<video> Which?", "videos": [{"path": "a.mp4"}], "choices": COLOURS[:2]}
    assert make_conversation({**row, "answer": "A"}, say("A")) == [
        {"role": "user", "content": "Which? (A) red (B) green"},
        {"role": "assistant", "content": say("A")},
    ]


def test_a_conversation_is_read_whole():
    parts = [{"type": "video"}, {"type": "text", "text": "What happens?"}]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    row = {**make_row("open"), "prompt": prompt, "videos": [{"path": "a.mp4"}]}
    assert make_conversation(row, "x") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What happens?"},
        {"role": "assistant", "content": "x"},
    ]


# --- the scorer ------------------------------------------------------------------------------------------------------


class FakeHead:
    """Its number for a conversation is what the response says: "<answer>0.5</answer>" -> 0.5."""

    def __init__(self, checkpoint: Checkpoint):
        self.asked: list[list[str]] = []

    def tokens(self, messages):
        return list(messages[-1]["content"])

    def __call__(self, conversations):
        texts = ["".join(tokens) for tokens in conversations]
        self.asked.append(texts)
        return [float(text.partition("<answer>")[2].removesuffix("</answer>")) for text in texts]


@pytest.fixture
def fake_model(monkeypatch):
    monkeypatch.setattr(networks, "RewardHead", FakeHead)
    return lambda **params: RewardModel(None, path="fake", **params)


def test_the_reward_is_the_sigmoid_of_the_models_number(fake_model):
    zero, three = score(fake_model(), make_sample(say("0")), make_sample(say(str(math.log(3)))))
    assert (zero.value, zero.parts) == (0.5, {"logit": 0.0})
    assert (three.value, three.parts) == (pytest.approx(0.75), {"logit": pytest.approx(math.log(3))})


@pytest.mark.parametrize("garbage", ["nan", "inf", "-inf"])
def test_no_number_is_an_abstention(fake_model, garbage):
    lost, fine = score(fake_model(), make_sample(say(garbage)), make_sample(say("0")))
    assert isinstance(lost, Abstained) and lost.reason == "garbage" and fine.value == 0.5


def test_a_text_that_is_too_long_is_not_cut(fake_model):
    scorer = fake_model(max_tokens=len(say("0")))
    fine, long = score(scorer, make_sample(say("0")), make_sample(say("0.0")))
    assert fine.value == 0.5
    assert isinstance(long, Abstained) and long.reason == "too_long"


def test_calls_share_batches(fake_model):
    scorer = fake_model(batch_size=2)
    results = score(scorer, *(make_sample(say(str(number))) for number in (-1, 0, 1)))
    assert [result.parts["logit"] for result in results] == [-1.0, 0.0, 1.0]
    assert scorer._head.asked == [[say("-1"), say("0")], [say("1")]]
    counts = scorer.take_counts()
    assert (counts["calls"], counts["batches"], counts["batch_size_mean"]) == (3, 2, 1.5)


def test_the_hybrid_reward_asks_only_where_the_rule_gives_nothing(fake_model):
    scorer = fake_model(rule="number", rule_params={"tolerance": 0.0})
    row = {"task": "numeric", "answer": 7}
    right, wrong = score(scorer, make_sample(say("7"), **row), make_sample(say("0"), **row))
    assert (right.value, right.parts) == (1.0, {"rule": 1.0})
    assert (wrong.value, wrong.parts) == (0.5, {"rule": 0.0, "logit": 0.0})
    assert scorer._head.asked == [[say("0")]]


def test_a_row_that_its_rule_cannot_score_is_an_error_of_the_row(fake_model):
    (error,) = score(fake_model(rule="multiple_choice"), make_choice(say("B"), answer="Z"))
    assert isinstance(error, RowError) and error.reason == "bad_gold"


def test_an_unknown_rule_is_named_at_once(fake_model):
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        fake_model(rule="acuracy")


def test_a_real_reward_model(tmp_path):
    folder = build_reward_model(tmp_path / "model")
    scorer = RewardModel(None, path=str(folder), rule="accuracy", batch_size=8)
    samples = [make_choice(say(letter), prompt="what happens next") for letter in "ABCD"]
    results = score(scorer, *samples)
    assert results[1].value == 1.0 and results[1].parts == {"rule": 1.0}
    head = RewardHead(Checkpoint(path=str(folder)))
    for place in (0, 2, 3):
        (logit,) = head([head.tokens(make_conversation(samples[place].row, samples[place].response))])
        assert results[place].parts["logit"] == pytest.approx(logit, abs=1e-5)
        assert results[place].value == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)
    assert results[0].value != pytest.approx(results[2].value, abs=1e-4)  # "A" is a word of its tokenizer, "C" is none
    counts = scorer.take_counts()
    assert (counts["calls"], counts["batches"]) == (3, 1)
    assert asyncio.run(scorer.check()) == {}


def test_the_scorer_is_found_by_name_and_its_parameters_checked():
    assert find_scorer("reward_model", path="folder", batch_size=4) is RewardModel
    for params, message in [({}, "path"), ({"path": "m", "batch_size": 0}, "params.batch_size")]:
        with pytest.raises(ValueError, match=message):
            find_scorer("reward_model", **params)
