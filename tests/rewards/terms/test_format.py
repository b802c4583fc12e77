import re

import pytest
from hypothesis import given
from responses import COLOURS, fixed, fragments, make_row, say

from videorl.answers.answer import Failure
from videorl.rewards.result import RewardResult
from videorl.rewards.terms.format import follows_format

MC = make_row("mc", choices=COLOURS, answer="B")


def test_format():
    assert follows_format(say("B"), MC) == RewardResult(1.0)
    assert follows_format("<answer>B</answer>", MC) == RewardResult(0.0, failure=Failure("wrong_tags"))
    twice = say("A") + say("B")
    assert follows_format(twice, MC).value == 0.0
    assert follows_format(twice, MC, mode="legacy").value == 1.0
    assert follows_format("B", MC, mode="legacy") == RewardResult(0.0, failure=Failure("wrong_tags"))
    assert follows_format("x</think><answer>B</answer>", MC, tags="prefilled").value == 1.0


@pytest.mark.parametrize(
    ("response", "strict", "answer_only", "legacy", "legacy_prefix"),
    [
        (say("B"), 1, 0, 1, 1),
        ("<answer>B</answer>", 0, 1, 0, 0),
        (" <answer> B </answer>\n", 0, 1, 0, 0),
        ("B", 0, 0, 0, 0),
        ("", 0, 0, 0, 0),
        ("<answer> </answer>", 0, 0, 0, 0),
        ("so <answer>B</answer>", 0, 0, 0, 0),
        ("<answer>A</answer><answer>B</answer>", 0, 0, 0, 0),
        ("</think><answer>B</answer>", 0, 0, 0, 0),
        ("<answer>B</think></answer>", 0, 0, 0, 0),
        (say("B") + " and more", 0, 0, 0, 1),
        (say("A") + say("B"), 0, 0, 1, 1),
        (say("B") + "<answer>", 0, 0, 0, 1),
        (" " + say("B"), 1, 0, 0, 0),
        ("<think>a</think> so <answer>B</answer>", 0, 0, 0, 0),
    ],
)
def test_modes(response, strict, answer_only, legacy, legacy_prefix):
    values = {"strict": strict, "answer_only": answer_only, "legacy": legacy, "legacy_prefix": legacy_prefix}
    for mode, value in values.items():
        result = follows_format(response, MC, mode=mode)
        assert (result.value, result.failure is None) == (value, bool(value)), mode


@fixed
@given(fragments)
def test_legacy_prefix_against_the_pattern(response):
    match = re.match(r"<think>.*?</think>\s*<answer>.*?</answer>", response, re.DOTALL)
    assert follows_format(response, MC, mode="legacy_prefix").value == float(match is not None)
