"""The race: what may be concluded from part of the documents, and what it costs and loses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from toolkit.search.config import RaceSection
from toolkit.statistics.interval import normal_quantile, student_quantile
from toolkit.statistics.sampled_differences import (
    Difference,
    combine,
    guided_difference,
    is_out,
    paired_difference,
    spending,
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
    # Three questions: the general loss, the best plain mean, the mean of the same general loss.
    assert 3 * len(looks) * spending(0.05, len(looks)) == pytest.approx(0.05)
    assert normal_quantile(0.975) == pytest.approx(1.95996, abs=1e-4)


CANDIDATES, DOCUMENTS, STUDIES = 24, 80, 100


def study(seed: int, *, guided: bool) -> tuple[float, bool, bool]:
    """One made-up study: merges along a parabola, some of them from worse methods, documents that
    are unequally hard and unequally moved. Returns the share of tokens, whether the race chose as
    full scoring does, and whether full scoring cannot tell its choice from the best."""
    chance = np.random.default_rng(seed)
    place = np.concatenate([[1.0, 0.9, 0.8, 0.6, 0.4, 0.2], chance.uniform(0.1, 1.2, 18)])
    worse = chance.exponential(0.003, CANDIDATES) * chance.integers(0, 2, CANDIDATES)
    mean = 0.14 * (place - 0.85) ** 2 + worse
    moved = chance.lognormal(0.0, 0.5, DOCUMENTS)
    own = chance.normal(0.0, 0.004, (CANDIDATES, DOCUMENTS)) * (0.3 + place[:, None])
    hard = chance.lognormal(0.0, 0.3, DOCUMENTS)
    losses = hard + mean[:, None] * moved + own
    guide = losses[0] - hard - 0.14 * 0.85**2 * moved if guided else None
    section = RaceSection()
    spend = spending(section.error, len(section.looks))
    ahead = normal_quantile(1.0 - 0.025 / (CANDIDATES - 1))

    best, scored = 0, 2 * DOCUMENTS  # general model and specialist are scored in full
    for candidate in range(1, CANDIDATES):
        for look in section.looks:
            seen = math.ceil(look * DOCUMENTS)
            part = difference(losses[candidate, :seen], losses[best, :seen], guide, ahead)
            if is_out(part, 0.0, ahead, spend):
                scored += seen
                break
        else:
            scored += DOCUMENTS
            if losses[candidate].mean() < losses[best].mean():
                best = candidate
    first = int(losses.mean(axis=1).argmin())
    last = difference(losses[best], losses[first], None)
    tied = last.estimate <= 1.96 * math.sqrt(last.variance)
    return scored / (DOCUMENTS * (CANDIDATES + 1)), best == first, tied


def difference(losses: Any, reference: Any, guide: Any, quantile: float = 0.0) -> Difference:
    sizes, groups, seen = np.ones(DOCUMENTS), np.arange(DOCUMENTS), len(losses)
    if guide is not None:
        return guided_difference(losses, reference, guide, sizes, groups, 1.0, quantile)
    return paired_difference(losses, reference, sizes[:seen], groups[:seen], DOCUMENTS)


@pytest.mark.parametrize("guided", [False, True])
def test_a_third_of_the_tokens_for_the_same_choice(guided: bool):
    studies = np.array([study(seed, guided=guided) for seed in range(STUDIES)], dtype=float)
    tokens, same, tied = studies.mean(axis=0)
    assert tokens <= 1 / 3
    assert tied >= 0.95
    assert same >= 0.5


LIKENESS = [None, 0.0, 0.7, 0.97]
"""Of a candidate's pattern to the guide's, as a correlation; None goes without a guide."""


@pytest.mark.parametrize("likeness", LIKENESS)
@pytest.mark.parametrize("rivals", [1, 23])
@pytest.mark.parametrize("tail", [0.0, 0.5])
def test_one_that_is_better_is_rarely_lost(rivals: int, likeness: float | None, tail: float):
    """Just as far ahead after full scoring as counts for better: it may not be lost more often than
    the error says, over all looks; also where documents are unequally moved (lognormal)."""
    lost, ahead = 0, normal_quantile(1.0 - 0.025 / rivals)
    section = RaceSection()
    spend = spending(section.error, len(section.looks))
    for seed in range(400):
        chance = np.random.default_rng(seed)
        guide, other = chance.normal(0.0, 1.0, (2, DOCUMENTS)) * chance.lognormal(
            0.0, tail, DOCUMENTS
        )
        share = likeness or 0.0
        change = share * guide + math.sqrt(1.0 - share**2) * other
        change -= change.mean() + 1.02 * ahead * change.std() / math.sqrt(DOCUMENTS)
        for look in section.looks:
            seen = math.ceil(look * DOCUMENTS)
            pattern = None if likeness is None else guide
            part = difference(change[:seen], np.zeros(seen), pattern, ahead)
            if is_out(part, 0.0, ahead, spend):
                lost += 1
                break
    assert lost / 400 <= 0.05


@pytest.mark.parametrize("tail", [0.0, 0.5])
def test_one_within_the_tolerance_is_rarely_lost(tail: float):
    """The same for general sets: a bound that full scoring leaves just within."""
    section, lost, documents = RaceSection(), 0, 24
    spend = spending(section.error, 3)
    quantile = student_quantile(0.95, documents - 1)
    for seed in range(400):
        chance = np.random.default_rng(seed)
        guide = chance.lognormal(0.0, 0.1 + tail, documents)
        change = 0.4 * guide + chance.normal(0.0, 0.1, documents) * guide
        sizes, groups = np.ones(documents), np.arange(documents)
        whole = paired_difference(change, np.zeros(documents), sizes, groups, documents)
        limit = 1.001 * (whole.estimate + quantile * math.sqrt(whole.variance))
        for seen in (6, 9, 15):
            known = change[:seen], np.zeros(seen)
            part = guided_difference(*known, guide, sizes, groups, 1.0, quantile)
            if is_out(part, limit, quantile, spend):
                lost += 1
                break
    assert lost / 400 <= 0.05


def test_a_pattern_known_of_all_documents_tells_of_those_not_seen():
    # Half the guide and a little: seen are 1, 2, 3, 4, of all the guide's mean is 4.5.
    guide, sizes, groups = np.arange(1.0, 9.0), np.ones(8), np.arange(8)
    change = 0.5 * guide[:4] + np.array([0.1, -0.1, -0.1, 0.1])
    found = guided_difference(change, np.zeros(4), guide, sizes, groups)
    # slope 0.5 as the rest is even about the middle; mean 1.25 + 0.5 · (4.5 - 2.5)
    assert found.estimate == pytest.approx(2.25)
    # Errors ±0.1, leverages 0.7, 0.3, 0.3, 0.7; four not seen, each an eighth of all, on average
    # 4 beyond the mean of those seen: they hang on each by 0.5 · (1/4 + 4 · spread / 5).
    hang = 0.5 * (0.25 + 0.8 * np.array([-1.5, -0.5, 0.5, 1.5]))
    own = float(np.square(hang * 0.1 / np.array([0.3, 0.7, 0.7, 0.3])).sum())
    # Their own scatter rises with the guide: 0.04 / 30 for each square of it.
    ahead = 0.04 / 30 * (5**2 + 6**2 + 7**2 + 8**2) / 64
    assert ahead > 0.02 * 4 / 64
    assert found.still_open == pytest.approx(own + ahead)
    assert own + ahead > 0.02 * (0.125 + 0.8)  # the straight line's own answer
    # After full scoring: (0.25 · 42 + 8 · 0.02) · 8/7 / 8².
    assert found.in_the_end == pytest.approx((0.25 * 42 + 0.16) * 8 / 7 / 64)
    assert found.freedom == 2
    everything = guided_difference(0.5 * guide, np.zeros(8), guide, sizes, groups)
    assert everything == paired_difference(0.5 * guide, np.zeros(8), sizes, groups, 8)


def test_two_documents_tell_as_much_as_they_are_like_the_guide():
    # Moved by 1 and 1.5 where the guide says 2 and 3: half of it, and the guide's mean is 4.
    guide, sizes, groups = np.array([2.0, 3.0, 5.0, 6.0]), np.ones(4), np.arange(4)
    found = guided_difference([1.0, 1.5], [0.0, 0.0], guide, sizes, groups)
    assert found.estimate == pytest.approx(2.0)
    assert found.still_open == pytest.approx(0.0)
    assert found.freedom == 1
    # By 1 and 1: two fifths, with errors 0.2 and -0.2, of which what half has not shown is open:
    # 2 · 0.08 / 5² · 4² · (1 - 2/4).
    apart = guided_difference([1.0, 1.0], [0.0, 0.0], guide, sizes, groups)
    assert apart.estimate == pytest.approx(1.6)
    assert apart.still_open == pytest.approx(0.0512)
    # After full scoring: 0.4 of -2, -1, 1 and 2 around the mean, and four times the scatter.
    assert apart.in_the_end == pytest.approx((0.16 * 10 + 4 * 0.08) * 4 / 3 / 16)
    # Where the guide of the rest is quite another, two documents say nothing of it.
    for other in ([2.0, 3.0, 50.0, 60.0], [2.0, 3.0, -5.0, -6.0], [1.0, -1.0, 5.0, 6.0]):
        part = guided_difference([1.0, 1.5], [0.0, 0.0], other, sizes, groups)
        assert part == paired_difference([1.0, 1.5], [0.0, 0.0], sizes[:2], groups[:2], 4)


def test_groups_of_a_guide_stay_together():
    # Two items a group: as if each group were one item of twice the size.
    guide, change = np.array([1.0, 3.0, 2.0, 5.0, 4.0, 7.0]), np.array([1.1, 2.0, 1.0, 2.9])
    pairs = np.repeat(np.arange(6), 2)
    split = guided_difference(
        np.repeat(change, 2) / 2, np.zeros(8), np.repeat(guide, 2) / 2, np.ones(12), pairs
    )
    whole = guided_difference(change, np.zeros(4), guide, 2 * np.ones(6), np.arange(6))
    assert split.estimate == pytest.approx(whole.estimate)
    assert split.variance == pytest.approx(whole.variance)
    assert split.still_open == pytest.approx(whole.still_open)
