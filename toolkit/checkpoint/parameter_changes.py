"""Changes of an adapter to parameters that are no module's weight, such as all experts of a layer.

peft (`target_parameters`) wraps the module once for each parameter, so which factors belong to
which parameter is known only when it has wrapped the model, which is done on one without memory.
Legend: E experts, r rank.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoint.loadable import build_on_meta
from toolkit.checkpoint.loadable_adapter import read_wrappers
from toolkit.checkpoint.lora import AdapterFolder
from toolkit.errors import CheckpointError
from toolkit.library_errors import first_line

if TYPE_CHECKING:
    from torch import Tensor


class ParameterChanges:
    """What an adapter adds to parameters in memory through `target_parameters`.

    Args:
        adapter: whose settings name parameters.
        folder: of the model that it was trained on.

    Attributes:
        names: of the parameters.

    Raises:
        CheckpointError: transformers does not know such a model, or peft finds no such parameters.
    """

    def __init__(self, adapter: AdapterFolder, folder: Path) -> None:
        self._adapter, self._wrappers = adapter, _own_wrappers(adapter, folder)
        self._paths = {_parameter(path, wrapper): path for path, wrapper in self._wrappers.items()}
        self.names = list(self._paths)

    def change(self, name: str) -> Tensor:
        """What is added to a parameter, float32."""
        import torch

        wrapper_path = self._paths[name]
        wrapper = self._wrappers[wrapper_path]
        factor_holders = {"lora_A": wrapper.lora_A["default"], "lora_B": wrapper.lora_B["default"]}
        meta_weights = {part: holder.weight for part, holder in factor_holders.items()}
        # peft computes the change from the module itself, so the factors are lent to it for a
        # moment.
        for part, holder in factor_holders.items():
            factor = self._adapter.tensors.tensor(self._adapter.wrapped[wrapper_path][part]).float()
            holder.weight = torch.nn.Parameter(factor, requires_grad=False)
        parameter_change = _change(wrapper).reshape(tuple(wrapper.get_param().shape))
        # Taken away at once: the model on the meta device stays as large as its shapes.
        for part, holder in factor_holders.items():
            holder.weight = meta_weights[part]
        return parameter_change


@dataclass(frozen=True)
class WrappedParameter:
    """A parameter that an adapter changes by its own name.

    Attributes:
        path: peft's path of its wrapper, by which the adapter holds its factors.
        num_experts: matrices in it.
        scale: what `B A` of each is multiplied with.
    """

    path: str
    num_experts: int
    scale: float


def wrapped_parameters(adapter: AdapterFolder, folder: Path) -> dict[str, WrappedParameter]:
    """The parameters that an adapter changes by their own names, by these.

    Args:
        adapter: whose settings name parameters.
        folder: of the model that it was trained on.

    Raises:
        CheckpointError: peft does not find what the adapter holds in that model.
    """
    return {
        _parameter(path, own): WrappedParameter(path, own.num_experts, own.scaling["default"])
        for path, own in _own_wrappers(adapter, folder).items()
    }


def _own_wrappers(adapter: AdapterFolder, folder: Path) -> dict[str, Any]:
    """Those of peft's wrapped parameters that the adapter holds as such, by their paths."""
    all_wrappers = _wrappers(adapter, folder)
    # A module that peft itself reaches as a parameter (a router) is adapted as a module here.
    module_names = {adapter.memory_names.get(name, name) for name in adapter.parts}
    parameter_paths = {path for path in all_wrappers if f"{path}.weight" not in module_names}
    if missing_paths := sorted(parameter_paths ^ set(adapter.wrapped)):
        raise CheckpointError(
            f"{adapter.file}: target_parameters and the tensors differ, at {missing_paths[0]}; "
            "give the model that the adapter was trained on."
        )
    return {path: wrapper for path, wrapper in all_wrappers.items() if path in parameter_paths}


def _wrappers(adapter: AdapterFolder, folder: Path) -> dict[str, Any]:
    """peft's wrapped parameters, by their modules' paths."""
    from peft import LoraConfig, get_peft_model

    if (meta_model := build_on_meta(folder)) is None:
        raise CheckpointError(
            f"{adapter.file}: changes parameters (target_parameters) of {folder}, a model that "
            "transformers does not know; merge it with peft."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            adapter_config = LoraConfig.from_pretrained(str(adapter.folder))
            adapted_model = get_peft_model(meta_model, adapter_config, low_cpu_mem_usage=True)
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{adapter.file}: peft refuses it ({first_line(error)})."
            ) from error
    return read_wrappers(adapted_model)


def _change(wrapper: Any) -> Tensor:
    """What a wrapper adds to its parameter, in peft's two ways: a matrix, or one per expert."""
    if wrapper.num_experts == 1:
        factor_a, factor_b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
        matrix: Tensor = (factor_b @ factor_a) * wrapper.scaling["default"]
        return matrix
    left_factors, right, expert_scale = wrapper.get_delta_factors("default")  # [E, ., r], [E, r, .]
    expert_changes: Tensor = (left_factors @ right) * expert_scale
    return expert_changes


def _parameter(path: str, wrapper: Any) -> str:
    module_name = ".".join(part for part in path.split(".") if part != "base_layer")
    return f"{module_name}.{wrapper.parameter_name}"
