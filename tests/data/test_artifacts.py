"""Artifacts: hashes are checked, archives are read and never unpacked blindly."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from toolkit import machine
from toolkit.data.artifacts import _other_hash, extract_member, fetch_artifact, open_members
from toolkit.data.config import ArtifactSection
from toolkit.errors import DataError
from toolkit.stage import hash_bytes


def read_members(archive: Path, pattern: str) -> list[tuple[str, bytes]]:
    return [(name, stream.read()) for name, stream in open_members(archive, pattern)]


def section(sha256: str) -> ArtifactSection:
    return ArtifactSection(package="none-such", version="1.0", sha256=sha256, member="*")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    # No index at all: pip fails at once, as without a network.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    return tmp_path / "cache"


def put(cache: Path, content: bytes, sha256: str) -> Path:
    folder = cache / "artifacts" / sha256
    folder.mkdir(parents=True)
    (folder / "file.whl").write_bytes(content)
    return folder / "file.whl"


def test_a_cached_file_is_used_without_a_network(cache: Path):
    digest = hash_bytes(b"content")
    path = put(cache, b"content", digest)
    assert fetch_artifact(section(digest)) == path


def test_without_network_and_cache_the_message_says_what_to_do(cache: Path):
    with pytest.raises(DataError) as caught:
        fetch_artifact(section("0" * 64))
    assert "none-such==1.0: is not in the cache" in str(caught.value)
    assert "put the file into" in str(caught.value)


def test_a_damaged_file_in_the_cache_is_not_used(cache: Path):
    path = put(cache, b"damaged", hash_bytes(b"content"))
    with pytest.raises(DataError):
        fetch_artifact(section(hash_bytes(b"content")))
    assert not path.exists()


def test_a_wrong_hash_on_the_index_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wheel = tmp_path / "none_such-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("none_such-1.0.dist-info/METADATA", "Name: none-such\nVersion: 1.0\n")
        archive.writestr("none_such-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DataError) as caught:
        fetch_artifact(section("0" * 64))
    assert hash_bytes(wheel.read_bytes()) in str(caught.value)
    assert "0" * 64 in str(caught.value)


def test_members_of_nested_zips(tmp_path: Path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("news.csv", "text\nx\n")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("data/News.zip", inner.getvalue())
    (found,) = read_members(tmp_path / "a.whl", "data/News.zip//news.csv")
    assert found == ("data/News.zip//news.csv", b"text\nx\n")


def test_links_in_a_tar_are_passed_over(tmp_path: Path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo("x/link.html")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        data = tarfile.TarInfo("x/page.html")
        data.size = 2
        tar.addfile(data, io.BytesIO(b"ok"))
    assert list(read_members(path, "x/*.html")) == [("x/page.html", b"ok")]


def test_a_member_cannot_leave_its_folder(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../evil.gguf", b"x")
    target = tmp_path / "out"
    target.mkdir()
    assert extract_member(tmp_path / "a.zip", "*.gguf", target) == target / "evil.gguf"


def test_nothing_that_matches_is_an_error(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b", b"x")
    with pytest.raises(DataError, match="nothing that matches"):
        list(read_members(tmp_path / "a.zip", "c"))


def test_what_is_no_archive_is_an_error(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(b"not an archive")
    with pytest.raises(DataError, match="cannot be read as an archive"):
        list(read_members(tmp_path / "a.zip", "*"))


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    assert machine.cache_folder() == tmp_path


def test_of_members_of_one_name_the_last_counts(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b.txt", "former")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("b.txt", "latter")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for content in (b"former", b"latter"):
            info = tarfile.TarInfo("b.txt")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    for name in ("a.zip", "a.tar"):
        assert read_members(tmp_path / name, "*") == [("b.txt", b"latter")]
        assert extract_member(tmp_path / name, "b.txt", tmp_path).read_bytes() == b"latter"


def test_names_in_tar_files_may_be_of_another_encoding(tmp_path: Path):
    with tarfile.open(
        tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1"
    ) as tar:
        tar.addfile(tarfile.TarInfo("caf\u00e9.txt"), io.BytesIO())
    ((name, _),) = read_members(tmp_path / "a.tar", "*")
    assert name == "caf\\xe9.txt"


def test_only_a_hash_that_differs_is_called_so():
    assert _other_hash("ERROR: No matching distribution found for xxhash==1") is None
    differs = (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM ...\n  Expected sha256 a\n  Got  b"
    )
    assert _other_hash(differs) == "b"
