"""sce, nearswap, arcee_fusion, ram, ramplus_tl: worked by hand, and against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.helpers import merge_references
from tests.helpers.merge_references import array, assert_rounded, random_models
from toolkit.merge.methods import pairs
from toolkit.merge.methods.pairs import arcee_fusion, nearswap
from toolkit.merge.methods.ram import ram, ramplus_tl
from toolkit.merge.methods.sce import sce

BASE = torch.tensor([1.0, 1.0, 1.0, 1.0])


def test_sce_worked_example():
    # task vectors [4, 2, 0, 0] and [2, -2, 0, 0]: mean squares 5 and 2, shares 5/7 and 2/7
    # signs of the sums [6, 0, 0, 0] are +; the second's -2 is erased
    # [(5·4 + 2·2) / 7, 2, 0, 0]
    first = BASE + torch.tensor([4.0, 2.0, 0.0, 0.0])
    second = BASE + torch.tensor([2.0, -2.0, 0.0, 0.0])
    merged = sce([first, second], BASE)
    assert_rounded(merged, BASE + torch.tensor([24 / 7, 2.0, 0.0, 0.0]), ulps=1)
    # variances [1, 4, 0, 0]: half of the two that vary is one, the second entry;
    # what is left are [0, 2, 0, 0] and [0, -2, 0, 0], whose sum 0 counts as +
    merged = sce([first, second], BASE, select_topk=0.5)
    assert (merged - BASE).tolist() == [0.0, 2.0, 0.0, 0.0]


def test_sce_weighs_small_changes_only_where_asked():
    # mean squares of 5e-8 and 2e-8 sum to less than mergekit's 1e-6, so both models count half
    zero = torch.zeros(4)
    small = 2.0**-13
    first = torch.tensor([4.0, 2.0, 0.0, 0.0]) * small
    second = torch.tensor([2.0, -2.0, 0.0, 0.0]) * small
    halves = sce([first, second], zero)
    assert (halves / small).tolist() == [3.0, 2.0, 0.0, 0.0]
    weighed = sce([first, second], zero, equal_below=0.0)
    assert_rounded(weighed / small, torch.tensor([24 / 7, 2.0, 0.0, 0.0]), ulps=1)


def test_sce_keeps_all_entries_at_the_threshold():
    # three entries vary alike; a third of three is one, and all three stay
    first, second = torch.tensor([1.0, 3.0, 5.0, 2.0]), torch.tensor([3.0, 5.0, 7.0, 2.0])
    merged = sce([first, second], torch.zeros(4), select_topk=0.34)
    assert (merged != 0).tolist() == [True, True, True, False]


def test_nearswap_worked_example():
    # within t of the base the other's entry; beyond, t of the way towards it
    other = BASE + torch.tensor([0.25, -0.5, 4.0, 0.0])
    assert nearswap([other], BASE, t=0.5).tolist() == [1.25, 0.5, 1.5, 1.0]
    assert nearswap([other], BASE, t=0.0).tolist() == BASE.tolist()
    assert nearswap([other], BASE, t=9.0).tolist() == other.tolist()


def test_arcee_fusion_worked_example():
    # Rows of two: softmax([0, 0]) is [½, ½], softmax([0, ln 3]) is [¼, ¾]; their divergence is
    # ¼ ln ½ + ¾ ln 1.5 = 0.131. Importances [0, 0.131·ln 3] in the first row, 0 in the others; of
    # the eight, sorted, numbers 1, 3 and 5 counted from 0 are 0, so that the threshold is 0 and
    # everything is taken.
    base = torch.zeros(4, 2)
    other = base.clone()
    other[0, 1] = math.log(3.0)
    assert merge_references.importance(array(other), array(base))[0, 1] == pytest.approx(
        (0.25 * math.log(0.5) + 0.75 * math.log(1.5)) * math.log(3.0), abs=1e-7
    )
    assert torch.equal(arcee_fusion([other], base), other)
    # One row, whose divergence is common to all: importances go as 0 .. 7. Quartiles at
    # int(0.25·7) = 1, int(0.5·7) = 3, int(0.75·7) = 5: threshold 3 + 1.5·(5 - 1) = 9, more than
    # any; with an eighth entry of 40 instead of 7 that one alone is taken.
    base = torch.zeros(8)
    assert torch.equal(arcee_fusion([torch.arange(8.0)], base), base)
    other = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 40.0])
    assert arcee_fusion([other], base).tolist() == [0.0] * 7 + [40.0]
    # what is exactly at the threshold is taken: 2 + 1.5·(2 - 2)
    other = torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0])
    assert arcee_fusion([other], base[:5]).tolist() == [0.0, 2.0, 2.0, 2.0, 2.0]


def test_arcee_fusion_looks_at_every_entry(monkeypatch: pytest.MonkeyPatch):
    # above a million entries mergekit samples; here the rows come in blocks, and nothing changes
    (other,), base = random_models(1)
    whole = arcee_fusion([other], base)
    monkeypatch.setattr(pairs, "BLOCK", 40)
    assert torch.equal(arcee_fusion([other], base), whole)
    assert not torch.equal(whole, base)


def test_arcee_fusion_measures_small_changes():
    # In float32 these divergences are rounding errors, of either sign; here the row that moved
    # more is the more important, and the choice is that of float64.
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 64, generator=generator)
    other = base + 1e-4 * torch.randn(64, 64, generator=generator)
    assert_rounded(
        arcee_fusion([other], base),
        merge_references.arcee_fusion(array(other), array(base)),
        ulps=1,
    )


def test_ram_worked_example():
    # [4, 0, 6, 0] and [2, 3, 0, 0]: the first entry is shared, so averaged; the others are whole
    first = BASE + torch.tensor([4.0, 0.0, 6.0, 0.0])
    second = BASE + torch.tensor([2.0, 3.0, 0.0, 0.0])
    assert (ram([first, second], BASE) - BASE).tolist() == [3.0, 3.0, 6.0, 0.0]
    # changes of up to 2 count as none
    merged = ram([first, second], BASE, epsilon=2.0)
    assert (merged - BASE).tolist() == [4.0, 3.0, 6.0, 0.0]


def test_ramplus_worked_example():
    # first model: 1 shared, 1 unique; second: 1 shared, 2 unique. With r 0.5 and alpha 0.75 their
    # unique entries are multiplied by 1 + 0.5·0.75 (the ratio 1 is cut) and 1 + 0.5·0.5.
    first = BASE + torch.tensor([4.0, 8.0, 0.0, 0.0])
    second = BASE + torch.tensor([2.0, 0.0, 4.0, -4.0])
    merged = ramplus_tl([first, second], BASE, r=0.5, alpha=0.75)
    assert (merged - BASE).tolist() == [3.0, 11.0, 5.0, -5.0]
    # nothing unique: nothing to scale
    both = ramplus_tl([first, first], BASE, r=0.5, alpha=0.75)
    assert torch.equal(both, first)


@pytest.mark.parametrize("seed", range(3))
def test_against_float64(seed: int):
    tensors, base = random_models(3, seed=seed)
    xs, origin = [array(tensor) for tensor in tensors], array(base)
    for share in (1.0, 0.5, 0.1, 0.0):
        assert_rounded(
            sce(tensors, base, select_topk=share), merge_references.sce(xs, origin, share), ulps=1
        )
    for t in (0.0, 0.01, 0.05, 1.0):
        assert_rounded(
            nearswap(tensors[:1], base, t=t), merge_references.nearswap(xs[0], origin, t), ulps=2
        )
    fused = merge_references.arcee_fusion(xs[0], origin)
    assert 0 < (fused != origin).sum() < fused.size / 2
    assert_rounded(arcee_fusion(tensors[:1], base), fused, ulps=1)
    for epsilon in (0.0, 0.03, 0.06):
        assert_rounded(
            ram(tensors, base, epsilon=epsilon), merge_references.ram(xs, origin, epsilon), ulps=1
        )
        assert_rounded(
            ramplus_tl(tensors, base, r=0.4, alpha=0.9, epsilon=epsilon),
            merge_references.ram(xs, origin, epsilon, r=0.4, alpha=0.9),
            ulps=1,
        )


def test_the_data_of_these_tests_are_exact():
    # what `random_models` promises, on which the other tests stand
    tensors, base = random_models(2)
    for tensor in tensors:
        exact = array(tensor) - array(base)
        assert np.array_equal(array(tensor - base), exact)
        assert len(np.unique(np.abs(exact))) == exact.size
