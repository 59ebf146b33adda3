"""A merge divided among machines: each process writes some of the files, the last one the rest.

The processes share nothing but a file system. Files are divided before anything is merged, and a
file has the same bytes whoever writes it, so the result is that of one process; a process that was
killed, or one with another number of parts, writes those that are not there yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.read import weight_files
from toolkit.checkpoint.write import (
    SHARD_BYTES,
    PlannedTensor,
    ShardWriter,
    divide_into_shards,
    write_index,
)
from toolkit.errors import CheckpointError, ConfigError, MergeError
from toolkit.merge.compute import ComputeSettings, check_device
from toolkit.merge.config import MergeConfig
from toolkit.merge.registry import all_methods
from toolkit.merge.thresholds import with_thresholds
from toolkit.merge.to_disk import (
    PreparedMerge,
    merge_tensors,
    planned_tensors,
    prepare_merge,
    settings_on_disk,
    to_yaml,
    write_side_files,
)
from toolkit.stage import is_taken, lock_alone, refuse_taken, write_atomically

_SAMPLE_BYTES = 65536
"""Bytes at the beginning, in the middle and at the end of a file by which parts know it again."""

_IDENTITY = "parts.json"


@dataclass(frozen=True)
class MergePart:
    """Which of the files one process writes: those whose number leaves `number - 1` by `count`.

    Attributes:
        number: 1 to `count`.
        count: how many parts there are.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def files(self, names: Sequence[str]) -> list[str]:
        """Its share of the result's files."""
        return list(names[self.number - 1 :: self.count])

    def part_of(self, index: int) -> str:
        """The part that writes a file, by the file's index: `3/8`."""
        return f"{index % self.count + 1}/{self.count}"


@dataclass(frozen=True)
class PartOutcome:
    """What there is after a part was written.

    Attributes:
        written: files that this process wrote.
        missing: files of the whole that are not there yet, and the part that writes each.
        is_complete: whether this process found every file there and finished the folder.
    """

    written: tuple[str, ...]
    missing: Mapping[str, str]
    is_complete: bool


def parse_part(text: str) -> MergePart:
    """A part as it is written, such as `3/8`.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--part {text}: give the part and how many there are, such as 3/8.")
    return MergePart(int(match[1]), int(match[2]))


def run_merge_part(
    config: MergeConfig,
    out: Path,
    part: MergePart,
    *,
    folders: Mapping[str, Path] | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    allow_non_finite: bool = False,
    truncate_embeddings: bool = False,
    device: str = "cpu",
    num_threads: int | None = None,
    advance: Callable[[float, str], None] | None = None,
) -> PartOutcome:
    """Merge a part of the files; whoever finds all of them there finishes the folder.

    Files are made in `.OUT.parts` beside `out`, which takes the place of `out` in the end; what was
    merged stays noted in `.OUT.parts.json`.

    Args:
        config: what to do.
        out: the folder to make, on a file system that all processes share.
        part: which files.
        folders: where models stand whose name in the configuration is not their path.
        seed: of random methods.
        shard_bytes: most bytes in one file; the same for all parts.
        allow_non_finite: merge tensors that hold NaN or infinity, instead of refusing them.
        truncate_embeddings: cut embeddings to the rows of the shortest.
        device: where the torch definitions compute.
        num_threads: of the kernels; all cores by default.
        advance: told how many bytes are written.

    Raises:
        MergeError: models do not fit each other, `out` is taken, other parts were written by
            another configuration, or from other models; or another process writes the same files.
        CheckpointError: a model cannot be read, or the disk is full.
    """
    place = out.resolve()
    work = place.with_name(f".{place.name}.parts")
    note = place.with_name(f".{place.name}.parts.json")
    if not note.exists():
        refuse_taken(out)
    check_device(device)
    if config.merge_method not in all_methods():
        raise MergeError(
            f"--part: {config.merge_method} is merged by mergekit's own engine, which writes all "
            "files in one process; leave --part out."
        )
    merge = prepare_merge(config, Models(folders), truncate_embeddings=truncate_embeddings)
    shards = divide_into_shards(planned_tensors(merge), shard_bytes)
    identity = {
        "config": to_yaml(config),
        "seed": seed,
        "files": list(shards),
        "allow_non_finite": allow_non_finite,
        "truncate_embeddings": truncate_embeddings,
        "models": {name: _fingerprint(merge.models, name) for name in config.model_names()},
    }
    if is_taken(out):
        # A part that begins when the others have finished has nothing to do, and has not failed.
        if note.exists() and _read_identity(note) == identity:
            return PartOutcome((), {}, is_complete=True)
        refuse_taken(out)
    work.mkdir(parents=True, exist_ok=True)
    _settle_identity(work, out, identity)
    settings = settings_on_disk(config, seed, num_threads, device, allow_non_finite)
    missing_files = [file for file in part.files(list(shards)) if not (work / file).exists()]
    if missing_files:
        _write_files(merge, {file: shards[file] for file in missing_files}, work, settings, advance)
    return _finish(merge, work, out, part, shards, tuple(missing_files))


def _write_files(
    merge: PreparedMerge,
    shards: Mapping[str, Sequence[PlannedTensor]],
    work: Path,
    settings: ComputeSettings,
    advance: Callable[[float, str], None] | None,
) -> None:
    """Write some of the files, each under its name only once it is whole."""
    # Methods that trim over whole models read all of them, in every part.
    plan = with_thresholds(merge.plan, merge.models, settings.workers)
    tasks_by_name = {task.name: task for task in plan.tasks}
    for file_name, shard_tensors in shards.items():
        with _lock_file(work, file_name) as folder:
            # Another process may have finished it between the look before and the lock.
            if (work / file_name).exists():
                continue
            with ShardWriter(folder, shard_tensors) as writer:
                own_tasks = [tasks_by_name[tensor.name] for tensor in shard_tensors]
                merge_tensors(merge, own_tasks, writer, settings, advance=advance)
            _settle_file(folder / "model.safetensors", work / file_name)


def _fingerprint(models: Models, name: str) -> str:
    """What tells a model's files from others: their names, sizes, and a sample of their bytes.

    Reading all of them would take every part as long as the merge of all.
    """
    digest = hashlib.sha256()
    folders = [models.checkpoint(name).folder, *models.tokenizer_folders(name)]
    for folder in dict.fromkeys(folders):
        with contextlib.suppress(CheckpointError):  # a folder of a tokenizer alone holds none
            for path in weight_files(folder):
                size = path.stat().st_size
                digest.update(f"{path.name} {size} ".encode())
                with path.open("rb") as file:
                    for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
                        file.seek(start)
                        digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _settle_identity(work: Path, out: Path, identity: dict[str, object]) -> None:
    """Note what is merged, or refuse to mix it with what other parts have noted.

    Raises:
        MergeError: another merge's parts stand there.
    """
    # Whole from the first moment that another part can see it, and never replaced: of two parts
    # that begin together, the second finds the first one's.
    with tempfile.TemporaryDirectory(dir=work, prefix="writing-") as folder:
        draft_path = Path(folder) / _IDENTITY
        draft_path.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(draft_path, work / _IDENTITY)
    noted = _read_identity(work / _IDENTITY)
    differing = [key for key, value in identity.items() if noted.get(key) != value]
    if differing:
        what = ", ".join(key.replace("_", " ") for key in differing)
        raise MergeError(
            f"{out}: other parts are of another merge (differing: {what}). All parts take the same "
            f"configuration, options and models; to begin anew remove {work}."
        )


def _read_identity(path: Path) -> dict[str, object]:
    try:
        identity: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MergeError(f"{path}: is damaged ({error}); remove it and run again.") from error
    return identity


@contextlib.contextmanager
def _lock_file(work: Path, file_name: str) -> Iterator[Path]:
    """An empty folder in which this process alone writes a file; gone afterwards.

    Raises:
        MergeError: another process writes the same file.
    """
    folder = work / f"writing-{Path(file_name).stem}"
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock_alone(descriptor, work / file_name, "writing it", MergeError)
        for leftover_path in folder.iterdir():  # by a process that was killed
            leftover_path.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _settle_file(path: Path, name: Path) -> None:
    """Give a file its name, under which it stands only when it is whole.

    It is on the disk before: another machine decides by the name that nothing is left to do, and
    this one may lose power.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.rename(name)


def _finish(
    merge: PreparedMerge,
    work: Path,
    out: Path,
    part: MergePart,
    shards: Mapping[str, Sequence[PlannedTensor]],
    written: tuple[str, ...],
) -> PartOutcome:
    """Finish the folder where every file is there; else say which are not."""
    finished_by_another = PartOutcome(written, {}, is_complete=True)
    try:
        descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return finished_by_another
    try:
        # Of two that end together, the second waits; the folder then has its name already.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not work.exists():
            return finished_by_another
        missing = {
            file: part.part_of(index)
            for index, file in enumerate(shards)
            if not (work / file).exists()
        }
        if missing:
            return PartOutcome(written, missing, is_complete=False)
        write_index(work, shards)
        write_side_files(merge, work)
        for leftover_path in work.glob("writing-*"):
            shutil.rmtree(leftover_path, ignore_errors=True)
        # Copied before the folder has its name and removed from it after: whatever is killed in
        # between, parts that come later know the folder as theirs.
        with write_atomically(work.with_name(f"{work.name}.json")) as file:
            file.write((work / _IDENTITY).read_text(encoding="utf-8"))
        work.rename(out.resolve())
        (out / _IDENTITY).unlink()
    finally:
        os.close(descriptor)
    return PartOutcome(written, {}, is_complete=True)
