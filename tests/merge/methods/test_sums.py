"""linear, task_arithmetic, passthrough, lines: worked by hand, and against float64."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import merge_references
from tests.helpers.merge_references import array, assert_rounded, random_models
from toolkit.merge.methods.linear import linear, passthrough, task_arithmetic
from toolkit.merge.methods.lines import lines
from toolkit.merge.registry import Place

BASE = torch.tensor([1.0, 1.0, 1.0, 1.0])
LAW = torch.tensor([5.0, -1.0, 1.0, 1.0])
MED = torch.tensor([3.0, 4.0, 1.0, 0.0])


def test_linear_worked_example():
    # (1·[5, -1, 1, 1] + 3·[3, 4, 1, 0]) / 4
    merged = linear([LAW, MED], weight=[1.0, 3.0])
    assert merged.tolist() == [3.5, 2.75, 1.0, 0.25]
    summed = linear([LAW, MED], weight=[1.0, 3.0], normalize=False)
    assert summed.tolist() == [14.0, 11.0, 4.0, 1.0]


def test_task_arithmetic_worked_example():
    # task vectors: law [4, -2, 0, 0]   med [2, 3, 0, -1]
    # base + 2·(0.5·law + 1·med) = base + 2·[4, 2, 0, -1]
    merged = task_arithmetic([LAW, MED], BASE, weight=[0.5, 1.0], lambda_=2.0)
    assert merged.tolist() == [9.0, 5.0, 1.0, -1.0]
    # normalized, the sum is divided by 1.5 + 0.5 = 2: base + (1.5·law + 0.5·med) / 2
    merged = task_arithmetic([LAW, MED], BASE, weight=[1.5, 0.5], normalize=True)
    assert merged.tolist() == [4.5, 0.25, 1.0, 0.75]


def test_passthrough_worked_example():
    assert passthrough([LAW]).tolist() == LAW.tolist()
    assert passthrough([LAW], scale=[0.5]).tolist() == [2.5, -0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("layer", "scale"),
    [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (None, 0.25)],
    ids=str,
)
def test_lines_worked_example(layer: int | None, scale: float):
    # alpha 0.25 and beta 0.75 over four layers: 0.25 + 0.75·layer/3; outside the layers 0.25
    merged = lines([LAW], BASE, place=Place("x", layer, 4), weight=[1.0], alpha=0.25, beta=0.75)
    assert merged.tolist() == [1 + 4 * scale, 1 - 2 * scale, 1.0, 1.0]


def test_lines_sums_weighted_task_vectors():
    # layer 2 of 3 has the scale 0 + 1·2/2: base + 0.5·[4, -2, 0, 0] + 2·[2, 3, 0, -1]
    merged = lines([LAW, MED], BASE, place=Place("x", 2, 3), weight=[0.5, 2.0])
    assert merged.tolist() == [7.0, 6.0, 1.0, -1.0]


def test_lines_of_one_layer_uses_alpha():
    merged = lines([LAW], BASE, place=Place("x", 0, 1), weight=[1.0], alpha=0.5)
    assert merged.tolist() == [3.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("normalize", [False, True])
def test_against_float64(normalize: bool):
    tensors, base = random_models(3)
    weight, xs = [0.7, 0.2, 0.6], [array(tensor) for tensor in tensors]
    assert_rounded(
        linear(tensors, weight=weight, normalize=normalize),
        merge_references.linear(xs, weight, normalize),
        ulps=2,
    )
    assert_rounded(
        task_arithmetic(tensors, base, weight=weight, normalize=normalize, lambda_=1.3),
        merge_references.task_arithmetic(xs, array(base), weight, normalize, 1.3),
        ulps=1,
    )
    assert_rounded(
        lines(
            tensors,
            base,
            place=Place("x", 3, 11),
            weight=weight,
            alpha=0.1,
            beta=0.8,
            normalize=normalize,
        ),
        merge_references.task_arithmetic(xs, array(base), weight, normalize, 0.1 + 0.8 * 0.3),
        ulps=1,
    )
