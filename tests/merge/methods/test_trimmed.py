"""ties, ties_global, breadcrumbs: worked by hand, against float64, and what ties do not change."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.helpers import merge_references
from tests.helpers.merge_references import array, assert_rounded, random_models
from toolkit.merge.methods.breadcrumbs import breadcrumbs, breadcrumbs_ties
from toolkit.merge.methods.sparsify import trim, trim_with_outliers
from toolkit.merge.methods.task_vectors import elect_and_average
from toolkit.merge.methods.ties import ties, ties_global

BASE = torch.tensor([1.0, 1.0, 1.0, 1.0])
LAW = BASE + torch.tensor([4.0, -2.0, 0.5, 0.0])
MED = BASE + torch.tensor([2.0, 3.0, 0.0, -1.0])


def test_ties_worked_example():
    # trim to half:  law [4, -2, 0, 0]   med [2, 3, 0, 0]
    # elect signs:   sums [6, 1, 0, 0] -> [+, +, +, +]; law's -2 is outvoted
    # mean of those that agree: [(4 + 2) / 2, 3, 0, 0]
    merged = ties([LAW, MED], BASE, weight=[1.0, 1.0], density=[0.5, 0.5])
    assert (merged - BASE).tolist() == [3.0, 3.0, 0.0, 0.0]


def test_ties_worked_example_with_weights():
    # weighted and trimmed:  2·law [8, -4, 0, 0]   1·med [2, 3, 0, 0]
    # sums [10, -1, 0, 0] -> [+, -, +, +]; now med's 3 is outvoted
    # divided by the weights that agree: [(8 + 2) / 3, -4 / 2, 0, 0], times lambda 0.5
    merged = ties([LAW, MED], BASE, weight=[2.0, 1.0], density=[0.5, 0.5], lambda_=0.5)
    assert_rounded(merged, BASE + torch.tensor([5.0 / 3.0, -1.0, 0.0, 0.0]), ulps=1)
    # not normalized: [8 + 2, -4, 0, 0] times 0.5
    merged = ties(
        [LAW, MED], BASE, weight=[2.0, 1.0], density=[0.5, 0.5], normalize=False, lambda_=0.5
    )
    assert (merged - BASE).tolist() == [5.0, -2.0, 0.0, 0.0]


def test_ties_rescaled_worked_example():
    # law's magnitudes sum to 6.5, after trimming to a quarter to 4: [4, 0, 0, 0] · 6.5 / 4
    merged = ties([LAW], BASE, weight=[1.0], density=[0.25], rescale=True)
    assert (merged - BASE).tolist() == [6.5, 0.0, 0.0, 0.0]


def test_a_vote_of_zero_is_positive():
    # -1 against 1: the positive one wins, as in mergekit
    merged = ties([BASE - 1.0, BASE + 1.0], BASE, weight=[1.0, 1.0], density=[1.0, 1.0])
    assert (merged - BASE).tolist() == [1.0] * 4


def test_weights_that_cancel_among_those_that_agree_are_not_divided_by():
    # 1·2 and -1·(-2) both vote +; their weights sum to 0, so the sum 4 stays as it is
    merged = elect_and_average(
        [torch.tensor([2.0]), torch.tensor([-2.0])], [1.0, -1.0], normalize=True
    )
    assert merged.tolist() == [4.0]


def test_ties_global_worked_example():
    # Two tensors of a model, [4, -2, 0.5, 0] and [0.1, 0.2, 3, 0]: of its 8 entries half are
    # 4, 3, 2 and 0.5, so that the first tensor keeps three and the second one.
    second = torch.tensor([0.1, 0.2, 3.0, 0.0])
    first = ties_global([LAW], BASE, thresholds=[0.5], weight=[1.0], density=[0.5])
    assert (first - BASE).tolist() == [4.0, -2.0, 0.5, 0.0]
    zero = torch.zeros(4)
    other = ties_global([second], zero, thresholds=[0.5], weight=[1.0], density=[0.5])
    assert other.tolist() == [0.0, 0.0, 3.0, 0.0]


def test_ties_global_of_a_model_of_one_tensor_is_ties():
    tensors, base = random_models(3)
    weight, density = [0.6, 0.3, 0.5], [0.2, 1.0, 0.0]
    magnitudes = [
        (tensor - base).abs().flatten().sort(descending=True).values for tensor in tensors
    ]
    thresholds = [
        float(m[int(share * m.numel()) - 1]) if share else math.inf
        for m, share in zip(magnitudes, density, strict=True)
    ]
    merged = ties_global(tensors, base, thresholds=thresholds, weight=weight, density=density)
    assert torch.equal(merged, ties(tensors, base, weight=weight, density=density))


@pytest.mark.parametrize(
    ("density", "kept"),
    [
        (0.0, [0.0, 0.0, 0.0, 0.0]),
        (0.01, [3.0, 0.0, 0.0, 0.0]),  # above zero, at least one
        (0.25, [3.0, 0.0, 0.0, 0.0]),
        (0.5, [3.0, -2.0, 2.0, 0.0]),  # half is two, and both twos stay
        (0.75, [3.0, -2.0, 2.0, 0.0]),
        (1.0, [3.0, -2.0, 2.0, 1.0]),
    ],
)
def test_trimming_counts_and_keeps_ties(density: float, kept: list[float]):
    assert trim(torch.tensor([3.0, -2.0, 2.0, 1.0]), density).tolist() == kept


@pytest.mark.parametrize(
    ("density", "gamma", "kept"),
    [
        (0.5, 0.25, [0.0, 4.0, -2.0, 0.0]),  # 9 is the outlier, 0.5 the smallest
        (0.5, 0.0, [9.0, 4.0, 0.0, 0.0]),
        (0.5, 0.5, [0.0, 0.0, -2.0, 0.5]),
        (0.75, 0.5, [0.0, 4.0, -2.0, 0.5]),  # 0.75 + 0.5 > 1: one outlier goes, not two
        (0.25, 0.2, [9.0, 0.0, 0.0, 0.0]),  # 0.2 of four is none
        (0.2, 0.25, [0.0, 0.0, 0.0, 0.0]),  # and so is what would be kept
        (1.0, 0.5, [9.0, 4.0, -2.0, 0.5]),  # whole: outliers too
    ],
)
def test_breadcrumbs_worked_examples(density: float, gamma: float, kept: list[float]):
    delta = torch.tensor([9.0, 4.0, -2.0, 0.5])
    assert trim_with_outliers(delta, density, gamma).tolist() == kept
    merged = breadcrumbs([BASE + delta], BASE, weight=[2.0], density=[density], gamma=[gamma])
    assert (merged - BASE).tolist() == [2 * entry for entry in kept]


def test_breadcrumbs_ties_worked_example():
    # thinned: [0, 4, -2, 0] and [0, -1, -3, 0]; sums [0, 3, -5, 0]; the -1 is outvoted
    first = BASE + torch.tensor([9.0, 4.0, -2.0, 0.5])
    second = BASE + torch.tensor([8.0, -1.0, -3.0, 0.25])
    keywords = {"weight": [1.0, 1.0], "density": [0.5, 0.5], "gamma": [0.25, 0.25]}
    merged = breadcrumbs_ties([first, second], BASE, **keywords)
    assert (merged - BASE).tolist() == [0.0, 4.0, -5.0, 0.0]
    merged = breadcrumbs_ties([first, second], BASE, normalize=True, **keywords)
    assert (merged - BASE).tolist() == [0.0, 4.0, -2.5, 0.0]


@pytest.mark.parametrize("method", [ties, breadcrumbs, breadcrumbs_ties])
def test_entries_at_the_threshold_do_not_depend_on_their_position(method):
    # 3 and 2 occur often: any order of the entries gives the same merge of the same entries
    delta = torch.tensor([3.0, 2.0, 2.0, -2.0, 3.0, 1.0, 2.0, -3.0])
    for order in itertools.islice(itertools.permutations(range(8)), 0, None, 997):
        turn = torch.tensor(order)
        straight = method([delta], torch.zeros(8), weight=[1.0], density=[0.5], **_gamma(method))
        turned = method(
            [delta[turn]], torch.zeros(8), weight=[1.0], density=[0.5], **_gamma(method)
        )
        assert torch.equal(turned, straight[turn])


def _gamma(method: object) -> dict[str, list[float]]:
    return {} if method is ties else {"gamma": [0.13]}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_against_float64(normalize: bool, rescale: bool):
    tensors, base = random_models(3)
    weight, density, gamma = [0.7, -0.2, 0.6], [0.15, 0.6, 1.0], [0.05, 0.5, 0.1]
    deltas = [array(tensor - base) for tensor in tensors]

    def expected(thinned: list, vote: bool) -> Tensor:
        if rescale:
            thinned = [
                merge_references.rescaled(k, d) for k, d in zip(thinned, deltas, strict=True)
            ]
        unite = merge_references.vote if vote else merge_references.linear
        return torch.from_numpy(array(base) + 1.3 * unite(thinned, weight, normalize))

    keywords = {
        "weight": weight,
        "density": density,
        "normalize": normalize,
        "rescale": rescale,
        "lambda_": 1.3,
    }
    trimmed = [merge_references.trim(d, s) for d, s in zip(deltas, density, strict=True)]
    assert_rounded(ties(tensors, base, **keywords), expected(trimmed, vote=True), ulps=2)
    thinned = [
        merge_references.breadcrumbs(d, s, g)
        for d, s, g in zip(deltas, density, gamma, strict=True)
    ]
    assert_rounded(
        breadcrumbs(tensors, base, gamma=gamma, **keywords), expected(thinned, vote=False), ulps=2
    )
    assert_rounded(
        breadcrumbs_ties(tensors, base, gamma=gamma, **keywords),
        expected(thinned, vote=True),
        ulps=2,
    )
