"""Training that starts at the base model under an instruct one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.helpers.tiny_runs import make_project, open_run
from toolkit.checkpoint.stored_names import parameters_by_name
from toolkit.data.blocks import find_seen_tokens
from toolkit.errors import ConfigError, MergeError
from toolkit.merge.check.relation import relate
from toolkit.merge.in_memory import LiveMerge
from toolkit.pipeline.model_hashes import fingerprint
from toolkit.pipeline.stages import ensure_merge
from toolkit.publish.material import Material, find_parents
from toolkit.recipe.schema import Recipe
from toolkit.search.space import alphas_by_name, endpoint, sweep_point
from toolkit.select.results import read_results
from toolkit.stage import read_manifest
from toolkit.train.config import TrainSection, identity_of

SEARCH = {"merges": ["residual", "linear"], "sweep": [0.5], "num_trials": 7}


@pytest.fixture
def project(tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    """The general model is `base` with a little more training."""
    monkeypatch.chdir(make_project(tmp_path, make_model))
    make_model(tmp_path / "base", seed=1)
    change(tmp_path / "model", tmp_path / "base", 0.002)
    return tmp_path


def change(origin: Path, out: Path, size: float) -> None:
    random = torch.Generator().manual_seed(3)
    state = load_file(origin / "model.safetensors")
    moved = {k: v + size * torch.randn(v.shape, generator=random) for k, v in state.items()}
    save_file(moved, out / "model.safetensors", metadata={"format": "pt"})


def test_what_training_changed_is_added_to_the_general_model(
    project: Path, capsys: pytest.CaptureFixture[str]
):
    changes = {
        "model": {"path": "model", "license": "mit"},
        "models": {"base": {"path": "base", "license": "apache-2.0"}},
        "train": {"start": "base"},
        "search": SEARCH,
    }
    run = open_run(project, changes)
    merged = ensure_merge(run)
    said = capsys.readouterr()
    assert "general model − base: 0." in said.out + said.err
    assert "linear: is not taken against base" in said.out + said.err
    assert read_manifest(run.root / "cpt")["inputs"]["general"] == fingerprint(Path("base"))
    results = read_results(merged)
    names = [row.name for row in results.candidates]
    assert {"residual alpha=0.5", "residual alpha=1"} <= set(names)
    assert min(point.alpha for point in results.sweep) == 0.0
    assert {0.5, 1.0} <= {point.alpha for point in results.sweep}
    assert any("Training started at base" in remark for remark in results.remarks)
    parents = find_parents(run.recipe, "org/out", ["base"])
    assert [(p.role, p.license) for p in parents] == [
        ("general", "mit"), ("specialist", "apache-2.0"), ("base", "apache-2.0"),
    ]  # fmt: skip
    folders = (Path("model"), {"specialist": run.root / "cpt"}, run.root / "data", merged)
    places = Material(run.recipe, run.root, *folders, {"base": Path("base")}).places
    assert list(places) == ["general", "specialist", "base"]
    steps = [step.name for step in results.ladder]
    assert all(name.startswith("residual alpha=") for name in steps)

    general, base, specialist = (
        load_file(Path(folder) / "model.safetensors")
        for folder in ("model", "base", run.root / "cpt")
    )
    folders = {"general": Path("model"), "base": Path("base"), "specialist": run.root / "cpt"}
    live = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    LiveMerge(folders).apply(sweep_point(0.5, start="base").config, live)
    tensors = parameters_by_name(live)
    for name, tensor in {name: tensors[name] for name in general}.items():
        expected = general[name] + 0.5 * (specialist[name] - base[name])
        assert torch.allclose(tensor, expected, atol=1e-6), name

    # Rows that training never saw are the general model's own, as far as it has its own.
    table = "model.embed_tokens.weight"
    is_seen = find_seen_tokens(run.root / "data", len(base[table]))
    assert 0 < is_seen.sum() < len(is_seen)
    assert torch.equal(specialist[table][~is_seen], base[table][~is_seen])
    assert not torch.equal(specialist[table][is_seen], base[table][is_seen])
    rows = parameters_by_name(live)[table]
    assert torch.allclose(rows[~is_seen], general[table][~is_seen], rtol=0, atol=1e-8)


def test_seen_tokens_are_those_of_the_shards(project: Path):
    run = open_run(project, {"models": {"base": {"path": "base"}}, "train": {"start": "base"}})
    from toolkit.pipeline.models import ensure_data

    data = ensure_data(run)
    shards = [np.load(p) for p in sorted(data.rglob("*.npy")) if p.parent.name == "tokens"]
    seen = find_seen_tokens(data, 1024)
    if shards:
        assert set(np.flatnonzero(seen)) >= set(np.concatenate(shards).tolist())


def test_the_sweep_beside_a_base():
    points = [endpoint("general"), endpoint("specialist")]
    means = [*points, sweep_point(0.4)]
    ends = {"general": 0.0, "specialist": 1.0, "uniform mean": 1.0}
    assert alphas_by_name(means) == {**ends, "linear alpha=0.4": 0.4}
    added = [*means, sweep_point(0.3, start="base"), sweep_point(1.0, start="base")]
    added.append(sweep_point(0.7, "stochastic", start="base"))
    alphas = alphas_by_name(added)
    assert alphas == {
        "general": 0.0, "residual alpha=0.3": 0.3, "residual alpha=1": 1.0,
        "residual alpha=0.7": 0.7,
    }  # fmt: skip


def test_models_that_do_not_belong_together(
    project: Path, make_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    relation = relate(Path("model"), Path("base"))
    assert 0.0 < relation.distance < 0.3
    assert relation.cosine > 0.95
    assert sorted(relation.layers) == [0, 1]
    assert max(relation.layers.values()) < 0.3
    make_model(project / "stranger", seed=9)
    with pytest.raises(MergeError, match=r"stranger: is no base of model: .* trained apart"):
        relate(Path("model"), Path("stranger"))
    make_model(project / "wide", seed=1, intermediate_size=48)
    with pytest.raises(MergeError, match=r"mlp\..*: is \[.*\] in model and \[.*\] in wide"):
        relate(Path("model"), Path("wide"))
    assert relate(Path("model"), Path("model")).distance == 0.0
    assert "hold the same weights; leave train.start out" in capsys.readouterr().err


@pytest.mark.parametrize("entry", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["base", "model"])
def test_a_damaged_model_is_no_relative(project: Path, name: str, entry: float):
    file = project / name / "model.safetensors"
    state = load_file(file)
    tensor = "model.layers.1.mlp.up_proj.weight"
    state[tensor][0, 0] = entry
    save_file(state, file, {"format": "pt"})
    with pytest.raises(MergeError, match=rf"{tensor}: holds NaN or infinity in {name}/"):
        relate(Path("model"), Path("base"))


def test_a_model_in_8_bits_is_compared_as_any_other(project: Path):
    shutil.copytree("base", "packed")
    state = load_file(project / "base/model.safetensors")
    packed = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()}
    save_file(packed, project / "packed/model.safetensors", {"format": "pt"})
    assert 0.0 < relate(Path("packed"), Path("base")).distance < 0.1


def test_nothing_was_made_from_a_base_of_zeros(project: Path):
    shutil.copytree("base", "empty")
    state = load_file(project / "base/model.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    save_file(zeros, project / "empty/model.safetensors", {"format": "pt"})
    with pytest.raises(MergeError, match="empty: is no base of model"):
        relate(Path("model"), Path("empty"))


def test_tokens_of_other_ids(project: Path):
    file = project / "base/tokenizer.json"
    text = file.read_text()
    import json

    tokenizer = json.loads(text)
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(MergeError, match="2 tokens have other ids in one than in the other"):
        relate(Path("model"), Path("base"))


def test_recipes_that_cannot_start_there():
    sources = {role: {"role": role, "files": ["*.txt"]} for role in ("domain", "general")}
    values: dict[str, Any] = {"model": {"path": "model"}, "data": {"sources": sources}}
    with pytest.raises(ValueError, match=r"train\.start: there is no model 'base' under models"):
        Recipe.model_validate({**values, "train": {"start": "base"}})
    both = {"start": "base", "block_expansion": {"num_blocks": 1}}
    with pytest.raises(ValueError, match="start: base cannot be combined with block_expansion"):
        TrainSection.model_validate(both)


def test_merges_beside_a_base_are_others_than_those_of_a_general_model():
    sources = {role: {"role": role, "files": ["*.txt"]} for role in ("domain", "general")}
    values: dict[str, Any] = {
        "model": {"path": "model"},
        "models": {"base": {"path": "base"}},
        "data": {"sources": sources},
        "train": {"start": "base"},
    }
    assert Recipe.model_validate(values).search.merges == ("residual", "residual-layers")
    kept = Recipe.model_validate({**values, "search": {"merges": ["ties"]}})
    assert kept.search.merges == ("ties",)


def test_stages_from_before_there_was_a_start_stay():
    assert "start" not in identity_of(TrainSection())
    assert identity_of(TrainSection(start="base"))["start"] == "base"


def test_a_start_that_is_a_stranger_is_refused_before_training(
    project: Path, make_model: Callable[..., Path]
):
    make_model(project / "base", seed=9)
    run = open_run(project, {"models": {"base": {"path": "base"}}, "train": {"start": "base"}})
    with pytest.raises((MergeError, ConfigError), match="is no base of"):
        ensure_merge(run)
    assert not (run.root / "cpt").exists()
