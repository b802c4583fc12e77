"""Several named integers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from videorl.answers.answer import MAX_ANSWER_CHARS, Failure, failure
from videorl.answers.cleaning import NO_SUPERSCRIPTS, clean
from videorl.answers.numbers import parse_counts

_NUMBERING = r"(?:\(?[0-9]{1,2}[.)]\s)?"
_SCORE = r"([+-]?[0-9]+(?:\.[0-9]+)?)"
_FENCE = re.compile(r"json\s", re.IGNORECASE)  # what `clean` leaves of ```json


def parse_scores(answer: str, names: Sequence[str], low: int, high: int) -> tuple[int, ...] | Failure:
    """One integer from `low` to `high` for each name, in the order of `names`.

    Reads "Visual quality: 4" in lines or in one line, numbered or not; the same as a flat JSON object (so "_" in a
    name is a blank); and bare numbers, "4, 3, 5", in the order of `names`. Each name stands there exactly once, and
    nothing but names and scores does.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return Failure("too_long", f"{len(answer)} characters")
    text = clean(answer.translate(NO_SUPERSCRIPTS))
    keys = [clean(name).casefold() for name in names]
    alternatives = "|".join(re.escape(key) for key in sorted(keys, key=len, reverse=True))
    named = re.compile(rf'{_NUMBERING}(?<!\w)"?({alternatives})"?\s?[:=]\s?{_SCORE}(?![\w%])', re.IGNORECASE)
    found = [(name.casefold(), score) for name, score in named.findall(text)]
    if not found:
        scores = parse_counts(answer, len(names))
        if isinstance(scores, Failure):
            return scores
    else:
        rest = _FENCE.sub("", named.sub(" ", text), count=1)
        if rest.strip(" \n,;.") or sorted(name for name, _ in found) != sorted(keys):
            return failure("wrong_names", answer)
        by_name = dict(found)
        scores = tuple(float(by_name[key]) if "." in by_name[key] else int(by_name[key]) for key in keys)
    integers = tuple(score for score in scores if isinstance(score, int) and low <= score <= high)
    return integers if len(integers) == len(names) else failure("outside_range", answer)
