"""What counts as a verdict, and what each is worth."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from videorl.rewards.result import RewardResult
from videorl.rewards.scorers.verdicts import (
    CriticVerdict,
    NextEventVerdict,
    OpenEndedVerdict,
    PairwiseVerdict,
    Verdict,
    explain,
    on_scale,
    read_verdict,
)

KINDS = [NextEventVerdict, OpenEndedVerdict, CriticVerdict, PairwiseVerdict, on_scale(1, 10)]
VERDICT = '{"critique": "partly", "score": 3}'
THREE = OpenEndedVerdict(critique="partly", score=3)


@pytest.mark.parametrize(
    "text",
    [
        VERDICT,
        f"\n  {VERDICT}\n",
        f"```json\n{VERDICT}\n```",
        f"```{VERDICT}```",
        f'<think>I might say {{"critique": "", "score": 5}}</think>\n{VERDICT}',
        '{"critique":\n\t"one\ttwo\x00\nthree",\r\n"score": 3}',
        '{"critique": "' + "long " * 1000 + '", "score": 3}',
    ],
)
def test_one_object_is_a_verdict(text):
    assert read_verdict(text, OpenEndedVerdict).score == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "null",
        "[]",
        "``````",
        f"Here it is: {VERDICT}",
        f'The response says {{"critique": "", "score": 5}}. {VERDICT}',
        f"{VERDICT}{VERDICT}",
        VERDICT[:-1],
        '{"score": 3}',
        '{"critique": "", "score": 6}',
        '{"critique": "", "score": -1}',
        '{"critique": "", "score": true}',
        '{"critique": "", "score": "3"}',
        '{"critique": "", "score": 3.5}',
        '{"critique": "", "score": NaN}',
        '{"critique": "", "score": 1e999}',
        '{"critique": "", "score": ' + "9" * 5000 + "}",
        '{"critique": "", "score": 3, "bonus": 1}',
        '{"critique": null, "score": 3}',
        "[" * 100_000,
        '{"critique": "\ud800", "score": "\udfff"}',
        f"<think>{VERDICT}",
    ],
)
def test_anything_else_is_none(text):
    with pytest.raises(ValidationError):
        read_verdict(text, OpenEndedVerdict)


@settings(derandomize=True, deadline=None)
@given(st.text(st.characters()), st.sampled_from(KINDS))
def test_no_text_raises_anything_else(text, kind):
    with pytest.raises(ValidationError) as error:
        read_verdict(text, kind)
    assert len(explain(error.value)) <= 500


CRITIC = CriticVerdict(
    critique="", visual_alignment=1, temporal_accuracy=2, option_disambiguation=3, reasoning_specificity=4,
    linguistic_precision=5, scalar_reward=0.7,
)  # fmt: skip


@pytest.mark.parametrize(
    ("verdict", "result"),
    [
        (NextEventVerdict(critique="", conclusion="right"), RewardResult(1.0)),
        (NextEventVerdict(critique="", conclusion="wrong"), RewardResult(0.0)),
        (THREE, RewardResult(0.6, {"score": 3.0})),  # 3 of 5
        (
            CRITIC,
            RewardResult(
                0.7,
                {"visual_alignment": 1.0, "temporal_accuracy": 2.0, "option_disambiguation": 3.0}
                | {"reasoning_specificity": 4.0, "linguistic_precision": 5.0},
            ),
        ),
        (on_scale(1, 10)(critique="", score=4), RewardResult(1 / 3, {"score": 4.0})),  # (4 - 1) / (10 - 1)
        (on_scale(-1, 1)(critique="", score=-1), RewardResult(0.0, {"score": -1.0})),
        (PairwiseVerdict(critique="", winner="first"), RewardResult(1.0)),
        (PairwiseVerdict(critique="", winner="tie"), RewardResult(0.5)),
        (PairwiseVerdict(critique="", winner="second"), RewardResult(0.0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_worth(verdict: Verdict, result: RewardResult):
    assert verdict.result() == result


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_verdict_is_valid_and_worth_the_most(kind):
    best = read_verdict(kind.best().model_dump_json(), kind)
    assert best.result().value == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_what_strict_decoders_take(kind):
    """All fields required, no others allowed, no defaults and no references."""
    schema = kind.model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["required"] == list(schema["properties"])
    assert not [word for word in ("$ref", "$defs", "default") if f'"{word}"' in json.dumps(schema)]
    assert schema["properties"]["critique"]["maxLength"] == 600


def test_scales_do_not_mix():
    ten, hundred = on_scale(0, 10), on_scale(0, 100)
    assert hundred(critique="", score=50.0).result().value == 0.5
    with pytest.raises(ValidationError):
        ten(critique="", score=50.0)
