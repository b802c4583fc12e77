"""What the processes of `test_store` do. Functions of a module, so that a started process can import them."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import torch

from videorl.video import store
from videorl.video.store import Store

BUDGET = 1 << 30


def fill(folder: str, key: str, value: float, start, filled) -> None:
    """Ask for a key at the same time as others do. `filled` counts who had to fill it."""
    start.wait()
    mine = Store(folder, BUDGET)
    with mine.filling(key) as missing:
        if missing:
            with filled.get_lock():
                filled.value += 1
            mine.put(key, torch.full((1000,), value))
    assert_filled(mine, key, value)


def hold(folder: str, key: str, held) -> None:
    """Begin to fill a key, and never end."""
    with Store(folder, BUDGET).filling(key):
        held.set()
        threading.Event().wait()


def put_often(folder: str, key: str, value: float, start) -> None:
    start.wait()
    mine = Store(folder, BUDGET)
    for _ in range(20):
        mine.put(key, torch.full((1000,), value))
        assert_filled(mine, key, value)


def use(folder: str, budget: int, number: int, start) -> None:
    """Put and get under a budget that holds a few entries, so that processes evict what others are reading."""
    start.wait()
    mine = Store(folder, budget)
    for turn in range(30):
        mine.put(f"key{(number + turn) % 6}", torch.full((1000,), float((number + turn) % 6)))
        for other in range(6):
            tensor = mine.get(f"key{other}")
            assert tensor is None or tensor.eq(other).all()
    assert mine.stats.corrupt == 0, mine.stats


def read(folder: str, key: str, together, kilobytes) -> None:
    """Read a whole entry at the same time as others do, and say what part of the memory is this process's share."""
    tensor = Store(folder, BUDGET).get(key)
    assert tensor is not None and float(tensor.sum()) == len(tensor)
    together.wait()
    share = proportional_kilobytes(f"{key}.safetensors")
    together.wait()
    with kilobytes.get_lock():
        kilobytes.value += share


def proportional_kilobytes(name: str) -> int:
    """Memory of the mappings of a file, each page divided by the number of processes that map it (PSS)."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            inside = line.endswith(name)
        elif inside and line.startswith("Pss:"):
            total += int(line.split()[1])
    return total


def die_in_put(folder: str, key: str, where: str) -> None:
    """Be killed while an entry is written, before it is published, or before it is indexed."""
    mine = Store(folder, BUDGET)

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(tensors: dict[str, torch.Tensor], path: Path) -> None:
        Path(path).write_bytes(tensors["data"].numpy().tobytes()[:100])
        die()

    def publish_and_die(source: Path, target: Path) -> None:
        os.rename(source, target)
        die()

    if where == "written":
        import safetensors.torch

        safetensors.torch.save_file = write_half
    elif where == "published":
        store.os.fsync = die
    else:
        store.os.replace = publish_and_die
    mine.put(key, torch.ones(1000))


def assert_filled(mine: Store, key: str, value: float) -> None:
    tensor = mine.get(key)
    assert tensor is not None and tensor.eq(value).all(), key
