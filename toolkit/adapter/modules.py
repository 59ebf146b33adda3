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

from toolkit.checkpoint.model_values import read_model_values
from toolkit.errors import CheckpointError
from toolkit.library_errors import reading

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
    import transformers
    from transformers.pytorch_utils import Conv1D

    read_model_values(folder)
    what = "has no model configuration that transformers can build"
    advice = "an adapter is made for a model that it knows"
    with reading(folder, CheckpointError, what, advice):
        config = transformers.AutoConfig.from_pretrained(folder)
        named = (getattr(config, "architectures", None) or [""])[0]
        kind = getattr(transformers, named, None) or transformers.AutoModelForCausalLM
        with torch.device("meta"):
            model: Any = kind._from_config(config) if named else kind.from_config(config)
    kinds: dict[str, Kind] = {}
    stacks: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            # A router that is a linear module and computes more is none to peft when it runs.
            is_plain = type(module).forward is torch.nn.Linear.forward
            kinds[name] = "linear" if is_plain else "other"
        elif isinstance(module, Conv1D):
            kinds[name] = "turned"
        elif isinstance(module, torch.nn.Embedding):
            kinds[name] = "embedding"
        else:
            kinds[name] = "other"
            stacks |= _stacks(name, module)
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    is_causal = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    return Modules(kinds, tied, is_causal, frozenset(stacks), _bypassed(model), model)


def _bypassed(model: torch.nn.Module) -> frozenset[str]:
    """Children whose weight stands in the code of their parent's class, as of Mamba's `dt_proj`."""
    read: dict[type, set[str]] = {}
    found: set[str] = set()
    for name, module in model.named_modules():
        if type(module) not in read:
            read[type(module)] = _weights_read_by(type(module))
        for child in read[type(module)]:
            if isinstance(getattr(module, child, None), torch.nn.Linear):
                found.add(f"{name}.{child}" if name else child)
    return frozenset(found)


def _weights_read_by(kind: type) -> set[str]:
    children: set[str] = set()
    for owner in kind.__mro__:
        if not owner.__module__.startswith("transformers."):
            continue
        for name, function in vars(owner).items():
            if inspect.isfunction(function) and name not in _NOT_COMPUTING:
                with contextlib.suppress(OSError, TypeError):
                    children |= set(_WEIGHT_READ.findall(inspect.getsource(function)))
    return children


def _stacks(name: str, module: torch.nn.Module) -> set[str]:
    """A module's own parameters that are several matrices; torch's modules (convolutions) have
    none."""
    if type(module).__module__.startswith("torch.nn"):
        return set()
    parameters = module.named_parameters(prefix=name, recurse=False)
    return {own for own, tensor in parameters if tensor.dim() == 3 and min(tensor.shape) > 1}
