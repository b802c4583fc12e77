"""A content-addressed store of tensors on disk: decoded frames and visual embeddings.

One safetensors file per key, published by rename after fsync, read by memory map, plus a SQLite index that holds sizes,
checksums and last use. A file that is missing, cut or altered is a miss, never an error; at most one process fills a
key, the others wait for it. The folder can be deleted whenever no process has it open.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from videorl.types import DataError

if TYPE_CHECKING:
    import torch

_SCHEMA = "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, bytes INTEGER, checksum TEXT, used REAL)"


@dataclass
class StoreStats:
    hits: int = 0
    misses: int = 0
    corrupt: int = 0
    evicted: int = 0


class Store:
    """Tensors by key. Safe to open from many processes and threads at once.

    `max_bytes` bounds the sum of file sizes; least recently used entries go first. An entry that a reader has mapped
    stays readable after eviction, because the file's pages live as long as the mapping.

    Raises DataError `bad_store` where the index is damaged.
    """

    def __init__(self, folder: str | Path, max_bytes: int):
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.stats = StoreStats()
        self._verified: dict[str, tuple[int, int, int]] = {}  # key -> the file version whose checksum was right
        self._lock = threading.Lock()
        for name in ("entries", "locks", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(
            self.folder / "index.sqlite", timeout=60, check_same_thread=False, isolation_level=None
        )
        try:
            with open(self.folder / "index.lock", "w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # to change the journal, SQLite does not wait its timeout: it fails
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.execute(_SCHEMA)
            ((found,),) = self._db.execute("PRAGMA quick_check(1)").fetchall()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":  # as a copy that was made while a run wrote to it
            why = found.splitlines()[-1]
            raise DataError(
                "bad_store", f"{self.folder}: its index is damaged ({why}); delete the folder, all in it is made again"
            )

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> torch.Tensor | None:
        """The tensor, memory-mapped and read-only by convention; None when absent, corrupt or half written."""
        with self._lock:
            row = self._db.execute("SELECT bytes, checksum FROM entries WHERE key = ?", (key,)).fetchone()
            tensor = self._read(key, *row) if row else None
            if tensor is None:
                self.stats.misses += 1
                return None
            self._db.execute("UPDATE entries SET used = ? WHERE key = ?", (time.time(), key))
            self.stats.hits += 1
            return tensor

    def put(self, key: str, tensor: torch.Tensor) -> None:
        """Publish a tensor: temporary file, fsync, rename, index row; then evict down to the budget."""
        from safetensors.torch import save_file

        temporary = self.folder / "tmp" / f"{key}.{os.getpid()}.{threading.get_ident()}"
        try:
            save_file({"data": tensor.contiguous()}, temporary)
            size, checksum = temporary.stat().st_size, _checksum(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            with self._lock, self._writing():
                path = self._path(key)
                path.parent.mkdir(exist_ok=True)
                os.replace(temporary, path)
                self._db.execute("REPLACE INTO entries VALUES (?, ?, ?, ?)", (key, size, checksum, time.time()))
                self._evict(keep=key)
        finally:
            temporary.unlink(missing_ok=True)

    def discard(self, key: str) -> None:
        """Forget an entry, if there is one."""
        with self._lock, self._writing():
            self._forget(key)

    @contextmanager
    def filling(self, key: str) -> Iterator[bool]:
        """`with store.filling(key) as missing:` holds the key's lock; fill it only if `missing`.

        However many processes ask, one fills. The lock is the kernel's, so a filler that dies gives it back.
        """
        path = self.folder / "locks" / key
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield self.get(key) is None
            path.unlink(missing_ok=True)  # who still waits on this inode finds the entry; newcomers lock a new file

    def num_bytes(self) -> int:
        with self._lock:
            return self._db.execute("SELECT COALESCE(SUM(bytes), 0) FROM entries").fetchone()[0]

    def keys(self) -> list[str]:
        with self._lock:
            return [row[0] for row in self._db.execute("SELECT key FROM entries ORDER BY used")]

    def close(self) -> None:
        self._db.close()

    def _path(self, key: str) -> Path:
        return self.folder / "entries" / key[:2] / f"{key}.safetensors"

    def _read(self, key: str, size: int, checksum: str) -> torch.Tensor | None:
        """An entry of the index; None where its file is gone or altered, and then the entry is forgotten."""
        from safetensors import SafetensorError, safe_open

        try:
            with open(self._path(key), "rb") as file:
                path = Path(f"/dev/fd/{file.fileno()}")  # this very file, though others replace or evict it meanwhile
                stat = os.fstat(file.fileno())
                version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                if self._verified.get(key) == version or (stat.st_size == size and _checksum(path) == checksum):
                    with safe_open(str(path), framework="pt") as reader:
                        tensor = reader.get_tensor("data")
                    self._verified[key] = version
                    return tensor
            self.stats.corrupt += 1
        except (SafetensorError, OSError) as error:
            self.stats.corrupt += not isinstance(error, FileNotFoundError)
        with self._writing():
            self._forget(key)
        return None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Files and index change together, in one process at a time; else a file could stay that no row counts."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    def _forget(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)
        self._verified.pop(key, None)
        self._db.execute("DELETE FROM entries WHERE key = ?", (key,))

    def _evict(self, keep: str) -> None:
        total = self._db.execute("SELECT SUM(bytes) FROM entries").fetchone()[0]
        for key, size in self._db.execute("SELECT key, bytes FROM entries ORDER BY used").fetchall():
            if total <= self.max_bytes:
                return
            if key != keep:
                self._forget(key)
                self.stats.evicted += 1
                total -= size


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
