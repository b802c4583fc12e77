"""A whole free text."""

from __future__ import annotations

import re

from videorl.answers.answer import MAX_ANSWER_CHARS, Failure, failure
from videorl.answers.cleaning import clean, option_key

_WORD = re.compile(r"[^\W_]+")


def parse_text(answer: str) -> str | Failure:
    """The text in one line: NFKC, case folded, without mark-up and without what surrounds it. It holds a word."""
    if len(answer) > MAX_ANSWER_CHARS:
        return Failure("too_long", f"{len(answer)} characters")
    text = option_key(clean(answer))
    return text if _WORD.search(text) else failure("no_words", answer)


def words(text: str) -> list[str]:
    """The runs of letters and digits of a text, in lower case."""
    return _WORD.findall(text.lower())
