"""A folder that is written once: its manifest comes last, and says with which parameters it was made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MANIFEST = "manifest.json"


@contextmanager
def written_once(out: Path, parameters: Mapping[str, Any]) -> Iterator[bool]:
    """Whether the body has to write `out`; the manifest with `parameters` is published when the body ends.

    A folder finished with the same parameters is left as it is, an unfinished one is written again.

    Raises:
        ValueError: the folder was finished with other parameters.
    """
    manifest = json.loads(json.dumps(parameters))  # as it will be read back
    path = out / MANIFEST
    if path.exists():
        found = json.loads(path.read_text())
        changed = sorted(key for key in found.keys() | manifest.keys() if found.get(key) != manifest.get(key))
        if changed:
            before, now = ({key: values.get(key) for key in changed} for values in (found, manifest))
            raise ValueError(f"{out} was made with {before}, not {now}: name another folder or delete this one")
        yield False
        return
    out.mkdir(parents=True, exist_ok=True)
    yield True
    unpublished = out / f"{MANIFEST}.tmp"
    unpublished.write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(unpublished, path)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def print_rows(out: Path) -> None:
    """How many rows each file of a finished folder has."""
    table = Table("file", "rows", title=str(out), title_justify="left")
    for path in sorted(out.glob("*.jsonl")):
        with path.open() as file:
            table.add_row(path.name, str(sum(1 for _ in file)))
    Console().print(table)


def provenance(generator: str, version: int, seed: int, **details: Any) -> dict[str, Any]:
    """One step in the making of a row; `meta.provenance` is the list of them, oldest first.

    `version` is raised when the same seed would give another row.
    """
    return {"generator": generator, "version": version, "seed": seed, **details}
