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
        model: checkpoint of the model itself.
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
        infos_by_name = {name: model.info(name) for name in model.names}
        self.heads = dict(heads or {})
        # A head that parts from its embedding becomes a tensor of its own, as large as that.
        infos_by_name |= {head: infos_by_name[name] for head, name in self.heads.items()}
        for model_name, saved_name in adapter.saved.items():
            infos_by_name[model_name] = replace(
                adapter.tensors.info(saved_name), dtype=infos_by_name[model_name].dtype
            )
        super().__init__(model.folder, infos_by_name, model.unheld)
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

    def damaged_file(self, name: str) -> Path:
        if name not in self._changed:
            return self.model.damaged_file(name)
        # What takes the place of a tensor leaves nothing of the model's to be damaged.
        own_name = self.heads.get(name, name)
        is_replaced = name in self._adapter.saved
        if not is_replaced and not bool(self.model.tensor(own_name).float().isfinite().all()):
            return self.model.damaged_file(own_name)
        return self._adapter.file

    def give_back(self, name: str) -> None:
        self._held.pop(name, None)
        self.model.give_back(self.heads.get(name, name))

    def _merged(self, name: str) -> Tensor:
        import torch

        if self._converted is not None and name in self._taken_apart:
            return self._converted.tensor(name)
        adapter = self._adapter
        read_own = adapter.tensors.tensor
        stored = self.model.tensor(self.heads.get(name, name))
        # Saved first, then rows, bias and factors: the order in which peft would have trained and
        # adds them.
        if name in adapter.saved:
            stored = read_own(adapter.saved[name]).to(stored.dtype)
        if name in adapter.rows:
            places = torch.tensor(adapter.token_rows(name))
            stored = stored.index_copy(0, places, read_own(adapter.rows[name]).to(stored.dtype))
        if name in adapter.biases:
            weight_name = f"{name.removesuffix('.bias')}.weight"
            bias_change = adapter.scale(weight_name) * read_own(adapter.biases[name]).float()
            stored = (stored.float() + bias_change).to(stored.dtype)
        if self._parameters is not None and name in self._added:
            stored = (stored.float() + self._parameters.change(name)).to(stored.dtype)
        return self._with_factors(name, stored) if name in adapter.parts else stored

    def _with_factors(self, name: str, stored: Tensor) -> Tensor:
        read_own = self._adapter.tensors.tensor
        a, b = (read_own(own).float() for own in self._adapter.factor_names(name))
        full_weight = stored.float()
        factor_change = b.flatten(1) @ a.flatten(1)
        turned = is_turned(self._adapter, name, self.model)
        factor_change = (factor_change.T if turned else factor_change).reshape(full_weight.shape)
        full_weight = full_weight + self._adapter.scale(name) * factor_change
        # DoRA: each row takes the length that was trained, after the change has given it a
        # direction.
        if (own := self._adapter.parts[name].get("lora_magnitude_vector")) is not None:
            rows = full_weight.T if turned else full_weight
            import torch

            rows = rows * (read_own(own).float() / torch.linalg.norm(rows, dim=1))[:, None]
            full_weight = rows.T if turned else rows
        return full_weight.to(stored.dtype).contiguous()


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
        proven_kinds: set[str] = set()
        for name in adapted.changed:
            if memory.sources[name][0] in self._group_of:
                continue  # one with another that is changed as well
            group_names = tuple(memory.made_with(name))
            self._refuse_unless_stored(group_names)
            if (kind := re.sub(r"\d+", "", name)) not in proven_kinds:  # layers are stored alike
                proven_kinds.add(kind)
                self._refuse_unless_same(group_names)
            self._group_of |= dict.fromkeys(memory.sources[name], group_names)
        self.names = list(self._group_of)

    def tensor(self, name: str) -> Tensor:
        """One stored tensor with the adapter merged in, in its stored type."""
        group = self._group_of[name]
        # Held while converting: two threads would each make the same group, gigabytes of experts.
        with self._lock:
            if group not in self._held:
                members_by_name = {member: self._adapted.tensor(member) for member in group}
                self._held[group] = self._memory.take_apart(members_by_name)
                # Given back at once: the group's parts hold all that the members did.
                for member in group:
                    self._adapted.give_back(member)
                while len(self._held) > _HELD_GROUPS:
                    self._held.popitem(last=False)
            self._held.move_to_end(group)
            return self._held[group][name].contiguous()

    def _refuse_unless_stored(self, group: tuple[str, ...]) -> None:
        import torch

        meta_tensors = {}
        for member_name in group:
            info = self._adapted.info(member_name)
            dtype: torch.dtype = getattr(torch, TORCH_NAMES[info.dtype])
            meta_tensors[member_name] = torch.empty(info.shape, dtype=dtype, device="meta")
        shapes = {n: tuple(part.shape) for n, part in self._memory.take_apart(meta_tensors).items()}
        stored = {n: self._memory.stored_info(n).shape for n in self._memory.sources[group[0]]}
        if shapes != stored:
            differing = next(n for n in (*shapes, *stored) if shapes.get(n) != stored.get(n))
            raise CheckpointError(
                f"{self._memory.folder}: does not store {differing} as transformers stores "
                f"{group[0]} with the adapter; give the model that the adapter was trained on."
            )

    def _refuse_unless_same(self, group: tuple[str, ...]) -> None:
        """Refuse where the library's conversion, there and back, is not the file."""
        group_tensors = {name: self._memory.tensor(name) for name in group}
        for name, stored_part in self._memory.take_apart(group_tensors).items():
            if not np.array_equal(tensor_bytes(stored_part), self._memory.stored_bytes(name)):
                raise CheckpointError(
                    f"{self._memory.folder}: transformers does not make {name} of {group[0]} "
                    "again, so an adapter of it cannot be stored; merge it with peft."
                )
        for member_name in group:
            self._memory.give_back(member_name)


def open_adapted(model: Checkpoint, folder: Path) -> AdaptedCheckpoint:
    """Open a peft adapter over a model.

    Args:
        model: checkpoint of the model that it was trained on.
        folder: adapter folder, with adapter_config.json and adapter_model.safetensors.

    Raises:
        CheckpointError: it is no LoRA, is damaged, or changes tensors that the model has not.
    """
    adapter = without_tied_copies(open_adapter(folder), model)
    parameter_changes = ParameterChanges(adapter, model.folder) if adapter.wrapped else None
    # What files store as memory holds it goes by stored names; the rest is merged in memory.
    memory_tensors = _ask_for_memory(adapter, model)
    if memory_tensors is not None:
        _refuse_shared(adapter, memory_tensors)
    stored_adapter, heads, converted = adapter, dict[str, str](), None
    if memory_tensors is not None and not _has_stored_names(adapter, model):
        added_names = parameter_changes.names if parameter_changes is not None else []
        _refuse_modules_in_one(adapter, memory_tensors)
        names = {name for name in adapter.changed if memory_tensors.is_converted(name)}
        if names or added_names:
            converted = _open_converted(adapter.only(names), memory_tensors, parameter_changes)
        stored_adapter, heads = _in_stored_names(adapter.without(names), memory_tensors)
    for tensor_name in stored_adapter.changed:
        if tensor_name not in model and tensor_name not in heads:
            raise CheckpointError(
                f"{adapter.file}: changes {tensor_name} ({stored_adapter.own_name(tensor_name)}), "
                f"which {model.folder} has not; give the model that the adapter was trained on."
            )
    _check_changes(stored_adapter, model, heads)
    return AdaptedCheckpoint(model, stored_adapter, heads, converted=converted)


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

    if (meta_model := build_on_meta(model.folder)) is None:
        return None
    try:
        return MemoryTensors(meta_model, model)
    except CheckpointError:
        if _has_stored_names(adapter, model):
            return None  # what cannot be converted is nothing that the adapter speaks of
        raise


def _has_stored_names(adapter: AdapterFolder, model: Checkpoint) -> bool:
    """Whether an adapter speaks of the stored tensors themselves, and of no tied head."""
    changed_names = adapter.changed
    if adapter.wrapped or not all(name in model for name in changed_names):
        return False
    return any(map(is_head, model.names)) or not any(map(is_vocabulary, changed_names))


def _open_converted(
    adapter: AdapterFolder, memory: MemoryTensors, parameters: ParameterChanges | None
) -> ConvertedTensors:
    for parameter_name in parameters.names if parameters is not None else ():
        if parameter_name not in memory:
            raise CheckpointError(
                f"{adapter.file}: changes {parameter_name}, which {memory.folder} has not; give "
                "the model that the adapter was trained on."
            )
    _check_changes(adapter, memory, {})
    return ConvertedTensors(memory, AdaptedCheckpoint(memory, adapter, parameters=parameters))


def _in_stored_names(
    adapter: AdapterFolder, memory: MemoryTensors
) -> tuple[AdapterFolder, dict[str, str]]:
    """The adapter by the names that the model's files have, and heads that it parts from an
    embedding."""
    stored_names = {
        name: sources[0]
        for name, sources in memory.sources.items()
        if not memory.is_converted(name)
    }
    new_names = {name: stored_names[name] for name in adapter.changed if name in stored_names}
    # A head that stands in the files by itself is parted already, whatever the config says.
    tied_heads = {
        head: stored_names[source]
        for head, source in memory.tied.items()
        if is_head(head) and head not in memory.stored_names and source in stored_names
    }
    renamed_adapter = adapter.renamed(new_names)
    return renamed_adapter, _parted(renamed_adapter, tied_heads)


def _refuse_modules_in_one(adapter: AdapterFolder, memory: MemoryTensors) -> None:
    """Refuse factors of what is several matrices in one parameter, which is no linear module."""
    for changed_name in adapter.changed:
        if changed_name not in memory and changed_name.removesuffix(".weight") in memory:
            raise CheckpointError(
                f"{adapter.file}: changes {changed_name.removesuffix('.weight')} as if it were a "
                f"linear module, and in {memory.folder} it is a parameter (the experts of a "
                "layer); merge it with peft."
            )


def _refuse_shared(adapter: AdapterFolder, memory: MemoryTensors) -> None:
    """Refuse factors of a weight that other modules share, as the blocks of Zamba do.

    peft changes one module of them, so that it computes otherwise than any merged model. Embeddings
    and heads are parted instead.
    """
    shared_names = {factor_name for other, factor_name in memory.tied.items() if not is_head(other)}
    shared_names |= {
        memory.stored_name(factor_name) for factor_name in shared_names if factor_name in memory
    }
    for factor_name in adapter.parts:
        if factor_name in shared_names and not is_vocabulary(factor_name):
            raise CheckpointError(
                f"{adapter.file}: changes {factor_name}, which several modules of {memory.folder} "
                "share, in one of them alone; no merged model computes that. Leave the module out "
                "of the adapter."
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
    changed_names = {*adapter.parts, *adapter.saved}
    return {head: name for head, name in heads.items() if {head, name} & changed_names}


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
    # Square: the shape tells nothing. `Conv1D` always has a bias, so this one is linear.
    if f"{name.removesuffix('weight')}bias" not in model:
        return False
    for other in model.names:  # the layers of a model are all of one kind
        bias, wide = f"{other.removesuffix('weight')}bias", model.info(other).shape
        if other.endswith(".weight") and len(wide) == 2 and wide[0] != wide[1] and bias in model:
            return model.info(bias).shape == wide[1:]
    return bool(adapter.settings.get("fan_in_fan_out"))


def _check_rows(adapter: AdapterFolder, name: str, model: Checkpoint) -> None:
    token_rows, shape = adapter.token_rows(name), model.info(name).shape
    row_shape = adapter.tensors.info(adapter.rows[name]).shape
    if row_shape != (len(token_rows), *shape[1:]) or max(token_rows, default=0) >= shape[0]:
        raise CheckpointError(
            f"{adapter.file}: {adapter.rows[name]} is {list(row_shape)}, but {len(token_rows)} "
            f"rows of {name} ({list(shape)} in {model.folder}) are meant; give the model that the "
            "adapter was trained on."
        )


def without_tied_copies(adapter: AdapterFolder, model: Checkpoint) -> AdapterFolder:
    """Leave out saved heads that are the saved embedding once more, where the model has only that.

    With `ensure_weight_tying` peft writes both.
    """
    if not adapter.settings.get("ensure_weight_tying"):
        return adapter
    read_bytes = adapter.tensors.raw
    kept_names = [own for name, own in adapter.saved.items() if name in model]
    copied_heads = {
        name
        for name, own in adapter.saved.items()
        if name not in model
        and any(np.array_equal(read_bytes(own), read_bytes(other)) for other in kept_names)
    }
    return adapter.without_saved(copied_heads)


def check_parts(
    adapter: AdapterFolder, name: str, model: Checkpoint, heads: Mapping[str, str]
) -> None:
    """Refuse factors that do not make a change of a model's tensor.

    Raises:
        CheckpointError: names the tensor and all shapes.
    """
    a_shape, b = (adapter.tensors.info(own).shape for own in adapter.factor_names(name))
    own_parts = adapter.parts[name]
    saved_name = adapter.saved.get(name)
    shape = (
        adapter.tensors.info(saved_name).shape
        if saved_name is not None
        else model.info(heads.get(name, name)).shape
    )
    # By products and sets, as a weight may be turned, or a convolution of more dimensions.
    if math.prod(shape) != b[0] * math.prod(a_shape[1:]) or not {b[0], a_shape[1]} <= set(shape):
        raise CheckpointError(
            f"{adapter.file}: {name} is {list(shape)} in {model.folder}, but the adapter's parts "
            f"are {list(a_shape)} and {list(b)}; give the model that the adapter was trained on."
        )
    if "lora_magnitude_vector" in own_parts and (
        "lora_embedding_A" in own_parts or len(shape) != 2
    ):
        raise CheckpointError(
            f"{adapter.file}: DoRA of {name} is not supported; merge it with peft."
        )
