"""The methods on thinned task vectors, prepared for their kernels: what is kept of each model, and
what rescaling multiplies it by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.merge.kernels import compiled
from toolkit.merge.kernels.job import Job
from toolkit.merge.kernels.ranks import kth_smallest
from toolkit.merge.kernels.rows import Rows
from toolkit.merge.kernels.sizes import LANES, ROW_BYTES, ROW_SLACK
from toolkit.merge.methods.checks import check_between, check_density
from toolkit.merge.methods.della import check_epsilon
from toolkit.merge.methods.sparsify import VANISHING_L1

MASK_BYTES = 1 << 27
"""Masks of a tensor are kept from the first pass to the second up to this size; larger ones are
made twice."""

LONGEST_ROW = 1 << 20
"""Rows beyond this are left to the definition: a few entries' ranks are counted over the row."""

Sizes = Callable[[Rows, int, int, NDArray[np.float64]], None]
Thin = Callable[[Rows, int, int, NDArray[np.float64], NDArray[np.uint8]], None]


@dataclass(frozen=True)
class Trimmed:
    """What `join_trimmed` needs to know of the whole tensor."""

    factors: NDArray[np.float32]
    ratios: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]


@dataclass(frozen=True)
class Masked:
    """What `join_masked` needs to know of the whole tensor; `masks` by first entry of the block."""

    factors: NDArray[np.float32]
    ratios: NDArray[np.float32]
    masks: Callable[[Rows, int], NDArray[np.uint8]]


def prepare_trimmed(job: Job) -> Trimmed:
    """ties and breadcrumbs: the magnitudes between which entries are kept."""
    densities, gammas = job.parameters["density"], job.parameters.get("gamma")
    check_density(densities)
    if gammas is not None:
        check_between("gamma", gammas, 0.0, 1.0, "it is the fraction of largest entries to drop.")
    low, high = np.zeros(len(densities)), np.full(len(densities), np.inf)
    ranks: dict[int, tuple[int, ...]] = {}
    for m, density in enumerate(densities):
        kept = _kept_ranks(job.size, density, None if gammas is None else gammas[m])
        if density < 1.0 and kept is None:
            # No finite magnitude is as large: all entries go.
            low[m] = np.inf
        elif density < 1.0 and kept is not None:
            ranks[m] = kept
    wanted = [(m, k) for m, kept in ranks.items() for k in kept]
    found = dict(zip(wanted, kth_smallest(job, wanted), strict=True))
    for m, kept in ranks.items():
        low[m] = found[m, kept[0]]
        high[m] = found[m, kept[1]] if len(kept) > 1 else np.inf
    least, most = floats(low), floats(high)

    def sizes(rows: Rows, m: int, start: int, lanes: NDArray[np.float64]) -> None:
        del start
        compiled.sizes_trimmed(rows, m, least[m], most[m], lanes)

    ratios = np.ones(len(densities), np.float32)
    if job.parameters.get("rescale"):
        ratios = _ratios(job, sizes, 1)
    return Trimmed(floats(job.parameters["weight"]), ratios, least, most)


def apply_trimmed(
    rows: Rows, found: Trimmed, union: tuple[Any, ...], start: int, out: NDArray[Any]
) -> int:
    del start
    votes, divisor, scale = union
    if len(rows) == 2 and divisor is None:  # one model outvotes nobody: the same bits for less
        votes = None
    return compiled.join_trimmed(
        rows, found.factors, found.ratios, found.low, found.high, votes, divisor, scale, out
    )


def _kept_ranks(size: int, density: float, gamma: float | None) -> tuple[int, ...] | None:
    """Ranks, from 1, of the smallest (and under gamma the largest) magnitude that is kept."""
    if gamma is None:
        # Trimming keeps one entry at least, breadcrumbs may keep none: as their definitions do.
        return None if density <= 0.0 else (size - max(1, int(density * size)) + 1,)
    kept = int(density * size)
    below = max(0, size - kept - int(gamma * size))
    return None if kept == 0 else (below + 1, below + kept)


def prepare_random(job: Job) -> Masked:
    """dare: entries whose number is below the density."""
    check_density(job.parameters["density"])
    densities = floats(job.parameters["density"])
    keys = job.keys(len(densities))

    def thin(
        rows: Rows, m: int, start: int, lanes: NDArray[np.float64], mask: NDArray[np.uint8]
    ) -> None:
        compiled.thin_at_random(rows, m, start, keys[m], densities[m], lanes, mask)

    return _masked(job, thin, 1)


def prepare_ranked(job: Job) -> Masked:
    """della: entries whose number is below a chance that grows with their rank in the row."""
    density, epsilon = job.parameters["density"], job.parameters["epsilon"]
    check_density(density)
    check_epsilon(density, epsilon)
    lows = floats([d - e for d, e in zip(density, epsilon, strict=True)])
    spreads, densities = floats([2.0 * e for e in epsilon]), floats(density)
    keys, length = job.keys(len(densities)), job.row_length

    def thin(
        rows: Rows, m: int, start: int, lanes: NDArray[np.float64], mask: NDArray[np.uint8]
    ) -> None:
        compiled.thin_by_rank(
            rows, m, start, length, keys[m], densities[m], lows[m], spreads[m],
            # Scratch of this call alone, as threads work side by side.
            np.empty(ROW_BYTES * (length + ROW_SLACK), np.uint8), lanes, mask,
        )  # fmt: skip

    return _masked(job, thin, length)


def _masked(job: Job, thin: Thin, unit: int) -> Masked:
    weight = job.parameters["weight"]
    held: dict[int, NDArray[np.uint8]] | None = {}
    if job.size * len(weight) // 8 > MASK_BYTES:
        held = None

    def make(rows: Rows, start: int) -> NDArray[np.uint8]:
        masks = np.empty((len(weight), mask_bytes(rows[0].size)), np.uint8)
        for m in range(len(weight)):
            thin(rows, m, start, np.zeros((2, LANES)), masks[m])
        return masks

    def masks(rows: Rows, start: int) -> NDArray[np.uint8]:
        return make(rows, start) if held is None else held[start]

    if not job.parameters["rescale"]:
        held = None  # nothing has to be known of the whole tensor
        return Masked(floats(weight), np.ones(len(weight), np.float32), masks)

    def sizes(rows: Rows, m: int, start: int, lanes: NDArray[np.float64]) -> None:
        mask = np.empty(mask_bytes(rows[0].size), np.uint8)
        if held is not None:
            # By the block's start: both passes cut the tensor by the same `unit`, or masks were not
            # found.
            mask = held.setdefault(start, np.empty((len(weight), mask.size), np.uint8))[m]
        thin(rows, m, start, lanes, mask)

    return Masked(floats(weight), _ratios(job, sizes, unit), masks)


def apply_masked(
    rows: Rows, found: Masked, union: tuple[Any, ...], start: int, out: NDArray[Any]
) -> int:
    masks = found.masks(rows, start)
    return compiled.join_masked(rows, masks, found.factors, found.ratios, *union, out)


def _ratios(job: Job, sizes: Sizes, unit: int) -> NDArray[np.float32]:
    """Of each model, what restores its sum of magnitudes."""
    num_models = len(job.parameters["weight"])

    def add(start: int, stop: int) -> NDArray[np.float64]:
        rows, sums = job.read(start, stop), np.empty((num_models, 2))
        for m in range(num_models):
            lanes = np.zeros((2, LANES))
            sizes(rows, m, start, lanes)
            sums[m] = lanes.sum(axis=1)
        return sums

    # In float64 and in the order of blocks, whichever thread took which.
    totals = np.sum(job.workers.each(job.size, add, unit), axis=0)
    return floats([restoring_ratio(before, after) for before, after in totals])


def restoring_ratio(before: float, after: float) -> float:
    """What multiplies magnitudes that sum to `after` so that they sum to `before`."""
    return before / after if before >= VANISHING_L1 and after >= VANISHING_L1 else 1.0


def mask_bytes(size: int) -> int:
    """Of a mask with one bit an entry, in whole 64-bit words."""
    return -(-size // 64) * 8


def floats(values: Sequence[float] | NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)
