import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import COLOURS, fixed, reason

from videorl.answers.answer import Failure
from videorl.answers.letters import parse_letter


@pytest.mark.parametrize(
    "answer",
    [
        *("B", "b", " B ", "(B)", "[b]", "B.", "B)", '"B"', "**B**", "`B`", "$B$", "Ｂ", "Ⓑ"),
        *(r"\boxed{B}", r"$\boxed{\text{(B)}}$", r"\(B\)"),
        *("Option B", "option (b)", "Answer: B", "The answer is B.", "The correct answer is: option B"),
        *("Based on the video, B", "According to frame 3, the answer is B"),
        *("green", "Green.", "GREEN", "**green**", "The answer is green", "(green)"),
        *("B. green", "(B) green", "B) Green.", "B green", "B (green)", "B - green", "B: green", "B\ngreen"),
        *("B. The green square comes first.", "B. A man walks by", "B\nThe other one is late"),
        "B. It is covered",  # "red" inside a word
    ],
)
def test_letter(answer):
    assert parse_letter(answer, COLOURS) == "B"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "no_letter"),
        ("?", "no_letter"),
        ("Because", "no_letter"),  # inside a word
        ("BLUEISH", "no_letter"),
        ("ABCD", "no_letter"),
        ("T-shirt", "no_letter"),
        ("A-frame", "no_letter"),
        ("A's", "no_letter"),
        ("B.C.", "no_letter"),
        ("A man walks", "no_letter"),  # an article
        ("a green square", "no_letter"),
        ("The answer is a man", "no_letter"),
        ("I think", "no_letter"),
        ("maybe B", "no_letter"),
        ("B red", "no_letter"),
        ("red or green", "no_letter"),
        ("A or B", "several_letters"),
        ("A, B, C, D", "several_letters"),
        ("a, b", "several_letters"),
        ("A B C D", "several_letters"),
        ("(A) (B)", "several_letters"),
        ("(A) red (B) green (C) blue (D) yellow", "several_letters"),
        ("B, not A", "several_letters"),
        ("B. A is right too", "several_letters"),
        ("B. red", "several_letters"),
        ("B. It is green, not red", "several_letters"),
        ("B; E", "several_letters"),
        ("E", "outside_options"),
        ("(E) purple", "outside_options"),
        ("not B", "negated"),
        ("The answer is not B", "negated"),
        ("B) is wrong", "negated"),
        ("B. It isn't", "negated"),
        ("Neither", "negated"),
    ],
)
def test_no_letter(answer, why):
    assert reason(parse_letter(answer, COLOURS)) == why


def test_an_option_inside_another_is_not_named_with_it():
    choices = ["red", "red square", "a red square"]
    assert [parse_letter(text, choices) for text in ("red", "red square", "B. red square")] == ["A", "B", "B"]
    assert reason(parse_letter("A. red square", choices)) == "several_letters"


def test_an_option_that_negates_can_be_chosen():
    choices = ["He stays", "He does not leave", "No", "None of the above"]
    for letter, choice in zip("ABCD", choices, strict=True):
        assert parse_letter(choice, choices) == parse_letter(f"({letter}) {choice}", choices) == letter


def test_an_answer_with_two_readings_is_none():
    assert reason(parse_letter("A red", ["red", "A red"])) == "several_letters"
    assert reason(parse_letter("red", ["red", "Red."])) == "several_letters"
    assert parse_letter("A. red", ["red", "Red."]) == "A"


def test_a_letter_alone_is_the_letter_of_an_option_before_it_is_a_text():
    assert parse_letter("B", ["B", "A"]) == "B"
    assert parse_letter("E", ["E", "F"]) == "A"
    assert parse_letter("2", ["1", "2"]) == "B"
    assert parse_letter(".5", ["5", ".5"]) == "B"
    assert reason(parse_letter("?", ["", "!"])) == "no_letter"  # a blank text names nothing


@fixed
@given(st.text(), st.lists(st.text(max_size=20), max_size=27))
def test_letter_never_raises_and_is_an_option(answer, choices):
    letter = parse_letter(answer, choices)
    if isinstance(letter, Failure):
        assert reason(letter)
    else:
        assert letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]


@fixed
@given(
    st.lists(st.text("abcdefgh", min_size=2, max_size=9), min_size=2, max_size=6, unique=True),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_letter_and_text_must_agree(choices, named, lettered):
    named, lettered = named % len(choices), lettered % len(choices)
    letter = "ABCDEF"[lettered]
    assert parse_letter(choices[lettered], choices) == letter
    together = parse_letter(f"({letter}) {choices[named]}", choices)
    assert together == letter if named == lettered else reason(together) == "several_letters"
