"""Each of two processes reads its parts: together they hold what one that reads all would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from toolkit.checkpoint.sharded_load import sharded_fault

ROOT = Path(__file__).parent.parent.parent

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 101,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "experts-in-one-tensor": ("mixtral", {"num_local_experts": 3}),
    "transposed": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "scaled-logits": ("granite", {"logits_scaling": 3.0}),
    "windows": ("gemma3_text", {"head_dim": 8}),
    "recurrent": ("mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1}),
}

_SCRIPT = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from toolkit.checkpoint.load import load_causal_model
from toolkit.checkpoint.sharded_load import empty_causal_model, sharded_fault
from toolkit.checkpoint.sharded_save import ModelWriter
mesh = init_device_mesh("cpu", (2,))
for folder in map(Path, sys.argv[1:]):
    assert not sharded_fault(folder), sharded_fault(folder)
    empty = empty_causal_model(folder)
    assert all(parameter.is_meta for parameter in empty.model.parameters())
    for module in list(empty.model.modules()):
        if type(module).__name__ in empty.model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(empty.model, mesh=mesh)
    objects = dict(empty.model.named_parameters())
    empty.fill()
    whole = load_causal_model(folder, torch.float32)
    parameters = dict(whole.named_parameters(remove_duplicate=False))
    filled = dict(empty.model.named_parameters(remove_duplicate=False))
    assert set(parameters) == set(filled)
    for name, parameter in parameters.items():
        assert objects.get(name, filled[name]) is filled[name], name
        rows = filled[name].to_local().shape[0]
        assert rows <= -(-parameter.shape[0] // 2), name
        assert torch.equal(filled[name].full_tensor(), parameter), (folder, name)
    buffers = dict(empty.model.named_buffers())
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffers[name], buffer), (folder, name)
    tokens = torch.arange(1, 30)[None]
    with torch.no_grad():
        ours, theirs = (m(input_ids=tokens, use_cache=False).logits for m in (empty.model, whole))
    assert torch.equal(ours, theirs), folder
    assert str(empty.model.generation_config) == str(whole.generation_config)
    # Written by both: the bytes that one process writes.
    other = empty_causal_model(folder)
    other.model.generation_config = empty.model.generation_config
    other.model._weight_conversions = empty.model._weight_conversions
    writer = ModelWriter(other, other.model, empty.model, torch.bfloat16)
    assert not writer.fault(), folder
    ours, theirs = folder.with_name(f"{folder.name}-ours"), folder.with_name(f"{folder.name}-one")
    ours.mkdir(exist_ok=True)
    writer.write(ours, lambda name, tensor: tensor)
    if dist.get_rank() == 0:
        writer.write_settings(ours)
        whole.to(torch.bfloat16).save_pretrained(theirs)
        assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
        for path in theirs.iterdir():
            assert path.read_bytes() == (ours / path.name).read_bytes(), path
    dist.barrier()
print("all the same")
dist.destroy_process_group()
"""


def make(folder: Path, kind: str, changes: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES | changes))
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_parts_are_those_of_the_whole(tmp_path: Path):
    folders = [
        str(make(tmp_path / name, kind, changes)) for name, (kind, changes) in ARCHITECTURES.items()
    ]
    (tmp_path / "script.py").write_text(_SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "script.py"), *folders],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("all the same") == 2


def test_what_cannot_be_read_in_parts_says_why(tmp_path: Path, make_model: Callable[..., Path]):
    tied = make_model(tmp_path / "tied", tie_word_embeddings=True)
    assert sharded_fault(tied) == ""
    tensors = load_file(tied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, tied / "model.safetensors", metadata={"format": "pt"})
    assert "which are tied" in sharded_fault(tied)
    pickled = make_model(tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    assert "not in safetensors" in sharded_fault(pickled)
    quantized = make_model(tmp_path / "quantized")
    values = json.loads((quantized / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (quantized / "config.json").write_text(json.dumps(values))
    assert "quantized" in sharded_fault(quantized)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
