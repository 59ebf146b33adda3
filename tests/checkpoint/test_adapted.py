"""Models seen through adapters: what peft's own merge gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.helpers.adapters import make_adapter, through_peft
from tests.helpers.architectures import small_model
from tests.helpers.wrappers import small_wrapper
from toolkit.checkpoint.adapted import open_adapted
from toolkit.checkpoint.lora import open_adapter
from toolkit.checkpoint.open import open_checkpoint
from toolkit.errors import CheckpointError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.to_disk import run_merge

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "down_proj"]},
    "rank-stabilized": {"target_modules": ["q_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "up_proj"],
        "alpha_pattern": {"layers.1.mlp.up_proj": 32},
        "rank_pattern": {"q_proj": 2},
    },
    "dora": {"target_modules": ["v_proj", "gate_proj"], "use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "lm_head"]},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
}


@pytest.fixture
def model(tmp_path: Path, make_model: Callable[..., Path]) -> Path:
    return make_model(tmp_path / "model", tie_word_embeddings=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_peft_s_own_merge(tmp_path: Path, model: Path, kind: str):
    adapter = make_adapter(model, tmp_path / "adapter", **KINDS[kind])
    plain = AutoModelForCausalLM.from_pretrained(model)
    merged = PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()
    before = load_file(model / "model.safetensors")
    adapted = open_adapted(open_checkpoint(model), adapter)
    assert set(adapted.names) == set(before)
    changed = 0
    for name in adapted.names:
        torch.testing.assert_close(adapted.tensor(name), merged[name], rtol=1e-5, atol=1e-6)
        array = adapted.array(name)
        assert array is not None
        assert torch.equal(torch.from_numpy(array.copy()), adapted.tensor(name).reshape(-1))
        changed += not torch.equal(adapted.tensor(name), before[name])
        adapted.give_back(name)
    assert changed >= 2


def in_memory(folder: Path, auto: Any = AutoModelForCausalLM) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = auto.from_pretrained(folder, dtype="auto").state_dict()
    return state


def write_adapted(base: Path, adapter: Path, out: Path) -> Path:
    data = {"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}
    run_merge(parse_merge_config(data, where="test"), out)
    return out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["k_proj"]},
        {"target_modules": ["q_proj", "v_proj", "up_proj", "o_proj"], "use_rslora": True},
        {"target_modules": ["gate_proj"], "use_dora": True},
        {"target_modules": ["o_proj"], "modules_to_save": ["v_proj", "up_proj"]},
    ],
    ids=lambda settings: " ".join(settings["target_modules"]),
)
def test_modules_that_files_store_as_one_tensor(settings: dict[str, Any], tmp_path: Path):
    model = small_model("hrm_text")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    assert any("gqkv_proj" in name for name in stored)
    assert any("q_proj" in name for name in model.state_dict())
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", **settings)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    expected = PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()
    found = in_memory(write_adapted(tmp_path / "base", adapter, tmp_path / "out"))
    changed = 0
    for name, tensor in in_memory(tmp_path / "base").items():
        # Once to the type that the model is stored in.
        torch.testing.assert_close(found[name].float(), expected[name], rtol=2**-8, atol=1e-6)
        changed += not torch.equal(found[name], tensor)
    assert changed >= 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("kimi_k25", {"target_modules": ["q_proj"], "lora_bias": True}),
        ("qianfan_ocr", {"target_modules": ["v_proj", "down_proj"]}),
        ("minimax_m3_vl", {"target_modules": ["gate_up_proj", "k_proj"]}),
        ("inkling_mm_model", {"target_parameters": ["shared_experts.up_proj"]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrappers_that_files_store_otherwise(
    model_type: str, settings: dict[str, Any], tmp_path: Path
):
    auto = AutoModelForImageTextToText
    small_wrapper(model_type).save_pretrained(tmp_path / "base")
    torch.manual_seed(7)
    tuned = get_peft_model(auto.from_pretrained(tmp_path / "base"), LoraConfig(r=2, **settings))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    expected = tuned.merge_and_unload().state_dict()
    found = in_memory(write_adapted(*(tmp_path / n for n in ("base", "adapter", "out"))), auto)
    base = in_memory(tmp_path / "base", auto)
    assert sum(not torch.equal(found[name], base[name]) for name in base) >= 2
    for name in base:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_files_that_the_library_cannot_convert(tmp_path: Path):
    base = tmp_path / "base"
    small_model("hrm_text").save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    plain = make_adapter(base, tmp_path / "plain", target_modules=["down_proj"])
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in tensors if "gqkv_proj" in name)
    tensors[name] = tensors[name][0, 0].clone()  # a number has no rows to part
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"cannot make .*gate_proj\.weight of .*gqkv_proj"):
        open_adapted(open_checkpoint(base), adapter)
    changed = open_adapted(open_checkpoint(base), plain).changed
    assert changed
    assert all("down_proj" in name for name in changed)


def test_an_adapter_as_peft_wrote_it_before(model: Path, tmp_path: Path):
    folder = make_adapter(model, tmp_path / "adapter", **KINDS["lora"])
    expected = open_adapted(open_checkpoint(model), folder)
    folder = Path(shutil.copytree(folder, tmp_path / "pickled"))
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    found = open_adapted(open_checkpoint(model), folder)
    assert set(found.changed) == set(expected.changed) != set()
    for name in expected.changed:
        assert torch.equal(found.tensor(name), expected.tensor(name))
    torch.save({**tensors, "code": print}, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin: holds more than tensors"):
        open_adapted(open_checkpoint(model), folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match="has neither adapter_model"):
        open_adapted(open_checkpoint(model), folder)


def test_rounding_is_to_the_model_s_type(tmp_path: Path, make_model: Callable[..., Path]):
    model = make_model(tmp_path / "model", dtype=torch.bfloat16)
    adapter = make_adapter(model, tmp_path / "adapter", target_modules=["q_proj"])
    adapted = open_adapted(open_checkpoint(model), adapter)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert adapted.tensor(name).dtype == torch.bfloat16
    assert adapted.info(name).dtype == "BF16"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "tensors", "words"),
    [
        ({"peft_type": "IA3"}, {}, "is a IA3 adapter"),
        ({"layer_replication": [[0, 2]]}, {}, "layer_replication is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "changed the model's own weights too"),
        (
            {},
            {
                "base_model.model.x.lora_A.weight": (4, 32),
                "base_model.model.x.lora_B.weight": (8, 4),
            },
            "changes x.weight",
        ),
        ({}, {"base_model.model.x.token_adapter.delta": (4, 32)}, "changes x.token_adapter.delta"),
        ({}, {"base_model.model.lm_head.lora_A.weight": (4, 32)}, "only half of the change"),
        (
            {},
            {
                "base_model.model.lm_head.lora_A.weight": (4, 31),
                "base_model.model.lm_head.lora_B.weight": (320, 4),
            },
            r"lm_head.weight is \[320, 32\] in .*\[4, 31\] and \[320, 4\]",
        ),
    ],
)
def test_adapters_that_do_not_fit(
    tmp_path: Path,
    model: Path,
    settings: dict[str, Any],
    tensors: dict[str, tuple[int, ...]],
    words: str,
):
    folder = tmp_path / "adapter"
    folder.mkdir()
    values = {"peft_type": "LORA", "lora_alpha": 8, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    named = {name: torch.zeros(shape) for name, shape in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        open_adapted(open_checkpoint(model), folder)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lora_alpha", []),
        ("lora_alpha", True),
        ("lora_alpha", float("inf")),
        ("alpha_pattern", ["q_proj"]),
        ("alpha_pattern", {"q_proj": "8"}),
        ("alpha_pattern", {"(": 8}),
        ("target_parameters", {"a": 1}),
        ("base_model_name_or_path", 3),
    ],
)
def test_settings_of_another_type_than_peft_writes(tmp_path: Path, setting: str, value: object):
    values = {"peft_type": "LORA", "lora_alpha": 8, setting: value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{setting} is .* which peft does not write"):
        open_adapter(tmp_path)


def spoil(folder: Path, **values: object) -> None:
    """Change an adapter's settings; those given as None go."""
    path = folder / "adapter_config.json"
    settings = {**json.loads(path.read_text()), **values}
    given = {key: value for key, value in settings.items() if value is not None}
    path.write_text(json.dumps(given))


@pytest.mark.filterwarnings("ignore")
def test_settings_that_are_left_out_are_peft_s(tmp_path: Path, model: Path):
    adapter = make_adapter(model, tmp_path / "adapter")  # rank 4, whose scale is 8 / 4
    spoil(adapter, lora_alpha=None, use_rslora=None, bias=None, use_dora=None, alpha_pattern=None)
    merged = in_memory(write_adapted(model, adapter, tmp_path / "merged"))
    for name, tensor in through_peft(model, adapter).items():
        assert torch.allclose(merged[name], tensor, atol=1e-6), name


@pytest.mark.filterwarnings("ignore")
def test_settings_that_say_otherwise_than_the_tensors(tmp_path: Path, model: Path):
    adapter = make_adapter(model, tmp_path / "adapter")
    spoil(adapter, r=16)
    with pytest.raises(CheckpointError, match=r"has rank 4, and .* names 16"):
        open_adapted(open_checkpoint(model), adapter)
    spoil(adapter, r=16, rank_pattern={"q_proj|v_proj": 4})
    open_adapted(open_checkpoint(model), adapter)
    spoil(adapter, use_dora=True)
    with pytest.raises(CheckpointError, match="has no lora_magnitude_vector, and use_dora"):
        open_adapted(open_checkpoint(model), adapter)


@pytest.mark.filterwarnings("ignore")
def test_a_bias_without_factors_is_refused(tmp_path: Path, model: Path):
    adapter = make_adapter(model, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.bias"] = torch.zeros(64)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"only half of the change to .*up_proj\.bias"):
        open_adapted(open_checkpoint(model), adapter)


@pytest.mark.filterwarnings("ignore")
def test_the_damaged_file_is_the_one_that_is_damaged(tmp_path: Path, model: Path):
    adapter = make_adapter(model, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    own_name = next(name for name in tensors if "lora_B" in name)
    tensors[own_name][0, 0] = float("nan")
    save_file(tensors, path)
    adapted = open_adapted(open_checkpoint(model), adapter)
    name = own_name.removeprefix("base_model.model.").replace(".lora_B.", ".")
    assert adapted.damaged_file(name) == path
    state = load_file(model / "model.safetensors")
    state[name][0, 0] = float("inf")
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    adapted = open_adapted(open_checkpoint(model), adapter)
    assert adapted.damaged_file(name) == model / "model.safetensors"
