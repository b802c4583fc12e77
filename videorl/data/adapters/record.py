"""A raw record: its columns with their types checked, and what no layout took, which goes to `meta`."""

from __future__ import annotations

import math
import re
from typing import Any

from videorl.data.records import RecordError
from videorl.data.schema import PLACEHOLDER

IMAGE = "<image>"
_OTHER_MEDIA = ("image", "images", "audio", "audios")
_OTHER_TAGS = (IMAGE, "<audio>")
_IDS = ("id", "problem_id", "question_id")
_DECIMAL = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?\s*", re.IGNORECASE)


class Record:
    """The columns of one record. What a layout takes it answers for; `rest` is everything else."""

    def __init__(self, columns: dict[str, Any]):
        self._columns = plain(columns)

    def take(self, *names: str) -> Any:
        """The first of these columns that the record has, which thereby leaves `rest`; None without any."""
        for name in names:
            if name in self._columns:
                return self._columns.pop(name)
        return None

    def keep(self, name: str, value: Any) -> None:
        """Put something into `rest`. Raises RecordError `clash` where a column has that name."""
        if name in self._columns:
            raise RecordError("clash", f"{name!r} is said twice, {self._columns[name]!r} and {value!r}; rename one")
        self._columns[name] = value

    def need(self, *names: str) -> Any:
        """As `take`. Raises RecordError `missing` where there is none, or an empty one."""
        value = self.take(*names)
        if value is None or value in ("", [], {}):
            raise RecordError("missing", f"{' or '.join(names)} is absent or empty; the layout needs it")
        return value

    def text(self, *names: str) -> str:
        """As `need`, for a text that is not blank."""
        return text_of(self.need(*names), names[0])

    def id(self) -> str | int | None:
        """The record's own id, where it has one."""
        name = next((name for name in _IDS if isinstance(self._columns.get(name), str | int)), None)
        return None if name is None or self._columns[name] == "" else self.take(name)

    def source(self, default: str) -> str:
        """Where the record comes from: its `data_source` or `dataset`."""
        name = next((name for name in ("data_source", "dataset") if isinstance(self._columns.get(name), str)), None)
        return default if name is None else self.take(name)

    def rest(self) -> dict[str, Any]:
        return self._columns

    def videos(self, *names: str, shown: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        """Canonical references to the videos of the first of these columns, or to those `shown` in the messages.

        What else is said of a video (its number of frames, of pixels) goes to `rest` as `video_settings`.
        """
        self.refuse_other_media()
        value = self.take(*names)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if items and shown:
            raise RecordError("clash", f"videos stand both in the messages and in {' or '.join(names)}; leave one")
        pairs = [_reference(item) for item in items or shown or ()]
        if any(settings for _, settings in pairs):
            self.keep("video_settings", [settings for _, settings in pairs])
        return [reference for reference, _ in pairs]

    def refuse_other_media(self) -> None:
        for name in _OTHER_MEDIA:
            if self._columns.get(name):
                raise RecordError("not_video", f"the record has {name}; only videos are supported: take it out")


def plain(value: Any) -> Any:
    """The value as JSON has it: arrays and tuples as lists, no nulls in objects, no numbers that JSON lacks."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if item is not None}
    if hasattr(value, "tolist"):  # an array or a scalar of numpy: what pandas makes of a parquet file
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError("wrong_type", f"the record holds {value}, which is no JSON; write null for what is absent")
    return value


def text_of(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RecordError("wrong_type", f"{name}={value!r:.80} must be a text")
    if not value.strip():
        raise RecordError("missing", f"{name} is blank")
    return value


def number_of(value: Any, name: str) -> float:
    """A finite number, or a text that is one in decimal notation."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        raise RecordError("wrong_type", f"{name}={value!r:.80} must be a finite number")
    return float(value)


def refuse_other_tags(text: str) -> str:
    for tag in _OTHER_TAGS:
        if tag in text:
            raise RecordError(
                "not_video", f"the text has {tag}; only videos ({PLACEHOLDER}) are supported: take it out"
            )
    return text


# --- videos ----------------------------------------------------------------------------------------------------------


def _reference(item: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A canonical video reference, and what else was said of the video, from a path or an object that names one."""
    if isinstance(item, str):
        return {"path": _local_path(item)}, {}
    if isinstance(item, list):
        raise RecordError("not_video", f"{item!r:.80} lists frames; give the video they come from")
    if not isinstance(item, dict):
        raise RecordError("wrong_type", f"video={item!r:.80} must be a path, or an object that names one")
    settings = dict(item)
    if settings.pop("bytes", None) is not None:
        raise RecordError("not_local", "the record holds the video itself; write it to a file and give its path")
    settings.pop("type", None)
    place = _first(settings, "path", "video", "video_url", "url")
    path = place.get("url") if isinstance(place, dict) else place
    if isinstance(path, list):
        raise RecordError("not_video", f"{path!r:.80} lists frames; give the video they come from")
    reference: dict[str, Any] = {"path": _local_path(text_of(path, "video"))}
    for field, names in (("start", ("start", "video_start")), ("end", ("end", "video_end")), ("fps", ("fps",))):
        if (value := _first(settings, *names)) is not None:
            reference[field] = number_of(value, field)
    if (digest := settings.pop("sha256", None)) is not None:
        reference["sha256"] = digest
    return reference, settings


def _first(columns: dict[str, Any], *names: str) -> Any:
    return next((columns.pop(name) for name in names if name in columns), None)


def _local_path(path: str) -> str:
    path = path.removeprefix("file://")
    if "://" in path or path.startswith("data:"):
        raise RecordError("not_local", f"{path:.80} is no path; download it under data.media_root and give its path")
    return path
