"""One tensor of a merge: what it is made of, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.checkpoint.models import Source
from toolkit.merge.registry import ParameterValues, Place


@dataclass(frozen=True)
class TensorTask:
    """One tensor to be made.

    Attributes:
        name: of the merged tensor.
        shape: of it and of all its sources.
        sources: tuned tensors, in file order.
        base: of the base model, for methods that take one.
        parameters: keyword arguments of the method, per-model ones as tuples in source order.
        place: where in the merged network it stands.
        thresholds: magnitudes found over whole models, for methods that trim by them.
        is_copied: never trained, so taken as it is from the base or the first model.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    base: Source | None
    parameters: ParameterValues
    place: Place
    thresholds: tuple[float, ...] | None = None
    is_copied: bool = False

    def owner(self, parameter: str, value: object) -> str | None:
        """The model whose parameter has this value; None where it is no model's."""
        own_values = self.parameters.get(parameter)
        if not isinstance(own_values, tuple) or value not in own_values:
            return None
        return self.sources[own_values.index(value)].model

    @property
    def inputs(self) -> tuple[Source, ...]:
        """All that is read: the tuned tensors, then the base where there is one."""
        return self.sources if self.base is None else (*self.sources, self.base)

    @property
    def leader(self) -> Source:
        """The base where there is one, else the first model: its type and config count."""
        return self.base or self.sources[0]

    @property
    def size(self) -> int:
        """Entries of the merged tensor."""
        return math.prod(self.shape)


def name_in_step(step: str, name: str) -> str:
    """A tensor's name for its random streams: of an intermediate merge beside those of others."""
    # NUL stands in no name, so that no step and tensor read as another pair.
    return f"{step}\0{name}" if step else name
