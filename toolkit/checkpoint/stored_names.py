"""Tensors of a loaded model under the names and in the shapes that its files have.

transformers holds some tensors in another form than files do: renamed, experts in one tensor, parts
joined or transposed. What it does when it loads a file is asked of it, tensor by tensor, rather
than known here. Where a stored tensor is a parameter, or a piece of one (an expert of a layer), it
is written in place; else it is written beside the model and converted into it as if it had just
been read. Legend: E experts, I width of an expert, D hidden size.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.wrappers import wrapper_of


@dataclass(frozen=True)
class Conversion:
    """What becomes of some stored tensors.

    Attributes:
        key: name in memory of the first tensor that they become.
        converter: of transformers.
        members: pattern of the converter and stored name, in the order of loading.
    """

    key: str
    converter: Any
    members: tuple[tuple[str, str], ...]


Rename = Callable[[str], tuple[str, str | None]]


class StoredTensors:
    """The tensors of a loaded model by their names in files.

    Args:
        model: a loaded model of transformers.
        shapes: of the tensors in its files, by name.

    Attributes:
        targets: where each stored tensor is to be written.
        ignored: stored tensors that the model's own class passes over when it is loaded.
        unknown: stored tensors that it has no place for.
    """

    def __init__(self, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._model = wrapper_of(model) or model
        parameters = parameters_by_name(self._model)
        in_place = {
            stored_name: parameters[stored_name]
            for stored_name, shape in shapes.items()
            if stored_name in parameters and _fits(parameters[stored_name], shape)
        }
        # What a wrapper has beside its text side was not loaded, and is on the meta device.
        self.ignored = [name for name, tensor in in_place.items() if tensor.is_meta]
        self.targets = {name: tensor for name, tensor in in_place.items() if not tensor.is_meta}
        self.unknown: list[str] = []
        self._conversions: list[Conversion] = []
        # Most models end here; the library's conversion is asked for what has another name or
        # shape.
        if other_names := [name for name in shapes if name not in in_place]:
            self._convert_others(other_names, shapes, parameters)

    @torch.no_grad()
    def fault(self, parameters: Iterable[tuple[str, Tensor]]) -> str:
        """Why some parameters cannot be written in the place of stored tensors, or nothing.

        Conversions are tried both ways on tensors without memory.

        Args:
            parameters: of the model that are to be written, by any name.
        """
        model_parameters = parameters_by_name(self._model)
        # Tied parameters and views of one have the same memory under other names.
        written_pointers = {tensor.data_ptr() for tensor in self.targets.values()}
        for conversion in self._conversions:
            member_values = {name: self.targets[name].to("meta") for _, name in conversion.members}
            for name, value in self._converted(conversion, member_values).items():
                parameter = model_parameters.get(name)
                if parameter is not None and parameter.shape == value.shape:
                    written_pointers.add(parameter.data_ptr())
        for name, parameter in parameters:
            if parameter.data_ptr() not in written_pointers:
                return f"its files have no tensor for {name}"
        if self._conversions:
            from transformers.core_model_loading import revert_weight_conversion

            state = {name: value.to("meta") for name, value in self._model.state_dict().items()}
            reverted = revert_weight_conversion(self._model, state)
            members = [member for conversion in self._conversions for member in conversion.members]
            for _, name in members:
                if name not in reverted or reverted[name].shape != self.targets[name].shape:
                    return f"transformers does not make {name} of the model again"
        return ""

    def _convert_others(
        self,
        names: Iterable[str],
        shapes: Mapping[str, tuple[int, ...]],
        parameters: Mapping[str, Tensor],
    ) -> None:
        """Find the places of stored tensors that are no parameter by name and shape."""
        if not hasattr(self._model, "base_model_prefix"):
            self.unknown = list(names)
            return
        members_by_key: dict[str, list[tuple[str, str]]] = {}
        rename, converters = read_renaming(self._model)
        for name in in_loading_order(names):
            key, pattern = rename(name)
            if key in parameters and parameters[key].is_meta:
                self.ignored.append(name)
            elif pattern is not None and key in parameters:
                members_by_key.setdefault(key, []).append((pattern, name))
            elif pattern is None and key in parameters and _fits(parameters[key], shapes[name]):
                self.targets[name] = parameters[key]
            elif _is_passed_over(self._model, name, key):
                self.ignored.append(name)
            else:
                self.unknown.append(name)
        for key, members in members_by_key.items():
            for _, name in members:
                self.targets[name] = torch.empty(shapes[name], dtype=parameters[key].dtype)
            converter = converters[members[0][0]]
            self._conversions.append(Conversion(key, converter, tuple(members)))

    @torch.no_grad()
    def read(self) -> None:
        """Write the model's own values into the tensors beside it."""
        if not self._conversions:
            return
        from transformers.core_model_loading import revert_weight_conversion

        stored_values = revert_weight_conversion(self._model, self._model.state_dict())
        for conversion in self._conversions:
            for _, stored_name in conversion.members:
                self.targets[stored_name].copy_(stored_values[stored_name])

    @torch.no_grad()
    def finish(self) -> None:
        """Convert what was written beside the model into it."""
        parameters = parameters_by_name(self._model) if self._conversions else {}
        for conversion in self._conversions:
            for parameter_name, converted in self._converted(conversion, self.targets).items():
                parameters[parameter_name].copy_(converted)

    def _converted(self, conversion: Conversion, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return convert_stored(conversion, self._model, values.__getitem__)


def convert_stored(
    conversion: Conversion, model: Any, read: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """Parameters that stored tensors become, by their names in the model.

    Args:
        conversion: which stored tensors, and how.
        model: of transformers.
        read: gives a stored tensor by its name.
    """
    converter = copy.deepcopy(conversion.converter)  # it collects what it is given
    for pattern, stored_name in conversion.members:
        converter.add_tensor(conversion.key, stored_name, pattern, read(stored_name))
    made_tensors = converter.convert(conversion.key, model=model, config=model.config)
    return {n: value[0] if isinstance(value, list) else value for n, value in made_tensors.items()}


def parameters_by_name(model: Any) -> dict[str, Tensor]:
    """Parameters and buffers by every name a checkpoint may use for them; tied ones share one."""
    tensors_by_name = with_stored_names(dict(model.named_parameters(remove_duplicate=False)))
    tensors_by_name.update(model.named_buffers())
    return tensors_by_name


def _fits(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    return tuple(tensor.shape) == tuple(shape) and tensor.is_contiguous()


def read_renaming(model: Any) -> tuple[Rename, dict[str, object]]:
    """What transformers calls a stored tensor, and its converters by the patterns they take.

    Args:
        model: of transformers, which may be on the meta device.

    Returns:
        A function from the name of a stored tensor to its name in the model and the pattern of the
        converter that makes it, which is None where it is taken as it is; and the converters.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    all_mappings = get_model_conversion_mapping(model)
    renamings = [mapping for mapping in all_mappings if isinstance(mapping, WeightRenaming)]
    converters = [mapping for mapping in all_mappings if isinstance(mapping, WeightConverter)]
    model_state, prefix = model.state_dict(), model.base_model_prefix

    def rename(name: str) -> tuple[str, str | None]:
        memory_key, pattern = rename_source_key(name, renamings, converters, prefix, model_state)
        # Renamings are for names in files; one that is in memory as it stands must not be renamed
        # twice.
        if memory_key not in model_state and name in model_state:
            memory_key, pattern = rename_source_key(name, [], [], prefix, model_state)
        return memory_key, pattern

    return rename, {
        pattern: mapping for mapping in converters for pattern in mapping.source_patterns
    }


def in_loading_order(names: Iterable[str]) -> list[str]:
    """Names of stored tensors as transformers loads them: expert 2 before expert 10.

    Its converters join tensors in the order in which they come.
    """
    from transformers.core_model_loading import dot_natural_key

    return sorted(names, key=dot_natural_key)


def _is_passed_over(model: Any, *names: str) -> bool:
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns for name in names)


_IN, _OUT = ".experts.gate_up_proj", ".experts.down_proj"
_NAMES = {
    # block in files: names of gate, up and down projections
    ".mlp": ("gate_proj", "up_proj", "down_proj"),
    ".block_sparse_moe": ("w1", "w3", "w2"),
}


def with_stored_names(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters by every name a file may use: of experts, views into the tensors of all of them.

    Args:
        parameters: of a loaded model, by name; experts are `[E, 2 I, D]` (gate, then up) and
            `[E, D, I]`. Other mixtures, and dense models, come back as they are.
    """
    tensors_by_name = dict(parameters)
    for name, tensor in parameters.items():
        block = next((name.removesuffix(end) for end in (_IN, _OUT) if name.endswith(end)), None)
        if block is None or tensor.dim() != 3 or not block.endswith(".mlp"):
            continue
        is_gate_up = name.endswith(_IN)
        for stored_block, (gate, up, down) in _NAMES.items():
            prefix = f"{block.removesuffix('.mlp')}{stored_block}.experts"
            # Views: what is written into one of these is written into the joined tensor.
            for number, expert in enumerate(tensor):
                if is_gate_up:
                    expert_width = expert.shape[0] // 2
                    tensors_by_name[f"{prefix}.{number}.{gate}.weight"] = expert[:expert_width]
                    tensors_by_name[f"{prefix}.{number}.{up}.weight"] = expert[expert_width:]
                else:
                    tensors_by_name[f"{prefix}.{number}.{down}.weight"] = expert
        if (router := parameters.get(f"{block}.gate.weight")) is not None:
            tensors_by_name[f"{block.removesuffix('.mlp')}.block_sparse_moe.gate.weight"] = router
    return tensors_by_name
