"""Checking a published bundle against its own checksums, wherever it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import PublishError
from toolkit.load_yaml import JsonView
from toolkit.progress import progress
from toolkit.publish.bundle import RECORD, SUMS, parse_sums, read_sums
from toolkit.publish.store import is_store, open_store, store_errors
from toolkit.stage import hash_file, load_json

# The hub puts .gitattributes into a repository by itself.
_OF_THE_HUB = {".gitattributes", ".gitignore"}
_BLOCK = 8 << 20


@dataclass(frozen=True)
class BundleVerdict:
    """What was found of a bundle's files.

    Attributes:
        sums: what they should be, by name.
        faults: one line for each file that is missing, another, or not named in the checksums.
        record: what `bundle.json` says.
        merge_yaml: the merge with public names, where the bundle has it.
    """

    sums: Mapping[str, str]
    faults: tuple[str, ...]
    record: JsonView
    merge_yaml: str | None


def verify_files(where: str, revision: str | None = None) -> BundleVerdict:
    """Compute every file's hash anew and compare it with `SHA256SUMS`.

    Args:
        where: a folder, a repository of the hub, or an address of a store.
        revision: of a repository.

    Raises:
        PublishError: there is no whole bundle there, or it cannot be reached.
    """
    if is_store(where):
        with store_errors(where):
            return _verify_store(where)
    folder = Path(where)
    if not folder.is_dir():
        folder = _snapshot(where, revision)
    return _verify_folder(folder)


def _verify_folder(folder: Path) -> BundleVerdict:
    hashes_by_name = read_sums(folder)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    # A clone holds .git, and a download by the hub's client .cache.
    names = {n for n in names - {SUMS} - _OF_THE_HUB if not n.startswith((".cache/", ".git/"))}
    faults = []
    with progress("hashing, MB", _megabytes(folder, hashes_by_name)) as advance:
        for file_name, file_hash in hashes_by_name.items():
            if file_name not in names:
                faults.append(f"{file_name}: is missing")
                continue
            if hash_file(folder / file_name) != file_hash:
                faults.append(f"{file_name}: is not the file that was published")
            advance((folder / file_name).stat().st_size / 1e6, file_name)
    faults += [f"{name}: is not named in {SUMS}" for name in sorted(names - set(hashes_by_name))]
    bundle_record = load_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    merge_path = folder / "merge.yaml"
    merge_text = merge_path.read_text(encoding="utf-8") if merge_path.is_file() else None
    return BundleVerdict(hashes_by_name, tuple(faults), bundle_record, merge_text)


def _megabytes(folder: Path, sums: Mapping[str, str]) -> float:
    bundle_paths = (folder / name for name in sums)
    return sum(path.stat().st_size for path in bundle_paths if path.is_file()) / 1e6


def _verify_store(address: str) -> BundleVerdict:
    import json

    store, root = open_store(address)
    if not store.exists(f"{root}/{SUMS}"):
        raise PublishError(f"{address}: holds no {SUMS}, so it is no whole bundle.")
    sums = parse_sums(store.cat_file(f"{root}/{SUMS}").decode("utf-8"), f"{address}/{SUMS}")
    faults = []
    for file_name, file_hash in sums.items():
        try:
            remote_digest = _hash_remote(store, f"{root}/{file_name}")
        except FileNotFoundError:
            faults.append(f"{file_name}: is missing")
            continue
        if remote_digest != file_hash:
            faults.append(f"{file_name}: is not the file that was published")
    remote_names = {str(path)[len(root) + 1 :] for path in store.find(root)}
    faults += [
        f"{name}: is not named in {SUMS}" for name in sorted(remote_names - set(sums) - {SUMS})
    ]

    def text(name: str) -> str | None:
        return store.cat_file(f"{root}/{name}").decode("utf-8") if name in remote_names else None

    return BundleVerdict(sums, tuple(faults), json.loads(text(RECORD) or "{}"), text("merge.yaml"))


def _hash_remote(store: Any, path: str) -> str:
    running_hash = hashlib.sha256()
    with store.open(path, "rb") as file:
        # In blocks, as a file of weights may be larger than the memory.
        while block := file.read(_BLOCK):
            running_hash.update(block)
    return running_hash.hexdigest()


def _snapshot(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PublishError(
            f"{repository}: is neither a folder nor a repository that the hub gives ({first_line})."
        ) from error
