"""What a merge asks and what it achieves: by hand, by method, by layer, and as it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.helpers.families import State
from toolkit.cli.main import app
from toolkit.merge import achieved as achieved_module
from toolkit.merge.achieved import AchievedFractions
from toolkit.merge.config import parse_merge_config
from toolkit.merge.kernels import compiled
from toolkit.merge.kernels import workers as workers_module
from toolkit.merge.to_disk import achieved_by, run_merge


def merged(
    data: dict[str, Any], folder: Path, **more: Any
) -> tuple[AchievedFractions, AchievedFractions]:
    """What is said while merging, and what is found afterwards over all entries."""
    config = parse_merge_config(data, where="test")
    folders = {name: folder / name for name in ("base", "a", "b")}
    told: list[AchievedFractions] = []
    out = folder / f"out-{len(list(folder.glob('out-*')))}"
    run_merge(config, out, folders=folders, tell_achieved=told.append, **more)
    found = achieved_by(config, out, folders=folders)
    assert found is not None
    return told[0], found


def models(**weights: float) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": {"weight": w}} for name, w in weights.items()]


def test_worked_example(family: dict[str, State], tmp_path: Path):
    # One tensor of the model moves: [2, 0, 1, 0 ...]. Of a half, [1, 0, 0.5, 0], an odd entry that
    # the merge was given by hand adds nothing along the change; 0.75 of the first adds 2 · 1.5.
    name = "model.layers.1.mlp.up_proj.weight"
    state = {k: v.clone() for k, v in family["base"].items()}
    state[name].view(-1)[:4] += torch.tensor([2.0, 0.0, 1.0, 0.0])
    save_file(state, tmp_path / "a/model.safetensors")
    out = tmp_path / "out-0"
    told, found = merged(
        {"merge_method": "linear", "models": models(base=0.5, a=0.5), "dtype": "float32"}, tmp_path
    )
    assert told.whole["a"].asked == 0.5
    assert told.whole["a"].stored == pytest.approx(0.5, abs=1e-6)
    assert found.whole["a"].computed == pytest.approx(0.5, abs=1e-6)
    assert found.layers[0]["a"].stored is None  # nothing changed there
    stored = load_file(out / "model.safetensors")
    stored[name].view(-1)[:2] += torch.tensor([0.5, 7.0])
    save_file(stored, out / "model.safetensors")
    config = parse_merge_config(
        {"merge_method": "linear", "models": models(base=0.5, a=0.5)}, where="test"
    )
    folders = {name: tmp_path / name for name in ("base", "a")}
    again = achieved_by(config, out, folders=folders)
    assert again is not None
    # (2 · 1.5 + 1 · 0.5) / (2² + 1²)
    assert again.whole["a"].stored == again.layers[1]["a"].stored
    assert again.whole["a"].stored == pytest.approx(0.7, abs=1e-6)
    assert again.whole["a"].computed == pytest.approx(0.5, abs=1e-6)


BASE = {"base_model": "base"}
CASES: list[tuple[dict[str, Any], dict[str, float | None]]] = [
    ({"merge_method": "linear", "models": models(base=3.0, a=1.0)}, {"a": 0.25}),
    ({"merge_method": "linear", "models": models(base=0.5, a=0.3, b=0.2)}, {"a": 0.3, "b": 0.2}),
    ({"merge_method": "task_arithmetic", **BASE, "models": models(a=0.7, b=-0.2)},
     {"a": 0.7, "b": -0.2}),
    ({"merge_method": "task_arithmetic", **BASE, "models": models(a=0.7),
      "parameters": {"lambda": 0.5}}, {"a": 0.35}),
    ({"merge_method": "slerp", **BASE, "models": [{"model": "a"}], "parameters": {"t": 0.4}},
     {"a": 0.4}),
    ({"merge_method": "nuslerp", "models": models(base=0.6, a=0.4)}, {"a": 0.4}),
]  # fmt: skip


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize(("data", "asked"), CASES)
def test_in_float32_what_is_asked_is_stored(
    data: dict[str, Any], asked: dict[str, float], tmp_path: Path
):
    told, found = merged({**data, "dtype": "float32"}, tmp_path)
    for fractions in (told.whole, found.whole, *found.layers.values()):
        assert {name: row.asked for name, row in fractions.items()} == pytest.approx(asked)
        stored = {name: row.stored for name, row in fractions.items()}
        # An arc is no straight line; elsewhere only float32 itself rounds.
        near = 0.01 if "slerp" in data["merge_method"] else 2e-5
        assert stored == pytest.approx(asked, abs=near)
    assert not list(found.lost())
    assert sorted(found.layers, key=str) == [0, 1, 2, 3, None]


@pytest.mark.usefixtures("family")
def test_of_other_methods_float32_is_what_storing_is_held_against(tmp_path: Path):
    parameters = {"weight": 0.8, "density": 0.4}
    data = {
        "merge_method": "ties", **BASE,
        "models": [{"model": "a", "parameters": parameters}],
        "parameters": {"normalize": False},
    }  # fmt: skip
    _, wide = merged({**data, "dtype": "float32"}, tmp_path)
    _, narrow = merged({**data, "out_dtype": "bfloat16"}, tmp_path)
    assert wide.whole["a"].asked is None
    assert wide.whole["a"].stored == wide.whole["a"].computed == narrow.whole["a"].computed
    assert narrow.whole["a"].stored != narrow.whole["a"].computed


@pytest.fixture
def close_family(write: Callable[..., Path], tmp_path: Path) -> Path:
    """Models in bfloat16 that differ by about one step."""
    base = {k: v.bfloat16() for k, v in load_file(write("base") / "model.safetensors").items()}
    random = torch.Generator().manual_seed(0)
    near = {
        k: v
        if "norm" in k
        else (v.float() + 1e-4 * torch.randn(v.shape, generator=random)).bfloat16()
        for k, v in base.items()
    }
    write("base", base)
    write("a", near)
    return tmp_path


def test_what_rounding_loses_is_said_and_stochastic_rounding_loses_nothing(
    close_family: Path, monkeypatch: pytest.MonkeyPatch
):
    data = {"merge_method": "linear", "models": models(base=0.8, a=0.2), "out_dtype": "bfloat16"}
    told, found = merged(data, close_family)
    ((model, row),) = found.lost()
    assert model == "a"
    assert row.asked == pytest.approx(0.2)
    assert row.computed == pytest.approx(0.2, abs=1e-4)
    assert row.stored is not None and row.stored < 0.15  # noqa: PT018
    assert "asked 0.2, stored about 0." in told.sentences()[0]
    assert "rounding: stochastic" in told.sentences()[0]
    # Blocks, threads and the lack of kernels change nothing but the last places.
    monkeypatch.setattr(workers_module, "BLOCK", 1 << 9)
    monkeypatch.setattr(compiled, "inner_products", no_kernel)
    again, _ = merged(data, close_family, num_threads=3)
    assert again.whole["a"].stored == pytest.approx(told.whole["a"].stored, rel=1e-6)
    monkeypatch.undo()
    told, found = merged({**data, "rounding": "stochastic"}, close_family)
    assert found.whole["a"].stored == pytest.approx(0.2, abs=0.01)
    assert not list(told.lost())


def no_kernel(*_: object) -> None:
    raise compiled.KernelError("none here")


def test_a_sample_stands_for_all(close_family: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(achieved_module, "_RUN", 64)
    monkeypatch.setattr(achieved_module, "_STRIDE", 251)
    data = {"merge_method": "linear", "models": models(base=0.6, a=0.4), "out_dtype": "bfloat16"}
    told, found = merged(data, close_family)
    assert told.is_sampled and not found.is_sampled  # noqa: PT018
    assert told.whole["a"].stored == pytest.approx(found.whole["a"].stored, abs=0.03)
    assert told.whole["a"].stored != found.whole["a"].stored


def test_a_sampled_block_counts_as_all_of_it(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Vectors are read whole, of matrices a sixteenth. Half of a step of bfloat16 rounds away from
    # matrices, and vectors move by half of what they should.
    monkeypatch.setattr(achieved_module, "_RUN", 64)
    monkeypatch.setattr(achieved_module, "_STRIDE", 1023)
    shapes = {k: v.shape for k, v in load_file(write("base") / "model.safetensors").items()}
    ones = {k: torch.ones(shape, dtype=torch.bfloat16) for k, shape in shapes.items()}
    write("base", ones)
    write("a", {k: v + (2**-4 if v.dim() == 1 else 2**-7) for k, v in ones.items()})
    data = {"merge_method": "linear", "models": models(base=0.5, a=0.5), "dtype": "bfloat16"}
    told, found = merged(data, tmp_path)
    assert found.whole["a"].stored is not None
    assert found.whole["a"].stored < 0.3
    assert told.whole["a"].stored == pytest.approx(found.whole["a"].stored, rel=1e-3)


def test_a_merge_with_embeddings_cut_is_measured_as_it_was_made(
    write: Callable[..., Path], tmp_path: Path
):
    write("base")
    state = load_file(write("a", vocab_size=328) / "model.safetensors")
    write("a", {k: v + 0.01 for k, v in state.items()}, vocab_size=328)
    data = {"merge_method": "linear", "models": models(base=0.5, a=0.5), "dtype": "float32"}
    told, found = merged(data, tmp_path, truncate_embeddings=True)
    assert found.whole["a"].stored == pytest.approx(told.whole["a"].stored, abs=1e-4)


def test_the_command_says_it(close_family: Path):
    file = close_family / "m.yml"
    file.write_text(
        "merge_method: linear\nout_dtype: bfloat16\nmodels:\n"
        f"- {{model: {close_family}/base, parameters: {{weight: 0.8}}}}\n"
        f"- {{model: {close_family}/a, parameters: {{weight: 0.2}}}}\n"
    )
    result = CliRunner().invoke(app, ["merge", "run", str(file), str(close_family / "merged")])
    assert result.exit_code == 0
    assert "asked 0.2, stored about 0." in result.output
