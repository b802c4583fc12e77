import re

import pytest
from hypothesis import given
from responses import COLOURS, fixed, fragments, reason, say

from videorl.answers.answer import MAX_ANSWER_CHARS
from videorl.answers.legacy import first_answer, read_longvila_answer, read_v1_letter, read_video_r1_answer
from videorl.answers.letters import parse_letter


@fixed
@given(fragments)
def test_first_answer_is_what_the_pattern_finds(response):
    match = re.search("<answer>(.*?)</answer>", response, re.DOTALL)
    found = first_answer(response)
    assert found == match[1] if match else reason(found) == "no_answer"


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        (say("C"), "C"),
        (say("(C) blue"), "C"),
        (say("Because of D"), "B"),  # its defects: a letter inside a word,
        (say("A man leaves"), "A"),  # an article,
        (say("not B"), "B"),  # a negation,
        (say("B or A"), "B"),  # two answers,
        (say("one of them is likely to be the right one but I Cannot say"), "C"),  # a long sentence,
        (say("A", think="so <answer>B</answer>"), "B"),  # one that is quoted in the reasoning,
        ("<think>maybe <answer>B</answer>", "B"),  # even where the reasoning was cut off
    ],
)
def test_v1_reads_the_first_capital(response, letter):
    assert read_v1_letter(response) == letter


@pytest.mark.parametrize(("response", "why"), [("B", "no_answer"), (say("E"), "no_letter"), (say("b"), "no_letter")])
def test_v1_reads_nothing_else(response, why):
    assert reason(read_v1_letter(response)) == why


def test_video_r1_reads_the_first_answer_as_it_is():
    assert read_video_r1_answer(say(" (B) \n")) == "(B)"
    assert read_video_r1_answer(say("B", think="<answer>A</answer>")) == "A"
    assert read_video_r1_answer(say("")) == ""
    assert reason(read_video_r1_answer("B")) == "no_answer"
    assert reason(read_video_r1_answer(say("x" * (MAX_ANSWER_CHARS + 1)))) == "too_long"


def test_longvila_takes_the_whole_response_where_there_is_no_block():
    assert read_longvila_answer(say(" B\n")) == "B"
    assert read_longvila_answer(" B \n") == "B"
    assert read_longvila_answer("< answer >B</ answer >") == "B"
    assert read_longvila_answer("the answer is B") == "theanswerisB"
    assert read_longvila_answer(say("B\t")) == "B\t"  # only spaces and newlines


def test_the_strict_parser_has_none_of_these_defects():
    for answer in ("Because of D", "A man leaves", "not B", "B or A"):
        reason(parse_letter(answer, COLOURS))
