"""Model references to opened checkpoints: folders, and names on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from toolkit.checkpoint.read import Checkpoint, open_checkpoint
from toolkit.errors import MergeError
from toolkit.lazy_torch import Tensor
from toolkit.merge.plan import Shapes, Source


class Models:
    """The models of a merge, opened as they are asked for.

    Args:
        folders: where models stand whose name in the configuration is not their path.
    """

    def __init__(self, folders: Mapping[str, Path] | None = None) -> None:
        self._folders = dict(folders or {})
        self._opened: dict[str, Checkpoint] = {}

    def checkpoint(self, name: str) -> Checkpoint:
        """The opened checkpoint of a model.

        Raises:
            MergeError: the reference names an adapter, which is merged into its model first.
            CheckpointError: there is no such model, or it is damaged.
        """
        if name not in self._opened:
            self._opened[name] = open_checkpoint(self._folder(name))
        return self._opened[name]

    def _folder(self, name: str) -> Path:
        if name in self._folders:
            return self._folders[name]
        path = Path(name)
        if path.is_dir():
            return path
        if "+" in name:
            raise MergeError(
                f"{name}: names an adapter, which is not supported here yet; merge it into its "
                "model first (peft's merge_and_unload) and give that folder."
            )
        repository, _, revision = name.partition("@")
        if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
            raise MergeError(f"{name}: no such model folder.")
        return _hub_folder(repository, revision or None)

    def shapes(self, name: str) -> Shapes:
        """Shape of every tensor of a model."""
        checkpoint = self.checkpoint(name)
        return {tensor: checkpoint.info(tensor).shape for tensor in checkpoint.names}

    def dtype(self, source: Source) -> str:
        """The stored type of a tensor, by the format's name."""
        return self.checkpoint(source.model).info(source.tensor).dtype

    def array(self, source: Source) -> NDArray[Any] | None:
        """The entries of a tensor, flat; see `Checkpoint.array`."""
        return self.checkpoint(source.model).array(source.tensor)

    def read(self, source: Source) -> Tensor:
        """A tensor in its stored type; its memory is the file."""
        return self.checkpoint(source.model).tensor(source.tensor)


def _hub_folder(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the client's errors have no common base
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MergeError(
            f"{repository}: is neither a folder nor a model that the hub gives ({first})."
        ) from error
