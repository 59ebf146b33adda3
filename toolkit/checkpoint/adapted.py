"""A model with a LoRA or DoRA adapter merged into it, tensor by tensor, as they are asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.lora import AdapterFolder, open_adapter
from toolkit.checkpoint.read import Checkpoint
from toolkit.checkpoint.write import tensor_bytes
from toolkit.errors import CheckpointError
from toolkit.lazy_torch import Tensor, torch


class AdaptedCheckpoint(Checkpoint):
    """A checkpoint seen through an adapter.

    A tensor that the adapter changes is computed in float32 and rounded to the model's stored
    type, which is what merging the adapter and saving the model would give; it is held until it is
    given back.

    Args:
        model: the model's own checkpoint.
        adapter: what changes it; every tensor that it names is one of the model's.
    """

    def __init__(self, model: Checkpoint, adapter: AdapterFolder) -> None:
        tensors = {name: model.info(name) for name in model.names}
        for name, own in adapter.saved.items():
            tensors[name] = replace(adapter.tensors.info(own), dtype=tensors[name].dtype)
        super().__init__(model.folder, tensors, model.unheld)
        self.model, self._adapter = model, adapter
        self._parts, self._saved = adapter.parts, adapter.saved
        self._held: dict[str, Tensor] = {}

    @property
    def changed(self) -> list[str]:
        """Names of the tensors that the adapter changes or replaces."""
        return [*self._parts, *self._saved]

    def tensor(self, name: str) -> Tensor:
        if name not in self._parts and name not in self._saved:
            return self.model.tensor(name)
        if name not in self._held:
            self._held[name] = self._merged(name)
        return self._held[name]

    def raw(self, name: str) -> NDArray[np.uint8]:
        if name not in self._parts and name not in self._saved:
            return self.model.raw(name)
        return np.frombuffer(tensor_bytes(self.tensor(name)), np.uint8)

    def give_back(self, name: str) -> None:
        self._held.pop(name, None)
        self.model.give_back(name)

    def _merged(self, name: str) -> Tensor:
        stored = self.model.tensor(name)
        if name in self._saved:
            stored = self._adapter.tensors.tensor(self._saved[name]).to(stored.dtype)
        if name not in self._parts:
            return stored
        read = self._adapter.tensors.tensor
        a, b = (read(own).float() for own in self._adapter.factor_names(name))
        weight = stored.float()
        change = b.flatten(1) @ a.flatten(1)
        turned = self._adapter.is_turned(name)
        change = (change.T if turned else change).reshape(weight.shape)
        weight = weight + self._adapter.scale(name) * change
        if (own := self._parts[name].get("lora_magnitude_vector")) is not None:
            rows = weight.T if turned else weight
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
    for name in (*adapter.parts, *adapter.saved):
        if name not in model:
            own = adapter.saved.get(name) or next(iter(adapter.parts[name].values()))
            raise CheckpointError(
                f"{adapter.file}: changes {name} ({own}), which {model.folder} has not; give the "
                "model that the adapter was trained on."
            )
    for name in adapter.parts:
        check_parts(adapter, name, model)
    return AdaptedCheckpoint(model, adapter)


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
    saved = {name: own for name, own in adapter.saved.items() if name not in copies}
    return replace(adapter, saved=saved)


def check_parts(adapter: AdapterFolder, name: str, model: Checkpoint) -> None:
    """Refuse factors that do not make a change of a model's tensor.

    Raises:
        CheckpointError: names the tensor and all shapes.
    """
    a, b = (adapter.tensors.info(own).shape for own in adapter.factor_names(name))
    found = adapter.parts[name]
    shape = model.info(name).shape
    if math.prod(shape) != b[0] * math.prod(a[1:]) or not {b[0], a[1]} <= set(shape):
        raise CheckpointError(
            f"{adapter.file}: {name} is {list(shape)} in {model.folder}, but the adapter's parts "
            f"are {list(a)} and {list(b)}; give the model that the adapter was trained on."
        )
    if "lora_magnitude_vector" in found and ("lora_embedding_A" in found or len(shape) != 2):
        raise CheckpointError(
            f"{adapter.file}: DoRA of {name} is not supported; merge it with peft."
        )
