"""slerp, nuslerp, multislerp, karcher, model_stock: worked by hand, and against float64."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers import merge_references
from tests.helpers.merge_references import array, assert_rounded, random_models
from toolkit.errors import MergeError
from toolkit.merge.methods import geometry
from toolkit.merge.methods.geometry import cosine, inner_products
from toolkit.merge.methods.slerp import nuslerp, slerp
from toolkit.merge.methods.spheres import karcher, multislerp
from toolkit.merge.methods.stock import model_stock

EAST, NORTH = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
HALF = math.sqrt(0.5)


def test_slerp_worked_example():
    # a right angle; a third of the way is 30°
    merged = slerp([NORTH], EAST, t=1.0 / 3.0)
    assert_rounded(merged, torch.tensor([math.cos(math.pi / 6), 0.5]), ulps=1)
    # lengths are not taken off: sin(45°) of each
    assert_rounded(slerp([2 * NORTH], EAST, t=0.5), torch.tensor([HALF, 2 * HALF]), ulps=1)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_slerp_of_parallel_and_opposite_tensors_is_linear(t: float):
    assert slerp([3 * EAST], EAST, t=t).tolist() == [1 + 2 * t, 0.0]
    assert slerp([-EAST], EAST, t=t).tolist() == [1 - 2 * t, 0.0]


def test_a_tensor_of_zeros_has_no_direction():
    # mergekit takes it to stand at a right angle, so that halfway leaves 0.71 of the other
    zero = torch.zeros(2)
    assert slerp([EAST], zero, t=0.5).tolist() == [0.5, 0.0]
    assert slerp([zero], EAST, t=0.25).tolist() == [0.75, 0.0]
    assert nuslerp([EAST, NORTH + EAST], EAST, weight=[1.0, 1.0]).tolist() == [1.0, 0.5]
    rows = nuslerp(
        [torch.stack([EAST, zero]), torch.stack([NORTH, EAST])],
        weight=[1.0, 1.0],
        nuslerp_flatten=False,
    )
    assert_rounded(rows, torch.tensor([[HALF, HALF], [0.5, 0.0]]), ulps=1)


def test_nuslerp_worked_example():
    # weights 1 and 2: two thirds of the way, 60°
    sixty = torch.tensor([0.5, math.cos(math.pi / 6)])
    assert_rounded(nuslerp([EAST, NORTH], weight=[1.0, 2.0]), sixty, ulps=1)
    base = torch.tensor([3.0, -1.0])
    merged = nuslerp([base + EAST, base + NORTH], base, weight=[1.0, 2.0])
    assert_rounded(merged, base + sixty, ulps=1)
    # weights that sum to zero count as equal, as in mergekit
    merged = nuslerp([EAST, NORTH], weight=[1.0, -1.0])
    assert_rounded(merged, torch.tensor([HALF, HALF]), ulps=1)


def test_nuslerp_along_rows_and_columns():
    first = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    second = torch.tensor([[0.0, 1.0], [3.0, 3.0]])
    # rows: a right angle, sin(45°) of each; parallel, the mean
    rows = nuslerp([first, second], weight=[1.0, 1.0], nuslerp_flatten=False)
    assert_rounded(rows, torch.tensor([[HALF, HALF], [2.0, 2.0]]), ulps=1)
    columns = nuslerp(
        [first.T.contiguous(), second.T.contiguous()],
        weight=[1.0, 1.0],
        nuslerp_flatten=False,
        nuslerp_row_wise=True,
    )
    assert_rounded(columns.T, rows, ulps=0)


def test_multislerp_worked_example():
    # Mean direction of east, north and north is [1, 2]/√5; mean length (1 + 4 + 4) / 3 = 3.
    merged = multislerp([EAST, 4 * NORTH, 4 * NORTH], weight=[1.0, 1.0, 1.0])
    assert_rounded(merged, torch.tensor([3.0, 6.0]) / math.sqrt(5.0), ulps=1)
    # weights as they are: 0.5·1 + 0.5·4 + 1·4 = 6.5 along [0.5, 1.5]/|...|
    merged = multislerp(
        [EAST, 4 * NORTH, 4 * NORTH], weight=[0.5, 0.5, 1.0], normalize_weights=False
    )
    assert_rounded(merged, torch.tensor([0.5, 1.5]) / math.sqrt(2.5) * 6.5, ulps=1)


def test_multislerp_without_a_mean_direction():
    # two models: their weighted mean, as in mergekit; more: an error
    merged = multislerp([3 * EAST, -EAST], weight=[1.0, 1.0])
    assert merged.tolist() == [1.0, 0.0]
    with pytest.raises(MergeError, match=r"weight.*cancel out"):
        multislerp([NORTH, -NORTH, EAST, -EAST], weight=[1.0, 1.0, 1.0, 1.0])


def test_a_tensor_that_no_model_changed_stays():
    # mergekit refuses it where there are more than two models
    assert multislerp([EAST, EAST, EAST], EAST, weight=[1.0, 1.0, 1.0]).tolist() == [1.0, 0.0]


def test_karcher_worked_example():
    # On a circle the Karcher mean is the mean angle: of 0°, 30° and 90° it is 40°. (The normalized
    # sum, where it starts, points elsewhere.) Mean length (1 + 2 + 3) / 3.
    def at(degrees: float) -> torch.Tensor:
        return torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])

    merged = karcher([at(0.0), 2 * at(30.0), 3 * at(90.0)], tol=1e-9)
    assert_rounded(merged, 2 * at(40.0), ulps=2)
    start = karcher([at(0.0), 2 * at(30.0), 3 * at(90.0)], max_iter=0)
    assert not torch.allclose(start, merged, atol=1e-3)


def test_karcher_of_opposite_and_vanishing_tensors():
    # opposite ones leave it at the first, at the mean length, as in mergekit
    assert karcher([EAST, -3 * EAST]).tolist() == [2.0, 0.0]
    # one opposite to the mean of the others pulls in no particular direction
    merged = karcher([EAST, NORTH, -(EAST + NORTH) * HALF])
    assert_rounded(merged, (EAST + NORTH) * HALF, ulps=1)
    # one without direction counts in the length alone
    assert karcher([torch.zeros(2), 4 * EAST]).tolist() == [2.0, 0.0]
    assert karcher([torch.zeros(2), torch.zeros(2)]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("tol", [0.0, 1e-12, 1e-5])
def test_karcher_of_equal_and_opposite_tensors_at_any_tolerance(tol: float):
    for count in (2, 3, 5):
        merged = karcher([torch.tensor([0.6, 0.8, 0.1])] * count, tol=tol)
        torch.testing.assert_close(merged, torch.tensor([0.6, 0.8, 0.1]))
    assert karcher([EAST, -3 * EAST], tol=tol).tolist() == [2.0, 0.0]
    assert karcher([torch.zeros(2), 4 * EAST], tol=tol).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-8])
def test_multislerp_of_a_tensor_of_zeros_at_any_eps(eps: float):
    merged = multislerp([EAST, torch.zeros(2), 2 * EAST], weight=[1.0, 1.0, 1.0], eps=eps)
    assert_rounded(merged, EAST, ulps=2)
    with pytest.raises(MergeError, match=r"weight.*cancel out"):
        multislerp([NORTH, -NORTH, EAST, -EAST], weight=[1.0, 1.0, 1.0, 1.0], eps=eps)


def test_model_stock_worked_example():
    # task vectors [2, 0] and [2, 2]: cosine √½, t = 2c / (1 + c); average [2, 1]
    base = torch.tensor([1.0, 1.0])
    t = 2 * HALF / (1 + HALF)
    merged = model_stock([base + 2 * EAST, base + 2 * EAST + 2 * NORTH], base)
    assert_rounded(merged, base + t * torch.tensor([2.0, 1.0]), ulps=1)


def test_model_stock_at_the_ends():
    base = torch.tensor([1.0, 1.0])
    agree = model_stock([base + EAST, base + EAST], base)
    assert_rounded(agree, base + EAST, ulps=1)  # cosine 1: the average
    at_right_angles = model_stock([base + EAST, base + NORTH], base)
    assert torch.equal(at_right_angles, base)
    opposite = model_stock([base + EAST, base - 2 * EAST], base)
    assert torch.equal(opposite, base)  # the pole of t
    # shorter than mergekit's limit: cosine 1e-8 / 1e-6 instead of 1
    tiny = torch.tensor([2.0**-13, 0.0])
    short = model_stock([tiny, tiny], torch.zeros(2))
    cos = 2.0**-26 / 1e-6
    assert_rounded(short * 2**13, torch.tensor([2 * cos / (1 + cos), 0.0]), ulps=1)


def test_model_stock_by_rows():
    zero = torch.zeros(2, 2)
    first = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    second = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    merged = model_stock([first, second], zero, filter_wise=True)
    assert_rounded(merged, torch.tensor([[2.0, 0.0], [0.0, 0.0]]), ulps=1)


def test_inner_products_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch):
    tensors, base = random_models(3, (50,))
    whole = inner_products(tensors, base)
    monkeypatch.setattr(geometry, "BLOCK", 7)
    torch.testing.assert_close(inner_products(tensors, base), whole, rtol=1e-14, atol=0.0)


def test_cosines_are_summed_in_float64():
    # in float32 the 10^-8 would be lost beside the 1
    a = torch.cat([torch.ones(1), torch.full((10_000,), 1e-4)])
    assert cosine(a, torch.ones(10_001)) == pytest.approx(
        2.0 / math.sqrt((1 + 1e-4) * 10_001), rel=1e-7
    )


@pytest.mark.parametrize("seed", range(3))
def test_against_float64(seed: int):
    tensors, base = random_models(4, seed=seed)
    xs, origin = [array(tensor) for tensor in tensors], array(base)
    deltas = [x - origin for x in xs]
    weight = [0.7, 0.2, 0.6, 0.3]
    for t in (0.0, 0.3, 0.9):
        assert_rounded(
            slerp(tensors[:1], base, t=t), merge_references.slerp(origin, xs[0], t), ulps=2
        )
    t = 0.2 / 0.9
    assert_rounded(
        nuslerp(tensors[:2], weight=weight[:2]), merge_references.slerp(*xs[:2], t, 1.0), ulps=2
    )
    assert_rounded(
        nuslerp(tensors[:2], base, weight=weight[:2]),
        origin + merge_references.slerp(*deltas[:2], t, 1.0),
        ulps=1,
    )
    for row_wise in (False, True):
        assert_rounded(
            nuslerp(
                tensors[:2], weight=weight[:2], nuslerp_flatten=False, nuslerp_row_wise=row_wise
            ),
            merge_references.slerp_along(*xs[:2], t, axis=0 if row_wise else -1),
            ulps=3,  # float32 products in the cosines of nearly parallel rows
        )
    for normalize in (False, True):
        assert_rounded(
            multislerp(tensors, weight=weight, normalize_weights=normalize),
            merge_references.multislerp(xs, weight, normalize),
            ulps=2,
        )
        assert_rounded(
            multislerp(tensors, base, weight=weight, normalize_weights=normalize),
            origin + merge_references.multislerp(deltas, weight, normalize),
            ulps=2,
        )
    assert_rounded(karcher(tensors, max_iter=50, tol=1e-12), merge_references.karcher(xs), ulps=2)
    spread = [tensor - base for tensor in tensors]  # far apart, so that the start is not the end
    converged = karcher(spread, max_iter=50, tol=1e-12)
    assert_rounded(converged, merge_references.karcher(deltas), ulps=2)
    assert (converged - karcher(spread, max_iter=0)).abs().max() > 1e-4
    for filter_wise in (False, True):
        assert_rounded(
            model_stock(tensors, base, filter_wise=filter_wise),
            merge_references.model_stock(xs, origin, filter_wise),
            ulps=2,
        )
