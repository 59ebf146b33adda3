"""Checking a published bundle against its own checksums, wherever it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import PublishError
from toolkit.file_hashes import hash_open
from toolkit.library_errors import first_line
from toolkit.load_yaml import JsonView, parse_json
from toolkit.progress import progress
from toolkit.publish.bundle import RECORD, SUMS, parse_sums, read_sums
from toolkit.publish.store import PARTIAL, is_store, open_store, store_errors
from toolkit.stage import hash_file

# The hub puts .gitattributes into a repository by itself, and an upload that was cut leaves a note.
_NOT_PUBLISHED = {SUMS, PARTIAL, ".gitattributes", ".gitignore"}


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
    names = {n for n in names - _NOT_PUBLISHED if not n.startswith((".cache/", ".git/"))}
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
    record_path = folder / RECORD
    record_text = record_path.read_bytes() if record_path.is_file() else None
    bundle_record = _parse_record(record_text, str(record_path))
    merge_path = folder / "merge.yaml"
    merge_text = merge_path.read_text(encoding="utf-8") if merge_path.is_file() else None
    return BundleVerdict(hashes_by_name, tuple(faults), bundle_record, merge_text)


def _megabytes(folder: Path, sums: Mapping[str, str]) -> float:
    bundle_paths = (folder / name for name in sums)
    return sum(path.stat().st_size for path in bundle_paths if path.is_file()) / 1e6


def _parse_record(text: bytes | None, where: str) -> JsonView:
    values = {} if text is None else parse_json(text, where, PublishError)
    if not isinstance(values, dict):
        raise PublishError(
            f"{where}: must hold keys and values (got {type(values).__name__}), so it is no record "
            "of a bundle; make the bundle again."
        )
    return values


def _verify_store(address: str) -> BundleVerdict:
    store, root = open_store(address)
    if not store.exists(f"{root}/{SUMS}"):
        raise PublishError(f"{address}: holds no {SUMS}, so it is no whole bundle.")
    sums = parse_sums(store.cat_file(f"{root}/{SUMS}").decode("utf-8"), f"{address}/{SUMS}")
    faults = []
    for file_name, file_hash in sums.items():
        try:
            with store.open(f"{root}/{file_name}", "rb") as file:
                remote_digest = hash_open(file)
        except FileNotFoundError:
            faults.append(f"{file_name}: is missing")
            continue
        if remote_digest != file_hash:
            faults.append(f"{file_name}: is not the file that was published")
    remote_names = {str(path)[len(root) + 1 :] for path in store.find(root)}
    faults += [
        f"{name}: is not named in {SUMS}"
        for name in sorted(remote_names - set(sums) - _NOT_PUBLISHED)
    ]

    def content(name: str) -> bytes | None:
        return bytes(store.cat_file(f"{root}/{name}")) if name in remote_names else None

    merge_text = content("merge.yaml")
    return BundleVerdict(
        sums,
        tuple(faults),
        _parse_record(content(RECORD), f"{address}/{RECORD}"),
        None if merge_text is None else merge_text.decode("utf-8"),
    )


def _snapshot(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise PublishError(
            f"{repository}: is neither a folder nor a repository that the hub gives "
            f"({first_line(error)})."
        ) from error
