"""Ways to thin out a task vector: by magnitude, without outliers, at random, at random by rank.

All are exact and independent of order: entries that tie at a threshold are kept together, and
random numbers are drawn for every entry of every model, whatever its density, so that a model's
mask depends on nothing but the generator and its place in the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.merge.kernels.stream import EntryStream

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VANISHING_L1 = 1e-7
"""Task vectors whose magnitudes sum to less are not rescaled, as in mergekit."""


def trim(delta: Tensor, density: float) -> Tensor:
    """Zero all but the `density` share of entries largest in magnitude, keeping ties.

    A density above zero keeps at least one entry, as in mergekit.

    >>> import torch
    >>> trim(torch.tensor([4.0, -2.0, 0.5, 1.0]), 0.5)
    tensor([ 4., -2.,  0.,  0.])
    """
    import torch

    if density >= 1.0 or delta.numel() == 0:
        return delta
    if density <= 0.0:
        return torch.zeros_like(delta)
    magnitude = delta.abs()
    kept_count = max(1, int(density * delta.numel()))
    return cut(delta, kth_smallest(magnitude, delta.numel() - kept_count + 1))


def cut(delta: Tensor, threshold: float) -> Tensor:
    """Zero the entries smaller in magnitude than `threshold`."""
    import torch

    return torch.where(delta.abs() >= threshold, delta, 0.0)


def trim_with_outliers(delta: Tensor, density: float, gamma: float) -> Tensor:
    """Zero the `gamma` share of largest entries, then the smallest, until `density` is left.

    Where `density + gamma` exceeds 1, fewer of the largest go, so that `density` is left. Entries
    tied at either end are kept.

    >>> import torch
    >>> trim_with_outliers(torch.tensor([9.0, 4.0, -2.0, 0.5]), density=0.5, gamma=0.25)
    tensor([ 0.,  4., -2.,  0.])
    """
    import torch

    if density >= 1.0:
        return delta
    entry_count = delta.numel()
    kept_count = int(density * entry_count)
    if kept_count == 0:
        return torch.zeros_like(delta)
    dropped_below = max(0, entry_count - kept_count - int(gamma * entry_count))
    magnitude = delta.abs()
    low_threshold = kth_smallest(magnitude, dropped_below + 1)
    high_threshold = kth_smallest(magnitude, dropped_below + kept_count)
    return torch.where((magnitude >= low_threshold) & (magnitude <= high_threshold), delta, 0.0)


def drop_at_random(
    delta: Tensor, density: float, generator: torch.Generator | EntryStream, *, rescale: bool
) -> Tensor:
    """Keep each entry with probability `density`; with `rescale`, restore the sum of magnitudes."""
    # Drawn before density is looked at, as in `drop_by_rank`.
    keep_mask = uniform(delta, generator) < density
    return delta if density >= 1.0 else masked(delta, keep_mask, rescale=rescale)


def drop_by_rank(
    delta: Tensor,
    density: float,
    epsilon: float,
    generator: torch.Generator | EntryStream,
    *,
    rescale: bool,
) -> Tensor:
    """Keep each entry with a probability that grows with its rank, from `density - epsilon` to
    `density + epsilon`; with `rescale`, restore the sum of magnitudes.

    Ranks are taken among magnitudes along dimension 1 (a vector is one row); entries that tie share
    the mean of their ranks.
    """
    import torch

    # Drawn even where density makes it needless: the next model's mask must not depend on it.
    drawn_numbers = uniform(delta, generator)
    if density >= 1.0 or delta.numel() == 0:
        return delta
    if density <= 0.0:
        return torch.zeros_like(delta)
    keep_probability = density - epsilon + 2.0 * epsilon * relative_rank(delta.abs())
    return masked(delta, drawn_numbers < keep_probability, rescale=rescale)


def relative_rank(magnitude: Tensor) -> Tensor:
    """Rank along dimension 1, smallest 0 and largest 1; ties share their mean, one alone has 0.5.

    >>> import torch
    >>> relative_rank(torch.tensor([5.0, 1.0, 1.0]))
    tensor([1.0000, 0.2500, 0.2500])
    """
    import torch

    if magnitude.dim() < 2:
        return relative_rank(magnitude.reshape(1, -1)).reshape(magnitude.shape)
    # searchsorted copies, with a warning, what does not lie row by row.
    rows = magnitude.movedim(1, -1).contiguous()
    if rows.shape[-1] == 1:
        return torch.full_like(magnitude, 0.5)
    ordered = rows.sort(dim=-1).values
    smaller = torch.searchsorted(ordered, rows, right=False)
    not_larger = torch.searchsorted(ordered, rows, right=True)
    twice_rank = (smaller + not_larger - 1).to(magnitude.dtype)
    return twice_rank.div_(2 * (rows.shape[-1] - 1)).movedim(-1, 1)


def masked(delta: Tensor, mask: Tensor, *, rescale: bool) -> Tensor:
    """Zero where the mask is false; with `rescale`, multiply what is left so that its magnitudes
    sum to what they did before."""
    import torch

    kept_entries = torch.where(mask, delta, 0.0)
    return restore_l1(kept_entries, delta) if rescale else kept_entries


def restore_l1(kept: Tensor, delta: Tensor) -> Tensor:
    """Multiply `kept` so that its magnitudes sum to those of `delta`; in place.

    >>> import torch
    >>> restore_l1(torch.tensor([2.0, 0.0]), torch.tensor([2.0, 6.0]))
    tensor([8., 0.])
    """
    import torch

    l1_before = float(delta.abs().sum(dtype=torch.float64))
    l1_after = float(kept.abs().sum(dtype=torch.float64))
    if l1_before < VANISHING_L1 or l1_after < VANISHING_L1:
        return kept
    # At density 1 `kept` is `delta` itself; its ratio is 1, so that in place does no harm.
    return kept.mul_(l1_before / l1_after)


def kth_smallest(magnitude: Tensor, k: int) -> float:
    """The k-th smallest entry, counted from 1."""
    return float(magnitude.flatten().kthvalue(k).values)


def uniform(delta: Tensor, generator: torch.Generator | EntryStream) -> Tensor:
    """One number in [0, 1) for each entry, drawn on the CPU or where the generator lives, so that
    every device gets the same. The engine gives streams; kernels draw the same numbers."""
    import torch

    if isinstance(generator, EntryStream):
        return generator.uniform(delta.shape).to(delta.device)
    draw = torch.rand(delta.shape, generator=generator, device=generator.device)
    return draw.to(delta.device)
