"""The layouts that can be read, how one is told from another, and records of any of them as canonical rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from videorl.data.adapters.chat import from_llava, from_ms_swift, from_trl, from_verl
from videorl.data.adapters.pairs import from_preference, from_rrpo
from videorl.data.adapters.questions import from_charades, from_easyr1, from_temporal_r1, from_v1, from_video_r1
from videorl.data.adapters.record import Record
from videorl.data.records import LINE, RecordError
from videorl.data.schema import parse_row
from videorl.types import DataError

AUTO = "auto"


@dataclass(frozen=True)
class Layout:
    """Records with all columns of `needs` (each "a|b": one of the two) and none of `lacks`.

    `convert` takes from a record what it maps, raising RecordError; what it leaves goes to `meta`.
    """

    name: str
    needs: tuple[str, ...]
    convert: Callable[[Record], dict[str, Any]]
    lacks: tuple[str, ...] = ()

    def recognises(self, columns: Iterable[str]) -> bool:
        found = set(columns)
        return all(found & set(need.split("|")) for need in self.needs) and not found & set(self.lacks)

    def __str__(self) -> str:
        absent = f" without {', '.join(self.lacks)}" if self.lacks else ""
        return f"{self.name}: {', '.join(need.replace('|', ' or ') for need in self.needs)}{absent}"


CANONICAL = Layout("canonical", ("id", "task", "prompt"), Record.rest)
LAYOUTS = {
    layout.name: layout
    for layout in (
        CANONICAL,
        Layout("verl", ("data_source", "prompt", "reward_model"), from_verl, lacks=("task",)),
        Layout("rrpo", ("answer_masked", "pred_masked", "question"), from_rrpo),
        Layout("preference", ("chosen", "rejected"), from_preference, lacks=("task",)),
        Layout("easyr1", ("answer", "problem"), from_easyr1, lacks=("problem_type", "solution")),
        Layout("video-r1", ("path", "problem", "problem_type", "solution"), from_video_r1),
        Layout("ms-swift", ("messages",), from_ms_swift, lacks=("chosen",)),
        Layout("trl", ("prompt",), from_trl, lacks=("chosen", "reward_model", "task")),
        Layout("llava", ("conversations",), from_llava, lacks=("chosen",)),
        Layout("v1-33k", ("video_path", "video_split"), from_v1),
        Layout("charades-sta", (LINE,), from_charades),
        Layout("temporal-r1", ("problem", "solution", "video|videos"), from_temporal_r1, lacks=("problem_type",)),
    )
}


def find_layout(name: str) -> Layout:
    """Raises DataError `layout` where there is none of that name."""
    if name not in LAYOUTS:
        raise DataError("layout", f"{name!r} is no layout; choose from {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def detect_layout(records: Sequence[dict[str, Any]]) -> tuple[Layout, str]:
    """The one layout that all these first records have, and the evidence in words.

    Raises:
        DataError: `layout` where no layout or more than one fits, naming the columns seen and the choices.
    """
    fitting = [layout for layout in LAYOUTS.values() if any(map(layout.recognises, records))]
    if len(fitting) == 1 and all(map(fitting[0].recognises, records)):
        needs = " and ".join(need.replace("|", " or ") for need in fitting[0].needs)
        return fitting[0], f"{needs} in all of the first {len(records)} records"
    seen = Counter(", ".join(sorted(record)) or "no columns" for record in records)
    lines = [f"{count} of the first {len(records)} records have {names:.200}" for names, count in seen.most_common(3)]
    verdict = f"several layouts fit ({', '.join(layout.name for layout in fitting)})" if fitting else "no layout fits"
    if len(fitting) == 1:
        verdict = f"only some records have the layout {fitting[0].name}"
    choices = "\n  ".join(map(str, LAYOUTS.values()))
    raise DataError("layout", "\n".join([f"{verdict}; name one with --from:", *lines, f"  {choices}"]))


def convert_record(layout: Layout, columns: dict[str, Any], *, default_id: str) -> dict[str, Any]:
    """A record of `layout` as a canonical row with every field, as `load_rows` gives it.

    `default_id` is the row's id where the record has none. Raises RecordError, whatever the record holds.
    """
    if layout is CANONICAL:
        return _checked(columns)
    record = Record(columns)
    own_id = record.id()
    row = {"id": default_id if own_id is None else own_id, "data_source": record.source(layout.name)}
    row |= layout.convert(record)
    return _checked({**row, "meta": {**record.rest(), **row.get("meta", {})}})


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    try:
        return parse_row(row)
    except ValueError as error:
        raise RecordError("schema", str(error)) from error
