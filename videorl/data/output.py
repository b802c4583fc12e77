"""Canonical rows to a file that appears whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videorl.data.schema import BATCH_ROWS, without_nulls
from videorl.types import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Write = Callable[[dict[str, Any]], None]


@contextmanager
def publish_rows(path: str, *, force: bool = False) -> Iterator[Write]:
    """`with publish_rows("rows.jsonl") as write: write(row)`: the file is there once the block ends without exception.

    The rows are canonical ones, as `load_rows` gives them and will read them again.

    Raises:
        DataError: `format` unless the name ends with .jsonl or .parquet, `exists` unless `force`.
    """
    writers = {".jsonl": _write_jsonl, ".parquet": _write_parquet}
    target = Path(path)
    if target.suffix not in writers:
        raise DataError("format", f"{path!r}: rows are written as .jsonl or .parquet; name it so")
    if target.exists() and not force:
        raise DataError("exists", f"{path} exists; choose another name, or overwrite it with --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f"{target.name}.{os.getpid()}.building")
    try:
        with writers[target.suffix](building) as write:
            yield write
        with building.open("rb") as file:
            os.fsync(file.fileno())
        building.replace(target)
    finally:
        building.unlink(missing_ok=True)


@contextmanager
def _write_jsonl(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda row: print(json.dumps(without_nulls(row), ensure_ascii=False, allow_nan=False), file=file)


@contextmanager
def _write_parquet(path: Path) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = _arrow_schema()
    waiting: list[dict[str, Any]] = []
    with ParquetWriter(path, schema) as writer:

        def flush() -> None:
            writer.write_batch(pa.RecordBatch.from_pylist(waiting, schema))
            waiting.clear()

        def write(row: dict[str, Any]) -> None:
            texts = {name: json.dumps(row[name], allow_nan=False) for name in _SHAPELESS if row[name] is not None}
            waiting.append(row | texts)
            if len(waiting) == BATCH_ROWS:
                flush()

        yield write
        flush()


_SHAPELESS = ("prompt", "answer", "meta")  # differ in type from row to row, so they are columns of JSON text


def _arrow_schema() -> pa.Schema:
    import pyarrow as pa

    text, seconds, json_text = pa.string(), pa.float64(), pa.json_()
    video = {"path": text, "start": seconds, "end": seconds, "fps": seconds, "sha256": text}
    return pa.schema(
        {
            "id": text,
            "task": text,
            "prompt": json_text,
            "videos": pa.list_(pa.struct(video)),
            "choices": pa.list_(text),
            "answer": json_text,
            "spans": pa.list_(pa.list_(seconds)),
            "data_source": text,
            "meta": json_text,
            "response": text,
            "chosen": text,
            "rejected": text,
            "phrases": pa.list_(pa.struct({"chosen": pa.list_(pa.int64()), "rejected": pa.list_(pa.int64())})),
            "provenance": pa.struct({"model": text, "iteration": pa.int64(), "perturbation": text, "critique": text}),
        }
    )
