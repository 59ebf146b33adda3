"""Model references to opened checkpoints: folders, names on the hub, and adapters on both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.checkpoint.model_values import config_parts, read_model_values, tie_setting, untie
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.own_head import own_head
from toolkit.checkpoint.read import Checkpoint, Entries
from toolkit.checkpoint.references import PathAndRevision, find_folder, parse_reference
from toolkit.checkpoint.tensor_names import is_vocabulary
from toolkit.errors import MergeError
from toolkit.load_yaml import JsonObject, JsonView

if TYPE_CHECKING:
    from torch import Tensor


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's files stand in a folder."""
    return any((folder / file_name).is_file() for file_name in _TOKENIZER_FILES)


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


class Models:
    """The models of a merge, opened as they are asked for.

    Args:
        folders: where models stand whose name in the configuration is not their path.
    """

    def __init__(self, folders: Mapping[str, Path] | None = None) -> None:
        self._folders = dict(folders or {})
        self._opened: dict[str, Checkpoint] = {}
        self._configs: dict[str, JsonObject] = {}

    def checkpoint(self, name: str) -> Checkpoint:
        """The opened checkpoint of a model, with its adapter where the reference names one.

        Raises:
            MergeError: there is no such model.
            CheckpointError: it is damaged, or does not suit its adapter.
        """
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name]

    def _open(self, name: str) -> Checkpoint:
        if name in self._folders:
            return open_checkpoint(self._folders[name])
        reference = parse_reference(name)
        model = open_checkpoint(self._folder_of(reference.model))
        if reference.adapter is None:
            return model
        from toolkit.checkpoint.adapted import open_adapted

        return open_adapted(model, find_folder(reference.adapter))

    def _folder_of(self, model: PathAndRevision) -> Path:
        """Where a model of a reference stands; also one of `folders` that has an adapter here."""
        if model.revision is None and model.path in self._folders:
            return self._folders[model.path]
        return find_folder(model)

    def tokenizer_folders(self, name: str) -> list[Path]:
        """Folders whose files make a model's tokenizer, later ones over earlier ones.

        The adapter's folder is the second where the adapter was trained with other tokens or
        another chat template than the model has. No weights are opened.

        Raises:
            MergeError: there is no such model.
        """
        if name in self._folders:
            return [self._folders[name]]
        reference = parse_reference(name)
        model = self._folder_of(reference.model)
        adapter = find_folder(reference.adapter) if reference.adapter is not None else model
        if adapter == model:
            return [model]
        from toolkit.checkpoint.tokens import own_template, read_tokens

        if (template := own_template(adapter)) is not None and template != own_template(model):
            return [model, adapter]
        if not (adapter / "tokenizer.json").is_file():
            return [model]
        # An adapter's folder that repeats the model's tokenizer changes nothing, and is not read
        # twice.
        is_own = not has_tokenizer(model) or read_tokens(adapter).ids != read_tokens(model).ids
        return [model, adapter] if is_own else [model]

    def token_folder(self, name: str) -> Path:
        """The folder whose tokenizer a model has: its adapter's, where that brings one.

        Raises:
            MergeError: there is no such model.
        """
        folders = self.tokenizer_folders(name)
        return next((folder for folder in reversed(folders) if has_tokenizer(folder)), folders[0])

    def seen_as(
        self, checkpoints: Mapping[str, Checkpoint], configs: Mapping[str, JsonObject]
    ) -> Models:
        """The same models, some of them seen otherwise; what is open is shared.

        Args:
            checkpoints: in place of the models' own, by name.
            configs: in place of what their config.json say, by name.
        """
        other_view = Models(self._folders)
        other_view._opened = {**self._opened, **checkpoints}
        other_view._configs = {**self._configs, **configs}
        return other_view

    def config(self, name: str) -> JsonView:
        """The config.json of a model as plain values; none where it has no such file.

        Where it ties a head that is stored and differs from the embedding, it says here that they
        are not tied.

        Raises:
            MergeError: the file is not JSON.
        """
        if name not in self._configs:
            folder = self.checkpoint(name).folder
            values = read_model_values(folder, MergeError, may_lack=True)
            if tie_setting(values) is not False and own_head(self.checkpoint(name)) is not None:
                untie(values)  # as transformers does: tensors are believed before the config
            self._configs[name] = self._as_adapted(name, values)
        return self._configs[name]

    def _as_adapted(self, name: str, values: JsonObject) -> JsonObject:
        """A config as an adapter makes it: with as many tokens as it has embeddings of."""
        checkpoint = self.checkpoint(name)
        if (model := getattr(checkpoint, "model", None)) is None:
            return values
        for tensor_name in filter(is_vocabulary, model.names):
            old_rows, new = model.info(tensor_name).shape[0], checkpoint.info(tensor_name).shape[0]
            for part, _ in config_parts(values) if old_rows != new else ():
                if part.get("vocab_size") == old_rows:
                    part["vocab_size"] = new
        return values

    def shapes(self, name: str) -> Shapes:
        """Shape of every tensor of a model."""
        checkpoint = self.checkpoint(name)
        return {tensor_name: checkpoint.info(tensor_name).shape for tensor_name in checkpoint.names}

    def file(self, name: str, tensor: str) -> str:
        """The file that holds a tensor of a model."""
        return str(self.checkpoint(name).damaged_file(tensor))

    def dtype(self, source: Source) -> str:
        """The stored type of a tensor, by the format's name."""
        return self.checkpoint(source.model).info(source.tensor).dtype

    def array(self, source: Source) -> Entries | None:
        """The entries of a tensor, flat; see `Checkpoint.array`."""
        return self.checkpoint(source.model).array(source.tensor)

    def read(self, source: Source) -> Tensor:
        """A tensor in its stored type; its memory is the file."""
        return self.checkpoint(source.model).tensor(source.tensor)


@dataclass(frozen=True)
class Source:
    """One tensor of one model."""

    model: str
    tensor: str


Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor of one model, by name."""
