"""Raw records of a data set, each with its place, before anything is known of their layout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from videorl.data.schema import MAX_REPORTED, read_raw
from videorl.types import DataError

Parsed = TypeVar("Parsed")

LINE = "line"  # the only column of a record that is a line of plain text


class RecordError(DataError):
    """A record cannot become a canonical row. `reason` is one of `REASONS`."""


REASONS = {
    "not_json": "the line is no JSON",
    "not_an_object": "the record is no object with columns",
    "missing": "a column that the layout needs is absent or empty",
    "wrong_type": "a column holds something else than the layout says",
    "unknown_type": "a type of problem that the layout does not name",
    "not_video": "images, audio or single frames instead of a video",
    "not_local": "a URL or the bytes of a video instead of a path",
    "no_options": "the answer is a letter, and there are no options",
    "bad_gold": "the right answer cannot be read",
    "bad_phrases": "the phrases of a pair do not fit its responses or each other",
    "clash": "two columns say the same thing",
    "duplicate_id": "the id of an earlier record",
    "schema": "the record breaks a rule of the canonical row",
}


def read_records(path: str) -> Iterator[tuple[str, Any]]:
    """(place, raw record) of what `load_rows` reads, of a .json file that is one array, and of lines of a .txt file.

    A raw record is JSON text as bytes or what Arrow holds; `parse_record` makes columns of it.

    Raises:
        DataError: `format` or `unreadable`, as `load_rows`.
    """
    if path.endswith(".json"):
        return _numbered("record", _array_elements(path))
    if path.endswith(".txt"):
        return _numbered("line", _text_lines(path))
    return _numbered("line" if path.endswith(".jsonl") else "row", read_raw(path))


def parse_record(raw: Any) -> dict[str, Any]:
    """The columns of a raw record. Raises RecordError `not_json` or `not_an_object`."""
    if isinstance(raw, bytes):
        try:
            raw = from_json(raw, allow_inf_nan=False)
        except ValueError as error:
            where = str(error).replace(" line 1", "")
            raise RecordError("not_json", f"not JSON ({where}); write objects, without NaN or Infinity") from error
    if not isinstance(raw, dict):
        raise RecordError("not_an_object", f"a {type(raw).__name__}; a record is an object with named columns")
    return raw


def parse_lines(path: str | Path, parse: Callable[[Any], Parsed]) -> list[Parsed]:
    """What `parse` makes of each line of JSON; it raises ValueError (pydantic's included) for one that is bad.

    Raises:
        DataError: `bad_records`, which names the place and the rule of up to 20 bad lines; `unreadable`; `empty`.
    """
    parsed, bad = [], []
    for number, line in enumerate(_read_text(str(path)).split("\n"), 1):
        if not line.strip():
            continue
        try:
            parsed.append(parse(json.loads(line)))
        except ValidationError as error:
            found = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            bad.append(f"line {number}: {'; '.join(found)}")
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        more = [f"... and {len(bad) - MAX_REPORTED} more"] if len(bad) > MAX_REPORTED else []
        head = f"{path}: {len(bad)} bad lines; correct them or take them out:"
        raise DataError("bad_records", "\n  ".join([head, *bad[:MAX_REPORTED], *more]))
    if not parsed:
        raise DataError("empty", f"{path} holds no records; give at least one")
    return parsed


def _numbered(kind: str, records: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{kind} {number}", record) for number, record in enumerate(records, 1) if record != b"")


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError("unreadable", f"{path} cannot be read: {error}; check the path and the file") from error


def _text_lines(path: str) -> Iterator[dict[str, str] | bytes]:
    for line in _read_text(path).split("\n"):
        yield {LINE: line.strip()} if line.strip() else b""


_SPACE = re.compile(r"[ \t\r\n]*")


def _array_elements(path: str) -> Iterator[bytes]:
    """The text of each element of a JSON array. The text is held whole, the records are not."""
    text = _read_text(path)
    decoder = json.JSONDecoder()

    def next_token(at: int) -> int:
        match = _SPACE.match(text, at)
        return match.end() if match else at

    at = next_token(0)
    if not text.startswith("[", at):
        raise DataError("format", f"{path}: a .json file is one array of records; name JSON lines .jsonl")
    at = next_token(at + 1)
    while not text.startswith("]", at):
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise DataError("unreadable", f"{path} is not JSON: {error}; correct the file") from error
        yield text[at:end].encode()
        at = next_token(end)
        if text.startswith(",", at):
            at = next_token(at + 1)
        elif not text.startswith("]", at):
            raise DataError("unreadable", f"{path} is not JSON: no ',' or ']' at character {at}; correct the file")
