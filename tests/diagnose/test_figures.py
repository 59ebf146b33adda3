"""The figures of a diagnosis against numbers worked by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.families import UP, State, diagnose, ties
from toolkit.diagnose.sums import sum_tensor, zero_rows
from toolkit.errors import MergeError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.to_disk import run_merge


@pytest.fixture
def workers():
    return WorkerThreads(2)


def array(values: list[float], dtype: torch.dtype = torch.float32) -> Any:
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.view(torch.uint16).numpy() if dtype == torch.bfloat16 else tensor.numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_by_hand(workers: WorkerThreads, dtype: torch.dtype):
    base, a, b = [1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0], [2.0, 2.0, 4.0, 6.0]
    merge = [2.0, 1.0, 2.0, 1.0]
    # task vectors: a [1, -1, 2, 0], b [1, 1, 3, 5]; both move 3 entries, 2 of them the same way
    sums = sum_tensor([array(row, dtype) for row in (merge, a, b, base)], 3, workers)
    assert sums.entries == 4
    assert sums.squares.tolist() == [10.0, 14.0, 60.0, 4.0]
    assert sums.gaps[3].tolist() == [2.0, 6.0, 36.0, 0.0]
    assert sums.gaps[0].tolist() == [0.0, 2.0, 30.0, 2.0]
    assert sums.gaps[1, 2] == sums.gaps[2, 1] == 30.0
    assert (sums.both[1, 2], sums.same[1, 2], sums.both[1, 3]) == (3, 2, 0)
    assert not sums.non_finite.any()


def test_sums_of_many_entries_do_not_depend_on_threads():
    random = np.random.default_rng(0)
    rows = [random.normal(size=1_300_001).astype(np.float32) for _ in range(3)]
    rows[1][5], rows[2][1_300_000] = np.nan, np.inf
    found = []
    for threads in (1, 2):
        found.append(sum_tensor(rows, 0, WorkerThreads(threads)))
    assert found[0].non_finite.tolist() == found[1].non_finite.tolist() == [0, 1, 1]
    assert found[0].squares[0] == found[1].squares[0]
    assert found[0].squares[0] == pytest.approx(
        float((rows[0].astype(float) ** 2).sum()), rel=1e-13
    )
    deltas = [rows[m][6:-1] - rows[0][6:-1] for m in (1, 2)]
    clean = sum_tensor([row[6:-1] for row in rows], 0, WorkerThreads(1))
    assert clean.same[1, 2] == int(((deltas[0] > 0) == (deltas[1] > 0)).sum())


def test_zero_rows_by_hand(workers: WorkerThreads):
    assert zero_rows(array([0, 0, 0, -1, -0.0, 0]), (3, 2), workers).tolist() == [True, False, True]


def test_figures_by_hand(write: Callable[..., Path], family: dict[str, State], tmp_path: Path):
    """All tensors but one are equal; that one is [3, 4] and zeros in the base."""

    def with_pair(x: float, y: float) -> State:
        state = {name: torch.zeros_like(tensor) for name, tensor in family["base"].items()}
        state[UP][0, 0], state[UP][5, 3] = x, y
        return state

    write("base", with_pair(3, 4))
    write("a", with_pair(3, 8))
    write("b", with_pair(6, 4))
    found = diagnose(write("merge", with_pair(6, 8)), "a", "b")
    whole = found.whole
    assert whole.moved == pytest.approx(5 / 5)
    assert whole.task_norms == pytest.approx({"a": 4 / 5, "b": 3 / 5})
    assert whole.cosines["a", "b"] == pytest.approx(0.0, abs=1e-12)
    assert whole.agreement["a", "b"] is None  # no entry that both changed
    assert whole.scatter == pytest.approx(1.0)  # a and b lie 5 apart
    assert whole.distances == pytest.approx({"a": 3 / 5, "b": 4 / 5})
    assert whole.base_distance == pytest.approx(1.0)
    assert whole.aside == pytest.approx(0.0, abs=1e-6)
    assert [layer.moved for layer in found.layers] == [None, pytest.approx(1.0), None, None]
    assert {k.name: k.moved for k in found.kinds} == {
        "attention": None,
        "mlp": pytest.approx(1.0),
        "norm": None,
        "embedding": None,
    }
    # Task vectors [0, 4] and [3, 4]: both move the second entry, and in the same direction.
    write("b", with_pair(6, 8))
    whole = diagnose(tmp_path / "merge", "a", "b").whole
    assert whole.cosines["a", "b"] == pytest.approx(16 / (4 * 5))
    assert whole.agreement["a", "b"] == 1.0
    # On the line from base to a, and 2 aside of it in an entry of its own.
    aside = with_pair(3, 6)
    aside[UP][7, 7] = 2.0
    assert diagnose(write("merge", aside), "base", "a").whole.aside == pytest.approx(2 / 4)


def test_what_trimming_removed_by_hand(
    write: Callable[..., Path], family: dict[str, State], tmp_path: Path
):
    base = {name: torch.zeros_like(tensor) for name, tensor in family["base"].items()}
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    norm = "model.norm.weight"  # of 32 entries
    tuned[norm][:4] = torch.tensor([4.0, -2.0, 1.0, 0.5])
    write("base", base)
    write("a", tuned)
    config = parse_merge_config(ties(tmp_path, density=2 / 32), where="test")
    run_merge(config, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")[norm][:4].tolist() == [4, -2, 0, 0]
    found = diagnose(tmp_path / "out", base=None)  # parents and base as merge.yaml says
    assert found.subjects.labels == ["out", "a", "base"]
    assert found.subjects.labels[found.subjects.base] == "base"
    entries, squares = found.kinds[-2].trimmed["a"]
    assert found.kinds[-2].name == "norm"
    # Elsewhere the task vector is zero, its threshold too, and ties are kept.
    assert entries == pytest.approx(30 / (32 * 9))
    assert squares == pytest.approx(1.25 / 21.25)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("ties", {"density": 0.3}),
        ("ties_global", {"density": 0.3}),
        ("breadcrumbs", {"density": 0.5, "gamma": 0.2}),
    ],
)
def test_trimming_as_the_merge_itself_shows_it(
    write: Callable[..., Path],
    family: dict[str, State],
    tmp_path: Path,
    method: str,
    settings: dict[str, float],
):
    """With one model, what the merge lacks of the task vector is what was removed."""
    data = ties(tmp_path, **settings) | {"merge_method": method}
    run_merge(parse_merge_config(data, where="test"), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    deltas = {k: family["a"][k] - family["base"][k] for k in merged}
    gone = {k: (merged[k] == family["base"][k]) & (deltas[k] != 0) for k in merged}
    total = sum(float((d.double() ** 2).sum()) for d in deltas.values())
    lost = sum(float((deltas[k].double()[gone[k]] ** 2).sum()) for k in merged)
    entries, squares = diagnose(tmp_path / "out", base=None).whole.trimmed["a"]
    count = sum(int(mask.sum()) for mask in gone.values())
    assert entries == pytest.approx(count / sum(d.numel() for d in deltas.values()), rel=1e-3)
    assert squares == pytest.approx(lost / total, rel=1e-3)


def test_layers_that_were_moved_are_compared_with_where_they_came_from(
    write: Callable[..., Path], family: dict[str, State], tmp_path: Path
):
    slices = [
        {"sources": [{"model": str(tmp_path / "a"), "layer_range": r}]}
        for r in ([2, 4], [0, 2], [1, 3])
    ]
    data = {"merge_method": "passthrough", "slices": slices}
    run_merge(parse_merge_config(data, where="test"), tmp_path / "out")
    found = diagnose(tmp_path / "out", base=None)
    assert len(found.layers) == 6
    assert [layer.moved for layer in found.layers] == [0.0] * 6


def test_parents_that_are_not_known(write: Callable[..., Path], tmp_path: Path):
    with pytest.raises(MergeError, match="that says its parents; give --against"):
        diagnose(write("merge"), base=None)
    (tmp_path / "merge" / "merge.yaml").write_text(
        json.dumps({"merge_method": "linear", "models": [{"model": "./gone"}]})
    )
    with pytest.raises(MergeError, match="give --against"):
        diagnose(tmp_path / "merge", base=None)
