"""Intervals cover as they say; the same seed gives the same figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toolkit.statistics.document_bootstrap import (
    bits_per_byte,
    bootstrap_ratios,
    percentile_interval,
    resample_counts,
    upper_bound,
)


def test_worked_example():
    # 8 nats·ln2 over 4 bytes and 4 over 4: 12 bits over 8 bytes
    assert bits_per_byte([8 * math.log(2), 4 * math.log(2)], [4, 4]) == pytest.approx(1.5)


def test_resamples_draw_as_many_documents_as_there_are():
    counts = resample_counts(7, 50, seed=1)
    assert (counts.sum(axis=1) == 7).all()
    assert (counts == resample_counts(7, 50, seed=1)).all()


def test_a_resample_is_the_ratio_of_its_documents():
    counts = np.array([[2.0, 0.0], [1.0, 1.0]])
    ratios = bootstrap_ratios([math.log(2), 3 * math.log(2)], [1.0, 2.0], counts)
    assert ratios == pytest.approx([1.0, 4.0 / 3.0])


def test_intervals_cover_as_they_say():
    # Documents differ in length and in bits per byte; the truth is the ratio of expectations.
    chance = np.random.default_rng(5)
    truth, covered, below = 0.8, 0, 0
    studies = 400
    for study in range(studies):
        size = chance.uniform(500, 3000, size=40)
        nats = size * math.log(2) * (truth + chance.normal(0, 0.15, size=40))
        draws = bootstrap_ratios(nats, size, resample_counts(40, 400, seed=study))
        interval = percentile_interval(bits_per_byte(nats, size), draws)
        covered += interval.low <= truth <= interval.high
        below += truth <= upper_bound(draws)
    # 95 % within three standard errors of a proportion, less the known shortfall of the
    # percentile bootstrap at 40 documents (about 1 %).
    error = 3 * math.sqrt(0.95 * 0.05 / studies)
    assert 0.94 - error <= covered / studies <= 0.95 + error
    assert 0.94 - error <= below / studies <= 0.95 + error
