"""The figures of a diagnosis against numbers worked by hand, and a sentence for every way to break
a merge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.errors import MergeError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.diagnosis.figures import Diagnosis, diagnosis_of
from toolkit.merge.diagnosis.losses import Loss, remarks_on_losses
from toolkit.merge.diagnosis.measure import measure
from toolkit.merge.diagnosis.remarks import note_on_dropping, remarks_of
from toolkit.merge.diagnosis.subjects import open_subjects
from toolkit.merge.diagnosis.sums import sum_tensor, zero_rows
from toolkit.merge.kernels.workers import Workers
from toolkit.merge.run import run_merge

State = dict[str, Tensor]
UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def workers():
    pool = Workers(2)
    yield pool
    pool.close()


@pytest.fixture
def write(tmp_path: Path, make_model: Callable[..., Path]) -> Callable[..., Path]:
    """`write(name, state)`: a model folder with these tensors; without them, a random model's."""

    def make(name: str, state: State | None = None, **config: Any) -> Path:
        folder = make_model(tmp_path / name, seed=1, num_hidden_layers=4, **config)
        if state is not None:
            save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
        return folder

    return make


@pytest.fixture
def family(write: Callable[..., Path]) -> dict[str, State]:
    """Tensors of a base and two models tuned from it, already in their folders."""
    base = load_file(write("base") / "model.safetensors")
    states = {"base": base}
    for seed, name in enumerate(("a", "b")):
        random = torch.Generator().manual_seed(seed)
        states[name] = {
            k: v + 0.002 * torch.randn(v.shape, generator=random) for k, v in base.items()
        }
        write(name, states[name])
    return states


def mean(family: dict[str, State]) -> State:
    return {name: (family["a"][name] + family["b"][name]) / 2 for name in family["a"]}


def diagnose(folder: Path, *against: str, base: str | None = "base") -> Diagnosis:
    root, workers = folder.parent, Workers(2)
    try:
        names = [str(root / name) for name in against]
        subjects = open_subjects(folder, names, str(root / base) if base else None, workers)
        return diagnosis_of(subjects, measure(subjects, workers))
    finally:
        workers.close()


def texts(diagnosis: Diagnosis, kind: str) -> list[str]:
    return [remark.text for remark in remarks_of(diagnosis) if remark.kind == kind]


def array(values: list[float], dtype: torch.dtype = torch.float32) -> Any:
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.view(torch.uint16).numpy() if dtype == torch.bfloat16 else tensor.numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_by_hand(workers: Workers, dtype: torch.dtype):
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
        pool = Workers(threads)
        found.append(sum_tensor(rows, 0, pool))
        pool.close()
    assert found[0].non_finite.tolist() == found[1].non_finite.tolist() == [0, 1, 1]
    assert found[0].squares[0] == found[1].squares[0]
    assert found[0].squares[0] == pytest.approx(
        float((rows[0].astype(float) ** 2).sum()), rel=1e-13
    )
    deltas = [rows[m][6:-1] - rows[0][6:-1] for m in (1, 2)]
    clean = sum_tensor([row[6:-1] for row in rows], 0, Workers(1))
    assert clean.same[1, 2] == int(((deltas[0] > 0) == (deltas[1] > 0)).sum())


def test_zero_rows_by_hand(workers: Workers):
    assert zero_rows(array([0, 0, 0, -1, -0.0, 0]), (3, 2), workers).tolist() == [True, False, True]


def test_figures_by_hand(write: Callable[..., Path], family: dict[str, State]):
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
    # On the line from base to a, and 2 aside of it in an entry of its own.
    aside = with_pair(3, 6)
    aside[UP][7, 7] = 2.0
    assert diagnose(write("merge", aside), "base", "a").whole.aside == pytest.approx(2 / 4)


def test_a_sound_merge_calls_for_no_sentence(write: Callable[..., Path], family: dict[str, State]):
    found = diagnose(write("merge", mean(family)), "a", "b")
    assert remarks_of(found) == []
    assert abs(found.whole.cosines["a", "b"] or 1) < 0.05
    assert found.whole.agreement["a", "b"] == pytest.approx(0.5, abs=0.02)
    assert found.whole.distances == pytest.approx({"a": 0.5, "b": 0.5}, abs=1e-3)
    assert found.measured.left_out == []


def test_a_layer_scaled(write: Callable[..., Path], family: dict[str, State]):
    state = mean(family)
    state |= {k: v * 100 for k, v in state.items() if ".layers.2." in k}
    (text,) = texts(diagnose(write("merge", state), "a", "b"), "layers")
    assert text.startswith("Layer 2 moved ")
    assert "so the merge did it" in text
    assert "(99 of its norm against" in text


def test_a_layer_that_a_parent_moved_itself(write: Callable[..., Path], family: dict[str, State]):
    for name in ("a", "b"):
        change = {k: v * 1.5 for k, v in family[name].items() if ".layers.0." in k}
        family[name] = family[name] | change
        write(name, family[name])
    (text,) = texts(diagnose(write("merge", mean(family)), "a", "b"), "layers")
    assert text.startswith("Layer 0 moved ")
    assert "a parent moved 0.5" in text


def test_one_kind_of_tensors_in_a_layer(write: Callable[..., Path], family: dict[str, State]):
    state = mean(family)
    norm = "model.layers.3.input_layernorm.weight"
    # The layer's matrices are larger by far, so that the layer as a whole hardly moves.
    state |= {norm: state[norm] + 0.02}
    found = diagnose(write("merge", state), "a", "b")
    (text,) = texts(found, "layers")
    assert text.startswith("The norm of layer 3 moved ")


def test_rows_of_zeros(write: Callable[..., Path], family: dict[str, State]):
    for state in family.values():
        state[EMBEDDING][7] = 0.0  # in all parents, so no fault of the merge
    for name in family:
        write(name, family[name])
    state = mean(family)
    state[EMBEDDING][[300, 301]] = 0.0
    found = diagnose(write("merge", state), "a", "b")
    assert found.measured.zero_rows == {EMBEDDING: [300, 301]}
    assert found.measured.padding_rows == 1
    (remark,) = [r for r in remarks_of(found, token={300: "ĠLaw"}.get) if r.kind == "zero_rows"]
    assert f"{EMBEDDING}: 2 rows of zeros that have values in a parent" in remark.text
    assert "(token 300 'ĠLaw', 301)" in remark.text


def test_nan(write: Callable[..., Path], family: dict[str, State]):
    state = mean(family)
    state[UP][3, :2] = torch.tensor([float("nan"), float("inf")])
    found = diagnose(write("merge", state), "a", "b")
    assert found.measured.non_finite == {"merge": {UP: 2}}
    assert texts(found, "non_finite") == [
        f"merge holds 2 entries that are NaN or infinite, in {UP}; a model cannot compute with "
        "them."
    ]
    assert found.whole.moved is not None
    assert math.isfinite(found.whole.moved)  # the damaged tensor is kept out of the sums


def test_identical_to_a_parent(write: Callable[..., Path], family: dict[str, State]):
    found = diagnose(write("merge", family["b"]), "a", "b")
    assert texts(found, "identical") == [
        "The merge is identical to b (distance 0 of that between the parents); the others' weights "
        "do nothing."
    ]
    found = diagnose(write("merge", family["base"]), "a", "b")
    assert texts(found, "identical") == ["The merge is identical to the base model base."]


def test_unrelated_parents(
    write: Callable[..., Path], tmp_path: Path, make_model: Callable[..., Path]
):
    write("a")
    make_model(tmp_path / "stranger", seed=9, num_hidden_layers=4)
    merge = write("merge")
    (text,) = texts(diagnose(merge, "a", "stranger", base=None), "unrelated")
    assert "makes gibberish" in text


def test_outside_and_opposite(write: Callable[..., Path], family: dict[str, State]):
    base, a = family["base"], family["a"]
    further = {name: base[name] + 3 * (a[name] - base[name]) for name in base}
    (text,) = texts(diagnose(write("merge", further), "base", "a"), "outside")
    assert "3.00 times as far from base as they lie apart" in text
    write("b", {name: base[name] - 0.5 * (a[name] - base[name]) for name in base})
    found = diagnose(write("merge", mean(family)), "a", "b")
    (text,) = texts(found, "opposite")
    assert "nearly opposite (cosine -1.00)" in text
    assert found.whole.agreement["a", "b"] == pytest.approx(0.0, abs=1e-3)


def test_opposite_in_one_layer(write: Callable[..., Path], family: dict[str, State]):
    base, a = family["base"], family["a"]
    turned = {k: 2 * base[k] - a[k] for k in base if ".layers.1." in k}
    write("b", family["b"] | turned)
    (text,) = texts(diagnose(write("merge", mean(family)), "a", "b"), "opposite")
    assert "nearly opposite in layer 1 (cosine below -0.5)" in text


def test_aside(write: Callable[..., Path], family: dict[str, State]):
    """The merge is of models that are not among the parents given."""
    found = diagnose(write("merge", family["b"]), "base", "a")
    (text,) = texts(found, "aside")
    assert "made from other models" in text


def ties(root: Path, **settings: Any) -> dict[str, Any]:
    models = [{"model": str(root / "a"), "parameters": {"weight": 1.0, **settings}}]
    return {"merge_method": "ties", "base_model": str(root / "base"), "models": models}


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


def test_too_much_trimming(write: Callable[..., Path], family: dict[str, State], tmp_path: Path):
    run_merge(parse_merge_config(ties(tmp_path, density=0.05), where="test"), tmp_path / "out")
    (text,) = texts(diagnose(tmp_path / "out", base=None), "trimmed")
    assert text.startswith("Trimming removed 95% of the entries of a's task vector and with them ")


def test_random_dropping_is_said_and_not_called_a_fault(
    write: Callable[..., Path], family: dict[str, State], tmp_path: Path
):
    data = ties(tmp_path, density=0.5) | {"merge_method": "dare_ties"}
    run_merge(parse_merge_config(data, where="test"), tmp_path / "out")
    found = diagnose(tmp_path / "out", base=None)
    assert (found.whole.aside or 0.0) > 0.9  # what is left was doubled
    assert texts(found, "aside") == []
    assert "dare_ties drops entries at random" in (note_on_dropping(found) or "")


def test_tensors_in_another_shape_are_left_out(
    write: Callable[..., Path], family: dict[str, State]
):
    wide = family["b"] | {EMBEDDING: torch.randn(322, 32)}
    write("b", wide)
    found = diagnose(write("merge", mean(family | {"b": family["a"]})), "a", "b")
    assert found.measured.left_out == [EMBEDDING]
    (text,) = texts(found, "left_out")
    assert f"({EMBEDDING})" in text


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


def losses(merge: float, *parents: float, bits: float = 4.0) -> list[str]:
    rows = [Loss("merge", merge, bits, 320)]
    rows += [Loss(f"p{i}", value, 4.0, 320) for i, value in enumerate(parents)]
    return [remark.text for remark in remarks_on_losses(rows)]


def test_losses():
    assert losses(1.0, 1.1, 0.9) == []
    assert losses(1.105, 1.1, 0.9) == []  # within the margin
    (text,) = losses(1.12, 1.1, 0.9)
    assert text.startswith(
        "The merge's loss is above both parents: 1.1200 bits per byte (p0 1.1000"
    )
    # log2(320) = 8.32, three quarters of it 6.24
    assert losses(1.0, 1.1, 0.9, bits=6.2) == []
    (text,) = losses(1.0, 1.1, 0.9, bits=6.3)
    assert text.startswith("merge speaks gibberish: 6.3 bits per token")
    rows = [Loss("merge", problem="no head"), Loss("p", 1.0, 4.0, 320)]
    assert [r.kind for r in remarks_on_losses(rows)] == ["unscored"]
