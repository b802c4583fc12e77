"""Right answers and options of other layouts, normalised: tags taken off, options split, answers as letters."""

from __future__ import annotations

import json
import re
from string import ascii_uppercase
from typing import Any, Literal

from videorl.answers.answer import ANSWER, Failure, find_answer
from videorl.answers.letters import parse_letter
from videorl.answers.numbers import parse_number
from videorl.data.records import RecordError

Kind = Literal["mc", "numeric", "open"]

_LABELLED = re.compile(r"\(?([A-Z])(?:[.):]|\s-)\s*(\S.*)", re.DOTALL)
_INLINE_LABEL = re.compile(r"\(([A-Z])\)")
_HEADER = re.compile(r"(?:the )?(?:options|choices)(?: are)? ?:?", re.IGNORECASE)
_PLAIN_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")


def as_question(text: str, gold: Any, *, options: Any = None, kind: Kind | None = None) -> dict[str, Any]:
    """The fields `task`, `prompt`, `choices` and `answer` of a question whose right answer is `gold`.

    Without `kind` it follows from the answer: a letter or text of the options (given, or listed in the question) is
    `mc`, a plain number `numeric`, an object or list `custom` (as JSON text), anything else `open`.

    Raises:
        RecordError: `bad_gold`, `no_options`, `wrong_type`, `missing`.
    """
    if isinstance(gold, dict | list):
        return {"task": "custom", "prompt": text, "answer": json.dumps(gold)}
    gold = read_gold(gold)
    choices = read_options(options)
    if kind is None and choices is not None:
        kind = "mc"
    if kind in ("mc", None) and choices is None:
        stem, listed = split_options(text)
        if listed and (kind == "mc" or _is_letter(gold) or isinstance(_letter(gold, listed), str)):
            kind, text, choices = "mc", stem, listed
        elif kind == "mc" or _is_letter(gold):
            raise RecordError("no_options", f"answer={gold!r}: the question lists no options (A) ... (B) ...; add them")
    if kind == "mc":
        letter = _letter(gold, choices or [])
        if isinstance(letter, Failure):
            raise RecordError("bad_gold", f"answer={gold!r} names none of choices={choices!r} ({letter.reason})")
        return {"task": "mc", "prompt": text, "choices": choices, "answer": letter}
    if kind == "numeric" or (kind is None and _is_number(gold)):
        return {"task": "numeric", "prompt": text, "answer": _number(gold)}
    return {"task": "open", "prompt": text, "answer": gold}


def read_gold(value: Any) -> str | int | float | None:
    """A right answer without its `<answer>` tags; None where there is none."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    if not isinstance(value, str):
        raise RecordError("wrong_type", f"answer={value!r:.80} must be a text or a number")
    gold = find_answer(value, "none") if ANSWER in value else value.strip()
    if isinstance(gold, Failure) or not gold:
        raise RecordError("bad_gold", f"answer={value!r:.80} holds no answer")
    return gold


def read_options(value: Any) -> list[str] | None:
    """Options without their letters, from a list (["A. red", "B. blue"]) or an object ({"A": "red", "B": "blue"})."""
    if value is None or value in ([], {}):
        return None
    if isinstance(value, dict):
        letters = sorted(value)
        if letters != list(ascii_uppercase[: len(letters)]):
            raise RecordError("wrong_type", f"options are named {letters!r}; name them A, B, C, ...")
        value = [value[letter] for letter in letters]
    if not isinstance(value, list):
        raise RecordError("wrong_type", f"options={value!r:.80} must be a list, or an object from letters to texts")
    texts = [str(option) if type(option) in (int, float) else option for option in value]
    if not all(isinstance(option, str) and option.strip() for option in texts):
        raise RecordError("wrong_type", f"options={value!r:.200} must be texts")
    labelled = [_LABELLED.fullmatch(option.strip()) for option in texts]
    if all(match and match[1] == letter for match, letter in zip(labelled, ascii_uppercase, strict=False)):
        return [match[2] for match in labelled if match]
    return [option.strip() for option in texts]


def split_options(text: str) -> tuple[str, list[str] | None]:
    """The question without its options, and these: one on each line, or in line as "(A) red (B) blue".

    Text after the last option's line stays in the question. (text, None) where no two options are listed.
    """
    lines = text.split("\n")
    runs: list[list[tuple[int, str]]] = [[]]  # of lines labelled A, B, C, ...: (line, option)
    for number, line in enumerate(lines):
        match = _LABELLED.fullmatch(line.strip())
        if match and match[1] == ascii_uppercase[len(runs[-1]) % 26] and len(runs[-1]) < 26:
            runs[-1].append((number, match[2]))
        elif match and match[1] == "A":
            runs.append([(number, match[2])])
        elif line.strip() and runs[-1]:
            runs.append([])
    run = next((run for run in reversed(runs) if len(run) > 1), None)
    if run is None:
        return _split_inline(text)
    before, after = lines[: run[0][0]], lines[run[-1][0] + 1 :]
    while before and (not before[-1].strip() or _HEADER.fullmatch(before[-1].strip())):
        before.pop()
    return "\n".join(before + after).rstrip(), [option for _, option in run]


def _split_inline(text: str) -> tuple[str, list[str] | None]:
    stem, *rest = _INLINE_LABEL.split(text)
    letters, options = rest[::2], rest[1::2]
    if len(letters) < 2 or "".join(letters) != ascii_uppercase[: len(letters)]:
        return text, None
    *inner, (last, newline, after) = *options[:-1], options[-1].partition("\n")
    choices = [option.strip(" ,;\n") for option in (*inner, last)]
    if not all(choices):
        return text, None
    stem = stem.rstrip()
    head, _, header = stem.rpartition("\n")
    if _HEADER.fullmatch(header.strip()):
        stem = head.rstrip()
    return stem + newline + after, choices


def _letter(gold: Any, choices: list[str]) -> str | Failure:
    return Failure("no_answer") if gold is None else parse_letter(str(gold), choices)


def _is_letter(gold: Any) -> bool:
    return isinstance(gold, str) and len(gold.strip("().")) == 1 and gold.strip("().") in ascii_uppercase


def _is_number(gold: Any) -> bool:
    return isinstance(gold, int | float) or (isinstance(gold, str) and bool(_PLAIN_NUMBER.fullmatch(gold)))


def _number(gold: Any) -> Any:
    """As it is where it is a plain number, for its decimals may count; else the one number that the text holds."""
    if gold is None:
        raise RecordError("missing", "the answer is absent; a numeric question needs one")
    if _is_number(gold):
        return gold
    number = parse_number(gold)
    if isinstance(number, Failure):
        raise RecordError("bad_gold", f"answer={gold!r:.80} is not one number ({number.reason})")
    return number
