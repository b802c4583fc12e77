"""One of a few fixed statements; yes or no."""

from __future__ import annotations

import re
from collections.abc import Iterable

from videorl.answers.answer import MAX_ANSWER_CHARS, Failure, failure
from videorl.answers.cleaning import NEGATION, bare, clean, option_key

_HEAD = re.compile(r"(yes|no)(?=$|\n|[.,;:!)](?:\s|$)|\s[-–—]\s)")  # set off: "no, it stays", not "no idea"
_YES_OR_NO = re.compile(r"(?<![\w-])(?:yes|no)(?![\w-])")


def parse_verdict(answer: str, verdicts: Iterable[str]) -> str | Failure:
    """The verdict ("Answer 1 is better") that the answer is; only case, mark-up, quotes, end punctuation and a lead-in
    such as "my answer is" may differ.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return Failure("too_long", f"{len(answer)} characters")
    by_key = {option_key(clean(verdict)): verdict for verdict in verdicts}
    whole = option_key(clean(answer))
    for reading in (whole, option_key(bare(answer))):  # "Answer 1 is better" itself looks like a lead-in
        if reading in by_key:
            return by_key[reading]
    named = sum(key in whole for key in by_key if key)
    return failure("several_verdicts" if named > 1 else "no_verdict", answer)


def parse_yes_no(answer: str) -> bool | Failure:
    """Whether the answer is yes. Words may follow a yes or no that is set off ("No, he stays"), but not the other of
    the two, and after a yes no negation.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return Failure("too_long", f"{len(answer)} characters")
    text = bare(answer).casefold()
    if len(set(_YES_OR_NO.findall(text))) > 1:
        return failure("several_verdicts", answer)
    head = _HEAD.match(text)
    if head is None:
        return failure("negated" if text.startswith("not ") else "no_verdict", answer)
    if head[1] == "yes" and NEGATION.search(text):
        return failure("negated", answer)
    return head[1] == "yes"
