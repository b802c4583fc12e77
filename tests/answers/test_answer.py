import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from responses import fixed, fragments, reason

from videorl.answers.answer import (
    Blocks,
    Failure,
    failure,
    find_answer,
    matches_legacy_format,
    parse_blocks,
)

# --- answer span ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>x</think><answer>B</answer>", "B"),
        ("<think>x</think>\n text <answer> B \n</answer> more", "B"),
        ("<answer>B</answer>", "B"),  # the strict format is another matter
        ("x</think><answer>B</answer>", "B"),  # the opening tag is in the prompt
        ("<think>maybe <answer>A</answer>? no</think><answer>B</answer>", "B"),
        ("<answer>A</answer></think><answer>B</answer>", "B"),
        ("<think>x</think><answer>A</answer><answer>B</answer>", "B"),
        ("<think>x</think><answer>A</answer><answer>B", "A"),  # the last complete one
        ("<think>x</think><answer>A <answer>B</answer>", "B"),
        ("<think>x</think><answer>A</answer> B</answer>", "A"),
    ],
)
def test_answer_is_the_last_complete_block_after_the_reasoning(response, answer):
    assert find_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "why"),
    [
        ("", "no_answer"),
        ("B", "no_answer"),
        ("<think>x</think>B", "no_answer"),
        ("<think>x</think><answer>B", "no_answer"),
        ("<think>x</think></answer>B<answer>", "no_answer"),
        ("<think>x <answer>B</answer></think>", "no_answer"),
        ("<think>it says <answer>B</answer> and then", "unclosed_think"),  # cut off after quoting an answer
        ("<think>x</think><answer>B</answer><think>", "unclosed_think"),
        ("<think>x</think><answer> \n</answer>", "empty_answer"),
        ("<THINK>x</THINK><ANSWER>B</ANSWER>", "no_answer"),
    ],
)
def test_no_answer(response, why):
    assert reason(find_answer(response)) == why


def test_reasoning_opened_by_the_prompt_must_be_closed():
    cut_off = "it says <answer>B</answer> and then"
    assert find_answer(cut_off) == "B"
    assert reason(find_answer(cut_off, tags="prefilled")) == "unclosed_think"
    assert find_answer("x</think><answer>B</answer>", tags="prefilled") == "B"


def test_whole_text_is_the_answer_only_in_a_recipe_without_tags():
    assert find_answer(" B ", tags="none") == "B"
    assert find_answer("<think>A</think> B ", tags="none") == "B"
    assert find_answer("so <answer>B</answer>", tags="none") == "B"
    assert reason(find_answer("<think>B", tags="none")) == "unclosed_think"


@fixed
@given(fragments)
def test_answer_span_against_a_slow_definition(response):
    rest = response.split("</think>")[-1]
    bodies = re.findall(r"<answer>((?:(?!</?answer>).)*)</answer>", rest, re.DOTALL)
    expected = "" if "<think>" in rest or not bodies else bodies[-1].strip()
    found = find_answer(response)
    assert (found if isinstance(found, str) else "") == expected


def test_a_failure_says_what_it_read_in_one_short_printable_line():
    assert str(failure("no_number", "\x1b[m\n" + "x" * 500)) == "no_number: '\\x1b[m\\n" + "x" * 56 + "…'"
    assert str(Failure("no_answer")) == "no_answer"


# --- format -----------------------------------------------------------------------------------------------------------


def test_strict_format_gives_the_two_bodies():
    assert parse_blocks(" <think> a </think>\n<answer>B</answer>\n") == Blocks(" a ", "B")
    assert parse_blocks("a</think><answer>B</answer>", tags="prefilled") == Blocks("a", "B")


@pytest.mark.parametrize(
    ("response", "why"),
    [
        ("", "wrong_tags"),
        ("<answer>B</answer>", "wrong_tags"),
        ("<think>a</think><answer>B", "wrong_tags"),
        ("<answer>B</answer><think>a</think>", "wrong_tags"),
        ("<think>a<answer>B</think></answer>", "wrong_tags"),
        ("<think>a</answer></think><answer>B", "wrong_tags"),
        ("<think>a</think><answer>A</answer><answer>B</answer>", "wrong_tags"),
        ("<think>a <answer>A</answer></think><answer>B</answer>", "wrong_tags"),
        ("<think><think>a</think></think><answer>B</answer>", "wrong_tags"),
        ("x<think>a</think><answer>B</answer>", "text_outside"),
        ("<think>a</think>x<answer>B</answer>", "text_outside"),
        ("<think>a</think><answer>B</answer>x", "text_outside"),
        ("<think> </think><answer>B</answer>", "blank_block"),
        ("<think>a</think><answer>\n</answer>", "blank_block"),
    ],
)
def test_strict_format_refuses(response, why):
    assert reason(parse_blocks(response)) == why


@fixed
@given(fragments)
@example("<think>A</think> <answer>A</answer>")
def test_formats_against_patterns(response):
    body = r"((?:(?!</?think>|</?answer>).)*)"
    match = re.fullmatch(rf"<think>{body}</think>\s*<answer>{body}</answer>", response.strip(), re.DOTALL)
    strict = match is not None and all(group.strip() for group in match.groups())
    assert isinstance(parse_blocks(response), Blocks) == strict
    legacy = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", response, re.DOTALL)
    assert matches_legacy_format(response) == (legacy is not None)


def test_legacy_format_is_looser():
    for response in (
        "<think></think><answer></answer>",
        "<think>a</think>b</think> <answer>A</answer><answer>B</answer>",
    ):
        assert matches_legacy_format(response) and isinstance(parse_blocks(response), Failure)
    assert not matches_legacy_format(" <think>a</think><answer>B</answer>")  # it strips nothing
    assert matches_legacy_format("a</think><answer>B</answer>", tags="prefilled")


@fixed
@given(st.text() | fragments)
def test_span_and_format_never_raise(response):
    for tags in ("full", "prefilled", "none"):
        assert find_answer(response, tags)
    assert parse_blocks(response)
