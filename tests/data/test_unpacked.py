"""Compressed files that unpack to too much, and lines and documents that are too long."""

from __future__ import annotations

import binascii
import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit.data.artifacts import open_members
from toolkit.data.config import SourceSection
from toolkit.data.sources import read_documents
from toolkit.data.unpacked import unpack
from toolkit.errors import DataError

BOMB = b'{"text": "' + b"a" * 1000 + b'"}\n'


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def documents(path: Path, **settings: Any) -> list[str]:
    source = SourceSection(role="domain", files=(str(path),), **settings)
    return [document.text for document in read_documents("docs", source)]


@pytest.mark.parametrize("ending", PACKERS)
def test_bombs(tmp_path: Path, ending: str):
    path = tmp_path / f"docs.jsonl{ending}"
    path.write_bytes(PACKERS[ending](BOMB * (80 << 10)))
    with pytest.raises(DataError, match=r"TOOLKIT_MAX_UNPACKED_RATIO") as raised:
        documents(path)
    assert f"docs.jsonl{ending}" in str(raised.value)


@pytest.mark.parametrize("ending", PACKERS)
def test_what_is_packed_well_is_read(tmp_path: Path, ending: str):
    path = tmp_path / f"docs.jsonl{ending}"
    path.write_bytes(PACKERS[ending](BOMB * 300))
    assert documents(path) == ["a" * 1000] * 300


def test_the_limit_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOOLKIT_MAX_UNPACKED_RATIO", "100000")
    data = bytes(70 << 20)
    stream = unpack("a.gz", io.BytesIO(gzip.compress(data, 1)))
    assert sum(len(block) for block in iter(lambda: stream.read(1 << 20), b"")) == len(data)


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.csv", "docs.txt", "docs.html"])
def test_one_long_line(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    limits = {"LINE_BYTES": "1000", "DOCUMENT_BYTES": "1000"}
    for key, value in limits.items():
        monkeypatch.setenv(f"TOOLKIT_MAX_{key}", value)
    path = tmp_path / name
    path.write_text("text\n" + "a" * 5000)
    with pytest.raises(DataError, match=r"TOOLKIT_MAX_|not valid JSON"):
        documents(path)
    path.write_text(json.dumps({"text": "a" * 5000}))
    with pytest.raises(DataError, match="TOOLKIT_MAX_"):
        documents(path)


def test_deep_lines_are_damaged(tmp_path: Path):
    path = tmp_path / "docs.jsonl"
    deep = "[" * 100_000 + "]" * 100_000
    path.write_text(f'{{"text": "a"}}\n{{"text": {deep}}}\n{{"text": "b"}}\n')
    with pytest.raises(DataError, match=r"docs\.jsonl:2: is nested too deeply"):
        documents(path)
    assert documents(path, skip_damaged=True) == ["a", "b"]


def test_parquet_that_claims_rows(tmp_path: Path):
    path = tmp_path / "docs.parquet"
    pq.write_table(pa.table({"text": pa.nulls(100_000_000, pa.string())}), path)
    with pytest.raises(DataError, match="TOOLKIT_MAX_UNPACKED_RATIO"):
        documents(path)


def test_zip_members(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.txt", bytes(100 << 20))
    with pytest.raises(DataError, match="TOOLKIT_MAX_UNPACKED_RATIO"):
        list(open_members(path, "*.txt"))


@pytest.mark.parametrize("place", [8, 10])
def test_zip_features(tmp_path: Path, place: int):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"text")
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\1\2")
    data[central + place] = 99 if place == 10 else 1  # an unknown way of packing, or encryption
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read as an archive"):
        for _, stream in open_members(path, "*.txt"):
            stream.read()


def test_names_that_are_not_utf8(tmp_path: Path):
    path = Path(str(tmp_path) + "/caf\udce9.txt")
    path.write_text("text")
    with pytest.raises(DataError, match="its name is not UTF-8"):
        documents(tmp_path)


def wide_xz(data: bytes) -> bytes:
    """An xz file that asks for a dictionary of 4 GiB."""
    packed = lzma.compress(data)
    header = bytearray(packed[12 : 12 + 4 * (packed[12] + 1)])
    header[4] = 40
    header[-4:] = binascii.crc32(header[:-4]).to_bytes(4, "little")
    return packed[:12] + bytes(header) + packed[12 + len(header) :]


def test_a_wide_dictionary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "docs.jsonl.xz"
    path.write_bytes(wide_xz(b'{"text": "a"}\n'))
    with pytest.raises(DataError, match=r"docs\.jsonl\.xz.*TOOLKIT_MAX_XZ_BYTES"):
        documents(path)
    monkeypatch.setenv("TOOLKIT_MAX_XZ_BYTES", "5G")
    assert documents(path) == ["a"]


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_what_follows_is_read_or_refused(tmp_path: Path, ending: str):
    first, second = (PACKERS[ending](f'{{"text": "{name}"}}\n'.encode()) for name in "ab")
    path = tmp_path / f"docs.jsonl{ending}"
    path.write_bytes(first + second)
    assert documents(path) == ["a", "b"]
    path.write_bytes(first + bytes(8))
    assert documents(path) == ["a"]
    path.write_bytes(first + b"x" + second[1:])  # Python's own readers lose it without a word
    with pytest.raises(DataError, match=r"docs\.jsonl"):
        documents(path)
    path.write_bytes(first + second[:-6])
    with pytest.raises(DataError, match=r"docs\.jsonl"):
        documents(path)


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("ending", PACKERS)
def test_tar_archives_have_the_bound(tmp_path: Path, ending: str):
    path = tmp_path / f"a.tar{ending}"
    path.write_bytes(PACKERS[ending](tar({"b": b"two", "a": b"one"})))
    found = [(name, stream.read()) for name, stream in open_members(path, "*")]
    assert found == [("a", b"one"), ("b", b"two")]
    path.write_bytes(PACKERS[ending](tar({"z": bytes(80 << 20), "a": b"one"})))
    with pytest.raises(DataError, match=r"a\.tar.*TOOLKIT_MAX_UNPACKED_RATIO"):
        next(iter(open_members(path, "a")))


def test_large_members_out_of_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.data.artifacts.FREE_BYTES", 10)
    members = {name: name.encode() * 3_000_000 for name in "dbca"}
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(tar(members), 1))
    found = [(name, stream.read()) for name, stream in open_members(path, "*")]
    assert found == sorted(members.items())


def test_a_zip_file_that_lies_about_its_size(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("docs.jsonl", bytes(80 << 20))
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 20 : at + 24] = (80 << 20).to_bytes(4, "little")  # as though it were not packed
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"TOOLKIT_MAX_UNPACKED_RATIO"):
        next(iter(open_members(path, "*")))


def test_many_members_count_together(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"{number}.txt", bytes(20 << 20))
    with pytest.raises(DataError, match=r"a\.zip.*TOOLKIT_MAX_UNPACKED_RATIO"):
        next(iter(open_members(path, "*")))
    assert len([name for name, _ in open_members(path, "[12].txt")]) == 2
