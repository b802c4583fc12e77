"""Layouts whose records are pairs: a response that was chosen and one that was rejected."""

from __future__ import annotations

import re
from typing import Any

from videorl.data.adapters.chat import ANSWER_COLUMNS, Messages, fitted, read_messages, with_placeholders
from videorl.data.adapters.record import Record, text_of
from videorl.data.records import RecordError

_MASKED = re.compile(r"<MASK>(.*?)</MASK>", re.DOTALL)


def from_preference(record: Record) -> dict[str, Any]:
    """`chosen` and `rejected` as texts, as a message, or as conversations of which the last message is the response.

    The prompt is in `prompt`, `question`, `messages` or `conversations`, else it is what the conversations begin with.
    """
    chosen, rejected = (_conversation(record.need(side), side) for side in ("chosen", "rejected"))
    before = record.take("prompt", "question", "messages", "conversations")
    if before is None:
        if not chosen[:-1] or chosen[:-1] != rejected[:-1]:
            raise RecordError("missing", "prompt is absent, and chosen and rejected do not begin alike; give it")
        before = chosen[:-1]
    messages, shown = read_messages(with_placeholders(before))
    videos = record.videos("videos", "video", shown=shown)
    row = fitted(messages, None, record.take(*ANSWER_COLUMNS), videos)
    return row | {"chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"]}


def from_rrpo(record: Record) -> dict[str, Any]:
    """`question`, `video`; `answer` is chosen and `pred` rejected, and `answer_masked` and `pred_masked` mark the
    phrases in which they differ, <MASK>so</MASK> (RRPO, arXiv 2504.12083)."""
    chosen, right = _phrases(record, "answer")
    rejected, wrong = _phrases(record, "pred")
    if len(right) != len(wrong):
        raise RecordError(
            "bad_phrases",
            f"answer_masked has {len(right)} phrases and pred_masked {len(wrong)}; each needs its counterpart",
        )
    messages, _ = read_messages(with_placeholders(record.text("question")))
    row = fitted(messages, None, None, record.videos("video", "videos"))
    phrases = [{"chosen": one, "rejected": other} for one, other in zip(right, wrong, strict=True)]
    return row | {"chosen": chosen, "rejected": rejected, "phrases": phrases}


def _phrases(record: Record, side: str) -> tuple[str, list[list[int]]]:
    """A response, and where its marked phrases stand in it: [start, end) in characters."""
    text, masked = record.text(side), record.text(f"{side}_masked")
    parts = _MASKED.split(masked)  # what stands between phrases, and the phrases, in turns
    if "".join(parts) != text:
        raise RecordError("bad_phrases", f"{side}_masked without its marks is not {side}={text!r:.80}; make them equal")
    if any(not phrase for phrase in parts[1::2]) or len(parts) == 1:
        raise RecordError("bad_phrases", f"{side}_masked={masked!r:.80} marks no phrase, or an empty one")
    ends = [len("".join(parts[: place + 1])) for place in range(len(parts))]
    return text, [[ends[place - 1], ends[place]] for place in range(1, len(parts), 2)]


def _conversation(value: Any, side: str) -> Messages:
    if isinstance(value, str):
        return [{"role": "assistant", "content": text_of(value, side)}]
    messages, _ = read_messages(with_placeholders(value if isinstance(value, list) else [value]))
    if messages[-1]["role"] != "assistant":
        raise RecordError("missing", f"{side} ends with a message of {messages[-1]['role']!r}, not the assistant's")
    return messages
