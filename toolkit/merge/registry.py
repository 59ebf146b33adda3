"""The one list of merge methods. A method is a pure function; its signature is its YAML schema."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from toolkit.errors import ConfigError, sentence_end
from toolkit.library_errors import missing_library

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 1e30
"""Of a number: weights whose sum is beyond float32 would make a merge of zeros, without a word."""

OVERSIZE = f"must be at most {LARGEST:g} in size: sums of it would leave float32"

PerModel = Annotated[Sequence[float], "per model"]
"""A parameter with one value a tuned model, in file order (the base model has none)."""

PerModelPath = Annotated[Sequence[str], "per model"]
"""The same of paths: a file for each model."""

Settings = Mapping[str, object]
"""Parameters as they stand in YAML, by name: a scalar, a gradient (list over depth), or settings
with filters."""

ParameterValues = Mapping[str, Any]
"""Keyword arguments of a method for one tensor, of the types in its signature; what is per model is
a tuple."""

# What the engine fills in; every other argument of a method is a parameter in YAML.
_RESERVED = ("tensors", "base", "generator", "place", "thresholds", "moments")
# Annotations are read as they are written: evaluating them would load torch.
_TYPES: dict[str, type] = {
    "PerModel": float,
    "PerModelPath": str,
    "float": float,
    "bool": bool,
    "int": int,
    "str": str,
}
_METHODS: dict[str, Method] = {}
FunctionT = TypeVar("FunctionT", bound="Callable[..., Tensor]")


@dataclass(frozen=True)
class Place:
    """Where in the network a tensor stands, for methods whose arithmetic depends on it."""

    name: str
    layer: int | None
    num_layers: int


@dataclass(frozen=True)
class Parameter:
    """One YAML parameter of a method, read off the function's signature."""

    name: str
    per_model: bool
    type: type
    default: Any
    required: bool


@dataclass(frozen=True)
class Method:
    """A registered merge method.

    Attributes:
        name: its `merge_method` in YAML.
        function: `function(tensors, [base,] *, parameters...) -> Tensor`, float32 in and out.
        reference: the paper's address.
        parameters: by YAML name (`lambda`, not `lambda_`).
        needs_base: whether the function cannot do without `base`.
        accepts_base: whether it takes `base` at all; where it need not, a configured base model is
            passed and otherwise left out.
        is_random: whether it takes a `generator`, seeded by (seed, tensor name).
        needs_place: whether it takes a `place`.
        needs_thresholds: whether it takes `thresholds`: for each tuned model the magnitude that the
            `density` share of all its task vector's entries, over all tensors, reaches.
        needs_moments: whether it takes `moments`: statistics of each model on texts, from the files
            that its `statistics` names.
        elementwise: each output entry depends on the same entry of the inputs alone, so that a
            tensor may be merged in blocks.
    """

    name: str
    function: Callable[..., Tensor]
    reference: str
    parameters: dict[str, Parameter]
    needs_base: bool
    accepts_base: bool
    is_random: bool
    needs_place: bool
    needs_thresholds: bool
    elementwise: bool
    needs_moments: bool = False


def merge_method(
    name: str, *, reference: str, elementwise: bool = False
) -> Callable[[FunctionT], FunctionT]:
    """Register a function as a merge method; nothing else is needed to use it from YAML."""

    def register(function: FunctionT) -> FunctionT:
        if name in _METHODS:
            raise ValueError(f"merge method {name!r} is registered twice")
        signature = inspect.signature(function)
        parameters = {
            parameter_name.rstrip("_"): Parameter(
                name=parameter_name.rstrip("_"),
                # Text, because every module of methods imports annotations from __future__.
                per_model=item.annotation.startswith("PerModel"),
                type=_TYPES[item.annotation],
                default=None if item.default is inspect.Parameter.empty else item.default,
                required=item.default is inspect.Parameter.empty,
            )
            for parameter_name, item in signature.parameters.items()
            if parameter_name not in _RESERVED
        }
        base_parameter = signature.parameters.get("base")
        _METHODS[name] = Method(
            name=name,
            function=function,
            reference=reference,
            parameters=parameters,
            needs_base=base_parameter is not None
            and base_parameter.default is inspect.Parameter.empty,
            accepts_base=base_parameter is not None,
            is_random="generator" in signature.parameters,
            needs_place="place" in signature.parameters,
            needs_thresholds="thresholds" in signature.parameters,
            elementwise=elementwise,
            needs_moments="moments" in signature.parameters,
        )
        return function

    return register


def get_method(name: str) -> Method:
    """The method of this name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    methods = all_methods()
    if name not in methods:
        missing = missing_library("mergekit")
        raise ConfigError(
            f"merge_method: unknown method {name!r}{sentence_end(name, methods)} "
            f"Known: {', '.join(sorted(methods))}."
            + (f" A method of mergekit's plugins {missing}." if missing else "")
        )
    return methods[name]


def all_methods() -> dict[str, Method]:
    """Every registered method by name; importing `methods` registers those of this package."""
    import toolkit.merge.methods  # noqa: F401  (imported for its registrations)

    return dict(_METHODS)
