"""The upload to a folder or an object store, through fsspec: the checksums are written last.

`SHA256SUMS` marks a whole bundle. It is removed before anything is changed and comes back when all
files stand, so whoever looks for it never meets half a model. What is done already is noted in
`.SHA256SUMS.partial`, from which an interrupted upload continues.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError, PublishError
from toolkit.leftovers import appearing_file, remove_leftovers
from toolkit.progress import progress, say
from toolkit.publish.bundle import SUMS, parse_sums, read_sums, sums_text

PARTIAL = f".{SUMS}.partial"
"""What an upload notes; beside `SHA256SUMS` it says nothing any more."""

_BLOCK = 8 << 20


def is_store(address: str) -> bool:
    """Whether an address is a URL of a store and no name on a hub.

    >>> is_store("s3://bucket/models/x"), is_store("org/name")
    (True, False)
    """
    return "://" in address


def store_address(place: str) -> str:
    """The address of a store: a folder of this machine is one too.

    Args:
        place: a URL, or the path of a folder, which need not be there yet.

    Raises:
        ConfigError: it is the path of a file.
    """
    if is_store(place):
        return place
    folder = Path(place).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--to {place}: is a file; name a folder, or a store such as s3://….")
    # Not `as_uri()`, whose escapes fsspec's local file system takes literally.
    return f"file://{folder}"


def upload_to_store(folder: Path, address: str) -> str:
    """Bring a folder of a store to what the bundle holds; what is there is not sent again.

    Credentials come from the store's own standard places (for S3: AWS_ACCESS_KEY_ID,
    ~/.aws/credentials, the machine's role).

    Args:
        folder: a whole bundle.
        address: such as `s3://bucket/models/name` or `file:///srv/models/name`.

    Returns:
        The address.

    Raises:
        PublishError: the store refuses or cannot be reached; what is there is marked as not whole.
    """
    hashes_by_name = read_sums(folder)
    with store_errors(address):
        store, root = open_store(address)
        earlier_sums = read_remote_sums(store, root, address)
        if is_local(store):
            remove_leftovers(Path(root))
        # Sizes as well: a store may have lost or cut a file since its sums were written.
        if earlier_sums == hashes_by_name and all(
            _size(store, f"{root}/{file_name}") == (folder / file_name).stat().st_size
            for file_name in hashes_by_name
        ):
            say(f"  {address} holds exactly this already; nothing was sent")
            _remove_note(store, root)
            return address
        # Without the marker the folder is known to be in the making.
        stored_sums = _read_sums(store, f"{root}/{PARTIAL}", f"{address}/{PARTIAL}") or {}
        # The note first, then the marker goes: cut in between both stand, and nothing is lost.
        if earlier_sums is not None:
            stored_sums |= earlier_sums
            _put_text(store, f"{root}/{PARTIAL}", sums_text(stored_sums))
            store.rm_file(f"{root}/{SUMS}")
        _send_files(store, root, folder, hashes_by_name, stored_sums)
        # Only files that earlier checksums name: what others keep there is not ours to remove.
        for file_name in sorted(set(stored_sums) - set(hashes_by_name)):
            if store.exists(f"{root}/{file_name}"):
                store.rm_file(f"{root}/{file_name}")
        _put_text(store, f"{root}/{SUMS}", sums_text(hashes_by_name))
        _remove_note(store, root)
    return address


def _remove_note(store: Any, root: str) -> None:
    if store.exists(f"{root}/{PARTIAL}"):
        store.rm_file(f"{root}/{PARTIAL}")


def _send_files(
    store: Any, root: str, folder: Path, sums: Mapping[str, str], stored_sums: dict[str, str]
) -> None:
    # Sizes as well as hashes: a store may have cut a file since its hash was noted.
    missing_names = [
        name
        for name, digest in sums.items()
        if stored_sums.get(name) != digest
        or _size(store, f"{root}/{name}") != (folder / name).stat().st_size
    ]
    total_bytes = sum((folder / name).stat().st_size for name in missing_names)
    with progress("uploading, MB", total_bytes / 1e6) as advance:
        for file_name in missing_names:
            # Before it changes: cut within, another upload would take the new file for the old one.
            if stored_sums.pop(file_name, None) is not None:
                _put_text(store, f"{root}/{PARTIAL}", sums_text(stored_sums))
            _put(store, folder / file_name, f"{root}/{file_name}")
            # Noted file by file: from here an upload that was cut continues.
            stored_sums[file_name] = sums[file_name]
            _put_text(store, f"{root}/{PARTIAL}", sums_text(stored_sums))
            advance((folder / file_name).stat().st_size / 1e6, file_name)


def open_store(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Raises:
        PublishError: the address is of no kind that is known or installed here.
    """
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    protocol, _, path = address.partition("://")
    if protocol in LocalFileSystem.protocol:
        # Taken as it is: `url_to_fs` splits a name at `::`, which chains file systems.
        return LocalFileSystem(), str(Path(path).expanduser().absolute())
    try:
        # A cached listing would hide what was just written or removed; file systems that do not
        # know the option refuse it with a TypeError.
        store, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except TypeError:
        store, root = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise PublishError(
            f"{address}: needs a package that is not installed ({error.name or error}); for s3:// "
            "pip install 'cpt-toolkit[s3]', for gs:// gcsfs, for az:// adlfs."
        ) from error
    except ValueError as error:
        raise PublishError(f"{address}: is no address of a store ({error}).") from error
    return store, str(root).rstrip("/")


def read_remote_sums(store: Any, root: str, address: str) -> dict[str, str] | None:
    """The checksums of the whole bundle that stands there, or None."""
    return _read_sums(store, f"{root}/{SUMS}", f"{address}/{SUMS}")


def _read_sums(store: Any, path: str, where: str) -> dict[str, str] | None:
    try:
        return parse_sums(store.cat_file(path).decode("utf-8"), where)
    except FileNotFoundError:
        return None


def _size(store: Any, path: str) -> int | None:
    try:
        return int(store.info(path)["size"])
    except FileNotFoundError:
        return None


def _put(store: Any, source: Path, path: str) -> None:
    """Write a file that appears whole: under another name first where the store shows parts."""
    if is_local(store):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with appearing_file(Path(path)) as temporary:
            shutil.copyfile(source, temporary)
        return
    with source.open("rb") as file, store.open(path, "wb", block_size=_BLOCK) as remote_file:
        while block := file.read(_BLOCK):
            remote_file.write(block)


def is_local(store: Any) -> bool:
    return "file" in (store.protocol if isinstance(store.protocol, tuple) else (store.protocol,))


def _put_text(store: Any, path: str, text: str) -> None:
    if is_local(store):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with appearing_file(Path(path)) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    store.pipe_file(path, text.encode())


@contextlib.contextmanager
def store_errors(address: str) -> Iterator[None]:
    """Say in one line what the store said."""
    try:
        yield
    except PublishError:
        raise
    except Exception as error:
        # Stores raise errors of their own libraries; they have no common base but Exception.
        # Only where the class is a store's, as an error of our own must show its traceback.
        error_module = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError) and error_module not in _STORE_MODULES:
            raise
        error_text = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise PublishError(
            f"{address}: the store refused or broke off ({error_text}). Check the address and the "
            "credentials in their standard places, and run again; what is there is not sent twice."
        ) from error


_STORE_MODULES = {"botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "adlfs", "azure", "google"}
