"""The canonical row: what every data set is read into, and the rules it must keep before a run may start.

    {"id": "bikes-1", "task": "mc", "prompt": "What is shown first?", "videos": [{"path": "bikes.mp4", "end": 9.0}],
     "choices": ["a dog", "a taxi"], "answer": "B", "data_source": "bikes", "meta": {}}

Null means absent. Columns that are no field of the row are moved to `meta`, and so reach the rewards.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import reprlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PlainValidator,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, from_json

from videorl.imports import require
from videorl.types import DataError

if TYPE_CHECKING:
    import pyarrow as pa

PLACEHOLDER = "<video>"  # stands for the next of `videos` in the text of a prompt
MAX_REPORTED = 20  # bad rows spelled out in one error
BATCH_ROWS = 1024  # rows of an Arrow table held as Python objects at a time


# --- the row ---------------------------------------------------------------------------------------------------------


def _read_id(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _read_answer(value: Any) -> str | int | float:
    if isinstance(value, str) or _is_finite_number(value):
        return value
    raise ValueError(f"{value!r} must be a text or a finite number")


def _is_finite_number(value: Any) -> bool:
    """The bound also holds for integers that no float can represent."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


NonEmpty = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(ge=0)]
Span = Annotated[list[Seconds], Field(min_length=2, max_length=2)]
Characters = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]
Option = Annotated[str, Field(pattern=r"\S")]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class VideoRef(_Section):
    """A file under `data.media_root` and the part of it that is shown; seconds count from its first frame."""

    path: NonEmpty
    start: Seconds | None = None
    end: Seconds | None = None
    fps: Annotated[float, Field(gt=0)] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_content(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "bytes" in raw:  # what `datasets` makes of a local file in a video column
            raise ValueError("the table holds the video itself; write it under data.media_root and give its path")
        return raw

    @model_validator(mode="after")
    def _check_span(self) -> VideoRef:
        if self.end is not None and self.end <= (self.start or 0.0):
            raise ValueError(f"end={self.end} must be greater than start={self.start or 0.0}")
        return self


class Part(_Section):
    type: Literal["text", "video"]
    text: NonEmpty | None = None

    @model_validator(mode="after")
    def _check_text(self) -> Part:
        if (self.type == "text") != (self.text is not None):
            raise ValueError(f"type={self.type!r} with text={self.text!r}: a text part has text, a video part has none")
        return self


class Message(_Section):
    role: Literal["system", "user", "assistant"]
    content: Annotated[
        Annotated[NonEmpty, Tag("text")] | Annotated[list[Part], Field(min_length=1), Tag("parts")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "parts"),
    ]

    @property
    def text(self) -> str:
        """The content as one string, with a placeholder for each video part."""
        if isinstance(self.content, str):
            return self.content
        return "".join(PLACEHOLDER if part.text is None else part.text for part in self.content)


class PhrasePair(_Section):
    """Where a phrase stands in the chosen response, and its counterpart in the rejected: [start, end) in characters."""

    chosen: Characters
    rejected: Characters


class Provenance(_Section):
    """Where a pair comes from, if a model made it."""

    model: str | None = None  # digest of the weights that wrote the responses
    iteration: int | None = None
    perturbation: str | None = None  # what was done to the frames that the rejected response saw
    critique: str | None = None


class CanonicalRow(_Section):
    """One question about any number of videos. `response` is the target text of supervised training; `chosen` and
    `rejected` are those of preference training, `phrases` where the two differ.

    `spans` are [start, end] in seconds on the clip's own clock: 0 is where the clip starts, not where its file does.
    """

    id: Annotated[NonEmpty, BeforeValidator(_read_id)]
    task: Literal["mc", "open", "numeric", "grounding", "next_event", "custom"]
    prompt: Annotated[
        Annotated[NonEmpty, Tag("text")] | Annotated[list[Message], Field(min_length=1), Tag("messages")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "messages"),
    ]
    videos: list[VideoRef] = []
    choices: Annotated[list[Option], Field(min_length=2, max_length=len(ascii_uppercase))] | None = None
    answer: Annotated[str | int | float | None, PlainValidator(_read_answer)] = None
    spans: Annotated[list[Span], Field(min_length=1)] | None = None
    data_source: str = "unknown"
    meta: dict[str, JsonValue] = {}
    response: NonEmpty | None = None
    chosen: NonEmpty | None = None
    rejected: NonEmpty | None = None
    phrases: Annotated[list[PhrasePair], Field(min_length=1)] | None = None
    provenance: Provenance | None = None

    @property
    def messages(self) -> list[Message]:
        return [Message(role="user", content=self.prompt)] if isinstance(self.prompt, str) else self.prompt

    @model_validator(mode="before")
    @classmethod
    def _move_unknown_columns_to_meta(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        row = without_nulls(raw)
        unknown = {name: row.pop(name) for name in row.keys() - cls.model_fields.keys()}
        for name in unknown:  # a misspelt `videos` would otherwise train without the video, and nothing would say so
            for near in difflib.get_close_matches(name, cls.model_fields.keys() - row.keys(), n=1, cutoff=0.8):
                raise ValueError(f"column {name!r} looks like the absent {near!r}; rename it, or move it into meta")
        meta = row.get("meta", {})
        if isinstance(meta, dict):
            if shared := sorted(unknown.keys() & meta.keys()):
                raise ValueError(f"{shared[0]!r} is both a column and a key of meta; rename one of the two")
            row["meta"] = meta | unknown
        return row

    @model_validator(mode="after")
    def _check_prompt(self) -> CanonicalRow:
        if (last := self.messages[-1].role) != "user":
            raise ValueError(f"prompt ends with a message of role {last!r}; the last message must be the user's")
        found = sum(message.text.count(PLACEHOLDER) for message in self.messages)
        if found not in (0, len(self.videos)):
            raise ValueError(
                f"prompt has {found} {PLACEHOLDER} for {len(self.videos)} videos; "
                "write one for each video in order, or none"
            )
        return self

    @model_validator(mode="after")
    def _check_options(self) -> CanonicalRow:
        if self.choices and len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices={self.choices!r} repeat an option; the options must differ")
        for start, end in self.spans or ():
            if start >= end:
                raise ValueError(f"spans: [{start}, {end}] must be [start, end] in seconds with start < end")
        return self

    @model_validator(mode="after")
    def _check_pair(self) -> CanonicalRow:
        if (self.chosen is None) != (self.rejected is None):
            raise ValueError(f"chosen={self.chosen!r} with rejected={self.rejected!r}: a pair needs both")
        if self.chosen is not None and self.chosen == self.rejected:
            raise ValueError(f"chosen and rejected are both {self.chosen!r:.80}; the two of a pair must differ")
        for side in ("chosen", "rejected"):
            text, end = getattr(self, side) or "", 0
            for phrase in self.phrases or ():
                start, stop = getattr(phrase, side)
                if not end <= start < stop <= len(text):
                    raise ValueError(
                        f"phrases: [{start}, {stop}] of {side} must be [start, end) of its {len(text)} characters, "
                        f"after {end}: phrases come in order and do not overlap"
                    )
                end = stop
        return self

    @model_validator(mode="after")
    def _check_task(self) -> CanonicalRow:
        match self.task:
            case "mc" | "next_event":
                self._check_choice()
            case "numeric" if not _is_number(self.answer):
                raise ValueError(f"answer={self.answer!r}: a numeric row needs one finite number, such as 6 or '2.5'")
            case "grounding" if not self.spans or len(self.videos) != 1:
                raise ValueError(
                    f"spans={self.spans!r} with {len(self.videos)} videos: a grounding row needs spans "
                    "[[start, end], ...] and exactly one video, on whose clock they are"
                )
        return self

    def _check_choice(self) -> None:
        if not self.choices:
            raise ValueError(f"choices is absent: a row of task {self.task!r} needs at least two options")
        letters = ascii_uppercase[: len(self.choices)]
        is_letter = isinstance(self.answer, str) and len(self.answer) == 1 and self.answer.upper() in letters
        if not is_letter and self.answer not in self.choices:
            rule = f"must be a letter A..{letters[-1]} or one of choices={self.choices!r}"
            raise ValueError(f"answer={self.answer!r} {rule}")
        for video in self.videos:
            if self.task == "next_event" and video.end is None:
                raise ValueError(
                    f"video {video.path!r} has no end: a next_event row must say where its clip ends, "
                    "or the clip shows the future it asks for"
                )


def without_nulls(value: Any) -> Any:
    """Arrow fills absent struct members with null, so a null and an absent key must mean the same."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*", re.IGNORECASE)


def _is_number(answer: str | int | float | None) -> bool:
    """Narrower than `float()`, which also reads "1_000" and other scripts' digits that an answer parser refuses."""
    if isinstance(answer, str):
        return _NUMBER.fullmatch(answer) is not None and math.isfinite(float(answer))
    return answer is not None


# --- data sets -------------------------------------------------------------------------------------------------------


def load_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a data set in its order, as plain dicts with every field of `CanonicalRow`.

    `path` is a .jsonl or .parquet file, a folder written by `datasets.save_to_disk`, or `hf:NAME:SPLIT` for a data set
    on the Hugging Face hub or in a local folder. Video columns are not decoded.

    Raises:
        DataError: `format` (no such kind of data set), `unreadable`, `empty`, or `bad_rows`, which names the place,
            value and rule of up to 20 bad rows and counts the rest.
    """
    rows: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}
    bad: list[str] = []
    for number, raw in enumerate(read_raw(str(path)), 1):
        if raw == b"":
            continue
        place = f"line {number}" if isinstance(raw, bytes) else f"row {number}"
        try:
            row = parse_row(raw)
        except ValueError as error:
            bad.append(f"{place}: {error}")
            continue
        first = places.setdefault(row["id"], place)
        if first != place:
            bad.append(f"{place}: id {row['id']!r} is already the id of {first}; ids must be unique")
        rows[row["id"]] = row
    if bad:
        more = [f"... and {len(bad) - MAX_REPORTED} more"] if len(bad) > MAX_REPORTED else []
        head = f"{path}: {len(bad)} bad rows; correct them or take them out:"
        raise DataError("bad_rows", "\n  ".join([head, *bad[:MAX_REPORTED], *more]))
    if not rows:
        raise DataError("empty", f"{path} holds no rows; a data set has at least one")
    return list(rows.values())


def fingerprint(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 of the content of canonical rows, whatever their order and the file format they came from."""
    texts = (json.dumps(without_nulls(row), sort_keys=True) for row in rows)
    digests = sorted(hashlib.sha256(text.encode()).hexdigest() for text in texts)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def parse_row(raw: Any) -> dict[str, Any]:
    """A canonical row from a line of JSON or an Arrow record. Raises ValueError, which names the id where it can."""
    if isinstance(raw, bytes):
        try:
            raw = from_json(raw, allow_inf_nan=False)
        except ValueError as error:
            where = str(error).replace(" line 1", "")  # of the one line that was parsed, not of the file
            raise ValueError(f"not JSON ({where}); write one object on each line, without NaN or Infinity") from error
    try:
        return CanonicalRow.model_validate(raw).model_dump()
    except ValidationError as error:
        name = f"id {raw['id']!r}: " if isinstance(raw, dict) and "id" in raw else ""
        raise ValueError(name + "; ".join(map(_describe, error.errors()))) from error


def _describe(error: ErrorDetails) -> str:
    """`videos[0].fps=-1: Input should be greater than 0`. Our own rules name their values themselves."""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    match error["type"]:
        case "value_error":
            return ": ".join(filter(None, (where, str(error.get("ctx", {})["error"]))))
        case "missing":
            return f"{where} is missing; every row needs it"
        case "extra_forbidden":
            return f"{where}={reprlib.repr(error['input'])}: no such field; remove it, or move it into meta"
    return f"{where or 'row'}={reprlib.repr(error['input'])}: {error['msg']}"


def read_raw(path: str) -> Iterator[Any]:
    """The records of a data set: lines of JSON as bytes, or dicts."""
    try:
        yield from _open(path)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError("unreadable", f"{path} cannot be read: {error}; check the path and the file") from error


def _open(path: str) -> Iterator[Any]:
    if path.startswith("hf:"):
        name, _, split = path.removeprefix("hf:").rpartition(":")
        if name and split:
            return _dataset_records(name, split)
    elif Path(path).is_dir():
        return _dataset_records(path, None)
    elif path.endswith(".parquet"):
        return _parquet_records(path)
    elif path.endswith(".jsonl"):
        return _json_lines(path)
    kinds = "a .jsonl or .parquet file, a folder of datasets.save_to_disk, or hf:NAME:SPLIT"
    raise DataError("format", f"{path!r}: a data set is {kinds}; convert it to one of these")


def _json_lines(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        for line in file:
            yield line.strip()


def _parquet_records(path: str) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            yield from _arrow_records(batch)


def _dataset_records(name: str, split: str | None) -> Iterator[dict[str, Any]]:
    """Read as Arrow tables, in which a video column still is a path: `datasets` decodes it in any other format."""
    datasets = require("datasets", extra="datasets")
    if split is not None and not (Path(name) / "dataset_dict.json").exists():
        dataset = datasets.load_dataset(name, split=split)
    else:
        dataset = datasets.load_from_disk(str(Path(name) / (split or "")))
    if not isinstance(dataset, datasets.Dataset):
        raise DataError("format", f"{name} holds the splits {', '.join(dataset)}; name one of them: hf:{name}:SPLIT")
    for table in dataset.with_format("arrow").iter(batch_size=BATCH_ROWS):
        yield from _arrow_records(table)


def _arrow_records(table: pa.Table | pa.RecordBatch) -> Iterator[dict[str, Any]]:
    for record in table.to_pylist():
        yield {field.name: _read_json(record[field.name], field.type) for field in table.schema}


def _read_json(value: Any, type: pa.DataType) -> Any:
    """An Arrow value with its JSON parsed: `datasets` stores as JSON text what differs in shape from row to row."""
    import pyarrow as pa

    if value is None:
        return None
    if isinstance(type, pa.JsonType):
        return from_json(value, allow_inf_nan=False)
    if isinstance(type, pa.ListType | pa.LargeListType):
        return [_read_json(item, type.value_type) for item in value]
    if isinstance(type, pa.StructType):
        return {field.name: _read_json(value[field.name], field.type) for field in type}
    return value
