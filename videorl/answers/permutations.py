"""Some symbols in an order."""

from __future__ import annotations

import re

from videorl.answers.answer import MAX_ANSWER_CHARS, Failure, failure
from videorl.answers.cleaning import NO_SUPERSCRIPTS, bare

_SEPARATORS = re.compile(r"[\s,;>→-]+")


def parse_permutation(answer: str, symbols: str | None = None) -> str | Failure:
    """The symbols in the answer's order: "312" from "3, 1, 2." or "3->1->2".

    Each of `symbols`, distinct characters, must stand there exactly once, and nothing else; without `symbols`, any two
    or more distinct characters.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return Failure("too_long", f"{len(answer)} characters")
    order = _SEPARATORS.sub("", bare(answer.translate(NO_SUPERSCRIPTS)))
    whole = sorted(order) == sorted(symbols) if symbols else len(set(order)) == len(order) > 1
    return order if whole else failure("not_a_permutation", answer)
