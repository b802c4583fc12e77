"""Checkpoints: atomic, verified, kept in the right number, and never loaded in part."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.checkpoint import Checkpoints, find_fault


class Bytes:
    """A part of two files, one in a folder."""

    def __init__(self, content: bytes = b""):
        self.content = content

    def save(self, folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "content.bin").write_bytes(self.content)
        (folder / "length.txt").write_text(str(len(self.content)))

    def load(self, folder: Path) -> None:
        self.content = (folder / "deep" / "content.bin").read_bytes()
        assert len(self.content) == int((folder / "length.txt").read_text())


class Failing:
    def __init__(self, error: BaseException):
        self.error = error

    def save(self, folder: Path) -> None:
        (folder / "half").write_text("x")
        raise self.error

    def load(self, folder: Path) -> None:
        raise AssertionError


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, {"policy": Bytes(b"policy %d" % step), "critic": Bytes(b"critic")}, {"consumed": step})


def load(checkpoints: Checkpoints) -> tuple[int, dict | None, bytes]:
    policy = Bytes()
    step, state = checkpoints.load({"policy": policy, "critic": Bytes()})
    return step, state, policy.content


def test_what_is_saved_is_loaded(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert load(checkpoints) == (0, None, b"")
    save(checkpoints, 3)
    assert load(checkpoints) == (3, {"consumed": 3}, b"policy 3")


def test_the_manifest_names_every_file(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 3)
    manifest = json.loads((tmp_path / "step-00000003" / "manifest.json").read_text())
    parts = {f"{part}/{name}" for part in ("policy", "critic") for name in ("deep/content.bin", "length.txt")}
    assert manifest["step"] == 3 and set(manifest["files"]) == {*parts, "state.json"}
    digest = xxhash.xxh3_128_hexdigest(b"critic")
    assert manifest["files"]["critic/deep/content.bin"] == {"bytes": 6, "xxh3": digest}


def test_the_newest_are_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 8, 9, 10, 11)
    assert checkpoints.steps() == [10, 11]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def test_a_failed_deletion_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1, 2)
    really = shutil.rmtree

    def stubborn(path: Path, **options) -> None:
        if path.name == "step-00000001":
            raise PermissionError(f"{path} is held")
        really(path, **options)

    monkeypatch.setattr(shutil, "rmtree", stubborn)
    save(checkpoints, 3, 4)
    assert checkpoints.steps() == [1, 3, 4]
    assert "step 1 could not be deleted" in caplog.text


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_what_was_there(tmp_path: Path, error: BaseException):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1, 2)
    with pytest.raises(type(error)):
        checkpoints.save(3, {"policy": Bytes(b"x"), "critic": Failing(error)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert load(checkpoints)[0] == 2


def test_what_a_killed_process_was_building_is_not_used(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "building")
    assert load(checkpoints)[0] == 1
    save(checkpoints, 2)
    assert load(checkpoints)[0] == 2 and not (tmp_path / "building").exists()


def test_a_broken_one_is_set_aside_for_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    checkpoints = Checkpoints(tmp_path, keep=3)
    save(checkpoints, 1, 2, 3)
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    (tmp_path / "step-00000002" / "policy" / "length.txt").unlink()
    assert load(checkpoints) == (1, {"consumed": 1}, b"policy 1")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "step 3 is broken (manifest.json cannot be read" in warnings[0]
    assert "step 2 is broken (policy/length.txt is missing)" in warnings[1]
    assert checkpoints.steps() == [1] and (tmp_path / "broken-step-00000002").is_dir()
    save(checkpoints, 2)  # a broken one neither stands in the way nor counts as kept
    assert load(checkpoints)[:2] == (2, {"consumed": 2})


def test_none_whole_is_an_error_that_stays_one(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1, 2)
    for step in (1, 2):
        (tmp_path / f"step-0000000{step}" / "state.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"no checkpoint in .* is whole: step 2: state.json is .*; step 1: .*delete"
        ):
            load(checkpoints)


def test_a_checkpoint_under_another_steps_name_is_refused(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1)
    (tmp_path / "step-00000001").rename(tmp_path / "step-00000007")
    assert find_fault(tmp_path / "step-00000007", 7) == "manifest.json is of step 1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save(Checkpoints(folder, keep=2), 1)
    return folder / "step-00000001"


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_and_any_cut_is_found(whole: Path, data: st.DataObject):
    file = data.draw(st.sampled_from(sorted(path for path in whole.rglob("*") if path.is_file())))
    content = file.read_bytes()
    if data.draw(st.booleans(), label="cut"):
        damaged = content[: data.draw(st.integers(0, len(content) - 1), label="length")]
    else:
        bit = data.draw(st.integers(0, 8 * len(content) - 1), label="bit")
        flipped = content[bit // 8] ^ 1 << bit % 8
        damaged = content[: bit // 8] + bytes([flipped]) + content[bit // 8 + 1 :]
    assert find_fault(whole, 1) is None
    file.write_bytes(damaged)
    try:
        assert find_fault(whole, 1) is not None
    finally:
        file.write_bytes(content)
