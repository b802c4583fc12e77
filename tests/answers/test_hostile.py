"""What every parser must survive, whatever it reads."""

import pytest
from hypothesis import given
from responses import COLOURS, fixed, hostile, reason

from videorl.answers.answer import (
    MAX_ANSWER_CHARS,
    REASONS,
    Failure,
    find_answer,
    matches_legacy_format,
    parse_blocks,
    starts_with_legacy_format,
)
from videorl.answers.legacy import read_longvila_answer, read_v1_letter, read_video_r1_answer
from videorl.answers.letters import parse_letter
from videorl.answers.numbers import parse_counts, parse_number
from videorl.answers.permutations import parse_permutation
from videorl.answers.scores import parse_scores
from videorl.answers.text import parse_text
from videorl.answers.times import parse_interval
from videorl.answers.verdicts import parse_verdict, parse_yes_no

MB = 1_000_000
ANSWER_PARSERS = [
    lambda text: parse_letter(text, COLOURS),
    parse_number,
    parse_counts,
    lambda text: parse_counts(text, 3),
    lambda text: parse_permutation(text, "123"),
    lambda text: parse_scores(text, ["quality", "2nd quality"], 1, 5),
    lambda text: parse_verdict(text, ["Answer 1 is better", "Answer 2 is better"]),
    parse_yes_no,
    parse_text,
    parse_interval,
]
PARSERS = [
    find_answer,
    lambda text: find_answer(text, "none"),
    lambda text: find_answer(text, "prefilled"),
    parse_blocks,
    matches_legacy_format,
    starts_with_legacy_format,
    read_v1_letter,
    read_video_r1_answer,
    read_longvila_answer,
    *ANSWER_PARSERS,
]


def filled(unit, size):
    return (unit * (size // len(unit) + 1))[:size]


HOSTILE = [
    *("<", "<think>", "</think>", "<answer>", "</answer>", "</think><answer>", "</think> \n", "<answer></answer>"),
    *(" ", "\n", "\0", "A ", "A, ", "(", "answer ", "the answer is ", "based on ", "red green ", "n't ", "\\boxed{"),
    *("quality", "quality: ", "quality: 4 ", "(1) ", "yes ", "no, ", "Answer 1 is better ", "->", '"'),
    *("9", "9,", "1,234", "9 ", "9:", "9 to ", "2s ", "-", "+", ".", "²", "٣", "\u0301\u0316", "ﷺ", "\ud800"),
]


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("size", [MAX_ANSWER_CHARS, MB])
def test_time_is_linear(parser, size):
    """A quadratic pattern over 1 MB, or NFKC over 1 MB of combining marks, would take many minutes."""
    for unit in HOSTILE:
        parser(filled(unit, size))
        parser("<think>" + filled(unit, size) + "</answer>")


@pytest.mark.parametrize("parser", ANSWER_PARSERS)
def test_an_answer_has_a_longest_length(parser):
    assert reason(parser("5" * (MAX_ANSWER_CHARS + 1))) == "too_long"
    at_the_limit = parser("5" * MAX_ANSWER_CHARS)
    assert not isinstance(at_the_limit, Failure) or reason(at_the_limit) != "too_long"


@fixed
@given(hostile)
def test_no_parser_raises(text):
    for parser in PARSERS:
        parsed = parser(text)
        assert parsed is not None and (not isinstance(parsed, Failure) or parsed.reason in REASONS)
