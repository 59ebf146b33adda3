"""tsv and iso_c: worked by hand, and against float64 by eigenvalues instead of singular values."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers import merge_references
from tests.helpers.merge_references import array, assert_rounded, merge, random_models
from toolkit.merge.methods.spectral import iso_c, tsv
from toolkit.merge.registry import Place

INSIDE = Place("model.layers.1.mlp.up_proj.weight", 1, 4)
OUTSIDE = Place("lm_head.weight", None, 4)
ULPS = 16
"""Singular vectors carry the rounding of a whole decomposition, larger where values lie close."""


def test_iso_c_worked_example():
    # summed: [[3, 0], [0, -1]], singular values 3 and 1, both set to 2
    first, second = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    zero = torch.zeros(2, 2)
    merged = iso_c([first, second], zero, place=INSIDE, weight=[1.0, 1.0])
    assert_rounded(merged, torch.tensor([[2.0, 0.0], [0.0, -2.0]]), ulps=4)
    # weights 2 and 0.5: [[4.5, 0], [0, 1]], mean 2.75; lambda halves it
    merged = iso_c([first, second], zero, place=INSIDE, weight=[2.0, 0.5], lambda_=0.5)
    assert_rounded(merged, torch.tensor([[1.375, 0.0], [0.0, 1.375]]), ulps=4)


def test_iso_c_of_lower_rank_stays_within_it():
    # rank 1 with singular value 5 (3-4-5): the other directions are arbitrary and stay at zero
    rank_one = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    merged = iso_c([rank_one], torch.zeros(2, 2), place=INSIDE, weight=[1.0])
    assert_rounded(merged, rank_one, ulps=4)


def test_tsv_worked_example():
    # Of two matrices each keeps half of two singular values: 3 along the first axes, 2 along the
    # second ones. They are orthogonal already, so they are simply added.
    first, second = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    merged = tsv([first, second], torch.zeros(2, 2), place=INSIDE, weight=[1.0, 1.0])
    assert_rounded(merged, torch.tensor([[3.0, 0.0], [0.0, 2.0]]), ulps=4)


def test_tsv_worked_example_of_interference():
    # Left vectors both [1, 0]; right ones [1, 0] and [c, s] at 60°. The nearest orthogonal of
    # [[1, 1], [0, 0]] over the direction there is: each [1, 0]/√2. Of the right vectors: turned
    # apart to 90° about their bisector at 30°, that is to -15° and 75°.
    c, s = 0.5, math.sqrt(0.75)
    first = torch.tensor([[4.0, 0.0], [0.0, 0.0]])
    second = torch.tensor([[2.0 * c, 2.0 * s], [0.0, 0.0]])
    merged = tsv([first, second], torch.zeros(2, 2), place=INSIDE, weight=[1.0, 1.0])
    low, high = math.radians(-15.0), math.radians(75.0)
    row = [
        (4 * math.cos(low) + 2 * math.cos(high)) / math.sqrt(2.0),
        (4 * math.sin(low) + 2 * math.sin(high)) / math.sqrt(2.0),
    ]
    assert_rounded(merged, torch.tensor([row, [0.0, 0.0]]), ulps=4)


def test_tsv_of_the_same_model_twice_is_its_stronger_half():
    (model,), base = random_models(1, (8, 8))
    twice = tsv([model, model], base, place=INSIDE, weight=[1.0, 1.0])
    u, s, vt = torch.linalg.svd((model - base).double())
    assert_rounded(twice, base + (u[:, :4] * s[:4]) @ vt[:4], ulps=ULPS)


def test_tsv_is_not_disturbed_by_a_model_that_changed_nothing():
    # The singular vectors of a zero matrix are arbitrary; they are left out.
    (model,), base = random_models(1, (8, 8))
    merged = tsv([model, base], base, place=INSIDE, weight=[1.0, 1.0])
    u, s, vt = torch.linalg.svd((model - base).double())
    assert_rounded(merged, base + (u[:, :4] * s[:4]) @ vt[:4], ulps=ULPS)


@pytest.mark.parametrize("name", ["tsv", "iso_c"])
@pytest.mark.parametrize(("shape", "place"), [((5,), INSIDE), ((4, 6), OUTSIDE)], ids=str)
def test_vectors_and_tables_outside_the_layers_are_averaged(
    name: str, shape: tuple[int, ...], place: Place
):
    # base + 0.5·(2·(x1 - base) + 1·(x2 - base)) / 2
    (first, second), base = random_models(2, shape)
    merged = merge(name, [first, second], base, place=place, weight=[2.0, 1.0], lambda_=0.5)
    expected = base + 0.25 * (2.0 * (first - base) + (second - base))
    assert_rounded(merged, expected, ulps=1)


@pytest.mark.parametrize("name", ["tsv", "iso_c"])
def test_stacked_experts_are_merged_one_by_one(name: str):
    tensors, base = random_models(2, (3, 6, 8))
    merged = merge(name, tensors, base)
    for expert in range(3):
        alone = merge(name, [tensor[expert] for tensor in tensors], base[expert])
        assert torch.equal(merged[expert], alone)


@pytest.mark.parametrize("shape", [(12, 16), (16, 12), (9, 9)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_against_float64(shape: tuple[int, int], seed: int):
    tensors, base = random_models(3, shape, seed=seed)
    weight, origin = [0.7, -0.2, 1.6], array(base)
    deltas = [w * (array(tensor) - origin) for w, tensor in zip(weight, tensors, strict=True)]
    assert_rounded(
        tsv(tensors, base, place=INSIDE, weight=weight, lambda_=0.8),
        origin + 0.8 * merge_references.tsv(deltas),
        ulps=ULPS,
    )
    assert_rounded(
        iso_c(tensors, base, place=INSIDE, weight=weight, lambda_=0.8),
        origin + 0.8 * merge_references.iso_c(deltas),
        ulps=ULPS,
    )
