"""What every reader does to a text before it reads it."""

from __future__ import annotations

import re
import unicodedata

_MARKUP = re.compile(r"\\(?:boxed|text|textbf|textit|mathrm|mathbf|mathit)(?![A-Za-z])|\\[()\[\]]|[*_`$#{}]")
_OPENING, _CLOSING = "([\"'“‘", ".,;:!?)]\"'”’"
LEAD_IN = re.compile(
    r"(?:(?:based on|according to)\b[^,]*,\s*)?"
    r"(?:(?:(?:the|my)\s)?(?:(?:correct|right|best|final)\s)?(?:answer|option|choice)\b(?:\s(?:is|would be)\b)?"
    r"\s?[:=]?\s?(?:(?:option|choice|letter)\b\s?)?)?",
    re.IGNORECASE,
)
NEGATION = re.compile(
    r"\b(?:not|no|never|none|neither|nor|cannot|wrong|incorrect|false|except)\b|n['’]t\b", re.IGNORECASE
)


def clean(text: str) -> str:
    """NFKC, without Markdown and LaTeX; one space for each run of blanks, one newline for each run with a newline."""
    text = _MARKUP.sub(" ", unicodedata.normalize("NFKC", text).replace("−", "-"))
    return "\n".join(line for line in (" ".join(line.split()) for line in text.split("\n")) if line)


def trim(text: str) -> str:
    """Without the brackets, quotes and end punctuation around it. A leading point stays: it may belong to ".5"."""
    return text.lstrip(_OPENING + " \n").rstrip(_CLOSING + " \n")


def bare(answer: str) -> str:
    """An answer cleaned and trimmed, without a lead-in such as "the answer is"."""
    return trim(LEAD_IN.sub("", trim(clean(answer)), count=1))


def option_key(text: str) -> str:
    """What two spellings of one option have in common."""
    return trim(" ".join(text.split())).casefold()


NO_SUPERSCRIPTS = str.maketrans(dict.fromkeys("⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉", "^"))  # NFKC would make 10² read as 102
