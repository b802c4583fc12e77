import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed, reason

from videorl.answers.verdicts import parse_verdict, parse_yes_no

VERDICTS = ["Answer 1 is better", "Answer 2 is better"]


@pytest.mark.parametrize(
    "answer",
    [
        "Answer 2 is better",
        "answer 2 IS better.",
        "**Answer 2 is better**",
        '"Answer 2 is better!"',
        "Answer  2\nis better",
        "Ａnswer ２ is better",
        "My answer is: Answer 2 is better",
        r"\boxed{\text{Answer 2 is better}}",
    ],
)
def test_verdict(answer):
    assert parse_verdict(answer, VERDICTS) == "Answer 2 is better"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "no_verdict"),
        ("2", "no_verdict"),
        ("Answer 2", "no_verdict"),
        ("Answer 2 is not better", "no_verdict"),
        ("I think Answer 2 is better", "no_verdict"),  # word for word, with no sentence around it
        ("Answer 2 is better than Answer 1", "no_verdict"),
        ("Answer 12 is better", "no_verdict"),
        ("Image 2 is better", "no_verdict"),
        ("Answer 1 is better. Answer 2 is better.", "several_verdicts"),
    ],
)
def test_no_verdict(answer, why):
    assert reason(parse_verdict(answer, VERDICTS)) == why


@fixed
@given(st.lists(st.text("abc 12", min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=4), st.integers(0, 3))
def test_each_verdict_reads_as_one_that_is_spelt_the_same(verdicts, i):
    said = verdicts[i % len(verdicts)]
    read = parse_verdict(said, verdicts)
    assert read in verdicts and " ".join(read.split()) == " ".join(said.split())


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        *[
            (text, True)
            for text in ("yes", "Yes.", "**YES**", "(yes)", "The answer is yes", "Yes, he falls", "yes - twice")
        ],
        *[
            (text, False)
            for text in ("no", "No.", "No, he does not fall", "No. It stays", "answer: no", "no\nhe stays")
        ],
    ],
)
def test_yes_no(answer, yes):
    assert parse_yes_no(answer) is yes


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "no_verdict"),
        ("Nothing", "no_verdict"),  # inside a word
        ("yesterday", "no_verdict"),
        ("no-one", "no_verdict"),
        ("No idea", "no_verdict"),  # not set off: part of a phrase
        ("maybe yes", "no_verdict"),
        ("yes and no", "several_verdicts"),
        ("No, yes", "several_verdicts"),
        ("yes, no, yes", "several_verdicts"),
        ("not yes", "negated"),
        ("Yes, but that is wrong", "negated"),
        ("yes, it isn't", "negated"),
    ],
)
def test_neither_yes_nor_no(answer, why):
    assert reason(parse_yes_no(answer)) == why
