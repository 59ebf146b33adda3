"""Changes of an adapter to parameters that are no module's weight, such as all experts of a layer.

peft (`target_parameters`) wraps the module once for each parameter, so which factors belong to
which parameter is known only when it has wrapped the model; transformers stores such a parameter in
several tensors. Both are asked, on a model without memory. Legend: E experts, r rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoint.loadable_adapter import read_wrappers
from toolkit.checkpoint.lora import AdapterFolder
from toolkit.checkpoint.memory_names import build_on_meta
from toolkit.checkpoint.read import Checkpoint
from toolkit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


class ParameterChanges:
    """What an adapter adds to a model's stored tensors through `target_parameters`.

    The changes of one parameter (all experts of a layer) are held at a time.

    Args:
        adapter: whose settings name parameters.
        model: what it was trained on.

    Attributes:
        names: parameters in memory, by the stored tensors that they are made of.

    Raises:
        CheckpointError: transformers or peft does not know such a model, or stores it otherwise.
    """

    def __init__(self, adapter: AdapterFolder, model: Checkpoint) -> None:
        import torch

        self._adapter, self._model = adapter, build_on_meta(model.folder)
        if self._model is None:
            raise CheckpointError(
                f"{adapter.file}: changes parameters (target_parameters) of {model.folder}, a "
                "model that transformers does not know; merge it with peft."
            )
        self._wrappers = _own_wrappers(adapter, model.folder)
        self._paths = {_parameter(path, w): path for path, w in self._wrappers.items()}
        self.names: dict[str, str] = {}
        for parameter, path in self._paths.items():
            shape = tuple(self._wrappers[path].get_param().shape)
            for name, part in self._stored(parameter, torch.empty(shape, device="meta")).items():
                if name not in model or model.info(name).shape != tuple(part.shape):
                    raise CheckpointError(
                        f"{adapter.file}: changes {parameter}, which {model.folder} does not store "
                        f"as {name}; give the model that the adapter was trained on."
                    )
                self.names[name] = parameter
        self._held: tuple[str, Mapping[str, Tensor]] = ("", {})

    def change(self, name: str) -> Tensor:
        """What is added to a stored tensor, float32."""
        import torch

        parameter = self.names[name]
        if self._held[0] != parameter:
            wrapper, own = self._wrappers[self._paths[parameter]], self._paths[parameter]
            for part, holder in (("lora_A", wrapper.lora_A), ("lora_B", wrapper.lora_B)):
                factor = self._adapter.tensors.tensor(self._adapter.wrapped[own][part]).float()
                holder["default"].weight = torch.nn.Parameter(factor, requires_grad=False)
            change = _change(wrapper)
            whole = change.reshape(tuple(wrapper.get_param().shape))
            self._held = (parameter, self._stored(parameter, whole))
        return self._held[1][name]

    def _stored(self, parameter: str, tensor: Tensor) -> dict[str, Tensor]:
        """A parameter taken apart as it is stored; changes are taken apart as weights are."""
        return take_apart(self._model, parameter, tensor)


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


class SavedParameters:
    """Parameters that an adapter stores whole and its model stores in several tensors.

    Args:
        adapter: with `modules_to_save` that hold such parameters.
        saved: its names of them, by their names in memory.
        model: what it was trained on.

    Attributes:
        names: parameters in memory, by the stored tensors that they take the place of.
    """

    def __init__(self, adapter: AdapterFolder, saved: Mapping[str, str], model: Checkpoint) -> None:
        import torch

        self._adapter, self._saved, self._model = adapter, saved, build_on_meta(model.folder)
        self.names: dict[str, str] = {}
        for parameter, own in saved.items():
            whole = torch.empty(adapter.tensors.info(own).shape, device="meta")
            for name, part in take_apart(self._model, parameter, whole).items():
                if name not in model or model.info(name).shape != tuple(part.shape):
                    raise CheckpointError(
                        f"{adapter.file}: stores {parameter}, which {model.folder} does not store "
                        f"as {name}; give the model that the adapter was trained on."
                    )
                self.names[name] = parameter
        self._held: tuple[str, Mapping[str, Tensor]] = ("", {})

    def tensor(self, name: str) -> Tensor:
        """What takes the place of a stored tensor, in the adapter's type."""
        parameter = self.names[name]
        if self._held[0] != parameter:
            whole = self._adapter.tensors.tensor(self._saved[parameter])
            self._held = (parameter, take_apart(self._model, parameter, whole))
        return self._held[1][name]


def take_apart(model: Any, parameter: str, tensor: Tensor) -> dict[str, Tensor]:
    """A parameter of a model in the tensors that its files have, by their names."""
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, Tensor] = revert_weight_conversion(model, {parameter: tensor})
    return found


def _own_wrappers(adapter: AdapterFolder, folder: Path) -> dict[str, Any]:
    """Those of peft's wrapped parameters that the adapter holds as such, by their paths."""
    wrappers = _wrappers(adapter, folder)
    # A module that peft itself reaches as a parameter (a router) is adapted as a module here.
    modules = {adapter.memory_names.get(name, name) for name in adapter.parts}
    lacking = {path for path in wrappers if f"{path}.weight" not in modules}
    if missing := sorted(lacking ^ set(adapter.wrapped)):
        raise CheckpointError(
            f"{adapter.file}: target_parameters and the tensors differ, at {missing[0]}; give "
            "the model that the adapter was trained on."
        )
    return {path: own for path, own in wrappers.items() if path in lacking}


def _wrappers(adapter: AdapterFolder, folder: Path) -> dict[str, Any]:
    """peft's wrapped parameters, by their modules' paths."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = LoraConfig.from_pretrained(str(adapter.folder))
            whole = get_peft_model(build_on_meta(folder), config, low_cpu_mem_usage=True)
        except (ValueError, TypeError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{adapter.file}: peft refuses it ({first}).") from error
    return read_wrappers(whole)


def _change(wrapper: Any) -> Tensor:
    """What a wrapper adds to its parameter, in peft's two ways: a matrix, or one per expert."""
    if wrapper.num_experts == 1:
        a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
        matrix: Tensor = (b @ a) * wrapper.scaling["default"]
        return matrix
    left, right, scale = wrapper.get_delta_factors("default")  # [E, ., r], [E, r, .]
    stacked: Tensor = (left @ right) * scale
    return stacked


def _parameter(path: str, wrapper: Any) -> str:
    module = ".".join(part for part in path.split(".") if part != "base_layer")
    return f"{module}.{wrapper.parameter_name}"
