"""Stage folders: written beside their place, moved there whole, with a manifest written last.

A stage works in `<stage>.partial/`. When everything stands there, `manifest.json` is written and
the folder is renamed to `<stage>/`; an older, differing `<stage>/` is first renamed to
`<stage>.1/`, `<stage>.2/`, … and kept. So a folder with a manifest is complete, and one without is
work to continue.

Whatever else is a folder of this package (a merge, an adapter, a bundle, a training checkpoint)
goes the same way (`appearing`): it is complete or absent.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from toolkit import __version__
from toolkit.errors import MergeError, ToolkitError
from toolkit.file_hashes import differing_files, read_hash
from toolkit.leftovers import appearing_file, remove_leftovers, remove_path, temporary_path
from toolkit.load_yaml import read_json

MANIFEST = "manifest.json"
_IDENTITY = "identity.json"
_OWN_HASH = "sha256 of the above"
TRACKED_PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")


def hash_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hash_json(value: object) -> str:
    """sha256 of a value's canonical JSON: equal values give equal hashes on every machine."""
    return hash_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def hash_file(path: Path) -> str:
    return read_hash(path)


def hash_folder(folder: Path, *, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    """sha256 of every file below `folder`, by relative path, in sorted order.

    `leave_out` names files and folders at its top.
    """
    return {
        name: hash_file(folder / name)
        for name in sorted(
            p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()
        )
        if name.split("/")[0] not in leave_out
    }


@contextlib.contextmanager
def write_atomically(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears at `path` whole when the block ends, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    # The inner one ends first: the file is closed when it is renamed.
    with appearing_file(path) as temporary, temporary.open(mode, encoding=encoding) as file:
        yield file
        # On the disk before it is renamed: after a power cut the name may otherwise stand for
        # nothing.
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: object) -> None:
    with write_atomically(path) as file:
        json.dump(value, file, indent=2, sort_keys=False)
        file.write("\n")


def load_json(path: Path) -> Any:
    """
    Raises:
        ToolkitError: the file cannot be read, or is not JSON.
    """
    return read_json(path, ToolkitError, "remove the folder and run the stage again")


@dataclass(frozen=True)
class ChangedKey:
    """A setting that differs: its path of keys, and both values."""

    key: str
    before: object
    after: object

    def __str__(self) -> str:
        return f"{self.key}: {_short(self.before)} -> {_short(self.after)}"


def changed_keys(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[ChangedKey]:
    """Which keys differ.

    >>> [str(change) for change in changed_keys({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})]
    ['b.c: 2 -> 3']
    """
    changes: list[ChangedKey] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(ChangedKey(f"{prefix}{key}", before, after))
    return changes


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 48 else text[:45] + "..."


@dataclass
class Stage:
    """One stage of a run: its folder, and what decides whether it must run again.

    Attributes:
        folder: where the complete stage stands, such as `runs/finance/cpt`.
        config: every setting that the result depends on, as plain values.
        inputs: content hashes of what the stage reads, by name.
        seed: the recipe's seed.
        without_effect: patterns of keys, such as `config.train.max_nonfinite_steps`, that change no
            result of a stage that was finished.
        runs: folder of all runs; by default the one that holds this run's.
    """

    folder: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    seed: int
    notes: list[str] = field(default_factory=list)
    without_effect: tuple[str, ...] = ()
    runs: Path | None = None

    @property
    def all_runs(self) -> Path:
        """Folder of all runs, where what they share is kept."""
        return self.runs or self.folder.parent.parent

    @property
    def work(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.partial")

    def identity(self) -> dict[str, Any]:
        # Through JSON, so that tuples and lists compare as a manifest gives them back.
        identity_values = {"config": self.config, "inputs": self.inputs, "seed": self.seed}
        return dict(json.loads(json.dumps(identity_values)))

    def is_complete(self) -> bool:
        """Whether the folder stands, was made from the same things, and is as it was written; a
        move that was cut short is finished first."""
        if (self.work / MANIFEST).is_file():
            self._settle_alone()
        return self.stands()

    def stands(self) -> bool:
        """What `is_complete` says, without writing anything."""
        if not (self.folder / MANIFEST).is_file():
            return False
        try:
            manifest = read_manifest(self.folder)
        except ToolkitError as error:
            self.notes = [str(error)]
            return False
        # From cheap to dear: settings, then sizes, and bytes only where all of that agrees.
        differences = list(map(str, self._changes(manifest)))
        for name, entry in manifest.get("outputs", {}).items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != entry["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes, not {entry['bytes']}"
                differences.append(f"{path} {found}")
        if not differences:
            hashes = {name: entry["sha256"] for name, entry in manifest.get("outputs", {}).items()}
            differences = [
                f"{self.folder / name} holds other bytes than were written"
                for name in differing_files(self.folder, hashes)
            ]
        self.notes = differences
        return not differences

    def _changes(self, made_from: Mapping[str, Any]) -> list[ChangedKey]:
        """What differs between these settings and others, keys without effect left out."""
        changes = changed_keys(
            {key: made_from.get(key) for key in ("config", "inputs", "seed")}, self.identity()
        )
        return [
            change
            for change in changes
            if not any(fnmatchcase(change.key, pattern) for pattern in self.without_effect)
        ]

    @contextlib.contextmanager
    def running(self) -> Iterator[Path]:
        """The working folder, locked against a second process; what was begun there is kept when
        it belongs to this same configuration, and put aside when it does not."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self._open_lock() as lock_file:
            lock_alone(lock_file.fileno(), self.folder, "running this stage")
            self._prepare_work()
            yield self.work

    def _open_lock(self) -> IO[str]:
        # Beside the folders, as both of them are renamed while the lock is held.
        return self.folder.with_name(f".{self.folder.name}.lock").open("a+")

    def has_begun(self) -> bool:
        """Whether work under these same settings was begun and interrupted."""
        identity_path = self.work / _IDENTITY
        return identity_path.is_file() and not self._changes(load_json(identity_path))

    def begun_otherwise(self) -> list[ChangedKey]:
        """What differs between work that was begun and interrupted, and these settings."""
        identity_path = self.work / _IDENTITY
        return self._changes(load_json(identity_path)) if identity_path.is_file() else []

    def adopt(self) -> None:
        """Continue interrupted work under these settings, whatever it was begun with."""
        write_json(self.work / _IDENTITY, self.identity())

    def _prepare_work(self) -> None:
        identity_path = self.work / _IDENTITY
        was_begun = self.has_begun()
        if not was_begun and self.work.exists():
            if identity_path.is_file():  # begun under other settings: hours of work may lie in it
                self.work.rename(free_name(self.work))
            else:
                shutil.rmtree(self.work)
        self.work.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.work)  # workers of a search may be writing on other hosts
        if not was_begun:
            write_json(identity_path, self.identity())

    def finish(self, results: Mapping[str, Any], *, drop: tuple[str, ...] = ()) -> None:
        """Write the manifest and move the folder to its place.

        Args:
            results: figures worth keeping with the stage, as plain values.
            drop: names in the working folder that only served to continue. They are removed once
                the manifest stands: hashing takes long, and a stage killed meanwhile continues.
        """
        remove_leftovers(self.work, of_all_hosts=True)
        leave_out = (MANIFEST, _IDENTITY, *drop)
        outputs = {
            name: {"bytes": (self.work / name).stat().st_size, "sha256": digest}
            for name, digest in hash_folder(self.work, leave_out=leave_out).items()
        }
        from importlib import metadata  # takes long to load, and merges never ask it

        manifest = {
            "stage": self.folder.name,
            **self.identity(),
            "results": dict(results),
            "outputs": outputs,
            "toolkit": __version__,
            "versions": {name: metadata.version(name) for name in TRACKED_PACKAGES},
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        # Through JSON first, as a reader will get it back (lists for tuples): the hash is of that.
        plain_values = dict(json.loads(json.dumps(manifest)))
        write_json(self.work / MANIFEST, {**plain_values, _OWN_HASH: hash_json(plain_values)})
        self._settle()

    def _settle_alone(self) -> None:
        with self._open_lock() as lock_file:
            try:
                lock_alone(lock_file.fileno(), self.folder, "running this stage")
            except ToolkitError:
                return  # the other process moves it itself
            self._settle()

    def _settle(self) -> None:
        """Finish a move that was cut short: a working folder with a manifest is a whole stage."""
        # The outputs alone are the stage; what else lies here only served to continue it.
        if not (self.work / MANIFEST).is_file():
            return
        outputs = load_json(self.work / MANIFEST)["outputs"]
        kept_names = {MANIFEST, *(name.split("/")[0] for name in outputs)}
        for path in self.work.iterdir():
            if path.name not in kept_names:
                remove_path(path)
        if self.folder.exists():
            self.folder.rename(free_name(self.folder))
        self.work.rename(self.folder)


def free_name(folder: Path) -> Path:
    """The first of `<name>.1`, `<name>.2`, … that is not there."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return aside


def content_hash(folder: Path) -> str:
    """Hash of a complete stage's outputs, or of a plain folder's files.

    A folder whose files were changed since its stage wrote them is a plain one.
    """
    if (folder / MANIFEST).is_file():
        outputs = read_manifest(folder).get("outputs", {})
        hashes = {name: str(entry["sha256"]) for name, entry in sorted(outputs.items())}
        if hashes and not differing_files(folder, hashes):
            return hash_json(hashes)
    return hash_json(hash_folder(folder))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete stage.

    Raises:
        ToolkitError: the folder has none, so the stage has not finished, or it is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ToolkitError(f"{folder}: is not complete (no {MANIFEST}); run its stage first.")
    manifest = load_json(path)
    own_hash = manifest.pop(_OWN_HASH, None) if isinstance(manifest, dict) else ""
    if own_hash is not None and own_hash != hash_json(manifest):
        raise ToolkitError(
            f"{path}: is not as it was written; move the folder away and run the stage again."
        )
    return dict(manifest)


_LAST = "config.json"
"""Without it no reader takes a folder for a model, so it is moved last."""


def is_taken(out: Path) -> bool:
    """Whether something is there that would be written over."""
    if not out.exists():
        return False
    partial_name = _inside(out).name
    return not out.is_dir() or any(path.name != partial_name for path in out.iterdir())


def refuse_taken(out: Path) -> None:
    """Refuse to write over anything.

    Raises:
        MergeError: `out` is a file, a link to nothing, or a folder that is not empty.
    """
    if out.is_symlink() and not out.exists():
        raise MergeError(f"{out}: is a link to nothing; make the folder it points to.")
    if out.exists() and not out.is_dir():
        raise MergeError(f"{out}: is a file, where a folder is to be made; give another path.")
    if is_taken(out):
        first_name = min(path.name for path in out.iterdir())
        raise MergeError(
            f"{out}: exists and is not empty (it holds {first_name}); give another folder or "
            "remove it."
        )


def lock_alone(
    descriptor: int, folder: Path, doing: str, error: type[ToolkitError] = ToolkitError
) -> None:
    """Lock an open file for this process, until it is closed.

    Args:
        descriptor: of the file.
        folder: what the lock is about, for the message.
        doing: what another process that holds it does.
        error: kind that is raised.

    Raises:
        error: another process holds it.
    """
    try:
        # The system lifts it when the process ends, however it ends: no lock is ever stale.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        raise error(f"{folder}: another process is {doing}; wait for it or stop it.") from cause


@contextlib.contextmanager
def appearing(
    out: Path,
    *,
    doing: str = "merging into it",
    error: type[ToolkitError] = MergeError,
    replaces: bool = False,
) -> Iterator[Path]:
    """A working folder beside `out` that takes its place when the block ends, or vanishes.

    Where `out` is an empty folder that cannot be replaced (the current folder, a mounted volume, or
    one whose parent may not be written to), the working folder is made in it, and its files are
    moved up at the end, config.json last. A link is followed.

    Args:
        out: the folder.
        doing: what another process is told that this one does.
        error: kind that is raised.
        replaces: whether a folder that stands there gives way; by default only an empty one does.

    Raises:
        error: another process is making the same folder, or none can be made there.
    """
    place = out.resolve()
    is_inside = not replaces and _must_stay(place)
    # One name for all processes, unlike a temporary one: the second must meet the lock.
    work = _inside(place) if is_inside else place.with_name(f".{place.name}.partial")
    with _locked_folder(work, out, doing, error):
        for leftover_path in work.iterdir():  # by an earlier call that was killed
            remove_path(leftover_path)
        try:
            yield work
            if is_inside:
                _move_up(work)
            else:
                _take_place(work, place, replaces=replaces)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


@contextlib.contextmanager
def _locked_folder(work: Path, out: Path, doing: str, error: type[ToolkitError]) -> Iterator[None]:
    """Make the working folder of `appearing`, or take one that was left, and lock it."""
    while True:
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            if cause.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise error(
                f"{out}: cannot be made ({cause.strerror}); give a folder that can be written to."
            ) from cause
        try:
            # The folder itself: a lock file in it would have to be taken out before the move.
            descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another process has just moved it to its place
        try:
            lock_alone(descriptor, out, doing, error)
            # Between opening and locking, the process that had the lock may have moved the folder:
            # what is locked then is what that one has made.
            if _is_open_as(descriptor, work):
                yield
                return
        finally:
            os.close(descriptor)


def _is_open_as(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _take_place(work: Path, place: Path, *, replaces: bool) -> None:
    if not replaces or not place.exists():
        work.rename(place)  # an empty folder gives way
        return
    # A rename takes the place of an empty folder only, so that one with files steps aside first.
    former = temporary_path(place)  # removed by whoever comes next, should this process be killed
    place.rename(former)
    work.rename(place)
    shutil.rmtree(former, ignore_errors=True)


def _inside(place: Path) -> Path:
    return place / ".partial"


def _must_stay(place: Path) -> bool:
    """Whether an existing folder is one that no other can be put in the place of."""
    if not place.is_dir():
        return False
    is_current = place.samefile(Path.cwd())
    return is_current or os.path.ismount(place) or not os.access(place.parent, os.W_OK)


def _move_up(work: Path) -> None:
    moved: list[Path] = []
    try:
        # False sorts before True: the marker of a model is last.
        for path in sorted(work.iterdir(), key=lambda path: path.name == _LAST):
            target = work.parent / path.name
            if target.exists():
                raise MergeError(f"{target}: was made meanwhile by somebody else; run again.")
            path.rename(target)
            moved.append(target)
        work.rmdir()
    except BaseException:
        for target in moved:
            remove_path(target)
        raise
