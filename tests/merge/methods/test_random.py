"""dare and della: masks against float64, means, and what the random numbers depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.helpers import merge_references
from tests.helpers.merge_references import array, assert_rounded, merge, random_models
from toolkit.merge.methods.dare import dare_linear
from toolkit.merge.methods.della import della_linear
from toolkit.merge.methods.sparsify import drop_at_random, drop_by_rank, relative_rank

NAMES = ["dare_linear", "dare_ties", "della", "della_linear"]
WEIGHT, DENSITY = [0.7, -0.2, 0.6], [0.3, 0.8, 0.5]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_dare_worked_example():
    # Entries whose number is below 0.5 stay; of 1 + 2 + 3 + 4 the rest is scaled up to 10.
    draw = torch.rand(4, generator=seeded(5))
    kept = [entry for entry, u in zip([1.0, 2.0, 3.0, 4.0], draw.tolist(), strict=True) if u < 0.5]
    assert 0 < len(kept) < 4
    delta = torch.tensor([1.0, 2.0, 3.0, 4.0])
    merged = dare_linear([delta], torch.zeros(4), generator=seeded(5), weight=[1.0], density=[0.5])
    assert_rounded(merged, torch.where(draw < 0.5, delta, 0.0) * (10.0 / sum(kept)), ulps=1)
    plain = drop_at_random(delta, 0.5, seeded(5), rescale=False)
    assert torch.equal(plain, torch.where(draw < 0.5, delta, 0.0))


def test_della_worked_example():
    # ranks of [4, 1, -2, 1]: the ones tie for ranks 0 and 1, -2 has 2, 4 has 3; divided by 3.
    # density 0.5 and epsilon 0.3: keep with 0.2 + 0.6·[1, 1/6, 2/3, 1/6] = [0.8, 0.3, 0.6, 0.3]
    delta = torch.tensor([4.0, 1.0, -2.0, 1.0])
    assert_rounded(relative_rank(delta.abs()), torch.tensor([1.0, 1 / 6, 2 / 3, 1 / 6]), ulps=1)
    draw = torch.rand(4, generator=seeded(1))
    kept = drop_by_rank(delta, 0.5, 0.3, seeded(1), rescale=False)
    probability = torch.tensor([0.8, 0.3, 0.6, 0.3])
    assert kept.tolist() == torch.where(draw < probability, delta, 0.0).tolist()


def test_ranks_run_along_dimension_one():
    rows = torch.tensor([[3.0, 1.0, 2.0], [10.0, 30.0, 20.0]])
    assert relative_rank(rows).tolist() == [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]
    stacked = torch.tensor([[[1.0, 5.0], [2.0, 4.0]]])  # columns of each matrix, as in mergekit
    assert relative_rank(stacked).tolist() == [[[0.0, 1.0], [1.0, 0.0]]]


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_rows_of_equal_entries_are_kept_at_the_density(value: float):
    # mergekit's ranks would be an accident of sorting; and one entry alone has 0/0 there
    assert relative_rank(torch.full((2, 4), value)).tolist() == [[0.5] * 4] * 2
    assert relative_rank(torch.full((3, 1), value)).tolist() == [[0.5]] * 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_against_float64(name: str, normalize: bool, rescale: bool):
    tensors, base = random_models(3)
    deltas = [array(tensor - base) for tensor in tensors]
    generator, epsilon = seeded(11), [0.1, 0.15, 0.4]
    thinned = []
    for delta, share, spread in zip(deltas, DENSITY, epsilon, strict=True):
        draw = array(torch.rand(base.shape, generator=generator))
        probability = (
            merge_references.keep_probability(delta, share, spread)
            if name.startswith("della")
            else share
        )
        kept = delta * (draw < probability)
        thinned.append(merge_references.rescaled(kept, delta) if rescale else kept)
    unite = merge_references.linear if name.endswith("linear") else merge_references.vote
    merged = merge(
        name,
        tensors,
        base,
        generator=seeded(11),
        weight=WEIGHT,
        density=DENSITY,
        normalize=normalize,
        rescale=rescale,
        lambda_=0.9,
        **({"epsilon": epsilon} if name.startswith("della") else {}),
    )
    expected = array(base) + 0.9 * unite(thinned, WEIGHT, normalize)
    assert_rounded(merged, expected, ulps=2)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_merge_and_another_another(name: str):
    tensors, base = random_models(2)

    def once(seed: int) -> Tensor:
        torch.rand(seed)  # the global generator must not matter
        return merge(name, tensors, base, generator=seeded(seed), density=[0.5, 0.5])

    assert torch.equal(once(3), once(3))
    assert not torch.equal(once(3), once(4))


@pytest.mark.parametrize("name", NAMES)
def test_a_models_mask_depends_neither_on_other_models_nor_on_values(name: str):
    # The second model's part is the same whatever the density and the values of the first.
    tensors, base = random_models(2)
    weight = {"weight": [0.0, 1.0], "normalize": False, "rescale": False}
    parts = [
        merge(name, [first, tensors[1]], base, density=[share, 0.5], **weight)
        for first, share in [(tensors[0], 0.5), (base, 1.0), (tensors[1], 0.0), (base, 0.3)]
    ]
    assert all(torch.equal(parts[0], part) for part in parts[1:])


def test_masks_of_lower_density_lie_within_those_of_higher():
    # The same numbers are compared with the density, so that a search moves smoothly.
    delta = torch.ones(1000)
    low = drop_at_random(delta, 0.3, seeded(0), rescale=False)
    high = drop_at_random(delta, 0.6, seeded(0), rescale=False)
    assert ((low == 0) | (high != 0)).all()
    assert low.sum() < high.sum()


@pytest.mark.parametrize("thin", ["dare", "della"])
def test_without_rescaling_the_mean_is_the_keep_probability_times_the_entry(thin: str):
    # Over N seeds each entry's share kept has standard deviation sqrt(p(1-p)/N); six of them.
    delta = torch.tensor([4.0, -1.0, 2.0, 0.5, 3.0])
    number = 4000
    generator = seeded(0)
    total = torch.zeros(5)
    for _ in range(number):
        if thin == "dare":
            total += drop_at_random(delta, 0.4, generator, rescale=False)
        else:
            total += drop_by_rank(delta, 0.4, 0.2, generator, rescale=False)
    rank = torch.tensor([4.0, 1.0, 2.0, 0.0, 3.0]) / 4
    probability = torch.full((5,), 0.4) if thin == "dare" else 0.2 + 0.4 * rank
    spread = 6 * (probability * (1 - probability) / number).sqrt()
    assert ((total / number / delta - probability).abs() < spread).all()
    assert (spread < 0.05).all()  # the test could tell 0.4 from 0.5


def test_rescaled_dare_is_unbiased_for_a_large_tensor():
    # Restoring the sum of magnitudes is dividing by the density up to 1/sqrt(n): averaged over
    # seeds, an entry comes back to itself within six standard errors of sqrt((1-p)/p/N).
    delta = torch.linspace(0.5, 1.5, 2000) * torch.tensor([1.0, -1.0]).repeat(1000)
    generator, number = seeded(0), 400
    total = torch.zeros(2000)
    for _ in range(number):
        total += drop_at_random(delta, 0.5, generator, rescale=True)
    error = total / number / delta - 1.0
    assert error.abs().max() < 6 / math.sqrt(number)
    assert abs(float(error.mean())) < 6 / math.sqrt(number * 2000)


@pytest.mark.parametrize("linear", [dare_linear, della_linear])
def test_rescaling_restores_the_sum_of_magnitudes(linear):
    (tensor,), base = random_models(1)
    zero = torch.zeros_like(base)
    merged = linear(
        [tensor], zero, generator=seeded(2), weight=[1.0], density=[0.4], **_eps(linear)
    )
    assert 0.2 < float((merged != 0).float().mean()) < 0.6
    expected = float(tensor.abs().sum(dtype=torch.float64))
    assert float(merged.abs().sum(dtype=torch.float64)) == pytest.approx(expected, rel=1e-6)


def _eps(linear: object) -> dict[str, list[float]]:
    return {"epsilon": [0.1]} if linear is della_linear else {}
