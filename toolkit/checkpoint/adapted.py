"""A model with a LoRA or DoRA adapter merged into it, tensor by tensor, as they are asked for.

Adapters speak of tensors in memory. Most stand in the files as they are, under the same or another
name, and are computed one by one. Where files store them otherwise (all experts of a layer in one
tensor or in many, query, key and value in one), the adapter is merged in memory and the result is
taken apart as the library stores it.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.lora import AdapterFolder, open_adapter
from toolkit.checkpoint.parameter_changes import ParameterChanges
from toolkit.checkpoint.read import TORCH_NAMES, Checkpoint, Entries
from toolkit.checkpoint.tensor_names import is_head, is_vocabulary
from toolkit.checkpoint.write import tensor_bytes
from toolkit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from toolkit.checkpoint.memory_tensors import MemoryTensors


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
        parameters: what is added to some of the model's tensors besides.
        converted: tensors of the model that are changed in memory and stored otherwise.
    """

    def __init__(
        self,
        model: Checkpoint,
        adapter: AdapterFolder,
        heads: Mapping[str, str] | None = None,
        parameters: ParameterChanges | None = None,
        converted: ConvertedTensors | None = None,
    ) -> None:
        tensors = {name: model.info(name) for name in model.names}
        self.heads = dict(heads or {})
        tensors |= {head: tensors[name] for head, name in self.heads.items()}
        for name, own in adapter.saved.items():
            tensors[name] = replace(adapter.tensors.info(own), dtype=tensors[name].dtype)
        super().__init__(model.folder, tensors, model.unheld)
        self.model, self._adapter = model, adapter
        self._parameters, self._converted = parameters, converted
        self._added = set(parameters.names) if parameters is not None else set()
        self._taken_apart = set(converted.names) if converted is not None else set()
        self._changed = {*adapter.changed, *self.heads, *self._added, *self._taken_apart}
        self._held: dict[str, Tensor] = {}

    @property
    def changed(self) -> list[str]:
        """Names of the tensors that the adapter changes or replaces."""
        return [*self._adapter.changed, *sorted(self._added | self._taken_apart)]

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

        if self._converted is not None and name in self._taken_apart:
            return self._converted.tensor(name)
        adapter = self._adapter
        read = adapter.tensors.tensor
        stored = self.model.tensor(self.heads.get(name, name))
        if name in adapter.saved:
            stored = read(adapter.saved[name]).to(stored.dtype)
        if name in adapter.rows:
            places = torch.tensor(adapter.token_rows(name))
            stored = stored.index_copy(0, places, read(adapter.rows[name]).to(stored.dtype))
        if name in adapter.biases:
            weight = f"{name.removesuffix('.bias')}.weight"
            change = adapter.scale(weight) * read(adapter.biases[name]).float()
            stored = (stored.float() + change).to(stored.dtype)
        if self._parameters is not None and name in self._added:
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


_HELD_GROUPS = 4
"""Most groups of converted tensors in memory. Tensors of one size are asked for in the order of
files, where those of two or three groups (all gates, all down projections) alternate."""


class ConvertedTensors:
    """Stored tensors that a model with an adapter has, of those that memory holds otherwise.

    Safe to be asked by several threads.

    Args:
        memory: the model's tensors in memory.
        adapted: the same through the adapter.

    Attributes:
        names: stored tensors that the adapter changes.

    Raises:
        CheckpointError: files of the model are not what the library would write of it.
    """

    def __init__(self, memory: MemoryTensors, adapted: AdaptedCheckpoint) -> None:
        self._memory, self._adapted = memory, adapted
        self._group_of: dict[str, tuple[str, ...]] = {}
        self._held: OrderedDict[tuple[str, ...], dict[str, Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        proven: set[str] = set()
        for name in adapted.changed:
            if memory.sources[name][0] in self._group_of:
                continue  # one with another that is changed as well
            group = tuple(memory.made_with(name))
            self._refuse_unless_stored(group)
            if (kind := re.sub(r"\d+", "", name)) not in proven:  # layers are stored alike
                proven.add(kind)
                self._refuse_unless_same(group)
            self._group_of |= dict.fromkeys(memory.sources[name], group)
        self.names = list(self._group_of)

    def tensor(self, name: str) -> Tensor:
        """One stored tensor with the adapter merged in, in its stored type."""
        group = self._group_of[name]
        with self._lock:
            if group not in self._held:
                whole = {member: self._adapted.tensor(member) for member in group}
                self._held[group] = self._memory.take_apart(whole)
                for member in group:
                    self._adapted.give_back(member)
                while len(self._held) > _HELD_GROUPS:
                    self._held.popitem(last=False)
            self._held.move_to_end(group)
            return self._held[group][name].contiguous()

    def _refuse_unless_stored(self, group: tuple[str, ...]) -> None:
        import torch

        whole = {}
        for name in group:
            info = self._adapted.info(name)
            dtype: torch.dtype = getattr(torch, TORCH_NAMES[info.dtype])
            whole[name] = torch.empty(info.shape, dtype=dtype, device="meta")
        shapes = {n: tuple(part.shape) for n, part in self._memory.take_apart(whole).items()}
        stored = {n: self._memory.stored_info(n).shape for n in self._memory.sources[group[0]]}
        if shapes != stored:
            differing = next(n for n in (*shapes, *stored) if shapes.get(n) != stored.get(n))
            raise CheckpointError(
                f"{self._memory.folder}: does not store {differing} as transformers stores "
                f"{group[0]} with the adapter; give the model that the adapter was trained on."
            )

    def _refuse_unless_same(self, group: tuple[str, ...]) -> None:
        """Refuse where the library's conversion, there and back, is not the file."""
        whole = {name: self._memory.tensor(name) for name in group}
        for name, part in self._memory.take_apart(whole).items():
            if not np.array_equal(tensor_bytes(part), self._memory.stored_bytes(name)):
                raise CheckpointError(
                    f"{self._memory.folder}: transformers does not make {name} of {group[0]} "
                    "again, so an adapter of it cannot be stored; merge it with peft."
                )
        for name in group:
            self._memory.give_back(name)


def open_adapted(model: Checkpoint, folder: Path) -> AdaptedCheckpoint:
    """Open a peft adapter over a model.

    Args:
        model: what it was trained on.
        folder: of the adapter, with adapter_config.json and adapter_model.safetensors.

    Raises:
        CheckpointError: it is no LoRA, is damaged, or changes tensors that the model has not.
    """
    adapter = without_tied_copies(open_adapter(folder), model)
    parameters = ParameterChanges(adapter, model.folder) if adapter.wrapped else None
    memory = _ask_for_memory(adapter, model)
    if memory is not None:
        _refuse_shared(adapter, memory)
    stored, heads, converted = adapter, dict[str, str](), None
    if memory is not None and not _has_stored_names(adapter, model):
        added = parameters.names if parameters is not None else []
        _refuse_modules_in_one(adapter, memory)
        names = {name for name in adapter.changed if memory.is_converted(name)}
        if names or added:
            converted = _open_converted(adapter.only(names), memory, parameters)
        stored, heads = _in_stored_names(adapter.without(names), memory)
    for name in stored.changed:
        if name not in model and name not in heads:
            raise CheckpointError(
                f"{adapter.file}: changes {name} ({stored.own_name(name)}), which {model.folder} "
                "has not; give the model that the adapter was trained on."
            )
    _check_changes(stored, model, heads)
    return AdaptedCheckpoint(model, stored, heads, converted=converted)


def _ask_for_memory(adapter: AdapterFolder, model: Checkpoint) -> MemoryTensors | None:
    """The model in memory, where that matters and transformers knows it.

    Whether a head is tied, what tensors are called in memory and which modules share one, only
    transformers knows.
    """
    is_inner = any(not is_vocabulary(name) for name in adapter.parts)
    if not is_inner and _has_stored_names(adapter, model):
        return None
    from toolkit.checkpoint.loadable import build_on_meta
    from toolkit.checkpoint.memory_tensors import MemoryTensors

    if (built := build_on_meta(model.folder)) is None:
        return None
    try:
        return MemoryTensors(built, model)
    except CheckpointError:
        if _has_stored_names(adapter, model):
            return None  # what cannot be converted is nothing that the adapter speaks of
        raise


def _has_stored_names(adapter: AdapterFolder, model: Checkpoint) -> bool:
    """Whether an adapter speaks of the stored tensors themselves, and of no tied head."""
    changed = adapter.changed
    if adapter.wrapped or not all(name in model for name in changed):
        return False
    return any(map(is_head, model.names)) or not any(map(is_vocabulary, changed))


def _open_converted(
    adapter: AdapterFolder, memory: MemoryTensors, parameters: ParameterChanges | None
) -> ConvertedTensors:
    for name in parameters.names if parameters is not None else ():
        if name not in memory:
            raise CheckpointError(
                f"{adapter.file}: changes {name}, which {memory.folder} has not; give the model "
                "that the adapter was trained on."
            )
    _check_changes(adapter, memory, {})
    return ConvertedTensors(memory, AdaptedCheckpoint(memory, adapter, parameters=parameters))


def _in_stored_names(
    adapter: AdapterFolder, memory: MemoryTensors
) -> tuple[AdapterFolder, dict[str, str]]:
    """The adapter by the names that the model's files have, and heads that it parts from an
    embedding."""
    stored = {name: own[0] for name, own in memory.sources.items() if not memory.is_converted(name)}
    renamed = adapter.renamed({name: stored[name] for name in adapter.changed if name in stored})
    heads = {
        head: stored[source]
        for head, source in memory.tied.items()
        if is_head(head) and head not in memory.stored_names and source in stored
    }
    return renamed, _parted(renamed, heads)


def _refuse_modules_in_one(adapter: AdapterFolder, memory: MemoryTensors) -> None:
    """Refuse factors of what is several matrices in one parameter, which is no linear module."""
    for name in adapter.changed:
        if name not in memory and name.removesuffix(".weight") in memory:
            raise CheckpointError(
                f"{adapter.file}: changes {name.removesuffix('.weight')} as if it were a linear "
                f"module, and in {memory.folder} it is a parameter (the experts of a layer); merge "
                "it with peft."
            )


def _refuse_shared(adapter: AdapterFolder, memory: MemoryTensors) -> None:
    """Refuse factors of a weight that other modules share, as the blocks of Zamba do.

    peft changes one module of them, so that it computes otherwise than any merged model. Embeddings
    and heads are parted instead.
    """
    shared = {name for other, name in memory.tied.items() if not is_head(other)}
    shared |= {memory.stored_name(name) for name in shared if name in memory}
    for name in adapter.parts:
        if name in shared and not is_vocabulary(name):
            raise CheckpointError(
                f"{adapter.file}: changes {name}, which several modules of {memory.folder} share, "
                "in one of them alone; no merged model computes that. Leave the module out of the "
                "adapter."
            )


def _check_changes(adapter: AdapterFolder, model: Checkpoint, heads: Mapping[str, str]) -> None:
    for name in adapter.parts:
        check_parts(adapter, name, model, heads)
    for name in adapter.rows:
        _check_rows(adapter, name, model)


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
