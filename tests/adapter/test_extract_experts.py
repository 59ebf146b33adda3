"""Experts of a mixture in an adapter: extracted, loaded by peft, merged by us, all alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, JambaConfig, JambaForCausalLM

from tests.helpers.architectures import small_model
from toolkit.adapter.extract import run_extract
from toolkit.adapter.extract_plan import ExtractSettings
from toolkit.adapter.folder import FactorSettings
from toolkit.adapter.merge import merge_adapters
from toolkit.adapter.report import AdapterReport
from toolkit.errors import CheckpointError, MergeError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.methods.ties import ties
from toolkit.merge.to_disk import run_merge

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.arange(5, 60, 3)[None]

MIXTURES = ["deepseek_v3", "gpt_oss", "granitemoe", "jetmoe", "mixtral", "qwen2_moe", "qwen3_moe"]
"""Stored one by one and in one tensor, `[E, out, in]` and `[E, in, out]`, in modules of experts and
in parameters called `weight`, alone and beside dense layers whose names peft takes for experts'."""


def make_pair(model: Any, folder: Path, changed: str = "") -> tuple[Path, Path]:
    """A base, and a model that differs in all parameters with some words in their names."""
    model.save_pretrained(folder / "base")
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if changed in name and parameter.dim() > 1:
                parameter.add_(0.02 * torch.randn_like(parameter) * parameter.std().clamp(min=1e-3))
    model.save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"


def extract(pair: tuple[Path, Path], out: Path, **settings: Any) -> AdapterReport:
    return run_extract(str(pair[1]), str(pair[0]), out, ExtractSettings(**settings))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS, use_cache=False).logits
    return found


def through_peft(base: Path, adapter: Path) -> torch.Tensor:
    return logits(peft.PeftModel.from_pretrained(open_model(base), str(adapter)))


def through_merge(base: Path, adapter: Path, out: Path) -> torch.Tensor:
    data = {"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}
    run_merge(parse_merge_config(data, where="test"), out)
    return logits(open_model(out))


def open_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_peft_computes_what_we_merge(model_type: str, tmp_path: Path):
    pair = make_pair(small_model(model_type), tmp_path)
    report = extract(pair, tmp_path / "lora", rank=3)
    stacks = [row for row in report.layers if len(row.shape) == 3]
    assert stacks, [row.name for row in report.left_out]
    assert {row.rank for row in stacks} == {3}
    assert not any("experts" in row.name for row in report.left_out if "bias" not in row.name)
    found = through_merge(pair[0], tmp_path / "lora", tmp_path / "out")
    expected = through_peft(pair[0], tmp_path / "lora")
    assert (found - expected).abs().max() < 5e-6 * expected.abs().max()
    assert (expected - logits(open_model(pair[0]))).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("model_type", MIXTURES)
def test_the_same_rank_for_each_expert_keeps_the_most_there_is(model_type: str, tmp_path: Path):
    pair = make_pair(small_model(model_type), tmp_path)
    report = extract(pair, tmp_path / "lora", rank=2)
    base, tuned = (
        open_model(folder).state_dict() | load_file(folder / "model.safetensors") for folder in pair
    )
    for row in report.layers:
        if len(row.shape) != 3:
            continue
        values = torch.linalg.svdvals((tuned[row.name] - base[row.name]).double())
        optimum = float(values[:, 2:].square().sum() / values.square().sum())
        assert row.error**2 == pytest.approx(optimum, rel=1e-3)


def test_at_full_rank_the_tuned_model_comes_back(tmp_path: Path):
    pair = make_pair(small_model("qwen3_moe"), tmp_path, "experts.")
    report = extract(pair, tmp_path / "lora", rank=64)
    assert report.energy_kept == pytest.approx(1.0, abs=1e-6)
    assert not report.left_out
    expected = logits(open_model(pair[1]))
    for found in (
        through_peft(pair[0], tmp_path / "lora"),
        through_merge(pair[0], tmp_path / "lora", tmp_path / "out"),
    ):
        assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("changed", ["down_proj", "layers.1.mlp.experts.gate_up_proj"])
def test_some_parameters_of_a_module(changed: str, tmp_path: Path):
    """How deep peft nests a parameter depends on which others are there."""
    pair = make_pair(small_model("mixtral"), tmp_path, changed)
    extract(pair, tmp_path / "lora", rank=2)
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    short = {"down_proj": "mlp.experts.down_proj"}
    assert settings["target_parameters"] == [short.get(changed, f"model.{changed}")]
    found = through_merge(pair[0], tmp_path / "lora", tmp_path / "out")
    expected = through_peft(pair[0], tmp_path / "lora")
    assert (found - expected).abs().max() < 5e-6 * expected.abs().max()


def test_energy_and_patterns(tmp_path: Path):
    pair = make_pair(small_model("mixtral"), tmp_path)
    settings = {"rank": 32, "energy": 0.6, "include": ("gate_up_proj",)}
    report = extract(pair, tmp_path / "lora", **settings)
    assert {row.name.rpartition(".")[2] for row in report.layers} == {"gate_up_proj"}
    for row in report.layers:
        assert 1 < row.rank < 32
        assert 0.6 <= row.energy_kept < 0.75


def test_more_than_ten_experts_stand_in_their_own_order(tmp_path: Path):
    """In files expert 10 comes before expert 2; in memory it does not."""
    config = JambaConfig(
        **{"vocab_size": 320, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 12},
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        **{"mamba_d_state": 8, "mamba_dt_rank": 4, "mamba_expand": 2, "pad_token_id": 0},
    )
    torch.manual_seed(0)
    pair = make_pair(JambaForCausalLM(config), tmp_path, "experts.")
    report = extract(pair, tmp_path / "lora", rank=32)
    assert report.energy_kept == pytest.approx(1.0, abs=1e-6)
    expected = logits(open_model(pair[1]))
    found = through_merge(pair[0], tmp_path / "lora", tmp_path / "out")
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


def test_what_peft_cannot_adapt_is_named(tmp_path: Path):
    pair = make_pair(small_model("mamba"), tmp_path)
    report = extract(pair, tmp_path / "lora", rank=2)
    refused = {row.name: row.why for row in report.left_out if "_proj" in row.name}
    for number in range(2):
        mixer = f"backbone.layers.{number}.mixer"
        assert refused[f"{mixer}.out_proj.weight"] == "peft puts no LoRA on it, or does not load it"
        assert "reads its weight" in refused[f"{mixer}.dt_proj.weight"]
    assert {row.name.split(".")[-2] for row in report.layers} == {"in_proj"}
    expected = through_peft(pair[0], tmp_path / "lora")
    found = through_merge(pair[0], tmp_path / "lora", tmp_path / "out")
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("afmoe", set()),  # a router that peft reaches as a parameter
        ("laguna", {"shared_expert"}),  # names in memory that peft takes for names in files
        ("llama4_text", set()),  # a router that is a linear module and returns two things
        ("falcon_h1", {"mamba"}),
    ],
)
def test_neighbors(model_type: str, words: set[str], tmp_path: Path):
    pair = make_pair(small_model(model_type), tmp_path)
    report = extract(pair, tmp_path / "lora", rank=3)
    refused = [row.name for row in report.left_out if row.why.startswith(("peft", "the model's"))]
    assert {word for name in refused for word in name.split(".")} >= words
    assert bool(refused) == bool(words)
    expected = through_peft(pair[0], tmp_path / "lora")
    found = through_merge(pair[0], tmp_path / "lora", tmp_path / "out")
    assert (found - expected).abs().max() < 5e-6 * expected.abs().max()


def test_experts_stored_whole(tmp_path: Path):
    pair = make_pair(small_model("mixtral"), tmp_path)
    extract(pair, tmp_path / "lora", rank=2, save_modules=("experts",))
    expected = through_peft(pair[0], tmp_path / "lora")
    found = through_merge(pair[0], tmp_path / "lora", tmp_path / "out")
    assert (found - expected).abs().max() < 5e-6 * expected.abs().max()


def adapters_of(model_type: str, folder: Path) -> tuple[Path, list[Path]]:
    """A base and two adapters of it, of ranks 2 and 3."""
    base, tuned = make_pair(small_model(model_type), folder)
    extract((base, tuned), folder / "one", rank=2)
    model = open_model(base)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.02 * torch.randn_like(parameter) * parameter.std().clamp(min=1e-3))
    model.save_pretrained(folder / "other")
    extract((base, folder / "other"), folder / "two", rank=3)
    return base, [folder / "one", folder / "two"]


def merge_both(adapters: list[Path], out: Path, method: str, **more: Any) -> AdapterReport:
    models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in adapters]
    data = {"merge_method": method, "models": models, "parameters": {"normalize": False, **more}}
    return merge_adapters(parse_merge_config(data, where="test"), out, FactorSettings())


@pytest.mark.parametrize("model_type", ["gpt_oss", "mixtral", "qwen2_moe"])
def test_two_adapters_of_experts_are_merged_as_peft_adds_them(model_type: str, tmp_path: Path):
    base, adapters = adapters_of(model_type, tmp_path)
    report = merge_both(adapters, tmp_path / "sum", "linear")
    assert {row.rank for row in report.layers if len(row.shape) == 3} == {5}
    changes = []
    plain = open_model(base).state_dict()
    for path in (*adapters, tmp_path / "sum"):
        whole = peft.PeftModel.from_pretrained(open_model(base), str(path)).merge_and_unload()
        changes.append({n: t - plain[n] for n, t in whole.state_dict().items()})
    one, two, both = changes
    for name, found in both.items():
        expected = 0.5 * one[name] + 0.5 * two[name]
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1e-6), name
    assert any(change.any() for name, change in both.items() if "experts" in name)


def test_methods_on_changes_of_experts_see_the_whole_parameter(tmp_path: Path):
    base, adapters = adapters_of("mixtral", tmp_path)
    merge_both(adapters, tmp_path / "ties", "ties", density=1.0)
    whole = [
        peft.PeftModel.from_pretrained(open_model(base), str(path)).merge_and_unload().state_dict()
        for path in (*adapters, tmp_path / "ties")
    ]
    plain = open_model(base).state_dict()
    name = next(name for name in plain if "experts.down_proj" in name)
    one, two, found = (state[name] - plain[name] for state in whole)
    zero = torch.zeros_like(one)
    merged = ties([one, two], zero, weight=[0.5, 0.5], density=[1.0, 1.0], normalize=False)
    for expert, kept in zip(merged, found, strict=True):  # the nearest of rank 3
        u, s, vt = torch.linalg.svd(expert, full_matrices=False)
        nearest = u[:, :3] * s[:3] @ vt[:3]
        assert (kept - nearest).norm() < 0.02 * nearest.norm()


def test_the_model_of_such_adapters_must_be_at_hand(tmp_path: Path):
    _, adapters = adapters_of("mixtral", tmp_path)
    path = adapters[0] / "adapter_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"base_model_name_or_path": None}))
    with pytest.raises(MergeError, match="must be the folder of the model"):
        merge_both(adapters, tmp_path / "sum", "linear")
    assert not (tmp_path / "sum").exists()


@pytest.mark.parametrize("model_type", ["zamba", "zamba2"])
def test_weights_that_blocks_share_are_left_out_and_named(model_type: str, tmp_path: Path):
    pair = make_pair(small_model(model_type), tmp_path)
    report = extract(pair, tmp_path / "lora", rank=3)
    assert any("shared" in row.name and "share it" in row.why for row in report.left_out)
    assert not any("shared_transf" in row.name for row in report.layers)
    found = through_merge(pair[0], tmp_path / "lora", tmp_path / "out")
    expected = through_peft(pair[0], tmp_path / "lora")
    assert (found - expected).abs().max() < 5e-6 * expected.abs().max()


def test_an_adapter_of_one_of_the_blocks_that_share_a_weight_is_refused(tmp_path: Path):
    base, _ = make_pair(small_model("zamba"), tmp_path)
    target = "layers.1.shared_transf.self_attn.q_proj"
    config = peft.LoraConfig(r=2, target_modules=[f"model.{target}"], init_lora_weights=False)
    peft.get_peft_model(open_model(base), config).save_pretrained(str(tmp_path / "lora"))
    with pytest.raises(CheckpointError, match=r"several modules of .* share"):
        through_merge(base, tmp_path / "lora", tmp_path / "out")
