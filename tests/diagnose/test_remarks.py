"""A plain sentence for every way to break a merge, and none for a sound one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.families import EMBEDDING, UP, State, diagnose, mean, texts, ties
from toolkit.diagnose.remarks import note_on_dropping, remarks_of, remarks_on_losses
from toolkit.diagnose.results import Loss
from toolkit.merge.config import parse_merge_config
from toolkit.merge.to_disk import run_merge


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
    found = diagnose(write("merge", state), "a", "b")
    (text,) = texts(found, "layers")
    assert texts(found, "aside") == []  # the layer explains it
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


def test_one_kind_of_tensors_in_a_layer(
    write: Callable[..., Path], family: dict[str, State], tmp_path: Path
):
    state = mean(family)
    norm = "model.layers.3.input_layernorm.weight"
    # The layer's matrices are larger by far, so that the layer as a whole hardly moves.
    state |= {norm: state[norm] + 0.02}
    found = diagnose(write("merge", state), "a", "b")
    (text,) = texts(found, "layers")
    assert text.startswith("The norm of layer 3 moved ")
    # Where a parent moved it as far, the merge only follows.
    write("a", family["a"] | {norm: family["a"][norm] + 0.02})
    assert texts(diagnose(tmp_path / "merge", "a", "b"), "layers") == []


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
