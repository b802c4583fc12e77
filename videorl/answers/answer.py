"""Where the answer of a response is, and what it is called when there is none."""

from __future__ import annotations

import re
from dataclasses import dataclass
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
    "wrong_count": "not the number of values that was asked for",
    "no_verdict": "none of the possible verdicts",
    "several_verdicts": "more than one verdict",
    "no_words": "no word",
    "not_a_permutation": "not every symbol exactly once",
    "wrong_names": "a score is missing, repeated or has no known name",
    "outside_range": "a score that is no integer of its range",
    "no_interval": "not one 'start to end' interval",
    "negative": "a negative time",
    "reversed": "the end is before the start",
    "zero_length": "start and end are equal",
    "wrong_block": "a block of the asked format is missing, repeated, out of order or blank",
    "not_json": "not one JSON value",
    "wrong_schema": "JSON without the keys or types that were asked for",
    "duplicate_key": "a JSON key is repeated",
    "too_large": "more text, nesting or boxes than an answer may have",
    "no_boxes": "no list of boxes",
    "several_boxes": "more than one box",
    "invalid_box": "a box that is not four finite numbers with x1 < x2 and y1 < y2",
    "repeated_frame": "two boxes for one frame",
    "unknown_frame": "the frame is none of those shown",
}


@dataclass(frozen=True)
class Failure:
    """Why a response has no value: a machine-readable `reason`, explained in `REASONS`, and what was found."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def failure(reason: str, found: str) -> Failure:
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
    bodies = split_blocks(THINK + text if tags == "prefilled" else text, "think", "answer")
    return bodies if isinstance(bodies, Failure) else Blocks(*bodies)


def split_blocks(text: str, *names: str) -> tuple[str, ...] | Failure:
    """The body of each `<name>…</name>`: exactly one of each, in this order, with white space around them and nothing
    else; none blank."""
    tags = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
    if any(text.count(tag) != 1 for tag in tags):
        return Failure("wrong_tags")
    pieces: list[str] = []
    for tag in tags:
        piece, found, text = text.partition(tag)
        if not found:
            return Failure("wrong_tags")
        pieces.append(piece)
    outside = "".join([*pieces[::2], text]).strip()
    if outside:
        return failure("text_outside", outside)
    bodies = tuple(pieces[1::2])
    return bodies if all(body.strip() for body in bodies) else Failure("blank_block")


_LEGACY_SEAM = re.compile(r"</think>\s*+<answer>")


def matches_legacy_format(response: str, tags: Literal["full", "prefilled"] = "full") -> bool:
    """Whether `<think>.*?</think>\\s*<answer>.*?</answer>` (DOTALL) matches the whole response, as in Video-R1.

    It lets tags repeat and blocks be blank. Written without that pattern, which takes quadratic time.
    """
    text = THINK + response if tags == "prefilled" else response
    if not (text.startswith(THINK) and text.endswith(END_ANSWER)):
        return False
    return _LEGACY_SEAM.search(text, len(THINK), len(text) - len(END_ANSWER)) is not None


def starts_with_legacy_format(response: str, tags: Literal["full", "prefilled"] = "full") -> bool:
    """Whether the response starts with what `matches_legacy_format` matches, as in UnifiedReward-Think; anything may
    follow."""
    whole, closed, _ = response.rpartition(END_ANSWER)
    return matches_legacy_format(whole + closed, tags)
