import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed, reason

from videorl.answers.permutations import parse_permutation


@pytest.mark.parametrize(
    "answer",
    [
        "3124",
        "3124.",
        "3, 1, 2, 4",
        "3 1 2 4",
        "3-1-2-4",
        "3->1->2->4",
        "3 → 1 → 2 → 4.",
        "[3, 1, 2, 4]",
        "**3124**",
        "３１２４",
        "The answer is 3124",
        "3;1;2;4",
        "3\n1\n2\n4",
    ],
)
def test_permutation(answer):
    assert parse_permutation(answer, "1234") == "3124"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "312",
        "31244",
        "3125",
        "31240",
        "1234567890",
        "3.1.2.4",
        "Clip 3, Clip 1, Clip 2, Clip 4",
        "3124 or 1234",
        "-3124x",
        "٣124",
        "31²4",
        "3124\0",
    ],
)
def test_no_permutation(answer):
    assert reason(parse_permutation(answer, "1234")) == "not_a_permutation"


def test_symbols_can_be_letters_and_case_counts():
    assert parse_permutation("C, A, B", "ABC") == "CAB"
    assert reason(parse_permutation("c, a, b", "ABC")) == "not_a_permutation"


def test_without_symbols_they_must_only_differ():
    assert parse_permutation("2, 1") == "21"
    assert [reason(parse_permutation(text)) for text in ("", "1", "1, 1")] == ["not_a_permutation"] * 3


@fixed
@given(st.permutations("123456"), st.sampled_from([", ", "", " ", "->", ";"]))
def test_every_order_reads_as_itself(order, separator):
    assert parse_permutation(separator.join(order), "123456") == "".join(order)
