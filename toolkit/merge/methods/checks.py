"""What every method asks of its parameters; the messages name the parameter and its value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from toolkit.errors import MergeError
from toolkit.merge.task import TensorTask

if TYPE_CHECKING:
    from torch import Tensor

ZERO_WEIGHT = 1e-8
"""Sums of weights smaller than this cannot be divided by."""


class ParameterError(MergeError):
    """A value of a parameter that its method refuses.

    Args:
        message: begins with the parameter's name.
        value: which was refused.
    """

    def __init__(self, message: str, value: object) -> None:
        super().__init__(message)
        self.value = value


def check_between(
    name: str, values: float | Sequence[float], low: float, high: float, meaning: str
) -> None:
    """Refuse values outside [low, high], and NaN.

    Args:
        name: the YAML parameter.
        values: its value, or one a model.
        low: smallest value allowed.
        high: largest value allowed; infinity for none.
        meaning: what the parameter is; the end of the message.

    Raises:
        ParameterError: names the parameter, the value and what it stands for.

    >>> check_between("density", [0.5, 1.5], 0.0, 1.0, "a share.")
    Traceback (most recent call last):
    ...
    toolkit.merge.methods.checks.ParameterError: density: must be from 0 to 1 (got 1.5); a share.
    """
    for value in [values] if isinstance(values, (int, float)) else values:
        # NaN is on neither side of a bound, so that `value < low or value > high` would let it
        # pass.
        if not low <= value <= high:
            bounds = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
            message = f"{name}: must be {bounds} (got {value:g}); {meaning}"
            raise ParameterError(message, value)


def check_density(density: Sequence[float]) -> None:
    """Refuse a `density` that is no fraction."""
    check_between(
        "density", density, 0.0, 1.0, "it is the fraction of each task vector's entries to keep."
    )


def check_models(
    method: str, tensors: Sequence[Tensor], minimum: int, maximum: int | None, advice: str
) -> None:
    """Refuse too few or too many models, the base model not counted."""
    model_count = len(tensors)
    if model_count < minimum or (maximum is not None and model_count > maximum):
        wanted = f"exactly {minimum}" if minimum == maximum else f"at least {minimum}"
        raise MergeError(
            f"models: {method} takes {wanted} besides base_model (got {model_count}); {advice}"
        )


def weight_total(weight: Sequence[float], switch: str = "normalize") -> float:
    """Sum of the weights, to divide by; rounded to float32 like the weights it stands under.

    Raises:
        ParameterError: it is zero.
    """
    weight_sum = float(np.sum(np.asarray(weight, dtype=np.float32)))
    # Both sums: float32 may leave a rest where weights cancel out, and may lose what is left.
    if not abs(sum(weight)) >= ZERO_WEIGHT or weight_sum == 0.0:
        raise ParameterError(
            f"weight: {list(weight)} sum to zero, and {switch} divides by the sum; "
            f"change the weights or set {switch}: false.",
            weight,
        )
    return weight_sum


def at_fault(error: ParameterError, task: TensorTask) -> str:
    """The message of a refused value, and of which model and tensor it is; over depth and by
    filters there are many."""
    owner = task.owner(str(error).partition(":")[0], error.value)
    return f"{error} It is so {f'for {owner} ' if owner else ''}in {task.name}."
