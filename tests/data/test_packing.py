"""Packing loses no token, and knows where documents end."""

from __future__ import annotations

import numpy as np

from toolkit.data.packing import IGNORED, cut, pack_best_fit


def test_worked_example():
    # Block of 4. Documents of 5, 3 and 3 tokens have 4, 2 and 2 targets: two full blocks.
    packed = pack_best_fit([[1, 2, 3, 4, 5], [6, 7, 8], [9, 10, 11]], 4, pad=0)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4], [6, 7, 9, 10]]
    assert packed.labels.tolist() == [[2, 3, 4, 5], [7, 8, 10, 11]]
    assert packed.segments.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]


def test_padding_has_no_target():
    packed = pack_best_fit([[1, 2]], 3, pad=0)
    assert packed.labels.tolist() == [[2, IGNORED, IGNORED]]
    assert packed.segments.tolist() == [[0, -1, -1]]


def test_every_token_is_a_target_exactly_once():
    chance = np.random.default_rng(0)
    token, documents = 1, []
    for length in chance.integers(2, 40, size=50):
        documents.append(list(range(token, token + int(length))))
        token += int(length)
    packed = pack_best_fit(documents, 16, pad=0)
    targets = sorted(packed.labels[packed.labels != IGNORED].tolist())
    assert targets == sorted(t for document in documents for t in document[1:])
    # Each target follows its own input: no pair crosses a document's end.
    real = packed.labels != IGNORED
    assert (packed.labels[real] == packed.input_ids[real] + 1).all()


def test_best_fit_wastes_little():
    documents = [list(range(n)) for n in (17, 11, 7, 9, 9, 5)]  # 16+10+6+8+8+4 = 52 targets
    assert len(pack_best_fit(documents, 16, pad=0).labels) == 4  # the fewest that could hold 52


def test_cut_of_a_single_token_is_empty():
    assert cut([5], 4) == []
