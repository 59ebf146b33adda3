"""Models seen through adapters: what peft's own merge gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.helpers.adapters import make_adapter
from toolkit.checkpoint.adapted import open_adapted
from toolkit.checkpoint.open import open_checkpoint
from toolkit.errors import CheckpointError

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
