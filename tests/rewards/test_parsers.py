import math
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from videorl.rewards.parsers import (
    MAX_ANSWER_CHARS,
    REASONS,
    Blocks,
    Failure,
    find_answer,
    matches_legacy_format,
    parse_blocks,
    parse_interval,
    parse_letter,
    parse_number,
)

fixed = settings(derandomize=True, deadline=None, max_examples=200)
COLOURS = ["red", "green", "blue", "yellow"]


def reason(parsed):
    assert isinstance(parsed, Failure), parsed
    assert parsed.reason in REASONS
    return parsed.reason


# --- answer span -----------------------------------------------------------------------------------------------------


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


fragments = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "A", " ", "<", "\n"]), max_size=12
).map("".join)


@fixed
@given(fragments)
def test_answer_span_against_a_slow_definition(response):
    rest = response.split("</think>")[-1]
    bodies = re.findall(r"<answer>((?:(?!</?answer>).)*)</answer>", rest, re.DOTALL)
    expected = "" if "<think>" in rest or not bodies else bodies[-1].strip()
    found = find_answer(response)
    assert (found if isinstance(found, str) else "") == expected


# --- format ----------------------------------------------------------------------------------------------------------


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


# --- letters ---------------------------------------------------------------------------------------------------------


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


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        *[("5", 5), ("5.", 5), ("+5", 5), ("-5", -5), ("−5", -5), ("0", 0), ("007", 7), ("１２", 12)],
        *[("5.0", 5.0), (".5", 0.5), ("-2.75", -2.75), ("1e3", 1000.0), ("2.5E-1", 0.25)],
        *[("1,234", 1234), ("1,234,567.5", 1234567.5)],
        *[("5 people", 5), ("There are 5.", 5), ("**5**", 5), (r"\boxed{5}", 5), ("$5$", 5), ("n = 5", 5), ("(5)", 5)],
        *[("50%", 50), ("50 percent", 50), ("5s", 5), ("5 seconds", 5), ("Covid has 5", 5)],
    ],
)
def test_number(answer, value):
    number = parse_number(answer)
    assert (number, type(number)) == (value, type(value))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "no_number"),
        ("five", "no_number"),
        ("3 and 4", "several_numbers"),
        ("2 * 3", "several_numbers"),
        ("1_000", "several_numbers"),
        ("NaN 5", "several_numbers"),
        ("1,23", "malformed_number"),
        ("12,5", "malformed_number"),
        ("1.2.3", "malformed_number"),
        ("3-4", "malformed_number"),
        ("3/4", "malformed_number"),
        ("½", "malformed_number"),
        ("3:45", "malformed_number"),
        ("10²", "malformed_number"),
        ("3D", "malformed_number"),
        ("0x1F", "malformed_number"),
        ("<5", "malformed_number"),
        ("- 5", "malformed_number"),
        ("minus 5", "malformed_number"),
        ("5 million", "malformed_number"),
        ("٣", "malformed_number"),
        ("not 5", "negated"),
        ("nan", "not_finite"),
        ("NaN.", "not_finite"),
        ("-inf", "not_finite"),
        ("Infinity", "not_finite"),
        ("∞", "not_finite"),
        ("1e400", "not_finite"),
        ("9" * 400, "not_finite"),
    ],
)
def test_no_number(answer, why):
    assert reason(parse_number(answer)) == why


@fixed
@given(st.one_of(st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False)))
def test_number_reads_what_python_writes(value):
    assert parse_number(str(value)) == value
    assert parse_number(f"{value:,}" if isinstance(value, int) else repr(value)) == value


@fixed
@given(st.text() | st.text("0123456789.,-+eE%s nafi:/²٣½"))
def test_number_never_raises_and_is_finite(answer):
    number = parse_number(answer)
    assert reason(number) if isinstance(number, Failure) else math.isfinite(number)


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "interval"),
    [
        *[(f"2{separator}5", (2.0, 5.0)) for separator in ("-", "–", "—", "~", " to ", " - ", " ~ ", "−")],
        *[("2s to 5s", (2.0, 5.0)), ("2 sec - 5 seconds", (2.0, 5.0)), ("2.25 to 5.5 s", (2.25, 5.5))],
        *[("from 2 to 5 seconds.", (2.0, 5.0)), ("The answer is 2 TO 5", (2.0, 5.0)), ("(2 - 5)", (2.0, 5.0))],
        *[("**2 to 5**", (2.0, 5.0)), ("２～５", (2.0, 5.0)), ("0 to 1000000", (0.0, 1000000.0))],
        *[("01:15 to 02:05.5", (75.0, 125.5)), ("1:00:00 - 1:02:03", (3600.0, 3723.0)), ("30 to 1:15", (30.0, 75.0))],
    ],
)
def test_interval(answer, interval):
    assert parse_interval(answer) == interval


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "no_interval"),
        ("2", "no_interval"),
        ("2 5", "no_interval"),
        ("2, 5", "no_interval"),
        ("20% to 50%", "no_interval"),
        ("2 to 5 or 7 to 9", "no_interval"),
        ("2 to 5 to 7", "no_interval"),
        ("1:75 to 2:00", "no_interval"),
        ("1:2 to 3:4", "no_interval"),
        (".5 to 9", "no_interval"),
        ("1e1 to 1e2", "no_interval"),
        ("10² to 200", "no_interval"),
        ("2 min to 5 min", "no_interval"),
        ("nan to 5", "no_interval"),
        ("2 to inf", "no_interval"),
        ("٢ to ٥", "no_interval"),
        ("-2 to 5", "negative"),
        ("2 - -5", "negative"),
        ("5 to 2", "reversed"),
        ("2 to 2.0", "zero_length"),
        ("2 to " + "9" * 400, "not_finite"),
        ("9" * 400 + ":00 to " + "9" * 401 + ":00", "not_finite"),
    ],
)
def test_no_interval(answer, why):
    assert reason(parse_interval(answer)) == why


@fixed
@given(st.text() | st.text("0123456789:.-~–to s%"))
def test_interval_never_raises_and_is_ordered(answer):
    interval = parse_interval(answer)
    assert reason(interval) if isinstance(interval, Failure) else 0 <= interval[0] < interval[1] < math.inf


# --- hostile input ---------------------------------------------------------------------------------------------------

MB = 1_000_000
PARSERS = [
    find_answer,
    lambda text: find_answer(text, "none"),
    lambda text: find_answer(text, "prefilled"),
    parse_blocks,
    matches_legacy_format,
    lambda text: parse_letter(text, COLOURS),
    parse_number,
    parse_interval,
]


def filled(unit, size):
    return (unit * (size // len(unit) + 1))[:size]


HOSTILE = [
    *("<", "<think>", "</think>", "<answer>", "</answer>", "</think><answer>", "</think> \n", "<answer></answer>"),
    *(" ", "\n", "\0", "A ", "A, ", "(", "answer ", "the answer is ", "based on ", "red green ", "n't ", "\\boxed{"),
    *("9", "9,", "1,234", "9 ", "9:", "9 to ", "2s ", "-", "+", ".", "²", "٣", "\u0301\u0316", "ﷺ", "\ud800"),
]


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("size", [MAX_ANSWER_CHARS, MB])
def test_time_is_linear(parser, size):
    """A quadratic pattern over 1 MB, or NFKC over 1 MB of combining marks, would take many minutes."""
    for unit in HOSTILE:
        parser(filled(unit, size))
        parser("<think>" + filled(unit, size) + "</answer>")


@pytest.mark.parametrize("parser", PARSERS[5:])
def test_an_answer_has_a_longest_length(parser):
    assert reason(parser("5" * (MAX_ANSWER_CHARS + 1))) == "too_long"
    assert reason(parser("5" * MAX_ANSWER_CHARS)) != "too_long"


@fixed
@given(st.text() | fragments)
def test_span_and_format_never_raise(response):
    for tags in ("full", "prefilled", "none"):
        assert find_answer(response, tags)
    assert parse_blocks(response)


def test_a_failure_says_what_it_read_in_one_short_printable_line():
    assert str(parse_number("\x1b[m\n" + "x" * 500)) == "no_number: '\\x1b[m\\n" + "x" * 56 + "…'"
    assert str(Failure("no_answer")) == "no_answer"
