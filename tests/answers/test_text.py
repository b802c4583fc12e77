import pytest
from responses import reason

from videorl.answers.text import parse_text, words


@pytest.mark.parametrize(
    "answer", ["Stop here", "STOP  here.", "**stop\nhere**", '"Stop here!"', "ｓtop here", r"\text{stop here}"]
)
def test_text(answer):
    assert parse_text(answer) == "stop here"


@pytest.mark.parametrize("answer", ["", " \n", "...", "**", "☃"])
def test_no_text(answer):
    assert reason(parse_text(answer)) == "no_words"


def test_words():
    assert words("It's 3 o'clock, Straße_7!") == ["it", "s", "3", "o", "clock", "straße", "7"]
