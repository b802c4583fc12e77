import pytest
from responses import make_row, reason, say

from videorl.answers.gold import RowError
from videorl.rewards.terms.scores import scores

ROW = make_row("custom", answer="4, 3, 5")


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("4, 3, 5", 1.0),
        ("visual quality: 4\nphysical consistency: 5\ntext alignment: 3", 1.0),
        ("4, 3, 4", 0.7),
        ("5, 3, 5", 0.7),
        ("4, 2, 4", 0.4),
        ("3, 2, 4", 0.1),
        ("5, 4, 4", 0.1),
        ("4, 3, 3", 0.0),  # two off by two is worse than all off by one
        ("4, 1, 5", 0.0),
        ("1, 5, 1", 0.0),
    ],
)
def test_scores(answer, value):
    assert scores(say(answer), ROW).value == value


@pytest.mark.parametrize("answer", ["4, 3", "4, 3, 6", "4, 3, 5.0", "4, 3, nan", "1, 2, 3, 4, 5", "great"])
def test_unreadable_scores_earn_nothing(answer):
    result = scores(say(answer), ROW)
    assert result.value == 0.0 and reason(result)


@pytest.mark.parametrize(("answer", "value"), [("0, 10", 1.0), ("0, 9", 0.5), ("1, 9", 0.25), ("0, 8", 0.0)])
def test_another_scale(answer, value):
    row = make_row("custom", answer="fun: 10, speed: 0")
    scale = {"names": ("speed", "fun"), "low": 0, "high": 10, "table": (1.0, 0.5, 0.25)}
    assert scores(say(answer), row, **scale).value == value


@pytest.mark.parametrize("gold", [None, "4, 3", "4, 3, 6", 4, [4, 3, 5]])
def test_bad_gold_scores_are_an_error(gold):
    with pytest.raises(RowError, match=r"row 'clip-7': answer=.*3 integers from 1 to 5"):
        scores(say("4, 3, 5"), make_row("custom", answer=gold))


def test_the_table_has_an_entry_for_each_number_of_scores_off():
    with pytest.raises(ValueError, match=r"4 entries for 2 names; give 0 to 2 off"):
        scores(say("4, 3"), make_row("custom", answer="4, 3"), names=("a", "b"))
