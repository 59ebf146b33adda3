"""Low-rank approximations against numpy's SVD in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from toolkit.adapter.lowrank import Factors, fit_dense, fit_sum, truncated_svd


def spectrum(values: Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, len(values), generator=generator)).Q
    v = torch.linalg.qr(torch.randn(columns, len(values), generator=generator)).Q
    return (u * values) @ v.T


@pytest.mark.parametrize(
    "values",
    [torch.ones(80), 1.0 / torch.arange(1, 81), 0.7 ** torch.arange(80.0)],
    ids=["flat", "slow", "fast"],
)
def test_the_error_is_within_a_hundredth_of_the_optimum(values: Tensor):
    matrix = spectrum(values, 120, 90) + 1e-4 * torch.randn(
        120, 90, generator=torch.Generator().manual_seed(1)
    )
    exact = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    optimum = math.sqrt(float((exact[8:] ** 2).sum()))
    fit = fit_dense(matrix.clone(), 8, seed=3, dtype=torch.float32)
    assert fit.factors.rank == 8
    assert optimum * (1 - 1e-5) <= fit.error <= optimum * 1.01
    assert fit.norm == pytest.approx(float(np.linalg.norm(exact)), rel=1e-5)


def test_the_error_is_that_of_what_is_stored():
    matrix = spectrum(1.0 / torch.arange(1, 33), 40, 50)
    fit = fit_dense(matrix.clone(), 4, seed=0, dtype=torch.bfloat16)
    stored = fit.factors.b.float() @ fit.factors.a.float()
    assert fit.factors.b.dtype == torch.bfloat16
    assert fit.error == pytest.approx(float(torch.linalg.norm(matrix - stored)), rel=1e-4)


def test_rank_by_energy_and_by_what_there_is():
    matrix = spectrum(torch.tensor([3.0, 2.0, 1.0]), 30, 20)
    # 9 of 14 is 64 %, 13 of 14 is 93 %.
    assert fit_dense(matrix.clone(), 8, seed=0, energy=0.6, dtype=torch.float32).factors.rank == 1
    assert fit_dense(matrix.clone(), 8, seed=0, energy=0.9, dtype=torch.float32).factors.rank == 2
    assert len(truncated_svd(matrix, 99, seed=0)[1]) == 20


def test_the_same_seed_gives_the_same_bits():
    matrix = torch.randn(200, 150, generator=torch.Generator().manual_seed(0))
    one, two, other = (truncated_svd(matrix, 4, seed=seed)[0] for seed in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def pairs(rank: int, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(20, rank, generator=generator), torch.randn(rank, 12, generator=generator)
    )


def test_a_sum_is_exact_or_optimally_cut():
    one, two = pairs(3, 0), pairs(2, 1)
    whole = 0.5 * one.b @ one.a - 2.0 * two.b @ two.a
    exact = fit_sum([(0.5, one), (-2.0, two)], None, dtype=torch.float32)
    assert exact.factors.rank == 5
    assert torch.allclose(exact.factors.b @ exact.factors.a, whole, atol=1e-5)
    assert exact.error < 1e-5 * exact.norm
    singular = np.linalg.svd(whole.double().numpy(), compute_uv=False)
    cut = fit_sum([(0.5, one), (-2.0, two)], 2, dtype=torch.float32)
    assert cut.error == pytest.approx(math.sqrt(float((singular[2:] ** 2).sum())), rel=1e-4)
    assert fit_sum([(0.0, one)], None, dtype=torch.float32).factors.rank == 0
