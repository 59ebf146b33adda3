"""What kinds of modules a model has, found by building it without weights."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from toolkit.checkpoint.loadable import build_on_meta
from toolkit.checkpoint.model_values import read_model_values
from toolkit.errors import CheckpointError

Kind = Literal["linear", "turned", "embedding", "other"]
"""`turned` is a linear module whose weight is `[inputs, outputs]`, as GPT-2's are."""

_WEIGHT_READ = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape|data|size))")
_NOT_COMPUTING = {"__init__", "_init_weights", "_tie_weights", "tie_weights", "reset_parameters"}


@dataclass(frozen=True)
class Modules:
    """The modules of a model, as peft will see them.

    Attributes:
        kinds: of every module by name.
        tied: names of tensors that are another one's, by the name of that one.
        is_causal: whether the model predicts the next token.
        stacks: names of parameters with a matrix per expert, `[E, ., .]`, which are no module's own
            weight.
        bypassed: linear modules whose weight another module's code reads, so that what peft adds to
            their outputs would be lost.
        model: of transformers, on the meta device.
    """

    kinds: Mapping[str, Kind]
    tied: Mapping[str, str]
    is_causal: bool
    stacks: frozenset[str]
    bypassed: frozenset[str]
    model: Any


def read_modules(folder: Path) -> Modules:
    """Build a model of a folder's config on torch's meta device: no memory, no weights.

    Raises:
        CheckpointError: transformers does not know the model; its own code is never run.
    """
    from transformers.pytorch_utils import Conv1D

    read_model_values(folder)
    model = build_on_meta(folder)
    if model is None:
        raise CheckpointError(
            f"{folder}: has no model configuration that transformers can build; an adapter is made "
            "for a model that it knows."
        )
    kind_by_module: dict[str, Kind] = {}
    stack_names: set[str] = set()
    for module_name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            # A router that is a linear module and computes more is none to peft when it runs.
            is_plain = type(module).forward is torch.nn.Linear.forward
            kind_by_module[module_name] = "linear" if is_plain else "other"
        elif isinstance(module, Conv1D):
            kind_by_module[module_name] = "turned"
        elif isinstance(module, torch.nn.Embedding):
            kind_by_module[module_name] = "embedding"
        else:
            kind_by_module[module_name] = "other"
            stack_names |= _stacks(module_name, module)
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    is_causal = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    return Modules(kind_by_module, tied, is_causal, frozenset(stack_names), _bypassed(model), model)


def _bypassed(model: torch.nn.Module) -> frozenset[str]:
    """Children whose weight stands in the code of their parent's class, as of Mamba's `dt_proj`."""
    read_by_class: dict[type, set[str]] = {}
    bypassed_names: set[str] = set()
    for module_name, module in model.named_modules():
        if type(module) not in read_by_class:
            read_by_class[type(module)] = _weights_read_by(type(module))
        for child_name in read_by_class[type(module)]:
            if isinstance(getattr(module, child_name, None), torch.nn.Linear):
                bypassed_names.add(f"{module_name}.{child_name}" if module_name else child_name)
    return frozenset(bypassed_names)


def _weights_read_by(kind: type) -> set[str]:
    child_names: set[str] = set()
    for owner in kind.__mro__:
        if not owner.__module__.startswith("transformers."):
            continue
        for function_name, function in vars(owner).items():
            # What makes or ties weights reads them too, and computes nothing with them.
            if inspect.isfunction(function) and function_name not in _NOT_COMPUTING:
                with contextlib.suppress(OSError, TypeError):
                    child_names |= set(_WEIGHT_READ.findall(inspect.getsource(function)))
    return child_names


def _stacks(name: str, module: torch.nn.Module) -> set[str]:
    """A module's own parameters that are several matrices; torch's modules (convolutions) have
    none."""
    if type(module).__module__.startswith("torch.nn"):
        return set()
    own_parameters = module.named_parameters(prefix=name, recurse=False)
    return {own for own, tensor in own_parameters if tensor.dim() == 3 and min(tensor.shape) > 1}
