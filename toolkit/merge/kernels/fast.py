"""Which method runs on which kernel, and what a kernel must know before it can run.

`find_kernel` answers None where the torch definition has to do: for methods without a kernel and
for options that would need a third pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import MergeError
from toolkit.merge.kernels import sums, trimmed
from toolkit.merge.kernels.workers import Workers
from toolkit.merge.methods.checks import check_between, check_density, weight_total
from toolkit.merge.methods.slerp import slerp_factors

Rows = tuple[NDArray[Any], ...]
ReadRows = Callable[[int, int], Rows]
"""`read(start, stop)`: the entries of every tuned model, then of the base where there is one."""

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Kernel:
    """A method in two parts.

    Attributes:
        prepare: `(read, size, parameters, workers, memory) -> settings`: whatever has to be known
            of the whole tensor first. `memory` keeps what does not depend on the parameters.
        apply: `(rows, settings, out) -> bits`: merges a block into `out`; returns the bits of the
            largest magnitude among the inputs.
    """

    prepare: Callable[[ReadRows, int, Parameters, Workers, dict[Any, Any]], tuple[Any, ...]]
    apply: Callable[[Rows, tuple[Any, ...], NDArray[Any]], int]


def find_kernel(method: str, parameters: Parameters) -> Kernel | None:
    """The kernel for a method with these parameters, or None."""
    if parameters.get("rescale"):
        return None
    return _KERNELS.get(method)


def _prepare_linear(
    read: ReadRows, size: int, parameters: Parameters, workers: Workers, memory: dict[Any, Any]
) -> tuple[Any, ...]:
    del read, size, workers, memory
    return (_floats(parameters["weight"]), *_divisor(parameters))


def _prepare_task(
    read: ReadRows, size: int, parameters: Parameters, workers: Workers, memory: dict[Any, Any]
) -> tuple[Any, ...]:
    plain = _prepare_linear(read, size, parameters, workers, memory)
    return (*plain, np.float32(parameters["lambda_"]))


def _prepare_arc(
    read: ReadRows, size: int, parameters: Parameters, workers: Workers, memory: dict[Any, Any]
) -> tuple[Any, ...]:
    if "cosine" not in memory:

        def act(start: int, stop: int) -> NDArray[np.float64]:
            found = np.zeros(3)
            rows = read(start, stop)
            if len(rows) != 2:
                raise MergeError(
                    f"slerp joins base_model and one other model (got {len(rows) - 1} others); "
                    "use multislerp for more."
                )
            sums.inner_products(rows, found)
            return found

        xx, yy, xy = np.sum(workers.each(size, act), axis=0)
        norms = float(np.sqrt(xx)) * float(np.sqrt(yy))
        memory["cosine"] = max(-1.0, min(1.0, float(xy) / norms)) if norms > 0.0 else 1.0
    start_factor, end_factor = slerp_factors(memory["cosine"], parameters["t"])
    return np.float32(start_factor), np.float32(end_factor)


def _prepare_trimmed(
    read: ReadRows, size: int, parameters: Parameters, workers: Workers, memory: dict[Any, Any]
) -> tuple[Any, ...]:
    densities = parameters["density"]
    check_density(densities)
    gammas = parameters.get("gamma")
    if gammas is not None:
        check_between("gamma", gammas, 0.0, 1.0, "it is the fraction of largest entries dropped.")
    low, high = np.zeros(len(densities)), np.full(len(densities), np.inf)
    for m, density in enumerate(densities):
        if density >= 1.0:
            continue
        ranks = _kept_ranks(size, density, None if gammas is None else gammas[m])
        if ranks is None:
            low[m] = np.inf
            continue
        ends = [_kth_smallest(read, size, m, k, workers, memory) for k in ranks]
        low[m] = ends[0]
        high[m] = ends[1] if len(ends) > 1 else np.inf
    return _floats(parameters["weight"]), _floats(low), _floats(high)


def _kept_ranks(size: int, density: float, gamma: float | None) -> tuple[int, ...] | None:
    """Ranks, from 1, of the smallest (and under gamma the largest) magnitude that is kept."""
    if gamma is None:
        return None if density <= 0.0 else (size - max(1, int(density * size)) + 1,)
    kept = int(density * size)
    below = max(0, size - kept - int(gamma * size))
    return None if kept == 0 else (below + 1, below + kept)


def _prepare_add(
    read: ReadRows, size: int, parameters: Parameters, workers: Workers, memory: dict[Any, Any]
) -> tuple[Any, ...]:
    settings = _prepare_trimmed(read, size, parameters, workers, memory)
    return (*settings, *_divisor(parameters), np.float32(parameters["lambda_"]))


def _prepare_vote(
    read: ReadRows, size: int, parameters: Parameters, workers: Workers, memory: dict[Any, Any]
) -> tuple[Any, ...]:
    settings = _prepare_trimmed(read, size, parameters, workers, memory)
    return (*settings, bool(parameters["normalize"]), np.float32(parameters["lambda_"]))


def _apply_vote(rows: Rows, settings: tuple[Any, ...], out: NDArray[Any]) -> int:
    factors, low, high, divides, scale = settings
    if len(rows) == 2 and not divides:  # one model outvotes nobody: the same bits for less
        one = np.float32(1.0)
        return int(trimmed.add_trimmed(rows, factors, low, high, one, False, scale, out))
    return int(trimmed.vote_trimmed(rows, *settings, out))


def _kth_smallest(
    read: ReadRows, size: int, model: int, k: int, workers: Workers, memory: dict[Any, Any]
) -> float:
    """The k-th smallest magnitude of a task vector, counted from 1; exact."""
    if ("rank", model, k) in memory:
        return float(memory["rank", model, k])

    def coarse(start: int, stop: int) -> NDArray[np.int64]:
        counts = np.zeros(trimmed.BINS, np.int64)
        trimmed.coarse_histogram(read(start, stop), model, counts)
        return counts

    if ("coarse", model) not in memory:
        memory["coarse", model] = np.cumsum(_total(workers.each(size, coarse)))
    cumulative = memory["coarse", model]
    index = int(np.searchsorted(cumulative, k))
    rest = k - (int(cumulative[index - 1]) if index else 0)

    held = int(cumulative[index]) - (int(cumulative[index - 1]) if index else 0)

    def collect(start: int, stop: int) -> NDArray[np.uint16]:
        return entries_of_bin(read(start, stop), model, index, min(held, stop - start))

    memory["rank", model, k] = select(np.concatenate(workers.each(size, collect)), index, rest)
    return float(memory["rank", model, k])


def entries_of_bin(rows: Rows, model: int, index: int, at_most: int) -> NDArray[np.uint16]:
    """Lower pattern halves of the magnitudes in one coarse bin."""
    found = np.empty(at_most, np.uint16)
    return found[: trimmed.collect_bin(rows, model, index, found)]


def select(entries: NDArray[np.uint16], index: int, k: int) -> float:
    """The k-th smallest magnitude, from 1, of those in coarse bin `index`."""
    lower = int(trimmed.select_entry(entries, k))
    return float(np.array([(index << 16) | lower], np.uint32).view(np.float32)[0])


def _total(counts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    total = counts[0]
    for other in counts[1:]:
        total += other
    return total


def _floats(values: Any) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)


def _divisor(parameters: Parameters) -> tuple[np.float32, bool]:
    divides = bool(parameters["normalize"])
    return np.float32(_weight_total(tuple(parameters["weight"])) if divides else 1.0), divides


_weight_total = functools.lru_cache(maxsize=1024)(weight_total)


_KERNELS: dict[str, Kernel] = {
    "linear": Kernel(_prepare_linear, lambda rows, s, out: sums.combine_models(rows, *s, out)),
    "task_arithmetic": Kernel(
        _prepare_task, lambda rows, s, out: sums.add_task_vectors(rows, *s, out)
    ),
    "slerp": Kernel(_prepare_arc, lambda rows, s, out: sums.arc(rows, *s, out)),
    "ties": Kernel(_prepare_vote, _apply_vote),
    "breadcrumbs": Kernel(_prepare_add, lambda rows, s, out: trimmed.add_trimmed(rows, *s, out)),
    "breadcrumbs_ties": Kernel(_prepare_vote, _apply_vote),
}
