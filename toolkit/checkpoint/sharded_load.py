"""A model whose parameters are shared out among processes, each of which reads only its parts.

It is made without memory (on the meta device), wrapped by whoever trains it, and filled afterwards.
transformers itself reads the files: it has a place where a model is distributed before its tensors
are read, and of a distributed tensor it reads only what this process holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolkit.checkpoint.load import (
    causal_class,
    load_model_config,
    refuse_oversize,
    silence_libraries,
)
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.read import list_safetensors
from toolkit.checkpoint.stored_names import read_renaming
from toolkit.checkpoint.wrapped import wrapper_class
from toolkit.errors import CheckpointError
from toolkit.library_errors import reading


@dataclass(frozen=True)
class EmptyModel:
    """A causal language model without memory, to be wrapped and then filled.

    Attributes:
        model: the model, on the meta device.
        model_class: class of transformers that the model was made of; FSDP changes its own.
        folder: folder that it is filled from.
        places: module and attribute of each parameter and buffer, by the name that it had when the
            model was made. Adapters and wrapping change names, not modules.
    """

    model: Any
    model_class: Any
    folder: Path
    places: dict[str, tuple[nn.Module, str]]

    @torch.no_grad()
    def fill(self) -> None:
        """Read what this process holds of each tensor, after the parameters were shared out.

        Raises:
            CheckpointError: the weights cannot be read.
        """
        reader = self._read()
        filled_ids: set[int] = set()
        for name, (module, attribute) in places_of(reader).items():
            owner, owner_attribute = self.places[name]
            if attribute in module._buffers:
                owner._buffers[owner_attribute] = module._buffers[attribute]
                continue
            parameter, read = owner._parameters[owner_attribute], module._parameters[attribute]
            # Tied tensors come by once under each name, and a second swap would undo the first.
            if parameter is None or read is None or id(parameter) in filled_ids:
                continue
            filled_ids.add(id(parameter))
            read.requires_grad_(parameter.requires_grad)
            put_in_place(parameter, read)
        # What `from_pretrained` leaves on the model that it returns, and what saving asks for.
        self.model.generation_config = getattr(reader, "generation_config", None)
        self.model._weight_conversions = getattr(reader, "_weight_conversions", None)

    def _read(self) -> Any:
        """A second model with the shared-out parameters of this one, read from the files."""
        from transformers.distributed import DistributedConfig

        def distribute(reader: Any) -> None:
            for name, (module, attribute) in places_of(reader).items():
                if attribute in module._parameters:
                    owner, owner_attribute = self.places[name]
                    module._parameters[attribute] = owner._parameters[owner_attribute]

        with reading(self.folder, CheckpointError, "the weights cannot be loaded"):
            reader_class = _distributed_class(self.model_class, distribute)
            return reader_class.from_pretrained(
                self.folder, dtype=torch.float32, distributed_config=DistributedConfig()
            )


def put_in_place(parameter: nn.Parameter, value: nn.Parameter) -> None:
    """Give a parameter without memory another's values; it stays the object by which tied modules,
    wrappers and optimizers know it."""
    torch.utils.swap_tensors(parameter, value)  # type: ignore[no-untyped-call]


def empty_causal_model(folder: Path) -> EmptyModel:
    """A causal language model in float32 that takes no memory yet.

    Raises:
        CheckpointError: the folder holds none.
    """
    config = load_model_config(folder)
    silence_libraries()
    refuse_oversize(folder)
    model_class = causal_class(config)
    with reading(folder, CheckpointError, "the model cannot be made"), torch.device("meta"):
        model = model_class._from_config(config, dtype=torch.float32).eval()
    return EmptyModel(model, model_class, folder, places_of(model))


def sharded_fault(folder: Path) -> str:
    """Why each process cannot read its parts of a model alone, or nothing."""
    config = load_model_config(folder)
    if wrapper_class(config) is not None:
        return "it is the text side of another model"
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantized"
    if not list_safetensors(folder)[0]:
        return "its weights are not in safetensors"
    try:
        empty = empty_causal_model(folder)
        _distributed_class(empty.model_class, places_of)
    except (CheckpointError, AttributeError) as error:
        return f"it cannot be made without memory ({error})"
    model = empty.model
    rename, _ = read_renaming(model)
    stored_keys = {rename(name)[0] for name in open_checkpoint(folder).names}
    for tied_name, source_name in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if tied_name in stored_keys and source_name in stored_keys:
            return f"its files hold both {source_name} and {tied_name}, which are tied"
    return ""


def _distributed_class(model_class: Any, distribute: Callable[[Any], object]) -> Any:
    """A class of models that calls a function where `from_pretrained` would distribute them: after
    they are made on the meta device, before anything is read."""

    def maybe_distribute_model(_class: Any, model: Any, *_settings: Any) -> Any:
        distribute(model)
        return model

    # Without the place of the library that is stood in for, every process would read all.
    if not hasattr(model_class, "maybe_distribute_model"):
        raise AttributeError("transformers distributes models in another way")
    overridden = {
        "maybe_distribute_model": classmethod(maybe_distribute_model),
        "__module__": model_class.__module__,
    }
    return type(model_class.__name__, (model_class,), overridden)


def places_of(model: Any) -> dict[str, tuple[nn.Module, str]]:
    """Module and attribute of every parameter and buffer, tied ones under each name."""
    return {
        f"{path}.{attribute}" if path else attribute: (module, attribute)
        for path, module in model.named_modules(remove_duplicate=False)
        for table in (module._parameters, module._buffers)
        for attribute, tensor in table.items()
        if tensor is not None
    }
