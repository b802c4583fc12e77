"""Answers on disk by key: one file each, published whole, so that any number of processes may share the folder."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path


class AnswerCache:
    """Texts by key (hex digits). A file that is cut or altered is a miss. Never shrinks; may be deleted at any time."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> bytes | None:
        """The text, or None where there is none that is whole."""
        try:
            digest, _, data = self._path(key).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        return data if digest.decode("latin-1") == hashlib.sha256(data).hexdigest() else None

    def put(self, key: str, data: bytes) -> None:
        """Publish a text by rename. No fsync: what a power cut leaves behind fails its checksum."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key
