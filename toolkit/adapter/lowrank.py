"""Low-rank matrices: a randomized SVD of dense ones, sums and truncation of factored ones.

Shapes: M rows (outputs), N columns (inputs), r rank. A change is `B A` with B `[M, r]` and
A `[r, N]`, as peft has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OVERSAMPLING = 10
"""Columns of the sketch beyond the rank; Halko et al. recommend 5 to 10."""

POWER_ITERATIONS = 4
"""Passes that sharpen the sketch. Task vectors decay slowly, and with 2 the error of a flat
spectrum is above the optimum by nearly 1 % (see tests); each costs two products with the matrix."""


@dataclass(frozen=True)
class Factors:
    """A matrix of low rank.

    Attributes:
        b: `[M, r]`.
        a: `[r, N]`.
    """

    b: Tensor
    a: Tensor

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def to(self, dtype: torch.dtype) -> Factors:
        return Factors(self.b.to(dtype), self.a.to(dtype))


@dataclass(frozen=True)
class LowRankFit:
    """Factors, and how well they stand for a matrix.

    Attributes:
        factors: in the type they are stored in.
        norm: Frobenius norm of the matrix.
        error: Frobenius norm of the difference.
    """

    factors: Factors
    norm: float
    error: float


def fit_dense(
    matrix: Tensor,
    rank: int,
    *,
    seed: int,
    energy: float | None = None,
    dtype: torch.dtype,
) -> LowRankFit:
    """The nearest matrix of low rank to a dense one.

    Args:
        matrix: `[M, N]`, float32; overwritten with the difference.
        rank: most columns; where the matrix has fewer, as many as it has.
        seed: of the sketch.
        energy: with it, the smallest rank that keeps this share of the squared norm, up to `rank`.
        dtype: of the factors.

    Returns:
        The factors, and the error measured by subtracting their product.
    """
    matrix_norm = frobenius(matrix)
    u, s, vt = truncated_svd(matrix, rank, seed=seed)
    kept_rank = rank_for_energy(s, matrix_norm, energy) if energy is not None else len(s)
    factors = split(u[:, :kept_rank], s[:kept_rank], vt[:kept_rank]).to(dtype)
    # In place: a second dense matrix of this size might not fit beside the first.
    matrix.addmm_(factors.b.float(), factors.a.float(), alpha=-1.0)
    return LowRankFit(factors, matrix_norm, frobenius(matrix))


def fit_sum(
    terms: Sequence[tuple[float, Factors]],
    rank: int | None,
    *,
    energy: float | None = None,
    dtype: torch.dtype,
) -> LowRankFit:
    """A weighted sum of factored matrices, exact or truncated; no dense matrix is ever formed.

    The sum is `[w_1 B_1 ...] [A_1; ...]`, whose rank is at most the sum of the ranks. It is left as
    it is where that is within `rank` and the matrix. Else with the QR decompositions `B = Q R` and
    `A^T = P S`, the SVD of the small `R S^T` is that of the whole, so that truncation is optimal.

    Args:
        terms: weight and factors of each; weights of zero do not count.
        rank: most columns of the result; None for as many as it takes.
        energy: as in `fit_dense`.
        dtype: of the factors.

    Returns:
        The factors, and the error of what is stored. The rank is 0 where the sum has no term.
    """
    weighted_terms = [(weight, factors) for weight, factors in terms if weight != 0.0]
    if not weighted_terms:
        first = terms[0][1]
        b, a = first.b.new_zeros(first.b.shape[0], 0), first.a.new_zeros(0, first.a.shape[1])
        return LowRankFit(Factors(b, a).to(dtype), 0.0, 0.0)
    exact = _stack_terms(weighted_terms)
    exact_norm = factored_norm(exact)
    # More columns than the matrix has rows or columns would only be stored.
    rank_limit = min(exact.b.shape[0], exact.a.shape[1], exact.rank if rank is None else rank)
    if rank_limit < exact.rank or energy is not None:
        stored_factors = _truncate(exact, rank_limit, exact_norm, energy).to(dtype)
    else:
        stored_factors = exact.to(dtype)
    # `B A - B' A'` is itself a product of factors, so that its norm needs no dense matrix either.
    difference = Factors(
        torch.cat([exact.b, -stored_factors.b.double()], dim=1),
        torch.cat([exact.a, stored_factors.a.double()], dim=0),
    )
    return LowRankFit(stored_factors, exact_norm, factored_norm(difference))


def _stack_terms(terms: Sequence[tuple[float, Factors]]) -> Factors:
    """Factors of a weighted sum, float64, as many columns as all terms have together."""
    # The root of the weight goes to each side, so that neither grows beyond a narrow type.
    roots = [math.sqrt(abs(weight)) for weight, _ in terms]
    left_columns = [
        factors.b.double() * math.copysign(root, weight)
        for root, (weight, factors) in zip(roots, terms, strict=True)
    ]
    right = [factors.a.double() * root for root, (_, factors) in zip(roots, terms, strict=True)]
    return Factors(torch.cat(left_columns, dim=1), torch.cat(right, dim=0))


def _truncate(exact: Factors, limit: int, norm: float, energy: float | None) -> Factors:
    """The best factors of at most `limit` columns, or of as few as keep a share of the norm."""
    # Q and P are orthonormal and keep singular values, so that only a square of the summed rank is
    # decomposed.
    q, r = torch.linalg.qr(exact.b)
    p, right_r = torch.linalg.qr(exact.a.T)
    u, s, vt = torch.linalg.svd(r @ right_r.T, full_matrices=False)
    kept_rank = min(limit, len(s))
    if energy is not None:
        kept_rank = rank_for_energy(s[:kept_rank], norm, energy)
    return split(q @ u[:, :kept_rank], s[:kept_rank], vt[:kept_rank] @ p.T)


def truncated_svd(matrix: Tensor, rank: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular vectors and values, by a randomized range finder.

    A Gaussian sketch of the range, sharpened by power iterations with a QR decomposition after each
    product so that small singular values are not lost, then the SVD of the matrix within it.
    Where the sketch would be no smaller than the matrix, the whole SVD is taken.

    Args:
        matrix: `[M, N]`, float32.
        rank: how many; no more than M and N are given.
        seed: of the sketch; the same seed gives the same result.

    Returns:
        U `[M, r]`, S `[r]` in descending order, V transposed `[r, N]`.

    Reference:
        Halko, Martinsson and Tropp 2011, Finding structure with randomness, algorithms 4.4 and 5.1.
    """
    num_rows, num_columns = matrix.shape
    rank = min(rank, num_rows, num_columns)
    sketch_width = rank + OVERSAMPLING
    if sketch_width >= min(num_rows, num_columns):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vt[:rank]
    # Of its own: the global one would let the adapter depend on what was drawn before.
    generator = torch.Generator().manual_seed(seed)
    q = _basis(matrix @ torch.randn(num_columns, sketch_width, generator=generator))
    for _ in range(POWER_ITERATIONS):
        # Two products with a QR after each: without it all columns turn into the largest vector.
        q = _basis(matrix @ _basis(matrix.T @ q))
    u, s, vt = torch.linalg.svd(q.T @ matrix, full_matrices=False)
    return q @ u[:, :rank], s[:rank], vt[:rank]


def split(u: Tensor, s: Tensor, vt: Tensor) -> Factors:
    """Singular vectors to factors: the root of each singular value goes to either side.

    Both factors then have the same norm: neither is tiny where the type is narrow, and training the
    adapter on moves both alike. With orthonormal A all of the size would be in B.
    """
    roots = s.sqrt()
    return Factors((u * roots).contiguous(), (roots[:, None] * vt).contiguous())


def rank_for_energy(s: Tensor, norm: float, energy: float) -> int:
    """The smallest rank that keeps a share of the squared norm, at least 1, at most `len(s)`.

    >>> import torch
    >>> rank_for_energy(torch.tensor([3.0, 2.0, 1.0]), norm=14**0.5, energy=0.9)
    2
    """
    kept_energy = s.double().square().cumsum(0)
    # A hair below the share: rounding must not cost a rank where the sum meets it exactly.
    return min(int((kept_energy < energy * norm**2 * (1 - 1e-12)).sum()) + 1, len(s))


def frobenius(matrix: Tensor) -> float:
    """Frobenius norm of a float32 matrix; the sum over rows is in float64."""
    # Row by row: a float64 copy of the matrix would take twice its memory.
    row_norms = torch.linalg.vector_norm(matrix, dim=1)
    return float(torch.linalg.vector_norm(row_norms.double()))


def factored_norm(factors: Factors) -> float:
    """Frobenius norm of `B A`, float64, from their QR decompositions."""
    # Norms do not change under a rotation, so that Q is not needed; squares of what cancels are
    # never subtracted, as they would be in traces of `B^T B A A^T`.
    r = torch.linalg.qr(factors.b.double(), mode="r").R
    s = torch.linalg.qr(factors.a.double().T, mode="r").R
    return float(torch.linalg.matrix_norm(r @ s.T))


def _basis(matrix: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(matrix).Q
    return q
