"""Files are read when something may have changed, and remembered when nothing tells of a change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from toolkit import file_hashes
from toolkit.file_hashes import differing_files, known_hash, verify_all

OLD = 1_600_000_000
FILES = {"small": b"abc", "large": b"x" * 9}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOOLKIT_VERIFY", "")
    monkeypatch.setattr(file_hashes, "ALWAYS_READ_BYTES", 4)
    monkeypatch.setattr(file_hashes, "_READ_TOGETHER_BYTES", 4)
    monkeypatch.setattr(file_hashes, "_SEEN", set())


def write(path: Path, data: bytes, when: int = OLD) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (when, when))
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [3, 300])
def test_a_hash_is_that_of_the_bytes(tmp_path: Path, size: int):
    path = tmp_path / "a"
    for data in (b"x" * size, b"y" * size, b"y" * (size + 1)):
        digest = write(path, data, OLD + data[0])
        assert known_hash(path) == digest == known_hash(path)


def test_large_files_are_remembered_until_something_tells_of_a_change(tmp_path: Path):
    path = tmp_path / "a"
    before = write(path, b"x" * 300)
    assert known_hash(path) == before
    after = write(path, b"y" * 300)  # as a flipped bit on a disk: nothing tells of it
    assert known_hash(path) == before
    verify_all(True)
    assert known_hash(path) == after


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 300)
    known_hash(path)
    assert not (tmp_path / "cache/hashes.json").exists()


@pytest.mark.parametrize("damage", ["", "[]", '{"a": 3}', "{"])
def test_a_damaged_memory_is_begun_anew(tmp_path: Path, damage: str):
    path = tmp_path / "a"
    digest = write(path, b"x" * 300)
    known_hash(path)
    (tmp_path / "cache/hashes.json").write_text(damage)
    assert known_hash(path) == digest == known_hash(path)


def test_files_that_differ_are_named(tmp_path: Path):
    folder = tmp_path / "stage"
    expected = {
        "small": write(folder / "small", b"abc"),
        "large": write(folder / "large", b"x" * 9),
    }
    assert differing_files(folder, expected) == []
    for name, data in (("small", b"abd"), ("large", b"x" * 8 + b"y")):
        write(folder / name, data, OLD + 1)
        assert differing_files(folder, expected) == [name]
        write(folder / name, FILES[name])
        assert differing_files(folder, expected) == []
    assert differing_files(folder, {**expected, "none": "0"}) == ["none"]


def test_small_files_are_always_read_and_large_ones_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "stage"
    expected = {
        "small": write(folder / "small", b"abc"),
        "large": write(folder / "large", b"x" * 9),
    }
    assert differing_files(folder, expected) == []
    write(folder / "small", b"abd")
    write(folder / "large", b"y" * 9)  # both with their old times of change
    monkeypatch.setattr(file_hashes, "_SEEN", set())  # as another process
    assert differing_files(folder, expected) == ["small"]
    monkeypatch.setenv("TOOLKIT_VERIFY", "1")
    assert differing_files(folder, expected) == ["small", "large"]
