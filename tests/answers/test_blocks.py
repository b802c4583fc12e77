import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses import fixed, reason

from videorl.answers.answer import Failure
from videorl.answers.blocks import find_block


def test_block():
    assert find_block("so <time> 2 - 5 </time>\n<other>x</other>", "time") == "2 - 5"


@pytest.mark.parametrize(
    "text",
    [
        *("", "time", "<time>2 - 5", "2 - 5</time>", "</time>2 - 5<time>", "<time> \n</time>", "<TIME>2</TIME>"),
        "<time>1 - 2</time><time>2 - 5</time>",
        "<time>1 - 2<time>2 - 5</time>",
        "<time>1 - 2</time> or </time>",
    ],
)
def test_no_one_block(text):
    assert reason(find_block(text, "time")) == "wrong_block"


@fixed
@given(st.lists(st.sampled_from(["<time>", "</time>", "2", " ", "<"]), max_size=8).map("".join))
def test_block_against_a_slow_definition(text):
    parts = text.split("<time>")
    whole = len(parts) == 2 and parts[1].count("</time>") == 1 and "</time>" not in parts[0]
    body = parts[1].split("</time>")[0].strip() if whole else ""
    found = find_block(text, "time")
    assert (found if isinstance(found, str) else "") == body
    assert isinstance(found, Failure) == (body == "")
