"""Factors of many matrices in one parameter (the experts of a layer), as peft lays them out.

Legend: E experts, M rows (outputs), N columns (inputs), r rank of the change to one expert.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from toolkit.adapter.lowrank import (
    Factors,
    LowRankFit,
    frobenius,
    rank_for_energy,
    split,
    truncated_svd,
)

_SEEDS = 1 << 63


def fit_stack(
    after: Tensor,
    before: Tensor,
    rank: int,
    *,
    norm: float,
    is_swapped: bool,
    seed: int,
    energy: float | None = None,
    dtype: torch.dtype,
) -> LowRankFit:
    """The nearest change of low rank to each expert; all have the same rank, as peft has one.

    Args:
        after: the tuned parameter, `[E, M, N]`, or `[E, N, M]` where it is not swapped.
        before: the base's.
        rank: most columns of one expert's factors.
        norm: of the whole change.
        is_swapped: whether peft takes the last dimension for inputs.
        seed: of the sketches.
        energy: with it, the smallest rank that keeps this share of the squared norm of all.
        dtype: of the factors.

    Returns:
        Factors that peft reads: A `[E r, N]`, expert by expert, and B `[M, r E]`, in which the
        experts of one column stand together; norm and error are those of the whole change.
    """
    expert_pairs = list(zip(after, before, strict=True))
    expert_svds = [
        truncated_svd(_change(one, other, is_swapped), rank, seed=(seed + expert_number) % _SEEDS)
        for expert_number, (one, other) in enumerate(expert_pairs)
    ]
    kept_rank = len(expert_svds[0][1])
    # One rank for all: chosen where the experts' squared singular values, place by place, keep the
    # share together.
    if energy is not None:
        squared_values = torch.stack([s.double().square() for _, s, _ in expert_svds]).sum(0)
        kept_rank = rank_for_energy(squared_values.sqrt(), norm, energy)
    factors = [
        split(u[:, :kept_rank], s[:kept_rank], vt[:kept_rank]).to(dtype) for u, s, vt in expert_svds
    ]
    missed: list[float] = []
    for (one, other), own in zip(expert_pairs, factors, strict=True):
        # Computed again: to keep all changes would take another parameter in float32.
        change = _change(one, other, is_swapped)
        missed.append(frobenius(change.addmm_(own.b.float(), own.a.float(), alpha=-1.0)))
    return LowRankFit(join_experts(factors), norm, math.sqrt(math.fsum(own**2 for own in missed)))


def join_experts(factors: list[Factors]) -> Factors:
    """Factors of every expert in peft's layout.

    >>> one = Factors(torch.ones(3, 2), torch.ones(2, 4))
    >>> joined = join_experts([one, Factors(0 * one.b, 0 * one.a)])
    >>> joined.a[:, 0].tolist(), joined.b[0].tolist()
    ([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0])
    """
    # In B experts run fastest, in A they stand one after the other: so peft reshapes them.
    b = torch.stack([own.b for own in factors], dim=2)
    return Factors(b.flatten(1).contiguous(), torch.cat([own.a for own in factors]))


def part_experts(joined: Factors, num_experts: int) -> list[Factors]:
    """The factors of each expert out of peft's layout.

    >>> joined = Factors(torch.arange(12.0).view(3, 4), torch.arange(8.0).view(4, 2))
    >>> [own.b[0].tolist() for own in part_experts(joined, 2)]
    [[0.0, 2.0], [1.0, 3.0]]
    """
    expert_rank = joined.rank // num_experts
    b = joined.b.reshape(joined.b.shape[0], expert_rank, num_experts)
    a = joined.a.reshape(num_experts, expert_rank, joined.a.shape[1])
    return [Factors(b[:, :, number], a[number]) for number in range(num_experts)]


def _change(after: Tensor, before: Tensor, is_swapped: bool) -> Tensor:
    """One expert's change as `[M, N]`, in new memory, float32."""
    expert_change = after.to(torch.float32, copy=True).sub_(before.float())
    return expert_change if is_swapped else expert_change.T.contiguous()
