"""References to models, `path[@revision][+adapter[@revision]]`, and the folders they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ConfigError, MergeError, did_you_mean
from toolkit.library_errors import first_line

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
    # A folder's own name may hold a +: the longest beginning that is a folder is the model.
    for num_words in range(len(parts) - 1, 0, -1):
        if (model_name := "+".join(parts[:num_words])) and Path(model_name).is_dir():
            parts = [model_name, "+".join(parts[num_words:])]
            break
    if len(parts) > 2:
        raise ConfigError(f"{text}: has more than one +; a reference is path@revision+adapter.")
    named_parts = [_path_and_revision(part, text) for part in parts]
    return ModelReference(named_parts[0], named_parts[1] if len(named_parts) > 1 else None)


def _path_and_revision(part: str, whole: str) -> PathAndRevision:
    if part and Path(part).is_dir():
        return PathAndRevision(part)
    model_path, *revisions = part.split("@")
    if not model_path or len(revisions) > 1 or not all(revisions):
        raise ConfigError(f"{whole}: cannot be read; a reference is path@revision+adapter.")
    return PathAndRevision(model_path, revisions[0] if revisions else None)


def find_folder(place: PathAndRevision) -> Path:
    """The folder of a model or adapter: here, in the hub's cache, or fetched from the hub.

    Raises:
        MergeError: there is none.
    """
    local_path = Path(place.path)
    if local_path.is_dir():
        return local_path
    if local_path.is_absolute() or place.path.startswith(".") or place.path.count("/") > 1:
        raise MergeError(f"{place.path}: no such model folder.{name_siblings(local_path)}")
    return _cached(place) or _fetched(place)


def name_siblings(folder: Path) -> str:
    """The end of a sentence about a folder that is not there: what stands in its place."""
    above = folder.parent
    if not above.is_dir():
        return f" {above} is not there either; paths count from the folder you run in."
    configs = ("config.json", "adapter_config.json")
    names = sorted(p.name for p in above.iterdir() if any((p / name).is_file() for name in configs))
    nearest_name = did_you_mean(folder.name, names)
    return f" {nearest_name.removeprefix('; ').capitalize()}" if nearest_name else ""


def _cached(place: PathAndRevision) -> Path | None:
    """The hub's copy on this machine, where it holds all weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from toolkit.checkpoint.read import lacks_shards

    try:
        found = snapshot_download(place.path, revision=place.revision, local_files_only=True)
    except (LocalEntryNotFoundError, ValueError):
        return None
    folder = Path(found)
    # A snapshot may hold a config and a tokenizer alone, as after a look at a model, or a part of
    # the weights, as after a download that broke off: asked again, the hub gives what is missing.
    has_weights = any(any(folder.glob(pattern)) for pattern in _WEIGHT_PATTERNS)
    return folder if has_weights and not lacks_shards(folder) else None


def _fetched(place: PathAndRevision) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Safetensors first; a repository that has them often has the same weights as .bin, twice
        # the bytes.
        for pattern in _WEIGHT_PATTERNS:
            wanted = [*_SIDE_PATTERNS, pattern]
            folder = Path(
                snapshot_download(place.path, revision=place.revision, allow_patterns=wanted)
            )
            if any(folder.glob(pattern)):
                break
    except Exception as error:  # the client's errors have no common base
        raise MergeError(
            f"{place.path}: is neither a folder nor a model that the hub gives "
            f"({first_line(error)})."
        ) from error
    return folder
