"""Checkpoints: published whole or not at all, verified before they are read; the newest whole one is taken."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import xxhash

logger = logging.getLogger(__name__)

_MANIFEST, _STATE = "manifest.json", "state.json"


class Part(Protocol):
    """Something that writes itself into an empty folder and reads itself back, e.g. the policy's workers."""

    def save(self, folder: Path) -> Any: ...

    def load(self, folder: Path) -> Any: ...


class Checkpoints:
    """`folder/step-00000012/` holds one folder for each part, `state.json` and `manifest.json`.

    A checkpoint is built in `folder/building` and renamed once all of it is on disk. So every `step-*` was whole when
    it was published, and its manifest (size and xxh3-128 of every file) tells whether it still is.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps of the published checkpoints, oldest first."""
        names = (re.fullmatch(r"step-(\d+)", path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in names if match)

    def save(self, step: int, parts: Mapping[str, Part], state: Mapping[str, Any]) -> None:
        """Publish a checkpoint, then delete the oldest beyond `keep`. `state` is JSON.

        Whatever fails, what was published before stays and what was half written is removed; a full disk is an OSError.
        """
        building = self.folder / "building"
        shutil.rmtree(building, ignore_errors=True)  # a killed process may have left one
        try:
            building.mkdir(parents=True)
            for name, part in parts.items():
                (building / name).mkdir()
                part.save(building / name)
            (building / _STATE).write_text(json.dumps(state))
            files = [path for path in sorted(building.rglob("*")) if path.is_file()]
            manifest = {"step": step, "files": {str(path.relative_to(building)): _describe(path) for path in files}}
            (building / _MANIFEST).write_text(json.dumps(manifest, separators=(",", ":")))
            for path in (*building.rglob("*"), building):
                _fsync(path)
            building.rename(self._path(step))
            _fsync(self.folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        for old in self.steps()[: -self.keep]:
            try:
                shutil.rmtree(self._path(old))
            except OSError as error:
                logger.warning("checkpoint of step %d could not be deleted and takes up space: %s", old, error)

    def load(self, parts: Mapping[str, Part]) -> tuple[int, dict[str, Any] | None]:
        """Load the newest whole checkpoint: its step and state, or (0, None) where nothing was ever published.

        Broken ones are renamed to `broken-*`, with a warning. RuntimeError if there are checkpoints and none is whole:
        starting over in silence would cost the run its history.
        """
        faults: dict[int, str] = {}
        for step in reversed(self.steps()):
            fault = find_fault(self._path(step), step)
            if fault is None:
                break
            faults[step] = fault
        else:
            if faults:
                raise RuntimeError(
                    f"no checkpoint in {self.folder} is whole: "
                    + "; ".join(f"step {step}: {fault}" for step, fault in faults.items())
                    + ". Restore one from a copy, or delete that folder to start from step 0"
                )
            return 0, None
        for bad, fault in faults.items():
            aside = self.folder / f"broken-{self._path(bad).name}"
            shutil.rmtree(aside, ignore_errors=True)
            self._path(bad).rename(aside)
            logger.warning("checkpoint of step %d is broken (%s): now %s; step %d is used", bad, fault, aside, step)
        for name, part in parts.items():
            part.load(self._path(step) / name)
        return step, json.loads((self._path(step) / _STATE).read_text())

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def find_fault(folder: Path, step: int) -> str | None:
    """What is wrong with a checkpoint, in words; None if every file is as its manifest says."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        written_at, files = manifest["step"], manifest["files"].items()
    except (OSError, ValueError, KeyError) as error:
        return f"{_MANIFEST} cannot be read: {error!r}"
    if written_at != step:
        return f"{_MANIFEST} is of step {written_at}"
    for name, wanted in files:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (found := _describe(path)) != wanted:
            return f"{name} is {found}, its manifest says {wanted}"
    return None


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, xxhash.xxh3_128)  # type: ignore[arg-type]
    return {"bytes": path.stat().st_size, "xxh3": digest.hexdigest()}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
