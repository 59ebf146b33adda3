"""References to models, `path[@revision][+adapter[@revision]]`, and the folders they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ConfigError, MergeError, did_you_mean

_SIDE_PATTERNS = ["*.json", "*.jinja", "*.txt", "*.model"]
_WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")


@dataclass(frozen=True)
class PathAndRevision:
    """A folder, or a repository on the hub at a revision."""

    path: str
    revision: str | None = None


@dataclass(frozen=True)
class ModelReference:
    """A model, and the adapter that is to be merged into it first."""

    model: PathAndRevision
    adapter: PathAndRevision | None = None


def parse_reference(text: str) -> ModelReference:
    """Take a reference apart. What is a folder by its whole name is that folder.

    Raises:
        ConfigError: it has more parts than a reference can have, or empty ones.

    >>> parse_reference("org/model@main+org/lora")
    ... # doctest: +NORMALIZE_WHITESPACE
    ModelReference(model=PathAndRevision(path='org/model', revision='main'),
                   adapter=PathAndRevision(path='org/lora', revision=None))
    """
    if Path(text).is_dir():
        return ModelReference(PathAndRevision(text))
    parts = text.split("+")
    for count in range(len(parts) - 1, 0, -1):
        if (model := "+".join(parts[:count])) and Path(model).is_dir():
            parts = [model, "+".join(parts[count:])]
            break
    if len(parts) > 2:
        raise ConfigError(f"{text}: has more than one +; a reference is path@revision+adapter.")
    named = [_path_and_revision(part, text) for part in parts]
    return ModelReference(named[0], named[1] if len(named) > 1 else None)


def _path_and_revision(part: str, whole: str) -> PathAndRevision:
    if part and Path(part).is_dir():
        return PathAndRevision(part)
    path, *revisions = part.split("@")
    if not path or len(revisions) > 1 or not all(revisions):
        raise ConfigError(f"{whole}: cannot be read; a reference is path@revision+adapter.")
    return PathAndRevision(path, revisions[0] if revisions else None)


def find_folder(place: PathAndRevision) -> Path:
    """The folder of a model or adapter: here, in the hub's cache, or fetched from the hub.

    Raises:
        MergeError: there is none.
    """
    path = Path(place.path)
    if path.is_dir():
        return path
    if path.is_absolute() or place.path.startswith(".") or place.path.count("/") > 1:
        raise MergeError(f"{place.path}: no such model folder.{name_siblings(path)}")
    return _cached(place) or _fetched(place)


def name_siblings(folder: Path) -> str:
    """The end of a sentence about a folder that is not there: what stands in its place."""
    above = folder.parent
    if not above.is_dir():
        return f" {above} is not there either; paths count from the folder you run in."
    configs = ("config.json", "adapter_config.json")
    names = sorted(p.name for p in above.iterdir() if any((p / name).is_file() for name in configs))
    near = did_you_mean(folder.name, names)
    return f" {near.removeprefix('; ').capitalize()}" if near else ""


def _cached(place: PathAndRevision) -> Path | None:
    """The hub's copy on this machine, where it holds weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(place.path, revision=place.revision, local_files_only=True)
    except (LocalEntryNotFoundError, ValueError):
        return None
    folder = Path(found)
    return folder if any(any(folder.glob(pattern)) for pattern in _WEIGHT_PATTERNS) else None


def _fetched(place: PathAndRevision) -> Path:
    from huggingface_hub import snapshot_download

    try:
        for pattern in _WEIGHT_PATTERNS:
            wanted = [*_SIDE_PATTERNS, pattern]
            folder = Path(
                snapshot_download(place.path, revision=place.revision, allow_patterns=wanted)
            )
            if any(folder.glob(pattern)):
                break
    except Exception as error:  # the client's errors have no common base
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MergeError(
            f"{place.path}: is neither a folder nor a model that the hub gives ({first})."
        ) from error
    return folder
