"""What `merge run` answers where models do not fit: the cause, and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.half_merges import Models, half, merge
from toolkit.checkpoint.gguf.compare import compare_gguf
from toolkit.checkpoint.gguf.write import export_gguf
from toolkit.errors import ToolkitError

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def lora(base: Path, out: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(out)
    return out


def with_prefix(folders: Models, out: Path, make_model: Callable[..., Path]) -> dict[str, Any]:
    del make_model
    shutil.copytree(folders[1], out)
    path = out / "model.safetensors"
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return half(folders[0], out)


def with_more_rows(folders: Models, out: Path, make_model: Callable[..., Path]) -> dict[str, Any]:
    return half(folders[0], make_model(out, seed=3, vocab_size=400))


def with_a_filter_alone(
    folders: Models, out: Path, make_model: Callable[..., Path]
) -> dict[str, Any]:
    del out, make_model
    data = half(*folders)
    data["models"][0]["parameters"]["weight"] = [{"filter": "q_proj", "value": 1.0}]
    return data


def of_adapters(folders: Models, out: Path, make_model: Callable[..., Path]) -> dict[str, Any]:
    del make_model
    return half(lora(folders[0], out), lora(folders[0], out.with_name("other")))


def with_a_base(folders: Models, out: Path, make_model: Callable[..., Path]) -> dict[str, Any]:
    del out, make_model
    return {
        "merge_method": "passthrough",
        "base_model": str(folders[0]),
        "models": [{"model": str(folders[1])}],
    }


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (with_prefix, "_orig_mod"),
        (with_more_rows, "tokenizer_source"),
        (with_a_filter_alone, "none of its filters matches"),
        (of_adapters, "toolkit adapter merge"),
        (with_a_base, "leave out base_model"),
    ],
)
def test_messages(
    two_models: Models,
    tmp_path: Path,
    make_model: Callable[..., Path],
    make: Callable[..., dict[str, Any]],
    words: str,
):
    with pytest.raises(ToolkitError, match=words):
        merge(make(two_models, tmp_path / "x", make_model), tmp_path / "out")


@pytest.mark.parametrize("more", [{}, {"chat_template": "auto"}])
def test_the_template_of_the_adapter(two_models: Models, tmp_path: Path, more: dict[str, Any]):
    base = two_models[0]
    (base / "chat_template.jinja").unlink(missing_ok=True)
    lora(base, tmp_path / "lora")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "lora")
    model = f"{base}+{tmp_path / 'lora'}"
    merge({"merge_method": "passthrough", "models": [{"model": model}], **more}, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE


def test_gguf_of_a_tied_config_with_its_own_head(tmp_path: Path, make_model: Callable[..., Path]):
    folder = make_model(tmp_path / "m", seed=1, tie_word_embeddings=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    export_gguf(folder, tmp_path / "x.gguf", "F32", name="x")
    assert compare_gguf(folder, tmp_path / "x.gguf").divergence < 1e-3
