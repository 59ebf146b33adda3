"""A model with a LoRA or DoRA adapter merged into it, tensor by tensor, as they are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.lora import AdapterFolder, open_adapter
from toolkit.checkpoint.parameter_changes import ParameterChanges, SavedParameters
from toolkit.checkpoint.read import Checkpoint, Entries
from toolkit.checkpoint.tensor_names import is_head, is_vocabulary
from toolkit.checkpoint.write import tensor_bytes
from toolkit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from toolkit.checkpoint.memory_names import MemoryNames


class AdaptedCheckpoint(Checkpoint):
    """A checkpoint seen through an adapter.

    A tensor that the adapter changes is computed in float32 and rounded to the model's stored
    type, which is what merging the adapter and saving the model would give; it is held until it is
    given back.

    Args:
        model: the model's own checkpoint.
        adapter: what changes it; every tensor that it names is one of the model's or a head that
            `heads` names.
        heads: heads that the model has not and that part from its embedding, which the adapter
            changes or which it replaces: names of the embedding, by the head's.
        whole: what the adapter stores in one tensor and the model in several.
    """

    def __init__(
        self,
        model: Checkpoint,
        adapter: AdapterFolder,
        heads: Mapping[str, str] | None = None,
        whole: SavedParameters | None = None,
    ) -> None:
        tensors = {name: model.info(name) for name in model.names}
        self.heads = dict(heads or {})
        tensors |= {head: tensors[name] for head, name in self.heads.items()}
        for name, own in adapter.saved.items():
            tensors[name] = replace(adapter.tensors.info(own), dtype=tensors[name].dtype)
        super().__init__(model.folder, tensors, model.unheld)
        self.model, self._adapter = model, adapter
        self._parameters = ParameterChanges(adapter, model) if adapter.wrapped else None
        self._joined = set(self._parameters.names) if self._parameters is not None else set()
        self._whole = whole
        self._replaced = set(whole.names) if whole is not None else set()
        self._changed = set(adapter.changed) | set(self.heads) | self._joined | self._replaced
        self._held: dict[str, Tensor] = {}

    @property
    def changed(self) -> list[str]:
        """Names of the tensors that the adapter changes or replaces."""
        return [*self._adapter.changed, *sorted(self._joined | self._replaced)]

    def array(self, name: str) -> Entries | None:
        return self.model.array(name) if name not in self._changed else super().array(name)

    def tensor(self, name: str) -> Tensor:
        if name not in self._changed:
            return self.model.tensor(name)
        if name not in self._held:
            self._held[name] = self._merged(name)
        return self._held[name]

    def raw(self, name: str) -> NDArray[np.uint8]:
        if name not in self._changed:
            return self.model.raw(name)
        return np.frombuffer(tensor_bytes(self.tensor(name)), np.uint8)

    def give_back(self, name: str) -> None:
        self._held.pop(name, None)
        self.model.give_back(self.heads.get(name, name))

    def _merged(self, name: str) -> Tensor:
        import torch

        adapter = self._adapter
        read = adapter.tensors.tensor
        stored = self.model.tensor(self.heads.get(name, name))
        if name in adapter.saved:
            stored = read(adapter.saved[name]).to(stored.dtype)
        if self._whole is not None and name in self._replaced:
            stored = self._whole.tensor(name).to(stored.dtype)
        if name in adapter.rows:
            places = torch.tensor(adapter.token_rows(name))
            stored = stored.index_copy(0, places, read(adapter.rows[name]).to(stored.dtype))
        if name in adapter.biases:
            weight = f"{name.removesuffix('.bias')}.weight"
            change = adapter.scale(weight) * read(adapter.biases[name]).float()
            stored = (stored.float() + change).to(stored.dtype)
        if self._parameters is not None and name in self._joined:
            stored = (stored.float() + self._parameters.change(name)).to(stored.dtype)
        return self._with_factors(name, stored) if name in adapter.parts else stored

    def _with_factors(self, name: str, stored: Tensor) -> Tensor:
        read = self._adapter.tensors.tensor
        a, b = (read(own).float() for own in self._adapter.factor_names(name))
        weight = stored.float()
        change = b.flatten(1) @ a.flatten(1)
        turned = is_turned(self._adapter, name, self.model)
        change = (change.T if turned else change).reshape(weight.shape)
        weight = weight + self._adapter.scale(name) * change
        if (own := self._adapter.parts[name].get("lora_magnitude_vector")) is not None:
            rows = weight.T if turned else weight
            import torch

            rows = rows * (read(own).float() / torch.linalg.norm(rows, dim=1))[:, None]
            weight = rows.T if turned else rows
        return weight.to(stored.dtype).contiguous()


def open_adapted(model: Checkpoint, folder: Path) -> AdaptedCheckpoint:
    """Open a peft adapter over a model.

    Args:
        model: what it was trained on.
        folder: of the adapter, with adapter_config.json and adapter_model.safetensors.

    Raises:
        CheckpointError: it is no LoRA, is damaged, or changes tensors that the model has not.
    """
    adapter = without_tied_copies(open_adapter(folder), model)
    adapter, heads, whole = _in_stored_names(adapter, model)
    for name in adapter.changed:
        if name not in model and name not in heads:
            raise CheckpointError(
                f"{adapter.file}: changes {name} ({adapter.own_name(name)}), which {model.folder} "
                "has not; give the model that the adapter was trained on."
            )
    for name in adapter.parts:
        check_parts(adapter, name, model, heads)
    for name in adapter.rows:
        _check_rows(adapter, name, model)
    _refuse_shared(adapter, model)
    return AdaptedCheckpoint(model, adapter, heads, whole)


def _in_stored_names(
    adapter: AdapterFolder, model: Checkpoint
) -> tuple[AdapterFolder, dict[str, str], SavedParameters | None]:
    """The adapter by the names that the model's files have, heads that it parts from an embedding,
    and what it stores in one tensor and the model in several.

    Whether a head is tied, and what tensors are called in memory, only transformers knows; it is
    asked where the names differ, and where an embedding is changed that has no head beside it.
    """
    changed = adapter.changed
    vocabulary = [name for name in changed if is_vocabulary(name)]
    has_head = any(is_head(name) for name in model.names)
    if all(name in model for name in changed) and (has_head or not vocabulary):
        return adapter, {}, None
    from toolkit.checkpoint.memory_names import read_memory_names

    if (names := read_memory_names(model.folder, model.names)) is None:
        return adapter, {}, None
    joined = {name: own for name, own in adapter.saved.items() if name in names.joined}
    whole = SavedParameters(adapter, joined, model) if joined else None
    adapter = adapter.without_saved(joined)
    changed = adapter.changed
    if own := next((name for name in changed if _is_joined(name, names)), None):
        raise CheckpointError(
            f"{adapter.file}: changes {own}, which {model.folder} stores in several tensors (the "
            "experts of a layer); merge it with peft."
        )
    renamed = adapter.renamed({n: names.stored[n] for n in changed if n in names.stored})
    heads = {
        head: names.stored[source]
        for head, source in names.tied.items()
        if is_head(head) and head not in model and source in names.stored
    }
    return renamed, _parted(renamed, heads), whole


def _refuse_shared(adapter: AdapterFolder, model: Checkpoint) -> None:
    """Refuse factors of a weight that other modules share, as the blocks of Zamba do.

    peft changes one module of them, so that it computes otherwise than any merged model. Embeddings
    and heads are parted instead.
    """
    from toolkit.checkpoint.memory_names import read_memory_names

    inner = [name for name in adapter.parts if not is_vocabulary(name)]
    if not inner or (names := read_memory_names(model.folder, model.names)) is None:
        return
    shared = {names.stored.get(n, n) for other, n in names.tied.items() if not is_head(other)}
    if own := next((name for name in inner if name in shared), None):
        raise CheckpointError(
            f"{adapter.file}: changes {own}, which several modules of {model.folder} share, in one "
            "of them alone; no merged model computes that. Leave the module out of the adapter."
        )


def _is_joined(name: str, names: MemoryNames) -> bool:
    return name in names.joined or name.removesuffix(".weight") in names.joined


def _parted(adapter: AdapterFolder, heads: Mapping[str, str]) -> dict[str, str]:
    """Heads that are no longer their embedding under the adapter.

    peft changes the module that it is told to and leaves the one tied to it as it was, unless
    `ensure_weight_tying` is set, or rows of tokens are trained, which it ties itself.
    """
    if adapter.settings.get("ensure_weight_tying"):
        return {}
    changed = {*adapter.parts, *adapter.saved}
    return {head: name for head, name in heads.items() if {head, name} & changed}


def is_turned(adapter: AdapterFolder, name: str, model: Checkpoint) -> bool:
    """Whether one of the model's tensors is the transpose of `B A`.

    As in peft the kind of the module decides, whatever `fan_in_fan_out` says: embeddings are, and
    GPT-2's layers (`Conv1D`, which always have a bias as long as the weight is wide).
    """
    if "lora_embedding_A" in adapter.parts[name]:
        return True
    a, b = (adapter.tensors.info(own).shape for own in adapter.factor_names(name))
    shape = model.info(name).shape if name in model else ()
    if len(shape) != 2:
        return False
    if shape[0] != shape[1]:
        return shape == (a[1], b[0])
    if f"{name.removesuffix('weight')}bias" not in model:
        return False
    for other in model.names:  # the layers of a model are all of one kind
        bias, wide = f"{other.removesuffix('weight')}bias", model.info(other).shape
        if other.endswith(".weight") and len(wide) == 2 and wide[0] != wide[1] and bias in model:
            return model.info(bias).shape == wide[1:]
    return bool(adapter.settings.get("fan_in_fan_out"))


def _check_rows(adapter: AdapterFolder, name: str, model: Checkpoint) -> None:
    rows, shape = adapter.token_rows(name), model.info(name).shape
    found = adapter.tensors.info(adapter.rows[name]).shape
    if found != (len(rows), *shape[1:]) or max(rows, default=0) >= shape[0]:
        raise CheckpointError(
            f"{adapter.file}: {adapter.rows[name]} is {list(found)}, but {len(rows)} rows of "
            f"{name} ({list(shape)} in {model.folder}) are meant; give the model that the adapter "
            "was trained on."
        )


def without_tied_copies(adapter: AdapterFolder, model: Checkpoint) -> AdapterFolder:
    """Leave out saved heads that are the saved embedding once more, where the model has only that.

    With `ensure_weight_tying` peft writes both.
    """
    if not adapter.settings.get("ensure_weight_tying"):
        return adapter
    read = adapter.tensors.raw
    kept = [own for name, own in adapter.saved.items() if name in model]
    copies = {
        name
        for name, own in adapter.saved.items()
        if name not in model and any(np.array_equal(read(own), read(other)) for other in kept)
    }
    return adapter.without_saved(copies)


def check_parts(
    adapter: AdapterFolder, name: str, model: Checkpoint, heads: Mapping[str, str]
) -> None:
    """Refuse factors that do not make a change of a model's tensor.

    Raises:
        CheckpointError: names the tensor and all shapes.
    """
    a, b = (adapter.tensors.info(own).shape for own in adapter.factor_names(name))
    found = adapter.parts[name]
    saved = adapter.saved.get(name)
    shape = (
        adapter.tensors.info(saved).shape
        if saved is not None
        else model.info(heads.get(name, name)).shape
    )
    if math.prod(shape) != b[0] * math.prod(a[1:]) or not {b[0], a[1]} <= set(shape):
        raise CheckpointError(
            f"{adapter.file}: {name} is {list(shape)} in {model.folder}, but the adapter's parts "
            f"are {list(a)} and {list(b)}; give the model that the adapter was trained on."
        )
    if "lora_magnitude_vector" in found and ("lora_embedding_A" in found or len(shape) != 2):
        raise CheckpointError(
            f"{adapter.file}: DoRA of {name} is not supported; merge it with peft."
        )
