"""A model with a LoRA or DoRA adapter merged into it, tensor by tensor, as they are asked for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.read import Checkpoint, TensorInfo, read_header
from toolkit.checkpoint.write import tensor_bytes
from toolkit.errors import CheckpointError
from toolkit.lazy_torch import Tensor, torch

_PREFIX = "base_model.model."
_PART = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|"
    r"lora_magnitude_vector)(?:\.weight)?$"
)


class AdaptedCheckpoint(Checkpoint):
    """A checkpoint seen through an adapter.

    A tensor that the adapter changes is computed in float32 and rounded to the model's stored
    type, which is what merging the adapter and saving the model would give; it is held until it is
    given back.

    Args:
        model: the model's own checkpoint.
        adapter: the adapter's tensors.
        parts: names of the adapter's tensors by the model's tensor they change, then by part.
        saved: tensors of the adapter that take the place of the model's, by the model's names.
        settings: adapter_config.json.
    """

    def __init__(
        self,
        model: Checkpoint,
        adapter: Checkpoint,
        parts: Mapping[str, Mapping[str, str]],
        saved: Mapping[str, str],
        settings: Mapping[str, Any],
    ) -> None:
        tensors = {name: model.info(name) for name in model.names}
        for name, own in saved.items():
            tensors[name] = replace(adapter.info(own), dtype=tensors[name].dtype)
        super().__init__(model.folder, tensors)
        self._model, self._adapter = model, adapter
        self._parts, self._saved, self._settings = parts, saved, settings
        self._held: dict[str, Tensor] = {}

    @property
    def changed(self) -> list[str]:
        """Names of the tensors that the adapter changes or replaces."""
        return [*self._parts, *self._saved]

    def tensor(self, name: str) -> Tensor:
        if name not in self._parts and name not in self._saved:
            return self._model.tensor(name)
        if name not in self._held:
            self._held[name] = self._merged(name)
        return self._held[name]

    def raw(self, name: str) -> NDArray[np.uint8]:
        if name not in self._parts and name not in self._saved:
            return self._model.raw(name)
        return np.frombuffer(tensor_bytes(self.tensor(name)), np.uint8)

    def give_back(self, name: str) -> None:
        self._held.pop(name, None)
        self._model.give_back(name)

    def _merged(self, name: str) -> Tensor:
        stored = self._model.tensor(name)
        if name in self._saved:
            stored = self._adapter.tensor(self._saved[name]).to(stored.dtype)
        if name not in self._parts:
            return stored
        found = {part: self._adapter.tensor(own).float() for part, own in self._parts[name].items()}
        weight = stored.float()
        if "lora_embedding_A" in found:
            a, b = found["lora_embedding_A"], found["lora_embedding_B"]
        else:
            a, b = found["lora_A"], found["lora_B"]
        change = b.flatten(1) @ a.flatten(1)
        turned = "lora_embedding_A" in found or bool(self._settings.get("fan_in_fan_out"))
        change = (change.T if turned else change).reshape(weight.shape)
        weight = weight + self._scale(name, a.shape[0]) * change
        if "lora_magnitude_vector" in found:
            rows = weight.T if turned else weight
            rows = rows * (found["lora_magnitude_vector"] / torch.linalg.norm(rows, dim=1))[:, None]
            weight = rows.T if turned else rows
        return weight.to(stored.dtype).contiguous()

    def _scale(self, name: str, rank: int) -> float:
        module = name.removesuffix(".weight")
        alpha = float(self._settings.get("lora_alpha", rank))
        for pattern, value in (self._settings.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = float(value)
                break
        return alpha / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)


def open_adapted(model: Checkpoint, folder: Path) -> AdaptedCheckpoint:
    """Open a peft adapter over a model.

    Args:
        model: what it was trained on.
        folder: of the adapter, with adapter_config.json and adapter_model.safetensors.

    Raises:
        CheckpointError: it is no LoRA, is damaged, or changes tensors that the model has not.
    """
    settings = _load_settings(folder / "adapter_config.json")
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{folder}: has no adapter_model.safetensors; save the adapter so.")
    adapter = Checkpoint(folder, read_header(file))
    parts, saved = adapter_targets(adapter)
    owners = {name: own for name, found in parts.items() for own in found.values()}
    owners |= saved
    for name, own in owners.items():
        if name not in model:
            raise CheckpointError(
                f"{file}: changes {name} ({own}), which {model.folder} has not; give the model "
                "that the adapter was trained on."
            )
    for name, found in parts.items():
        _check_parts(file, name, {part: adapter.info(own) for part, own in found.items()}, model)
    return AdaptedCheckpoint(model, adapter, parts, saved, settings)


def adapter_targets(adapter: Checkpoint) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The tensors of a model that an adapter changes, and those whose place its own take.

    Returns:
        Names of the adapter's own tensors: by the model's tensor and the part they are of its
        change, and by the model's tensor that they replace.
    """
    parts: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    for own in adapter.names:
        name = (
            own.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        )
        if match := _PART.match(name):
            parts.setdefault(f"{match['module']}.weight", {})[match["part"]] = own
        else:
            saved[name] = own
    return parts, saved


def _load_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); give an adapter folder."
        ) from error
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind != "LORA":
        raise CheckpointError(f"{path}: is a {kind} adapter; only LORA (and DoRA) can be merged.")
    if settings.get("megatron_config") or settings.get("layer_replication"):
        raise CheckpointError(f"{path}: megatron_config and layer_replication are not supported.")
    return dict(settings)


def _check_parts(file: Path, name: str, found: Mapping[str, TensorInfo], model: Checkpoint) -> None:
    kinds = {part.removesuffix("_A").removesuffix("_B") for part in found}
    kind = "lora_embedding" if "lora_embedding" in kinds else "lora"
    if not {f"{kind}_A", f"{kind}_B"} <= set(found):
        raise CheckpointError(f"{file}: holds only half of the change to {name} ({sorted(found)}).")
    a, b = found[f"{kind}_A"].shape, found[f"{kind}_B"].shape
    shape = model.info(name).shape
    fits = len(a) >= 2 and len(b) >= 2 and b[1] == a[0]
    if not fits or math.prod(shape) != b[0] * math.prod(a[1:]) or not {b[0], a[1]} <= set(shape):
        raise CheckpointError(
            f"{file}: {name} is {list(shape)} in {model.folder}, but the adapter's parts are "
            f"{list(a)} and {list(b)}; give the model that the adapter was trained on."
        )
    if "lora_magnitude_vector" in found and (kind == "lora_embedding" or len(shape) != 2):
        raise CheckpointError(f"{file}: DoRA of {name} is not supported; merge it with peft.")
