"""The store: what comes back, what is refused, what goes first, and who fills, in one process and in many."""

from __future__ import annotations

import fcntl
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from video import store_processes as processes

from videorl.types import DataError
from videorl.video import store as store_module
from videorl.video.store import Store

BUDGET = processes.BUDGET
ENTRY = 1000 * 4 + 72  # bytes of 1000 float32 in a safetensors file
PATIENCE = 120  # seconds until a process that should end counts as stuck


@pytest.fixture
def store(tmp_path) -> Iterator[Store]:
    store = Store(tmp_path / "store", BUDGET)
    yield store
    store.close()


@pytest.fixture(scope="module")
def context():
    """New processes that share nothing with this one; torch is imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "safetensors.torch"])
    return context


def entry(store: Store, key: str) -> Path:
    (path,) = store.folder.rglob(f"{key}.safetensors")
    return path


def finish(*started) -> None:
    """Wait for processes; all must succeed."""
    for process in started:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in started] == [0] * len(started)


def start(context, function, *arguments):
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


# --- one process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (), (0, 4)])
def test_what_is_put_comes_back(store, dtype, shape):
    tensor = torch.randint(0, 255, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    store.put("key", tensor)
    back = store.get("key")
    assert back.dtype == dtype and back.shape == shape and torch.equal(back, tensor)
    assert (store.stats.hits, store.stats.misses) == (1, 0)


def test_a_view_comes_back_alone(store):
    whole = torch.arange(12.0).view(3, 4)
    store.put("key", whole.T[1:])
    assert torch.equal(store.get("key"), whole.T[1:])
    store.put("row", torch.zeros(1000, 1000)[0])
    assert entry(store, "row").stat().st_size < 2 * ENTRY


def test_a_tensor_is_mapped_not_copied(store):
    store.put("key", torch.ones(1000))
    tensor = store.get("key")
    assert any(begin <= tensor.data_ptr() < end for begin, end in mappings(entry(store, "key")))
    tensor[0] = 7  # readers should not, but cannot harm others
    assert store.get("key")[0] == 1


def mappings(path: Path) -> list[tuple[int, int]]:
    """The address ranges of this process that are backed by a file."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [line[0].split("-") for line in lines if line[-1] == str(path)]
    return [(int(begin, 16), int(end, 16)) for begin, end in ranges]


def test_an_unknown_key_is_a_miss(store):
    assert store.get("key") is None and "key" not in store
    assert (store.stats.hits, store.stats.misses, store.stats.corrupt) == (0, 2, 0)


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def flip_header_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:1] + bytes([content[1] ^ 1]) + content[2:])


DAMAGE = {
    "flipped byte": (flip_last_byte, 1),
    "flipped byte of the header": (flip_header_byte, 1),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-100]), 1),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), 1),
    "zero-length": (lambda path: path.write_bytes(b""), 1),
    "deleted": (lambda path: path.unlink(), 0),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("read_before", [False, True])
def test_a_damaged_entry_is_a_miss_and_is_filled_again(store, kind, read_before):
    damage, corrupt = DAMAGE[kind]
    store.put("key", torch.ones(1000))
    if read_before:  # the checksum of a file that was right once is not trusted after the file changed
        assert store.get("key") is not None
    damage(entry(store, "key"))
    assert store.get("key") is None
    assert (store.stats.misses, store.stats.corrupt) == (1, corrupt)
    assert store.keys() == [] and store.num_bytes() == 0
    with store.filling("key") as missing:
        assert missing
        store.put("key", torch.ones(1000))
    assert torch.equal(store.get("key"), torch.ones(1000))


@pytest.mark.parametrize("put_again", [False, True])
def test_an_entry_that_is_evicted_while_it_is_read_can_still_be_read(store, monkeypatch, put_again):
    """By another process, after the file was opened; what counts is the file that was."""
    other = Store(store.folder, 1)
    store.put("key", torch.ones(1000))

    def evict_first(path: Path) -> str:
        monkeypatch.setattr(store_module, "_checksum", checksum)
        for key in ["key"] if put_again else ["another"]:
            other.put(key, torch.ones(1000))
        return checksum(path)

    checksum = store_module._checksum
    monkeypatch.setattr(store_module, "_checksum", evict_first)
    assert torch.equal(store.get("key"), torch.ones(1000))
    assert (store.stats.hits, store.stats.corrupt, other.stats.evicted) == (1, 0, 0 if put_again else 1)


def test_a_new_store_finds_what_an_old_one_left(store):
    store.put("key", torch.ones(1000))
    again = Store(store.folder, BUDGET)
    assert torch.equal(again.get("key"), torch.ones(1000))
    assert again.keys() == ["key"] and again.num_bytes() == ENTRY


@pytest.mark.parametrize("damage", ["no index at all", "a page of another"])
def test_a_damaged_index_is_named(tmp_path, damage):
    store = Store(tmp_path, BUDGET)
    for number in range(200):
        store.put(f"{number:064d}", torch.ones(1))
    store.close()
    index = tmp_path / "index.sqlite"
    content = bytearray(index.read_bytes())
    place = 0 if damage == "no index at all" else 4096
    content[place : place + 4096] = b"x" * 4096
    index.write_bytes(content)
    with pytest.raises(DataError, match=r"its index is damaged .* delete the folder, all in it is made again") as error:
        Store(tmp_path, BUDGET)
    assert error.value.reason == "bad_store"


def test_a_put_replaces_what_was_there(store):
    for value in (1.0, 2.0):
        store.put("key", torch.full((1000,), value))
        assert store.get("key")[0] == value
    assert store.keys() == ["key"] and store.num_bytes() == ENTRY


# --- the budget ------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_entry_goes_first(tmp_path):
    store = Store(tmp_path, 3 * ENTRY)
    for key in "abc":
        store.put(key, torch.ones(1000))
    assert store.get("a") is not None  # now b is the oldest
    store.put("d", torch.ones(1000))
    assert store.keys() == ["c", "a", "d"] and store.stats.evicted == 1
    assert store.get("b") is None
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) == store.num_bytes() == 3 * ENTRY


def test_the_newest_entry_is_kept_even_alone_over_the_budget(tmp_path):
    store = Store(tmp_path, ENTRY)
    store.put("small", torch.ones(1000))
    store.put("large", torch.ones(2000))
    assert store.keys() == ["large"] and store.get("large") is not None


def test_a_put_over_an_entry_does_not_count_it_twice(tmp_path):
    store = Store(tmp_path, 2 * ENTRY)
    for key in "aabb":
        store.put(key, torch.ones(1000))
    assert store.keys() == ["a", "b"] and store.stats.evicted == 0


def test_a_mapped_tensor_survives_its_eviction(tmp_path):
    store = Store(tmp_path, ENTRY)
    store.put("a", torch.arange(1000.0))
    tensor = store.get("a")
    store.put("b", torch.ones(1000))
    assert store.keys() == ["b"] and not list(tmp_path.rglob("a.safetensors"))
    assert torch.equal(tensor, torch.arange(1000.0))
    store.put("a", torch.zeros(1000))
    assert torch.equal(tensor, torch.arange(1000.0))  # nor is it changed by what comes in its place


# --- many threads and processes --------------------------------------------------------------------------------------


def test_threads_share_a_store_and_open_their_own(tmp_path):
    shared = Store(tmp_path, BUDGET)
    together = threading.Barrier(8)

    def work(number: int) -> int:
        together.wait()
        own = Store(tmp_path, BUDGET)
        for key in (f"key{number}", "all"):
            with shared.filling(key) as missing:
                if missing:
                    own.put(key, torch.full((1000,), float(number)))
        assert shared.get(f"key{number}").eq(number).all()
        return int(own.get("all")[0])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(work, range(8)))) == 1  # one thread filled what all asked for


def test_of_many_processes_that_ask_for_a_key_one_fills_it(context, tmp_path):
    for attempt in range(3):  # also: processes that open a new store at the same moment
        together, filled = context.Barrier(4), context.Value("i", 0)
        folder = str(tmp_path / str(attempt))
        finish(*(start(context, processes.fill, folder, "key", 1.0, together, filled) for _ in range(4)))
        assert filled.value == 1


def test_four_readers_of_an_entry_hold_one_copy(context, store):
    store.put("key", torch.ones(4 << 20))  # 16 MiB
    together, kilobytes = context.Barrier(4), context.Value("i", 0)
    finish(*(start(context, processes.read, str(store.folder), "key", together, kilobytes) for _ in range(4)))
    assert 0.95 < kilobytes.value / (16 << 10) < 1.1


def test_a_killed_filler_gives_the_lock_back_and_other_keys_never_waited(context, store):
    held, alone = context.Event(), context.Barrier(1)
    filler = start(context, processes.hold, str(store.folder), "a", held)
    assert held.wait(PATIENCE)
    filled = context.Value("i", 0)
    finish(start(context, processes.fill, str(store.folder), "b", 1.0, alone, filled))
    assert filled.value == 1  # while the other key is still held:
    with open(store.folder / "locks" / "a") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    waiting = start(context, processes.fill, str(store.folder), "a", 1.0, alone, filled)
    filler.kill()
    finish(waiting)
    assert filler.join(PATIENCE) is None and filler.exitcode == -signal.SIGKILL
    assert filled.value == 2


def test_a_filler_that_fails_leaves_the_key_to_the_next(store):
    with pytest.raises(ZeroDivisionError), store.filling("key"):
        raise ZeroDivisionError
    with store.filling("key") as missing:
        assert missing


def test_two_processes_put_one_key(context, store):
    together = context.Barrier(2)
    finish(*(start(context, processes.put_often, str(store.folder), "key", 1.0, together) for _ in range(2)))
    processes.assert_filled(store, "key", 1.0)
    assert store.keys() == ["key"] and not list((store.folder / "tmp").iterdir())


def test_processes_evict_what_others_read(context, tmp_path):
    together = context.Barrier(3)
    finish(*(start(context, processes.use, str(tmp_path), 3 * ENTRY, number, together) for number in range(3)))
    store = Store(tmp_path, 3 * ENTRY)
    assert store.num_bytes() <= 3 * ENTRY
    assert {file.stem for file in tmp_path.rglob("*.safetensors")} == set(store.keys())


@pytest.mark.parametrize("where", ["written", "published", "indexed"])
def test_a_kill_during_put_leaves_no_half_entry(context, store, where):
    process = start(context, processes.die_in_put, str(store.folder), "key", where)
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    assert store.get("key") is None and store.keys() == [] and store.num_bytes() == 0
    assert store.stats.corrupt == 0
    store.put("key", torch.zeros(1000))
    processes.assert_filled(store, "key", 0.0)
