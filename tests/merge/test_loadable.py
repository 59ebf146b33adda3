"""A merge is compared with its own config before anything is written, by transformers' rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.helpers.half_merges import Models, half, merge
from toolkit.checkpoint import loadable
from toolkit.errors import CheckpointError, MergeError

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def write(kind: Any, config: Any, folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    kind(config).save_pretrained(folder)
    return folder


def change(folder: Path, act: Callable[[dict[str, torch.Tensor]], Any], **config: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    act(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))


def load(folder: Path) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


def stacked(folder: Path, *ranges: list[int]) -> dict[str, Any]:
    slices = [{"sources": [{"model": str(folder), "layer_range": r}]} for r in ranges]
    return {"merge_method": "passthrough", "slices": slices}


def test_a_plain_merge_asks_nobody(
    two_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def ask(*_: Any) -> None:
        raise AssertionError("transformers was asked")

    monkeypatch.setattr(loadable, "loading_faults", ask)
    merge(half(*two_models), tmp_path / "out")


def test_shapes_that_the_config_does_not_have(two_models: Models, tmp_path: Path):
    for folder in two_models:
        change(folder, lambda t: t.update({"model.extra.weight": torch.ones(3)}))
    # both have it, so it is no fault of the merge
    merge(half(*two_models), tmp_path / "out")
    for folder in two_models:
        change(folder, lambda t: t.pop("model.norm.weight"))
    merge(half(*two_models), tmp_path / "same")
    data = half(two_models[0], **stacked(two_models[0], [0, 1]))
    data.pop("models")
    merge(data, tmp_path / "short")  # what the model lacks, the merge may lack


def test_faults_are_the_librarys(tmp_path: Path):
    folder = write(MixtralForCausalLM, MixtralConfig(**SMALL, num_local_experts=2), tmp_path / "m")
    assert loadable.folder_faults(folder) == {}

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop("model.layers.0.block_sparse_moe.experts.1.w2.weight")
        tensors["model.norm.weight"] = torch.ones(7)
        tensors["model.more.weight"] = torch.ones(7)

    change(folder, spoil)
    assert loadable.folder_faults(folder) == {
        "model.more.weight": "is no tensor of the model in config.json",
        "model.layers.0.mlp.experts.down_proj": "is [1, 16, 32], but the config asks for "
        "[2, 16, 32]",
        "model.norm.weight": "is [7], but the config asks for [16]",
    }


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.update({"model.norm.weight": torch.empty(0)}), "has no entries"),
        (
            lambda t: t.update(
                {
                    "a.weight": torch.ones(2, 2).to(torch.float8_e4m3fn),
                    "a.weight_scale_inv": torch.ones(1, 1),
                }
            ),
            "is quantized",
        ),
        (lambda t: t.update({"a.weight": torch.ones(2, 2, dtype=torch.uint8)}), "is quantized"),
    ],
)
def test_guards_stand_where_models_are_opened(
    two_models: Models, tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], Any], words: str
):
    change(two_models[1], spoil)
    with pytest.raises(CheckpointError, match=words):
        merge(half(*two_models), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "method"), [("linear", {}), ("multislerp", {})])
def test_values_beyond_the_written_type(
    two_models: Models, tmp_path: Path, name: str, method: dict[str, Any]
):
    for folder in two_models:
        change(folder, lambda t: t["model.layers.1.mlp.down_proj.weight"].view(-1)[0:1].fill_(9e4))
    data = {**half(*two_models, dtype="float16"), "merge_method": name, **method}
    with pytest.raises(MergeError, match="do not fit into float16"):
        merge(data, tmp_path / "out")


def test_a_huge_weight_overflows_with_a_word(two_models: Models, tmp_path: Path):
    for folder in two_models:
        change(folder, lambda t: t["model.layers.1.mlp.down_proj.weight"].view(-1)[0:1].fill_(1e9))
    data = half(*two_models, parameters={"normalize": False})
    for item in data["models"]:
        item["parameters"]["weight"] = 1e30  # the largest there is: the product is beyond float32
    with pytest.raises(MergeError, match="do not fit into float32"):
        merge(data | {"merge_method": "linear"}, tmp_path / "out")


@pytest.mark.parametrize("ranges", [([0, 2], [3, 4]), ([0, 3], [1, 4]), ([0, 4],)])
def test_layers_beyond_the_config_are_left_out_of_slices(tmp_path: Path, ranges: Any):
    config = Glm4MoeConfig(
        **SMALL, head_dim=8, n_routed_experts=4, moe_intermediate_size=8, num_experts_per_tok=2,
        first_k_dense_replace=1, n_group=1, topk_group=1,
    )  # fmt: skip
    folder = write(Glm4MoeForCausalLM, config, tmp_path / "m")

    def add(tensors: dict[str, torch.Tensor]) -> None:
        last = {n: t for n, t in tensors.items() if "layers.3." in n}
        tensors.update({n.replace("layers.3.", "layers.4."): t.clone() for n, t in last.items()})

    change(folder, add, num_nextn_predict_layers=1)
    values = merge(stacked(folder, *ranges), tmp_path / "out")
    layers = sum(stop - start for start, stop in ranges)
    assert values["num_hidden_layers"] == layers
    assert values["num_nextn_predict_layers"] == 0
    assert len(load(tmp_path / "out").model.layers) == layers


def test_patterns_become_types(tmp_path: Path):
    config = Gemma3TextConfig(**SMALL | {"num_hidden_layers": 8}, head_dim=8, sliding_window=8)
    folder = write(Gemma3ForCausalLM, config, tmp_path / "m")
    values = json.loads((folder / "config.json").read_text())
    for key in ("layer_types", "_sliding_window_pattern"):
        values.pop(key, None)
    (folder / "config.json").write_text(json.dumps(values | {"sliding_window_pattern": 6}))
    types = AutoModelForCausalLM.from_pretrained(folder).config.layer_types
    merge(stacked(folder, [0, 7], [5, 8]), tmp_path / "out")
    order = [*range(7), *range(5, 8)]
    assert load(tmp_path / "out").config.layer_types == [types[layer] for layer in order]


@pytest.mark.parametrize(
    ("ranges", "dense"), [(([0, 2], [1, 4]), 2), (([0, 1], [2, 4]), 1), (([1, 2], [1, 4]), 2)]
)
def test_first_dense_layers_are_counted_anew(tmp_path: Path, ranges: Any, dense: int):
    config = Glm4MoeConfig(
        **SMALL, head_dim=8, n_routed_experts=4, moe_intermediate_size=8, num_experts_per_tok=2,
        first_k_dense_replace=2, n_group=1, topk_group=1,
    )  # fmt: skip
    folder = write(Glm4MoeForCausalLM, config, tmp_path / "m")
    if ranges == ([0, 2], [1, 4]):  # dense, dense, dense, sparse, sparse
        dense = 3
    values = merge(stacked(folder, *ranges), tmp_path / "out")
    assert values["first_k_dense_replace"] == dense
    load(tmp_path / "out")


def test_sparse_and_dense_in_an_order_that_no_setting_says(tmp_path: Path):
    config = Glm4MoeConfig(
        **SMALL, head_dim=8, n_routed_experts=4, moe_intermediate_size=8, num_experts_per_tok=2,
        first_k_dense_replace=1, n_group=1, topk_group=1,
    )  # fmt: skip
    folder = write(Glm4MoeForCausalLM, config, tmp_path / "m")
    with pytest.raises(MergeError, match="would be of another kind"):
        merge(stacked(folder, [1, 3], [0, 1]), tmp_path / "out")


def test_lists_of_dense_layers_follow(tmp_path: Path):
    config = Qwen3MoeConfig(
        **SMALL,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
    )  # fmt: skip  (dense: 0, 2 and 3; sparse: 1)
    folder = write(Qwen3MoeForCausalLM, config, tmp_path / "m")
    merge(stacked(folder, [1, 3], [0, 2]), tmp_path / "out")  # 1 2 0 1
    kinds = [type(layer.mlp).__name__ for layer in load(tmp_path / "out").model.layers]
    assert [kind == "Qwen3MoeMLP" for kind in kinds] == [False, True, True, False]


def test_a_head_of_its_own_under_a_config_that_says_tied(
    tmp_path: Path, make_model: Callable[..., Path]
):
    a = make_model(tmp_path / "a", seed=1, tie_word_embeddings=True)
    b = make_model(tmp_path / "b", seed=2, tie_word_embeddings=True)
    name = "model.embed_tokens.weight"
    change(b, lambda t: t.update({"lm_head.weight": t[name] + 0.3}))
    values = merge(half(a, b), tmp_path / "out")
    own, other = (load_file(f / "model.safetensors") for f in (a, b))
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert values["tie_word_embeddings"] is False
    torch.testing.assert_close(found["lm_head.weight"], (own[name] + other["lm_head.weight"]) / 2)
    torch.testing.assert_close(found[name], (own[name] + other[name]) / 2)
    # a copy is no head of its own
    change(b, lambda t: t.update({"lm_head.weight": t[name].clone()}))
    values = merge(half(a, b), tmp_path / "copy")
    assert values["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(tmp_path / "copy" / "model.safetensors")


def test_truncated_embeddings(tmp_path: Path, make_model: Callable[..., Path]):
    a = make_model(tmp_path / "a", seed=1)
    rows = json.loads((a / "config.json").read_text())["vocab_size"]
    b = make_model(tmp_path / "b", seed=2, vocab_size=rows + 8)
    with pytest.raises(MergeError, match="tokenizer_source"):
        merge(half(a, b), tmp_path / "no")
    values = merge(half(b, a), tmp_path / "out", truncate_embeddings=True)
    assert values["vocab_size"] == rows
    found, one, two = (load_file(f / "model.safetensors") for f in (tmp_path / "out", a, b))
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(found[name], (one[name] + two[name][:rows]) / 2)
    load(tmp_path / "out")


def test_output_folders_that_cannot_be_replaced(
    two_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "big").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "big")
    merge(half(*two_models), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "big" / "config.json").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    merge(half(*two_models), Path())
    assert (tmp_path / "here" / "model.safetensors").is_file()
    assert not list((tmp_path / "here").glob(".*"))


def test_side_files_are_copied_unless_they_are_wrong(
    two_models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = two_models[0]
    for name in ("LICENSE", "modeling_own.py", "modules.json", "README.md", "trainer_state.json"):
        (base / name).write_text("x")
    for name in (
        "1_Pooling/config.json",
        "additional_chat_templates/tool.jinja",
        "onnx/model.onnx",
    ):
        (base / name).parent.mkdir()
        (base / name).write_text("x")
    (base / "manifest.json").write_text("{}")
    merge(half(*two_models), tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    kept = {"LICENSE", "modeling_own.py", "modules.json", "1_Pooling", "additional_chat_templates"}
    wrong = {"README.md", "trainer_state.json", "onnx", "manifest.json"}
    assert kept <= found
    assert not wrong & found
    said = capsys.readouterr().err
    assert [name for name in sorted(wrong) if name not in said] == ["manifest.json"]
