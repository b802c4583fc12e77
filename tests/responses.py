"""Responses and rows for tests of rewards, and how to look at what a parser or a term made of them."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from videorl.answers.answer import REASONS, Failure
from videorl.rewards.result import RewardResult

fixed = settings(derandomize=True, deadline=None, max_examples=200)
COLOURS = ["red", "green", "blue", "yellow"]

fragments = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "A", " ", "<", "\n"]), max_size=12
).map("".join)

_PIECES = [
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<time>",
        "</time>",
        "<",
        "/",
        "```json",
        "```",
        "[",
        "]",
        "{",
        "}",
    ),
    *("A", "(B)", "green", "yes", "no", "not ", "nan", "inf", "-inf", "true", "null", "the answer is ", '"', ":", ","),
    *("3", "-", "+", ".", "1e999", "9" * 400, "²", "٣", "½", "1:30", " to ", " - ", "%", "$", "\\boxed{", "\n", "\t"),
    *("\0", "\x1b[31m", "\r", "\u0301" * 9, "\u202e", "\ud800", "\ufdfa", "😀"),
]
hostile = st.text() | st.lists(st.sampled_from(_PIECES), max_size=15).map("".join)
"""Arbitrary text, and the pieces of answers in arbitrary order: nested and unclosed tags, broken JSON, digits of other
scripts, control characters, half of a surrogate pair."""


def say(answer: str, think: str = "because") -> str:
    return f"<think>{think}</think><answer>{answer}</answer>"


def make_row(task: str, **fields: Any) -> dict[str, Any]:
    """A canonical row as far as rewards look at it."""
    return {"id": "clip-7", "task": task, "prompt": "?", "videos": [], "data_source": "test", "meta": {}, **fields}


def reason(parsed: Any) -> str:
    """Why a parser, or a term, could not read an answer. Fails where it could."""
    found = parsed.failure if isinstance(parsed, RewardResult) else parsed
    assert isinstance(found, Failure), parsed
    assert found.reason in REASONS
    return found.reason
