"""The bundle: the files that leave this machine, put together so that the same run gives the same
bytes, with their checksums written last."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from toolkit import __version__
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.side_files import SIDE_FILES
from toolkit.errors import PublishError
from toolkit.file_hashes import known_hash
from toolkit.publish.config import Format
from toolkit.publish.licenses import Parent
from toolkit.publish.public import public_json
from toolkit.stage import hash_file, load_json, write_atomically, write_json

SUMS = "SHA256SUMS"
"""Written last: where it stands, the bundle is whole."""
RECORD = "bundle.json"
INDEX = "model.safetensors.index.json"
_REPORTS = ("report.html", "report.json")


@dataclass(frozen=True)
class BundleRecord:
    """What `bundle.json` says: enough to check the bundle and to make the merge again.

    Attributes:
        repository: name it is published under.
        format: kind of bundle.
        parents: of the merge, with `weights`: sha256 of their weight files by name.
        merge: `seed`, and `weights`: sha256 of the merged model's weight files.
        made_from: hashes of the merge stage and of what was asked; equal ones give equal bundles.
        files: figures of GGUF files and adapters, by file.
        checks: `passed` or `accepted` by check.
        accepted: reasons given for checks that failed.
    """

    repository: str
    format: Format
    parents: Sequence[Mapping[str, object]]
    merge: Mapping[str, object]
    made_from: Mapping[str, str]
    files: Mapping[str, object] = field(default_factory=dict)
    checks: Mapping[str, str] = field(default_factory=dict)
    accepted: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        write_json(folder / RECORD, {"toolkit": __version__, **asdict(self)})


def parent_record(parent: Parent, weights: Mapping[str, str]) -> dict[str, object]:
    return {**asdict(parent), "weights": dict(weights)}


def copy_weights(source: Path, target: Path) -> None:
    """Copy a model's weight files and their index."""
    checkpoint = open_checkpoint(source)
    # By the tensors and not by a glob: weight files that the index does not name stay behind.
    for weight_path in sorted({checkpoint.info(name).file for name in checkpoint.names}):
        shutil.copyfile(weight_path, target / weight_path.name)
    if (source / INDEX).is_file():
        shutil.copyfile(source / INDEX, target / INDEX)


def copy_settings(source: Path, target: Path, *, with_config: bool = True) -> None:
    """Copy config, generation settings, tokenizer and chat template, without what they say of this
    machine."""
    for file_name in ("config.json", *SIDE_FILES) if with_config else SIDE_FILES:
        source_path = source / file_name
        if not source_path.is_file():
            continue
        # Vocabularies hold no such keys and are large, so they are copied byte for byte.
        if source_path.suffix == ".json" and file_name not in ("tokenizer.json", "vocab.json"):
            (target / file_name).write_bytes(public_json(source_path))
        else:
            shutil.copyfile(source_path, target / file_name)


def copy_reports(source: Path, target: Path) -> None:
    for report_name in _REPORTS:
        if (source / report_name).is_file():
            shutil.copyfile(source / report_name, target / report_name)


def write_texts(target: Path, texts: Mapping[str, str | bytes]) -> None:
    """Write small files: card, merge, recipe, licenses."""
    for file_name, file_text in texts.items():
        with write_atomically(target / file_name, "wb") as file:
            file.write(file_text.encode() if isinstance(file_text, str) else file_text)


def bundle_files(folder: Path) -> list[Path]:
    """The files of a bundle but for its checksums, sorted by name."""
    all_paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in all_paths if path.relative_to(folder).as_posix() != SUMS)


def write_sums(folder: Path) -> dict[str, str]:
    """Hash every file and write `SHA256SUMS` as `sha256sum -c` reads it.

    Returns:
        sha256 of each file by its name, `SHA256SUMS` left out.
    """
    sums = {path.relative_to(folder).as_posix(): hash_file(path) for path in bundle_files(folder)}
    with write_atomically(folder / SUMS) as file:
        file.write(sums_text(sums))
    return sums


def sums_text(sums: Mapping[str, str]) -> str:
    # `sha256sum -c` wants two characters between hash and name: a space, and one for text.
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def parse_sums(text: str, where: str) -> dict[str, str]:
    """Read checksums.

    Raises:
        PublishError: a line is not a sha256, two spaces and a name inside the folder.

    >>> parse_sums("ab" * 32 + "  a/b.json\\n", "x") == {"a/b.json": "ab" * 32}
    True
    """
    hashes_by_name: dict[str, str] = {}
    # Not `splitlines`: a file's name may hold U+2028 and its like.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        file_hash, _, file_name = line.partition("  ")
        # Names with a parent or an absolute path would let a bundle speak of files outside its
        # folder.
        path_parts = Path(file_name).parts
        is_hash = len(file_hash) == 64 and not set(file_hash) - set("0123456789abcdef")
        if not is_hash or not file_name or Path(file_name).is_absolute() or ".." in path_parts:
            raise PublishError(f"{where}, line {number}: is no checksum and name ({line[:80]!r}).")
        hashes_by_name[file_name] = file_hash
    return hashes_by_name


def read_sums(folder: Path) -> dict[str, str]:
    """The checksums of a whole bundle.

    Raises:
        PublishError: there are none, so it is not whole.
    """
    sums_path = folder / SUMS
    if not sums_path.is_file():
        raise PublishError(f"{folder}: holds no {SUMS}, so it is no whole bundle; make it again.")
    return parse_sums(sums_path.read_text(encoding="utf-8"), str(sums_path))


def is_made(folder: Path, made_from: Mapping[str, str]) -> bool:
    """Whether a bundle of the same run and the same wishes stands there whole."""
    if not (folder / SUMS).is_file() or not (folder / RECORD).is_file():
        return False
    if load_json(folder / RECORD).get("made_from") != dict(made_from):
        return False
    sums = read_sums(folder)
    file_names = {path.relative_to(folder).as_posix() for path in bundle_files(folder)}
    # Hashed anew: a bundle in which somebody changed a file is made again, not sent.
    return file_names == set(sums) and all(hash_file(folder / n) == d for n, d in sums.items())


def weight_sums(folder: Path) -> dict[str, str]:
    """sha256 of a model's weight files by name."""
    checkpoint = open_checkpoint(folder)
    file_names = sorted({checkpoint.info(name).file.name for name in checkpoint.names})
    # Not what a manifest in the folder says: the files may have been changed since.
    return {name: known_hash(folder / name) for name in file_names}
