"""The race: what may be concluded from part of the documents, and what it costs and loses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toolkit.search.config import RaceSection
from toolkit.search.race import (
    Difference,
    combine,
    is_out,
    paired_difference,
    spending,
    sure_side,
)


def test_worked_example():
    # Losses 3, 5 against 2, 2 over sizes 1, 3: difference (1 + 3) / 4 = 1, residuals
    # 1 - 1·1 = 0 and 3 - 1·3 = 0: both documents say the same, so there is no variance.
    found = paired_difference([3.0, 5.0], [2.0, 2.0], [1.0, 3.0], np.array([0, 1]), 10)
    assert found == Difference(1.0, 0.0, 2, 10)


def test_items_of_one_group_count_as_one():
    # Differences 0, 2 | 1, 3 in two groups of two, sizes 1: mean 1.5, residual sums
    # (0 + 2) - 1.5·2 = -1 and (1 + 3) - 3 = 1: 2/1 · (1 + 1) / 4² = 0.25.
    groups = np.array([0, 0, 1, 1])
    found = paired_difference([0.0, 2.0, 1.0, 3.0], [0.0] * 4, [1.0] * 4, groups, 4)
    assert found == Difference(1.5, 0.25, 2, 4)


def test_what_is_still_open_and_what_will_remain():
    half = Difference(0.0, 4.0, 10, 40)
    assert half.still_open == 3.0  # of 10 documents against the endless many, 10 of 40 are known
    assert half.in_the_end == 1.0  # four times as many documents: a quarter of the variance


def test_variances_of_sets_are_added():
    one, two = Difference(0.2, 0.04, 10, 20), Difference(0.4, 0.16, 10, 20)
    both = combine([one, two], [1.0, 3.0])
    assert both.estimate == pytest.approx(0.2 / 4 + 3 * 0.4 / 4)
    assert both.variance == pytest.approx(0.04 / 16 + 9 * 0.16 / 16)
    assert both.still_open == pytest.approx(both.variance / 2)
    assert combine([one], [5.0]) is one


def test_a_tie_stays_until_it_cannot_be_won_any_more():
    # Equal so far. It must come to 1.96 errors ahead; with few seen much may still happen.
    spend = spending(0.05, 5)
    outcomes = [
        is_out(Difference(0.0, 1.0 / seen, seen, 100), 0.0, 1.96, spend) for seen in range(5, 100)
    ]
    assert not any(outcomes[:40])
    assert all(outcomes[-20:])
    assert outcomes == sorted(outcomes)


def test_with_few_documents_nothing_is_concluded():
    assert not is_out(Difference(1.0, 1e-12, 4, 40), 0.0, 1.96, 0.01)
    assert not is_out(Difference(1.0, math.inf, 1, 40), 0.0, 1.96, 0.01)
    assert is_out(Difference(1.0, 1e-12, 5, 40), 0.0, 1.96, 0.01)


def test_spending_is_shared_over_looks_and_questions():
    looks = RaceSection().looks
    assert 2 * len(looks) * spending(0.05, len(looks)) == pytest.approx(0.05)
    assert sure_side(0.975) == pytest.approx(1.95996, abs=1e-4)


CANDIDATES, DOCUMENTS, STUDIES = 24, 80, 100


def study(seed: int) -> tuple[float, bool, bool]:
    """One made-up study: merges along a parabola, some of them from worse methods, documents that
    are unequally hard and unequally moved. Returns the share of tokens, whether the race chose as
    full scoring does, and whether full scoring cannot tell its choice from the best."""
    chance = np.random.default_rng(seed)
    place = np.concatenate([[1.0, 0.9, 0.8, 0.6, 0.4, 0.2], chance.uniform(0.1, 1.2, 18)])
    worse = chance.exponential(0.003, CANDIDATES) * chance.integers(0, 2, CANDIDATES)
    mean = 0.14 * (place - 0.85) ** 2 + worse
    moved = chance.lognormal(0.0, 0.5, DOCUMENTS)
    own = chance.normal(0.0, 0.004, (CANDIDATES, DOCUMENTS)) * (0.3 + place[:, None])
    losses = chance.lognormal(0.0, 0.3, DOCUMENTS) + mean[:, None] * moved + own
    groups, sizes = np.arange(DOCUMENTS), np.ones(DOCUMENTS)
    section = RaceSection()
    spend = spending(section.error, len(section.looks))
    ahead = sure_side(1.0 - 0.025 / (CANDIDATES - 1))

    def difference(one: int, other: int, seen: int) -> Difference:
        pair = losses[one, :seen], losses[other, :seen]
        return paired_difference(*pair, sizes[:seen], groups[:seen], DOCUMENTS)

    best, scored = 0, 2 * DOCUMENTS  # general model and specialist are scored in full
    for candidate in range(1, CANDIDATES):
        for look in section.looks:
            seen = math.ceil(look * DOCUMENTS)
            if is_out(difference(candidate, best, seen), 0.0, ahead, spend):
                scored += seen
                break
        else:
            scored += DOCUMENTS
            if losses[candidate].mean() < losses[best].mean():
                best = candidate
    first = int(losses.mean(axis=1).argmin())
    last = difference(best, first, DOCUMENTS)
    tied = last.estimate <= 1.96 * math.sqrt(last.variance)
    return scored / (DOCUMENTS * (CANDIDATES + 1)), best == first, tied


def test_a_third_of_the_tokens_for_the_same_choice():
    studies = np.array([study(seed) for seed in range(STUDIES)], dtype=float)
    tokens, same, tied = studies.mean(axis=0)
    assert tokens <= 1 / 3
    assert tied >= 0.95
    assert same >= 0.5


@pytest.mark.parametrize("rivals", [1, 23])
def test_one_that_is_better_is_rarely_lost(rivals: int):
    """Just as far ahead after full scoring as counts for better: it may not be lost more often than
    the error says, over all looks."""
    lost, ahead = 0, sure_side(1.0 - 0.025 / rivals)
    section = RaceSection()
    spend = spending(section.error, len(section.looks))
    for seed in range(400):
        change = np.random.default_rng(seed).normal(0.0, 1.0, DOCUMENTS)
        change -= change.mean() + 1.02 * ahead * change.std() / math.sqrt(DOCUMENTS)
        zero, sizes = np.zeros(DOCUMENTS), np.ones(DOCUMENTS)
        for look in section.looks:
            seen = math.ceil(look * DOCUMENTS)
            part = paired_difference(
                change[:seen], zero[:seen], sizes[:seen], np.arange(seen), DOCUMENTS
            )
            if is_out(part, 0.0, ahead, spend):
                lost += 1
                break
    assert lost / 400 <= 0.05
