"""Which method runs on which kernel, and what a kernel must know before it can run.

`find_kernel` answers None where the torch definition has to do: for methods without a kernel, for
a few options of those that have one, and wherever numba cannot be imported or cannot compile it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import MergeError
from toolkit.merge.kernels import compiled
from toolkit.merge.kernels.job import Job
from toolkit.merge.kernels.rows import Rows
from toolkit.merge.kernels.thinning import (
    LONGEST_ROW,
    apply_masked,
    apply_trimmed,
    floats,
    prepare_random,
    prepare_ranked,
    prepare_trimmed,
)
from toolkit.merge.methods.checks import ZERO_WEIGHT, weight_total
from toolkit.merge.methods.slerp import (
    COLLINEAR_COSINE,
    INDISTINGUISHABLE_COSINE,
    slerp_factors,
)
from toolkit.merge.registry import ParameterValues


@dataclass(frozen=True)
class Kernel:
    """A method in two parts.

    Attributes:
        prepare: whatever has to be known of the whole tensor first.
        apply: `(rows, settings, start, out) -> bits`: merges the block that begins at entry `start`
            into `out`; returns the bits of the largest magnitude among the inputs.
        by_row: blocks must hold whole rows.
    """

    prepare: Callable[[Job], Any]
    apply: Callable[[Rows, Any, int, NDArray[Any]], int]
    by_row: bool = False

    def unit(self, job: Job) -> int:
        """Blocks must begin and end at multiples of this."""
        return job.row_length if self.by_row else 1


def find_kernel(method: str, parameters: ParameterValues, shape: tuple[int, ...]) -> Kernel | None:
    """The kernel for a tensor by a method with these parameters, or None."""
    kernel = _KERNELS.get(method)
    if method == "nuslerp" and not parameters["nuslerp_flatten"]:
        return None
    if (
        kernel is not None
        and kernel.by_row
        and (len(shape) > 2 or max((*shape[-1:], 0)) > LONGEST_ROW)
    ):
        return None
    if kernel is None or method in _FORGONE or not compiled.can_import_kernels():
        return None
    return kernel


def forgo_kernel(method: str, error: compiled.KernelError) -> None:
    """Leave a method to its definition for the rest of the process, and say why."""
    _FORGONE.add(method)
    compiled.announce_fallback(str(error).splitlines()[0])


def _prepare_linear(job: Job) -> tuple[Any, ...]:
    return (floats(job.parameters["weight"]), _divisor(job.parameters))


def _apply_linear(rows: Rows, settings: tuple[Any, ...], start: int, out: NDArray[Any]) -> int:
    del start
    return compiled.combine_models(rows, *settings, out)


def _prepare_task(job: Job) -> tuple[Any, ...]:
    return (*_prepare_linear(job), np.float32(job.parameters["lambda_"]))


def _apply_task(rows: Rows, settings: tuple[Any, ...], start: int, out: NDArray[Any]) -> int:
    del start
    return compiled.add_task_vectors(rows, *settings, out)


def _prepare_arc(job: Job) -> tuple[Any, ...]:
    # An empty block tells how many models there are.
    if (others := len(job.read(0, 0)) - 1) != 1:
        raise MergeError(
            f"slerp joins base_model and one other model (got {others} others); "
            "use multislerp for more."
        )
    return _pair(slerp_factors(_cosine(job), job.parameters["t"], COLLINEAR_COSINE))


def _apply_arc(rows: Rows, settings: tuple[Any, ...], start: int, out: NDArray[Any]) -> int:
    del start
    return compiled.arc(rows, *settings, out)


def _prepare_two(job: Job) -> tuple[Any, ...]:
    weight = job.parameters["weight"]
    if len(weight) != 2:
        raise MergeError(
            f"nuslerp joins two models besides base_model (got {len(weight)}); "
            "use multislerp for more."
        )
    t = weight[1] / sum(weight) if abs(sum(weight)) > ZERO_WEIGHT else 0.5
    return _pair(slerp_factors(_cosine(job), t, INDISTINGUISHABLE_COSINE))


def _apply_two(rows: Rows, settings: tuple[Any, ...], start: int, out: NDArray[Any]) -> int:
    del start
    factors = np.array(settings, np.float32)
    if len(rows) == 3:
        return compiled.combine_task_vectors(rows, factors, out)
    return compiled.combine_models(rows, factors, None, out)


def _cosine(job: Job) -> float:
    """Of the angle between two tensors, or between two task vectors where three rows are given."""

    def act(start: int, stop: int) -> NDArray[np.float64]:
        found = np.zeros(3)
        compiled.inner_products(job.read(start, stop), found)
        return found

    if "cosine" not in job.memory:
        # In the order of blocks, so that the sum is the same on any number of threads.
        xx, yy, xy = np.sum(job.workers.each(job.size, act), axis=0)
        norms = float(np.sqrt(xx)) * float(np.sqrt(yy))
        # Rounding may carry a cosine beyond 1, of which there is no angle.
        job.memory["cosine"] = max(-1.0, min(1.0, float(xy) / norms)) if norms > 0.0 else 1.0
    return float(job.memory["cosine"])


def _pair(factors: tuple[float, float]) -> tuple[np.float32, np.float32]:
    return np.float32(factors[0]), np.float32(factors[1])


def _divisor(parameters: ParameterValues) -> np.float32 | None:
    """What the weighted sum is divided by, if it is."""
    if not parameters["normalize"]:
        return None
    return np.float32(_weight_total(tuple(parameters["weight"])))


_weight_total = functools.lru_cache(maxsize=1024)(weight_total)


def _union(parameters: ParameterValues, votes: bool) -> tuple[Any, ...]:
    """What `unite` asks: votes, divisor, scale."""
    scale = np.float32(parameters["lambda_"])
    if votes:  # the models that agree divide, whose weights may sum to zero over all of them
        return True, np.float32(1.0) if parameters["normalize"] else None, scale
    return None, _divisor(parameters), scale


def _thinned(
    prepare: Callable[[Job], Any],
    apply: Callable[[Rows, Any, tuple[Any, ...], int, NDArray[Any]], int],
    *,
    votes: bool,
    by_row: bool = False,
) -> Kernel:
    """A kernel of a method on thinned task vectors, with or without a vote on signs."""

    def prepare_all(job: Job) -> tuple[Any, ...]:
        return prepare(job), _union(job.parameters, votes)

    def apply_all(rows: Rows, settings: tuple[Any, ...], start: int, out: NDArray[Any]) -> int:
        found, union = settings
        return apply(rows, found, union, start, out)

    return Kernel(prepare_all, apply_all, by_row)


_FORGONE: set[str] = set()
"""Methods with a kernel that numba failed to compile."""

_KERNELS: dict[str, Kernel] = {
    "linear": Kernel(_prepare_linear, _apply_linear),
    "task_arithmetic": Kernel(_prepare_task, _apply_task),
    "slerp": Kernel(_prepare_arc, _apply_arc),
    "nuslerp": Kernel(_prepare_two, _apply_two),
    "ties": _thinned(prepare_trimmed, apply_trimmed, votes=True),
    "breadcrumbs": _thinned(prepare_trimmed, apply_trimmed, votes=False),
    "breadcrumbs_ties": _thinned(prepare_trimmed, apply_trimmed, votes=True),
    "dare_linear": _thinned(prepare_random, apply_masked, votes=False),
    "dare_ties": _thinned(prepare_random, apply_masked, votes=True),
    "della": _thinned(prepare_ranked, apply_masked, votes=True, by_row=True),
    "della_linear": _thinned(prepare_ranked, apply_masked, votes=False, by_row=True),
}
