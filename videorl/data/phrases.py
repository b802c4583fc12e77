"""Where two responses to one prompt differ: phrases of the one, each with its counterpart in the other."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

_WORD = re.compile(r"\w+|[^\w\s]")


def align_phrases(chosen: str, rejected: str) -> list[dict[str, list[int]]]:
    """The differing phrases as `CanonicalRow.phrases` has them: [start, end) in characters, in order.

    Texts are compared word by word. What only one of them says is taken together with a word beside it that both say,
    so that every phrase has a counterpart. None where the texts have the same words.
    """
    words = [[(found.start(), found.end()) for found in _WORD.finditer(text)] for text in (chosen, rejected)]
    spelt = [[text[slice(*span)] for span in spans] for text, spans in zip((chosen, rejected), words, strict=True)]
    if not all(spelt):
        return []
    blocks: list[list[int]] = []  # first and last word + 1 of the one, and of the other
    for kind, i, j, k, m in SequenceMatcher(a=spelt[0], b=spelt[1], autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        if kind != "replace":
            i, k, j, m = (i - 1, k - 1, j, m) if i and k else (i, k, j + 1, m + 1)
        if blocks and (i < blocks[-1][1] or k < blocks[-1][3]):
            blocks[-1][1::2] = j, m
        else:
            blocks.append([i, j, k, m])
    return [
        {"chosen": [words[0][i][0], words[0][j - 1][1]], "rejected": [words[1][k][0], words[1][m - 1][1]]}
        for i, j, k, m in blocks
    ]
