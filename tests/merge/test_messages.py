"""What `merge run` answers where models do not fit: the cause, and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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


def with_no_layers(folders: Models, out: Path, make_model: Callable[..., Path]) -> dict[str, Any]:
    del out, make_model
    source = {"model": str(folders[0]), "layer_range": [0, 0]}
    return {"merge_method": "passthrough", "slices": [{"sources": [source]}]}


def with_a_word_nearly(
    folders: Models, out: Path, make_model: Callable[..., Path]
) -> dict[str, Any]:
    del out, make_model
    return half(*folders, tokenizer_source="uniom")


def with_a_name_nearly(
    folders: Models, out: Path, make_model: Callable[..., Path]
) -> dict[str, Any]:
    del out, make_model
    return half(folders[0], folders[1].with_name(f"{folders[1].name}x"))


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
        (with_no_layers, "slices: have no layers"),
        (with_a_word_nearly, "neither base, union nor a model; did you mean union"),
        (with_a_name_nearly, "no such model folder. Did you mean"),
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


def sharded(folder: Path, out: Path, listed: dict[str, str]) -> Path:
    """A model in two files of odd names, whose index lists some tensors besides."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(names)}
    for file in ("part-0.safetensors", "part-1.safetensors"):
        save_file({n: tensors[n] for n in names if places[n] == file}, out / file)
    index = {"weight_map": {**places, **listed}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    return out


def test_an_index_may_list_buffers_and_tied_heads_that_no_file_holds(
    two_models: Models, tmp_path: Path
):
    listed = dict.fromkeys(
        ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"], "part-0.safetensors"
    )
    other = sharded(two_models[1], tmp_path / "other", listed)
    merge(half(two_models[0], other), tmp_path / "out")
    merge(half(*two_models), tmp_path / "expected")
    found, expected = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "expected"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_index_that_lists_a_weight_that_no_file_holds(two_models: Models, tmp_path: Path):
    name = "model.layers.0.mlp.extra.weight"
    other = sharded(two_models[1], tmp_path / "other", {name: "part-0.safetensors"})
    with pytest.raises(ToolkitError, match=rf"names {name}, which no file holds"):
        merge(half(two_models[0], other), tmp_path / "out")


def test_a_tensor_in_two_files(two_models: Models, tmp_path: Path):
    other = sharded(two_models[1], tmp_path / "other", {})
    shutil.copy(two_models[1] / "model.safetensors", other / "part-1.safetensors")
    with pytest.raises(ToolkitError, match=r"stands in part-0\.safetensors too, .* move one"):
        merge(half(two_models[0], other), tmp_path / "out")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.touch(), "is a file, where a folder"),
        (lambda path: (path.mkdir(), (path / ".hidden").touch()), r"not empty \(it holds \.hidden"),
        (lambda path: path.symlink_to(path.with_name("nowhere")), "is a link to nothing"),
    ],
)
def test_a_place_that_is_taken(
    two_models: Models, tmp_path: Path, make: Callable[[Path], object], words: str
):
    make(tmp_path / "out")
    with pytest.raises(ToolkitError, match=words):
        merge(half(*two_models), tmp_path / "out")


def test_a_place_below_a_file(two_models: Models, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ToolkitError, match="cannot be made"):
        merge(half(*two_models), tmp_path / "file" / "out")


@pytest.mark.parametrize("place", ["link", "link/", ".", "empty/../out"])
def test_places_that_are_followed(
    two_models: Models, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if place.startswith("link"):
        Path("link").symlink_to(tmp_path / "there")
    if place.startswith("empty"):
        Path("empty").mkdir()
    merge(half(*two_models), Path(place))
    assert (Path(place) / "model.safetensors").is_file()
    assert not list(tmp_path.rglob("*.partial"))
    assert Path("link").is_symlink() == place.startswith("link")
