"""From the text of a response to an answer: a typed value, or a `Failure` that says why there is none.

Rewards, evaluation and data checks all read answers here. No parser raises, whatever the string, and each takes
time linear in it. None guesses: an answer that can be read two ways is a failure, so hedging never pays.

    find_answer     the answer span of a response
    parse_blocks    the strict think-then-answer format
    parse_letter    the letter of one option
    parse_number    one finite number
    parse_interval  (start, end) in seconds
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal, NamedTuple

# Longer than any letter, number, interval or option text. It also bounds Unicode normalisation, which takes
# quadratic time on a run of combining marks (17 ms here, a quarter of an hour for 1 MB).
MAX_ANSWER_CHARS = 4096

REASONS = {
    "unclosed_think": "the reasoning is never closed",
    "no_answer": "no complete <answer> block",
    "empty_answer": "the answer is blank",
    "too_long": f"the answer is longer than {MAX_ANSWER_CHARS} characters",
    "wrong_tags": "a think or answer tag is missing, repeated or out of order",
    "text_outside": "text before, between or after the two blocks",
    "blank_block": "a think or answer block is blank",
    "no_letter": "no option is named",
    "several_letters": "more than one option is named",
    "outside_options": "the letter is not one of the options",
    "negated": "the answer denies instead of asserting",
    "no_number": "no number",
    "several_numbers": "more than one number",
    "malformed_number": "digits that are not one plain number",
    "not_finite": "not a finite number",
    "no_interval": "not one 'start to end' interval",
    "negative": "a negative time",
    "reversed": "the end is before the start",
    "zero_length": "start and end are equal",
}


@dataclass(frozen=True)
class Failure:
    """Why a response has no value: a machine-readable `reason`, explained in `REASONS`, and what was found."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def _failure(reason: str, found: str) -> Failure:
    """A failure that quotes the text it is about: escaped, because a model wrote it, and short."""
    return Failure(reason, repr(found if len(found) <= 60 else found[:60] + "…"))


# --- where the answer is ---------------------------------------------------------------------------------------------

THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"

Tags = Literal["full", "prefilled", "none"]
"""What a recipe asks for: `full` = the response writes <think>…</think><answer>…</answer>; `prefilled` = the same,
but the prompt already ends with <think>; `none` = no tags, the response is the answer."""


def find_answer(response: str, tags: Tags = "full") -> str | Failure:
    """The last complete answer block after the reasoning, stripped.

    Everything up to the last </think> is reasoning, whatever it quotes. A <think> after it was never closed, so
    there is no answer. Only with `tags="none"` may the whole text stand in for a missing block.
    """
    if tags == "prefilled":
        response = THINK + response
    text = response.rpartition(END_THINK)[2]
    if THINK in text:
        return Failure("unclosed_think")
    start = text.rfind(ANSWER, 0, max(0, text.rfind(END_ANSWER)))
    if start >= 0:
        text = text[start + len(ANSWER) : text.index(END_ANSWER, start)]
    elif tags != "none":
        return Failure("no_answer")
    return text.strip() or Failure("empty_answer")


class Blocks(NamedTuple):
    think: str
    answer: str


def parse_blocks(response: str, tags: Literal["full", "prefilled"] = "full") -> Blocks | Failure:
    """Exactly one think block, then exactly one answer block: white space around them, nothing else; neither blank."""
    text = response.strip()
    if tags == "prefilled":
        text = THINK + text
    if any(text.count(tag) != 1 for tag in (THINK, END_THINK, ANSWER, END_ANSWER)):
        return Failure("wrong_tags")
    before, _, rest = text.partition(THINK)
    think, _, rest = rest.partition(END_THINK)
    between, _, rest = rest.partition(ANSWER)
    answer, closed, after = rest.partition(END_ANSWER)
    if not closed:
        return Failure("wrong_tags")
    if before or between.strip() or after:
        return _failure("text_outside", before or between.strip() or after)
    if not think.strip() or not answer.strip():
        return Failure("blank_block")
    return Blocks(think, answer)


_LEGACY_SEAM = re.compile(r"</think>\s*+<answer>")


def matches_legacy_format(response: str, tags: Literal["full", "prefilled"] = "full") -> bool:
    """Whether `<think>.*?</think>\\s*<answer>.*?</answer>` (DOTALL) matches the whole response, as in Video-R1.

    It lets tags repeat and blocks be blank. Written without that pattern, which takes quadratic time.
    """
    text = THINK + response if tags == "prefilled" else response
    if not (text.startswith(THINK) and text.endswith(END_ANSWER)):
        return False
    return _LEGACY_SEAM.search(text, len(THINK), len(text) - len(END_ANSWER)) is not None


# --- what the answer says --------------------------------------------------------------------------------------------

_MARKUP = re.compile(r"\\(?:boxed|text|textbf|textit|mathrm|mathbf|mathit)(?![A-Za-z])|\\[()\[\]]|[*_`$#{}]")
_OPENING, _CLOSING = "([\"'“‘", ".,;:!?)]\"'”’"
_LEAD_IN = re.compile(
    r"(?:(?:based on|according to)\b[^,]*,\s*)?"
    r"(?:(?:(?:the|my)\s)?(?:(?:correct|right|best|final)\s)?(?:answer|option|choice)\b(?:\s(?:is|would be)\b)?"
    r"\s?[:=]?\s?(?:(?:option|choice|letter)\b\s?)?)?",
    re.IGNORECASE,
)
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|neither|nor|cannot|wrong|incorrect|false|except)\b|n['’]t\b", re.IGNORECASE
)


def _clean(text: str) -> str:
    """NFKC, without Markdown and LaTeX; one space for each run of blanks, one newline for each run with a newline."""
    text = _MARKUP.sub(" ", unicodedata.normalize("NFKC", text).replace("−", "-"))
    return "\n".join(line for line in (" ".join(line.split()) for line in text.split("\n")) if line)


def _trim(text: str) -> str:
    """Without the brackets, quotes and end punctuation around it. A leading point stays: it may belong to ".5"."""
    return text.lstrip(_OPENING + " \n").rstrip(_CLOSING + " \n")


def _key(text: str) -> str:
    """What two spellings of one option have in common."""
    return _trim(" ".join(text.split())).casefold()


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
        key = _key(_clean(choice))
        options[key] = options.get(key, "") + letter
    options.pop("", None)

    whole = _clean(answer)
    text = _trim(_LEAD_IN.sub("", _trim(whole), count=1))
    if len(text) == 1 and text.upper() in letters:
        return text.upper()
    labelled = _labelled_option(text, letters, options)
    readings = set(options.get(_key(whole), "") + options.get(_key(text), ""))
    if not readings:
        return labelled if isinstance(labelled, str) else _failure(labelled.reason, answer)
    if isinstance(labelled, str):
        readings.add(labelled)
    return readings.pop() if len(readings) == 1 else _failure("several_letters", answer)


def _labelled_option(text: str, letters: str, options: dict[str, str]) -> str | Failure:
    """The letter at the head of a text, if what follows does not speak against it."""
    label, rest = text, ""
    if set_off := _LABEL.match(text):
        label, rest = set_off.groups()
    elif text[1:2] == " " and text[0].upper() in options.get(_key(text[2:]), ""):
        label = text[0]
    if len(label) != 1 or not (label.isascii() and label.isalpha()):
        if len(_mentions(text, letters)) > 1:
            return Failure("several_letters")
        return Failure("negated" if _NEGATION.search(text) else "no_letter")
    label = label.upper()
    if label not in letters:
        return Failure("outside_options")

    rest = " ".join(rest.split())
    if options:  # longest first, so that "red" is not found inside "red square"
        alternatives = "|".join(re.escape(key) for key in sorted(options, key=len, reverse=True))
        named = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)
        if any(label not in options.get(_key(name), "") for name in named.findall(rest)):
            return Failure("several_letters")
        rest = named.sub(" ", rest)
    if _mentions(rest, letters) - {label}:
        return Failure("several_letters")
    return Failure("negated") if _NEGATION.search(rest) else label


_NO_SUPERSCRIPTS = str.maketrans(dict.fromkeys("⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉", "^"))  # NFKC would make 10² read as 102
_NUMBER = re.compile(
    r"([+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?)(?:%|s|secs?|seconds?)?"
)
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity|∞)")
_CHANGES_VALUE = re.compile(
    r"\b(?:minus|negative|half|dozen|hundred|thousand|million|billion)\b|(?:^|\s)[+-]\s", re.IGNORECASE
)


def parse_number(answer: str) -> int | float | Failure:
    """The one number of an answer: an int if it is written without point and exponent, else a float.

    Words may stand around it, but none that change it (not, minus, half, million). Thousands commas are read, "%"
    and seconds are ignored: "50%" is 50. Ranges, fractions, clock times and superscripts are not numbers.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return Failure("too_long", f"{len(answer)} characters")
    text = _clean(answer.translate(_NO_SUPERSCRIPTS)).replace("=", " ").casefold()
    tokens = [_trim(token) for token in text.split()]
    numbers = [token for token in tokens if any(map(str.isdigit, token)) or _NOT_FINITE.fullmatch(token)]
    if len(numbers) != 1:
        return _failure("several_numbers" if numbers else "no_number", answer)
    if _NOT_FINITE.fullmatch(numbers[0]):
        return _failure("not_finite", answer)
    match = _NUMBER.fullmatch(numbers[0])
    if not match or _CHANGES_VALUE.search(text):
        return _failure("malformed_number", answer)
    if _NEGATION.search(text):
        return _failure("negated", answer)
    digits = match[1].replace(",", "")
    value = float(digits)
    if not math.isfinite(value):
        return _failure("not_finite", answer)
    return int(digits) if digits.lstrip("+-").isdecimal() else value


Interval = tuple[float, float]

_CLOCK = r"[0-9]+:[0-5][0-9](?::[0-5][0-9])?(?:\.[0-9]+)?"
_SECONDS = r"[0-9]+(?:\.[0-9]+)?"
_TIME = rf"(-?(?:{_CLOCK}|{_SECONDS}))(?: ?(?:s|secs?|seconds?)\b)?"
_INTERVAL = re.compile(rf"(?:from )?{_TIME} ?(?:[-–—~]|to\b) ?{_TIME}")


def parse_interval(answer: str) -> Interval | Failure:
    """(start, end) in seconds, 0 <= start < end, from "2 to 5", "2.0s - 5.5s" or "0:02 ~ 1:00:05".

    A time is a number of seconds, mm:ss or hh:mm:ss; the separator is -, –, —, ~ or "to". Nothing is clamped, swapped
    or scaled: a reversed interval or a percentage is a failure.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return Failure("too_long", f"{len(answer)} characters")
    text = _trim(_clean(answer.translate(_NO_SUPERSCRIPTS)))
    match = _INTERVAL.fullmatch(_key(_LEAD_IN.sub("", text, count=1)))
    if not match:
        return _failure("no_interval", answer)
    if match[1].startswith("-") or match[2].startswith("-"):
        return _failure("negative", answer)
    start, end = _seconds(match[1]), _seconds(match[2])
    if not (math.isfinite(start) and math.isfinite(end)):
        return _failure("not_finite", answer)
    if start >= end:
        return _failure("zero_length" if start == end else "reversed", answer)
    return start, end


def _seconds(time: str) -> float:
    """Seconds of "75", "01:15" or "00:01:15"."""
    total = 0.0
    for part in time.split(":"):
        total = 60 * total + float(part)
    return total
