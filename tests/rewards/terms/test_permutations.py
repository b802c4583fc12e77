import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed, make_row, reason, say

from videorl.answers.gold import RowError
from videorl.rewards.terms.permutations import permutation


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [
        ("312", "312", 1.0),
        ("312", "3, 1, 2.", 1.0),
        ("312", "321", 1 - 2 / 4),  # 1 and 2 are one place off each; floor(9 / 2) = 4
        ("312", "132", 1 - 2 / 4),
        ("312", "123", 1 - 4 / 4),  # 3 is two places off, 1 and 2 one each
        ("312", "213", 1 - 4 / 4),
        ("123456", "213456", 1 - 2 / 18),
        ("123456", "234561", 1 - 10 / 18),  # five of them one place off, 1 five places
        ("123456", "654321", 0.0),  # 5 + 3 + 1 + 1 + 3 + 5 = 18
        (312, "312", 1.0),  # a table may hold it as a number
    ],
)
def test_permutation(gold, answer, value):
    assert permutation(say(answer), make_row("custom", answer=gold)).value == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("answer", ["31", "3122", "333", "3124", "123 132 213 231 312 321", "nan", '{"order": "312"}'])
def test_what_is_no_permutation_earns_nothing(answer):
    result = permutation(say(answer), make_row("custom", answer="312"))
    assert result.value == 0.0 and reason(result) == "not_a_permutation"


@pytest.mark.parametrize("gold", [None, "", "1", "1, 1", [3, 1, 2]])
def test_bad_gold_order_is_an_error(gold):
    with pytest.raises(RowError, match=r"row 'clip-7': answer=.*order of different symbols"):
        permutation(say("312"), make_row("custom", answer=gold))


@fixed
@given(st.integers(2, 9).flatmap(lambda n: st.tuples(*[st.permutations("123456789"[:n])] * 2)))
def test_symmetric_and_one_only_for_the_gold_order(orders):
    gold, said = map("".join, orders)
    value = permutation(say(said), make_row("custom", answer=gold)).value
    assert value == permutation(say(gold), make_row("custom", answer=said)).value
    assert 0.0 <= value <= 1.0 and (value == 1.0) == (gold == said)
