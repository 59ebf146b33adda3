"""Changes of parameters with a matrix per expert (`target_parameters`), merged with each other.

Which factors belong to which parameter, and how many experts they are of, only the model tells: the
one that the adapters name as theirs is asked, as its config.json describes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from toolkit.adapter.lowrank import Factors, LowRankFit
from toolkit.adapter.stacked import join_experts, part_experts
from toolkit.checkpoint.loadable import build_on_meta
from toolkit.checkpoint.loadable_adapter import place_adapter
from toolkit.checkpoint.lora import SETTINGS_FILE, AdapterFolder
from toolkit.checkpoint.parameter_changes import WrappedParameter, wrapped_parameters
from toolkit.checkpoint.references import find_folder, parse_reference
from toolkit.errors import MergeError, ToolkitError


@dataclass(frozen=True)
class MergedParameters:
    """What adapters change by the names of parameters.

    Attributes:
        order: parameters of each module in the order in which peft wraps them.
        owned: for each adapter its parameters, by name.
        names: of all of them.
    """

    order: Mapping[str, tuple[str, ...]]
    owned: Sequence[Mapping[str, WrappedParameter]]
    names: tuple[str, ...]


def read_parameters(adapters: Sequence[AdapterFolder]) -> MergedParameters:
    """Find the parameters that adapters change by their own names.

    Raises:
        MergeError: the model that they belong to is not at hand, or they are not of one model.
    """
    if not any(adapter.wrapped for adapter in adapters):
        return MergedParameters({}, [{} for _ in adapters], ())
    base = _base_of(adapters)
    owned_parameters = [wrapped_parameters(one, base) if one.wrapped else {} for one in adapters]
    found_names = dict.fromkeys(name for wrapped in owned_parameters for name in wrapped)
    # The merged adapter changes what any of them changes, which peft may wrap in another order.
    placement = place_adapter(base, (), list(found_names))
    if placement.refused:
        name, why = next(iter(placement.refused.items()))
        raise MergeError(f"{base}: peft cannot adapt {name} ({why}); leave it out of the adapters.")
    # Parameters of one module stand in the file as peft wraps them, one after the other.
    names = [
        name for wrapped in placement.parameters.values() for name in wrapped if name in found_names
    ]
    return MergedParameters(placement.parameters, owned_parameters, tuple(names))


@dataclass(frozen=True)
class StackedChange:
    """What an adapter adds to a parameter.

    Attributes:
        folder: of the adapter.
        factors: B and A for each expert, float32.
        scale: what `B A` is multiplied with.
    """

    folder: Path
    factors: Sequence[Factors]
    scale: float

    @classmethod
    def of(cls, adapter: AdapterFolder, own: WrappedParameter) -> StackedChange:
        """Read one out of an adapter."""
        own_parts = adapter.wrapped[own.path]
        a, b = (adapter.tensors.tensor(own_parts[f"lora_{part}"]).float() for part in "AB")
        expert_factors = part_experts(Factors(b, a), own.num_experts)
        return cls(adapter.folder, expert_factors, own.scale)

    @property
    def shape(self) -> tuple[int, int, int]:
        """`[E, M, N]`."""
        first_factors = self.factors[0]
        return len(self.factors), first_factors.b.shape[0], first_factors.a.shape[1]

    def whole(self) -> Tensor:
        """The change itself, `[E, M, N]`."""
        return torch.stack([self.scale * (own.b @ own.a) for own in self.factors])


def stack_shape(name: str, stacks: Iterable[StackedChange]) -> tuple[int, int, int]:
    """Of the change to one parameter, `[E, M, N]`; all adapters must agree on it.

    Raises:
        MergeError: they do not.
    """
    first_stack, *other_stacks = stacks
    for other_stack in other_stacks:
        if other_stack.shape != first_stack.shape:
            raise MergeError(
                f"{name}: {first_stack.folder} changes {list(first_stack.shape)} and "
                f"{other_stack.folder} {list(other_stack.shape)}; adapters must be of one model."
            )
    return first_stack.shape


def join_fits(fits: Sequence[LowRankFit]) -> LowRankFit:
    """Fits of all experts as one, in peft's layout; ranks are filled up with zeros to the largest.

    Returns:
        Factors of rank 0 where no expert is changed.
    """
    # peft has one rank for all experts of a parameter; columns of zeros change nothing.
    largest_rank = max(fit.factors.rank for fit in fits)
    filled_factors = [_filled(fit.factors, largest_rank) for fit in fits]
    norm, error = (
        math.sqrt(math.fsum(figure**2 for figure in values))
        for values in zip(*((fit.norm, fit.error) for fit in fits), strict=True)
    )
    return LowRankFit(join_experts(filled_factors), norm, error)


def _filled(factors: Factors, rank: int) -> Factors:
    missing_rank = rank - factors.rank
    filled_b = torch.nn.functional.pad(factors.b, (0, missing_rank))
    return Factors(filled_b, torch.nn.functional.pad(factors.a, (0, 0, 0, missing_rank)))


def _base_of(adapters: Sequence[AdapterFolder]) -> Path:
    wrapped_adapter = next(adapter for adapter in adapters if adapter.wrapped)
    base_name = wrapped_adapter.settings.get("base_model_name_or_path")
    problem = "names no model"
    if base_name:
        try:
            folder = find_folder(parse_reference(str(base_name)).model)
        except ToolkitError as error:
            problem = str(error)
        else:
            if build_on_meta(folder) is not None:
                return folder
            problem = f"transformers does not know {folder}"
    raise MergeError(
        f"{wrapped_adapter.folder / SETTINGS_FILE}: changes parameters of several experts at once "
        "(target_parameters), for which base_model_name_or_path must be the folder of the model "
        f"({problem}); set it to that, or merge the adapter into its model (toolkit merge run, "
        "path+adapter)."
    )
