"""Answers on disk: whole or not there, whoever else reads and writes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from videorl.rewards.scorers.cache import AnswerCache

KEY = "ab" * 32


def test_what_is_put_is_there_for_everybody(tmp_path):
    data = b'{"a": 1}\n\x00line two'
    AnswerCache(tmp_path / "new" / "folder").put(KEY, data)
    other = AnswerCache(tmp_path / "new" / "folder")
    assert other.get(KEY) == data
    assert other.get("cd" * 32) is None
    other.put(KEY, b"")
    assert AnswerCache(tmp_path / "new" / "folder").get(KEY) == b""


@pytest.mark.parametrize(
    "damage", [lambda old: b"", lambda old: old[:-1], lambda old: old[:20], lambda old: old + b" "]
)
def test_a_file_that_is_cut_or_longer_is_a_miss(tmp_path, damage):
    cache = AnswerCache(tmp_path)
    cache.put(KEY, b"verdict")
    path = tmp_path / "ab" / KEY
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(KEY) is None
    cache.put(KEY, b"again")
    assert cache.get(KEY) == b"again"


def test_every_flipped_bit_is_a_miss(tmp_path):
    cache = AnswerCache(tmp_path)
    cache.put(KEY, b"score 3")
    path = tmp_path / "ab" / KEY
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert cache.get(KEY) is None, position


def test_a_put_that_fails_leaves_the_old_entry_and_no_scraps(tmp_path, monkeypatch):
    cache = AnswerCache(tmp_path)
    cache.put(KEY, b"old")

    def full(*paths):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        cache.put(KEY, b"new")
    assert cache.get(KEY) == b"old"
    assert os.listdir(tmp_path / "ab") == [KEY]


WRITE = """
import sys
from videorl.rewards.scorers.cache import AnswerCache

folder, letter = sys.argv[1:]
cache = AnswerCache(folder)
for number in range(300):
    key = f"{number % 3:064x}"
    found = cache.get(key)
    assert found is None or (len(set(found)) == 1 and len(found) == 5000), found[:20]
    cache.put(key, letter.encode() * 5000)
"""


def test_processes_that_write_the_same_keys_never_see_half_an_entry(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path), letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(os.listdir(tmp_path / "00")) == 3
