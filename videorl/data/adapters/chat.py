"""Layouts whose records are conversations: verl's parquet, ms-swift, TRL, and the family of LLaVA."""

from __future__ import annotations

from typing import Any

from videorl.data.adapters.golds import as_question
from videorl.data.adapters.record import IMAGE, Record, refuse_other_tags, text_of
from videorl.data.records import RecordError
from videorl.data.schema import PLACEHOLDER

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
ANSWER_COLUMNS = ("solution", "answer", "ground_truth")

Messages = list[dict[str, str]]


def from_verl(record: Record) -> dict[str, Any]:
    """`prompt`, `videos`, `reward_model.ground_truth`; `extra_info` is laid open in `meta`, where rewards find it."""
    messages, shown = read_messages(record.need("prompt"))
    scoring = _object(record.need("reward_model"), "reward_model")
    gold = scoring.pop("ground_truth", None)
    for name, value in _object(record.take("extra_info") or {}, "extra_info").items():
        record.keep(name, value)
    if scoring:
        record.keep("reward_model", scoring)
    return _row(messages, gold) | {"videos": record.videos("videos", "video", shown=shown)}


def from_ms_swift(record: Record) -> dict[str, Any]:
    """`messages` and `videos`. The last message, where it is the assistant's, is the text to fit, or, beside a
    `rejected_response`, the chosen one of a pair."""
    messages, shown = read_messages(record.need("messages"))
    response, rejected = _take_response(messages), record.take("rejected_response")
    gold, videos = record.take(*ANSWER_COLUMNS), record.videos("videos", "video", shown=shown)
    if rejected is None:
        return fitted(messages, response, gold, videos)
    return fitted(messages, None, gold, videos) | {"chosen": response, "rejected": rejected}


def from_trl(record: Record) -> dict[str, Any]:
    """`prompt` as text or messages; `completion` is the text to fit; the answer in a column of its own."""
    messages, shown = read_messages(record.need("prompt"))
    completion = record.take("completion")
    response = read_messages(completion)[0][-1]["content"] if isinstance(completion, list) else completion
    return fitted(messages, response, record.take(*ANSWER_COLUMNS), record.videos("videos", "video", shown=shown))


def from_llava(record: Record) -> dict[str, Any]:
    """`video` and `conversations`, in which `<image>` stands for the video too. The last reply is the text to fit."""
    turns = record.need("conversations")
    videos = record.videos("video", "videos")
    if not videos:
        raise RecordError("missing", "video is absent; only records with a video are supported")
    messages, _ = read_messages(with_placeholders(turns))
    return fitted(messages, _take_response(messages), None, videos)


def read_messages(value: Any) -> tuple[Messages, list[dict[str, Any]]]:
    """Messages {role, content: text} with a placeholder for each video part, and the videos that the parts name.

    A text is one message of the user. Roles are also those of LLaVA (`human`, `gpt`), under `from` and `value`.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise RecordError("wrong_type", f"messages={value!r:.80} must be a text or a list of messages")
    shown: list[dict[str, Any]] = []
    messages: Messages = []
    for message in value:
        fields = _object(message, "message")
        role, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
        if not isinstance(role, str) or role not in ROLES:
            raise RecordError("wrong_type", f"role={role!r:.80} must be one of {', '.join(ROLES)}")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        texts = [_part(_object(part, "content part"), shown) for part in parts]
        messages.append({"role": ROLES[role], "content": text_of("".join(texts), "content")})
    return messages, shown


def _part(part: dict[str, Any], shown: list[dict[str, Any]]) -> str:
    """The text of a part of a message; a video that it names is added to `shown`."""
    match part.get("type"):
        case "text":
            return refuse_other_tags(text_of(part.get("text"), "text"))
        case "video" | "video_url":
            if len(part) > 1:
                shown.append(part)
            return PLACEHOLDER
    raise RecordError(
        "not_video", f"a content part of type {part.get('type')!r:.80}; only text and video are supported"
    )


def _take_response(messages: Messages) -> str | None:
    """Take the last message off, where it is the assistant's."""
    if messages[-1]["role"] != "assistant":
        return None
    if len(messages) == 1:
        raise RecordError("missing", "the conversation has no message of the user")
    return messages.pop()["content"]


def fitted(messages: Messages, response: Any, gold: Any, videos: list[dict[str, Any]]) -> dict[str, Any]:
    """A row with a text to fit, whose answer block is the right answer where no column says it."""
    if response is not None:
        response = text_of(response, "completion")
    row = _row(messages, response if gold is None else gold) | {"videos": videos}
    return row if response is None else row | {"response": response}


def _row(messages: Messages, gold: Any) -> dict[str, Any]:
    row = as_question(messages[-1]["content"], gold)
    if len(messages) > 1:
        row["prompt"] = [*messages[:-1], {**messages[-1], "content": row["prompt"]}]
    return row


def with_placeholders(value: Any) -> Any:
    """Texts, messages and lists of them with a placeholder for a video where LLaVA writes `<image>`."""
    if isinstance(value, str):
        return value.replace(IMAGE, PLACEHOLDER)
    if isinstance(value, list):
        return [with_placeholders(item) for item in value]
    if isinstance(value, dict):
        return {key: with_placeholders(item) if key in ("value", "content") else item for key, item in value.items()}
    return value


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError("wrong_type", f"{name}={value!r:.80} must be an object")
    return dict(value)
