import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import COLOURS, fixed, make_row, say

from videorl.answers.gold import RowError
from videorl.rewards.terms.accuracy import accuracy
from videorl.rewards.terms.format import follows_format

MC = make_row("mc", choices=COLOURS, answer="B")
GROUNDING = make_row("grounding", spans=[[2, 6]])


def test_accuracy_goes_by_task():
    assert accuracy(say("B"), MC).value == 1.0
    assert accuracy(say("B"), {**MC, "task": "next_event"}).value == 1.0
    assert accuracy(say("5.5"), make_row("numeric", answer=5), tolerance=0.5).value == 1.0
    assert accuracy(say("3 to 5"), GROUNDING).value == 0.5
    for task_row, answer in ((MC, "B"), (make_row("numeric", answer=5), "5"), (GROUNDING, "2 to 6")):
        assert accuracy(answer, task_row).value == 0.0
        assert accuracy(answer, task_row, tags="none").value == 1.0


@pytest.mark.parametrize("task", ["open", "custom", "nonsense"])
def test_accuracy_names_a_task_it_cannot_score(task):
    with pytest.raises(RowError, match=rf"row 'clip-7'.*task '{task}'.*a reward function of your own") as error:
        accuracy(say("B"), make_row(task, answer="B"))
    assert error.value.reason == "no_scorer"


@fixed
@given(st.text())
def test_no_response_raises_or_leaves_the_range(text):
    for task_row in (MC, make_row("numeric", answer=5), GROUNDING):
        for response in (text, say(text)):
            assert 0.0 <= accuracy(response, task_row).value <= 1.0
            assert follows_format(response, task_row).value in (0.0, 1.0)
