"""The letter of one option."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from videorl.answers.answer import MAX_ANSWER_CHARS, Failure, failure
from videorl.answers.cleaning import LEAD_IN, NEGATION, clean, option_key, trim


def list_options(choices: Sequence[str] | None) -> str:
    """Options as they stand behind a question: "(A) red (B) green"; "" for none."""
    return " ".join(f"({letter}) {choice}" for letter, choice in zip(ascii_uppercase, choices or (), strict=False))


_LABEL = re.compile(
    r"([A-Za-z])"
    r"(?:[)\]\"”][.:;,]?\s*|\s?[.:;,]\s|\s[-–—]\s|\n)"  # what sets a label off from the text that follows it
    r"(.+)",
    re.DOTALL,
)
_MENTION = re.compile(
    r"(?<![\w'’.-])"
    r"(?!a (?!(?:and|or|nor|but|is|are)\b)\w)"  # the article: 'a' before a word that can be a noun
    r"([a-z])"
    r"(?![\w'’-]|\.\w)",
    re.IGNORECASE,
)


def _mentions(text: str, letters: str) -> set[str]:
    """The standalone letters of a text that stand for options: those on offer, and other capitals (not 'I')."""
    found = _MENTION.findall(text)
    return {letter.upper() for letter in found if letter.upper() in letters or (letter.isupper() and letter != "I")}


def parse_letter(answer: str, choices: Sequence[str]) -> str | Failure:
    """The option an answer names, "A" for `choices[0]`: by its letter, by its whole text, or by both.

    A letter counts at the head of the answer (after "the answer is", "option", "based on the video,"), where it
    stands alone, is set off ("B.", "(b)", "B:", "B -") or is followed by its own option's text. Words may follow a
    letter that is set off, but no second letter, other option's text or negation. A letter alone is a letter, even
    where some option's text is that letter.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return Failure("too_long", f"{len(answer)} characters")
    letters = ascii_uppercase[: len(choices)]
    options: dict[str, str] = {}  # option text -> the letters it stands for
    for letter, choice in zip(letters, choices, strict=False):
        key = option_key(clean(choice))
        options[key] = options.get(key, "") + letter
    options.pop("", None)

    whole = clean(answer)
    text = trim(LEAD_IN.sub("", trim(whole), count=1))
    if len(text) == 1 and text.upper() in letters:
        return text.upper()
    labelled = _labelled_option(text, letters, options)
    readings = set(options.get(option_key(whole), "") + options.get(option_key(text), ""))
    if not readings:
        return labelled if isinstance(labelled, str) else failure(labelled.reason, answer)
    if isinstance(labelled, str):
        readings.add(labelled)
    return readings.pop() if len(readings) == 1 else failure("several_letters", answer)


def _labelled_option(text: str, letters: str, options: dict[str, str]) -> str | Failure:
    """The letter at the head of a text, if what follows does not speak against it."""
    label, rest = text, ""
    if set_off := _LABEL.match(text):
        label, rest = set_off.groups()
    elif text[1:2] == " " and text[0].upper() in options.get(option_key(text[2:]), ""):
        label = text[0]
    if len(label) != 1 or not (label.isascii() and label.isalpha()):
        if len(_mentions(text, letters)) > 1:
            return Failure("several_letters")
        return Failure("negated" if NEGATION.search(text) else "no_letter")
    label = label.upper()
    if label not in letters:
        return Failure("outside_options")

    rest = " ".join(rest.split())
    if options:  # longest first, so that "red" is not found inside "red square"
        alternatives = "|".join(re.escape(key) for key in sorted(options, key=len, reverse=True))
        named = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)
        if any(label not in options.get(option_key(name), "") for name in named.findall(rest)):
            return Failure("several_letters")
        rest = named.sub(" ", rest)
    if _mentions(rest, letters) - {label}:
        return Failure("several_letters")
    return Failure("negated") if NEGATION.search(rest) else label
