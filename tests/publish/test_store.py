"""Uploads to folders, memory and a real S3 server: marked whole only when all stands."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import fsspec
import pytest

from toolkit.errors import ConfigError, PublishError
from toolkit.publish import store as module
from toolkit.publish.bundle import SUMS, write_sums
from toolkit.publish.stage import check_target
from toolkit.publish.store import open_store, store_address, upload_to_store
from toolkit.publish.verify import verify_files

SERVER = """
from moto.server import ThreadedMotoServer
import sys, time
server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]))
server.start()
time.sleep(600)
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "README.md").write_text("# tiny\n")
    for number in range(3):
        (folder / f"model-{number}.safetensors").write_bytes(bytes([number]) * 70_000)
    write_sums(folder)
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """moto's S3 in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urlopen(f"{address}/moto-api/", timeout=5).close()  # noqa: S310  (loopback)
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of each kind of store; credentials stand where each looks for them."""
    if request.param == "file":
        return f"file://{tmp_path}/srv/models/tiny"
    if request.param == "memory":
        return f"memory://models-{tmp_path.name}/tiny"
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_server"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s" * 20)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"models-{abs(hash(tmp_path)) % 10**9}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/tiny"


def contents(place: str) -> dict[str, bytes]:
    store, root = open_store(place)
    return {str(p)[len(root) + 1 :]: store.cat_file(p) for p in store.find(root)}


def local(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_whole_and_verified(place: str, bundle: Path):
    assert upload_to_store(bundle, place) == place
    assert contents(place) == local(bundle)
    assert verify_files(place).faults == ()


def test_a_second_call_sends_nothing(
    place: str, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    upload_to_store(bundle, place)
    monkeypatch.setattr(module, "_put", _refuse)
    monkeypatch.setattr(module, "_put_text", _refuse)
    upload_to_store(bundle, place)
    assert "holds exactly this already; nothing was sent" in capsys.readouterr().out


def _refuse(*_: Any) -> None:
    raise AssertionError("something was sent")


def test_interrupted_and_continued(place: str, bundle: Path, monkeypatch: pytest.MonkeyPatch):
    put, sent = module._put, []

    def breaking(store: Any, source: Path, path: str) -> None:
        if source.name == "model-1.safetensors":
            raise ConnectionResetError("gone")
        sent.append(source.name)
        put(store, source, path)

    monkeypatch.setattr(module, "_put", breaking)
    with pytest.raises(PublishError, match=r"broke off \(gone\)"):
        upload_to_store(bundle, place)
    assert sent == ["README.md", "model-0.safetensors"]
    assert SUMS not in contents(place)
    with pytest.raises(PublishError, match="no whole bundle"):
        verify_files(place)

    def recording(store: Any, source: Path, path: str) -> None:
        sent.append(source.name)
        put(store, source, path)

    monkeypatch.setattr(module, "_put", recording)
    upload_to_store(bundle, place)
    assert sent[2:] == ["model-1.safetensors", "model-2.safetensors"]
    assert contents(place) == local(bundle)


def test_a_new_version_takes_the_old_ones_place(
    place: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    upload_to_store(bundle, place)
    (bundle / "model-2.safetensors").unlink()
    (bundle / "model-1.safetensors").write_bytes(b"new")
    write_sums(bundle)
    put, sent = module._put, []

    def recording(store: Any, source: Path, path: str) -> None:
        # While files change, nothing says that the folder is whole.
        assert SUMS not in contents(place)
        sent.append(source.name)
        put(store, source, path)

    monkeypatch.setattr(module, "_put", recording)
    upload_to_store(bundle, place)
    assert sent == ["model-1.safetensors"]
    assert contents(place) == local(bundle)


def test_an_old_version_again_after_a_new_one_was_cut(
    place: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    upload_to_store(bundle, place)
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    (other / "model-1.safetensors").write_bytes(b"\x07" * 70_000)  # of the same size
    write_sums(other)
    put = module._put

    def cut(*words: Any) -> None:
        put(*words)
        raise ConnectionResetError("gone")  # the file stands, and nothing could be noted of it

    monkeypatch.setattr(module, "_put", cut)
    with pytest.raises(PublishError, match="gone"):
        upload_to_store(other, place)
    monkeypatch.setattr(module, "_put", put)
    upload_to_store(bundle, place)
    assert contents(place) == local(bundle)
    assert verify_files(place).faults == ()


def test_a_note_that_was_left_beside_a_whole_bundle(place: str, bundle: Path):
    upload_to_store(bundle, place)
    store, root = open_store(place)
    store.pipe_file(f"{root}/{module.PARTIAL}", b"")  # killed before its last step
    assert verify_files(place).faults == ()
    if module.is_local(store):
        assert verify_files(root).faults == ()
    upload_to_store(bundle, place)
    assert contents(place) == local(bundle)


def test_damage_is_found(place: str, bundle: Path):
    upload_to_store(bundle, place)
    store, root = open_store(place)
    store.pipe_file(f"{root}/model-0.safetensors", b"\x05" * 70_000)
    store.rm_file(f"{root}/README.md")
    store.pipe_file(f"{root}/other.txt", b"x")
    assert verify_files(place).faults == (
        "README.md: is missing",
        "model-0.safetensors: is not the file that was published",
        f"other.txt: is not named in {SUMS}",
    )


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nothing://x/y", "no address of a store"),
        ("s3://no-such-bucket-here/x", "refused or broke"),
    ],
)
def test_places_that_are_none(
    address: str,
    words: str,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
):
    if address.startswith("s3"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_server"))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s" * 20)
    with pytest.raises(PublishError, match=words) as caught:
        upload_to_store(bundle, address)
    assert len(str(caught.value).splitlines()) == 1
    assert "s" * 20 not in str(caught.value)


@pytest.mark.parametrize("name", ["plain", "with space", "50%20off", "a#b?c=d", "größe", "a::b"])
def test_a_folder_is_a_store(name: str, tmp_path: Path, bundle: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    upload_to_store(bundle, store_address(name))
    assert not verify_files(name).faults
    assert {path.name for path in (tmp_path / name).iterdir()} == {
        path.name for path in bundle.iterdir()
    }


def test_a_target_is_asked_before_anything_is_made(tmp_path: Path):
    check_target(None)
    check_target(store_address(str(tmp_path / "new")))
    assert not list(tmp_path.iterdir())
    for address in ("nothing://x/y", f"file://{tmp_path}/file"):
        (tmp_path / "file").write_text("a file, where a folder is needed")
        with pytest.raises(PublishError):
            check_target(address)


def test_a_file_is_no_store(tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match=r"taken: is a file; name a folder"):
        store_address(str(tmp_path / "taken"))
    assert store_address("s3://bucket/x") == "s3://bucket/x"
