"""Adapters out of tuned models, loaded again by peft."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.helpers.adapters import make_adapter, through_peft
from toolkit.adapter.extract import run_extract
from toolkit.adapter.extract_plan import ExtractSettings
from toolkit.adapter.modules import read_modules
from toolkit.cli.main import app
from toolkit.errors import CheckpointError, ConfigError, MergeError

pytestmark = pytest.mark.filterwarnings("ignore")
Q = "model.layers.0.self_attn.q_proj.weight"
NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"


@pytest.fixture
def pair(tmp_path: Path, make_model: Callable[..., Path]) -> tuple[Path, Path]:
    """A base, and a model that differs from it everywhere."""
    base, tuned = (make_model(tmp_path / name) for name in ("base", "tuned"))
    state = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    changed = {k: v + 0.01 * torch.randn(v.shape, generator=generator) for k, v in state.items()}
    save_file(changed, tuned / "model.safetensors", metadata={"format": "pt"})
    return base, tuned


def extract(pair: tuple[Path, Path], out: Path, **settings: Any) -> Any:
    return run_extract(str(pair[1]), str(pair[0]), out, ExtractSettings(**settings))


def test_full_rank_gives_the_linear_weights_back(pair: tuple[Path, Path], tmp_path: Path):
    report = extract(pair, tmp_path / "out", rank=64)
    merged = through_peft(pair[0], tmp_path / "out")
    tuned = load_file(pair[1] / "model.safetensors")
    base = load_file(pair[0] / "model.safetensors")
    for row in report.layers:
        assert torch.allclose(merged[row.name], tuned[row.name], atol=1e-5), row.name
        assert row.error < 1e-4
    assert {row.name for row in report.layers} == {n for n in tuned if "_proj" in n}
    assert torch.equal(merged[NORM], base[NORM])  # left out, and said
    assert NORM in {row.name for row in report.left_out}


def test_a_low_rank_is_the_nearest(pair: tuple[Path, Path], tmp_path: Path):
    report = extract(pair, tmp_path / "out", rank=3)
    delta = (
        load_file(pair[1] / "model.safetensors")[Q] - load_file(pair[0] / "model.safetensors")[Q]
    )
    values = torch.linalg.svdvals(delta.double())
    optimum = float((values[3:].square().sum() / values.square().sum()).sqrt())
    row = next(row for row in report.layers if row.name == Q)
    assert optimum * 0.999 <= row.error <= optimum * 1.01
    merged = (
        through_peft(pair[0], tmp_path / "out")[Q] - load_file(pair[0] / "model.safetensors")[Q]
    )
    assert torch.linalg.matrix_rank(merged.double(), rtol=1e-4) == 3
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["layers"][0]["error"] == report.layers[0].error


def test_a_lora_is_found_again(tmp_path: Path, make_model: Callable[..., Path]):
    """What a LoRA of rank 4 changed needs no more than rank 4."""
    base = make_model(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "lora", target_modules=["q_proj", "down_proj"])
    reference = f"{base}+{adapter}"
    report = run_extract(reference, str(base), tmp_path / "out", ExtractSettings(rank=4))
    assert len(report.layers) == 4
    assert max(row.error for row in report.layers) < 1e-3
    one, two = through_peft(base, adapter), through_peft(base, tmp_path / "out")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def test_modules_stored_whole(pair: tuple[Path, Path], tmp_path: Path):
    extract(pair, tmp_path / "out", rank=2, save_modules=("norm", "embed_tokens"))
    merged, tuned = (
        through_peft(pair[0], tmp_path / "out"),
        load_file(pair[1] / "model.safetensors"),
    )
    assert torch.equal(merged[NORM], tuned[NORM])
    assert torch.equal(merged[EMBEDDING], tuned[EMBEDDING])
    assert torch.equal(merged["lm_head.weight"], tuned[EMBEDDING])  # still tied


def test_only_some_modules(pair: tuple[Path, Path], tmp_path: Path):
    report = extract(pair, tmp_path / "out", include=("self_attn",), exclude=("layers.1",))
    assert {row.name.split(".")[3] for row in report.layers} == {"self_attn"}
    assert all("layers.0" in row.name for row in report.layers)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "rank: must be at least 1"),
        ({"energy": 1.5}, "energy: must be above 0"),
        ({"dtype": "int8"}, "dtype: must be one of"),
        ({"include": ("q_prj",)}, "--include q_prj: is found in no module"),
        ({"save_modules": ("embed_token",)}, "did you mean embed_tokens"),
    ],
)
def test_settings_that_cannot_be(
    pair: tuple[Path, Path], tmp_path: Path, settings: dict[str, Any], words: str
):
    with pytest.raises(ConfigError, match=words):
        extract(pair, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_fit(
    pair: tuple[Path, Path], tmp_path: Path, make_model: Callable[..., Path]
):
    wide = make_model(tmp_path / "wide", intermediate_size=96)
    with pytest.raises(MergeError, match=r"is \[32, 96\] but .* is \[32, 64\]"):
        extract((pair[0], wide), tmp_path / "out")
    with pytest.raises(MergeError, match="nothing to extract"):
        extract((pair[0], pair[0]), tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(MergeError, match="not empty"):
        extract(pair, tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "taken", "tuned", "wide"]


def test_the_command(pair: tuple[Path, Path], tmp_path: Path):
    base, tuned = map(str, pair)
    command = ["adapter", "extract", tuned, base, str(tmp_path / "out"), "--rank", "2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "14 tensors, rank 2" in " ".join(result.output.split())


def test_a_class_that_transformers_does_not_know(pair: tuple[Path, Path], tmp_path: Path):
    for folder in pair:
        values = json.loads((folder / "config.json").read_text())
        values["architectures"] = ["OursForCausalLM"]
        (folder / "config.json").write_text(json.dumps(values))
    assert extract(pair, tmp_path / "out", rank=2).layers
    values["model_type"] = "ours"
    (pair[1] / "config.json").write_text(json.dumps(values))
    (pair[0] / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="no model configuration that transformers can"):
        read_modules(pair[0])
