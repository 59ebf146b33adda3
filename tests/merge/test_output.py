"""What stands beside the merged weights, and how a merge appears: whole, or not at all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
from mergekit.merge_methods.easy_define import merge_method
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.helpers.half_merges import Models, half, merge
from toolkit.errors import ConfigError, MergeError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.describe import describe_merge
from toolkit.merge.to_disk import run_merge


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_layers_and_their_types_are_counted_anew(tmp_path: Path):
    types = ["full_attention", "sliding_attention", "full_attention"]
    config = Qwen3Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=types,
        use_sliding_window=True,
        sliding_window=4,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "a")
    source = {"model": str(tmp_path / "a")}
    cut = [{"sources": [{**source, "layer_range": r}]} for r in ([1, 3], [0, 2])]
    written = merge({"merge_method": "passthrough", "slices": cut}, tmp_path / "out")
    assert written["num_hidden_layers"] == 4
    assert written["layer_types"] == [types[i] for i in (1, 2, 0, 1)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert len(model.model.layers) == 4


def test_paths_of_this_machine_do_not_leak(two_models: Models, tmp_path: Path):
    change_config(two_models[0], _name_or_path="/home/me/secret")
    written = merge(half(*two_models), tmp_path / "out")
    assert "secret" not in json.dumps(written)


def test_the_config_says_the_type_that_was_written(two_models: Models, tmp_path: Path):
    change_config(two_models[0], torch_dtype="float16")
    written = merge(half(*two_models, dtype="bfloat16"), tmp_path / "out")
    assert written["dtype"] == "bfloat16"
    assert "torch_dtype" not in written


def test_a_tied_and_an_untied_model_make_an_untied_one(
    tmp_path: Path, make_model: Callable[..., Path]
):
    tied = make_model(tmp_path / "tied", seed=1)
    untied = make_model(tmp_path / "untied", seed=2, tie_word_embeddings=False)
    written = merge(half(tied, untied), tmp_path / "out")
    assert written["tie_word_embeddings"] is False
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    a, b = (load_file(folder / "model.safetensors") for folder in (tied, untied))
    head = (a["model.embed_tokens.weight"] + b["lm_head.weight"]) / 2
    assert torch.equal(state["lm_head.weight"], head)


def test_templates_by_name_and_by_majority(two_models: Models, tmp_path: Path):
    merge(half(*two_models, chat_template="chatml"), tmp_path / "a")
    assert "<|im_start|>" in (tmp_path / "a" / "chat_template.jinja").read_text()
    third = tmp_path / "third"
    third.mkdir()
    for path in two_models[1].iterdir():
        (third / path.name).write_bytes(path.read_bytes())
    for folder in (third, two_models[1]):
        (folder / "chat_template.jinja").write_text("{{ 'most' }}")
    merge(half(*two_models, third, chat_template="auto"), tmp_path / "b")
    assert (tmp_path / "b" / "chat_template.jinja").read_text() == "{{ 'most' }}"


def test_models_with_adapters(two_models: Models, tmp_path: Path):
    base = two_models[0]
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"])
    )
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    tuned.save_pretrained(tmp_path / "lora")
    merge(half(f"{base}+{tmp_path / 'lora'}", base), tmp_path / "out")
    plain = LlamaForCausalLM.from_pretrained(base)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "lora").merge_and_unload().state_dict()
    before, after = (load_file(f / "model.safetensors") for f in (base, tmp_path / "out"))
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, (before[name] + adapted[name]) / 2)


def test_pickled_models_merge_to_the_same(two_models: Models, tmp_path: Path):
    merge(half(*two_models), tmp_path / "a")
    path = two_models[1] / "model.safetensors"
    torch.save(load_file(path), two_models[1] / "pytorch_model.bin")
    path.unlink()
    merge(half(*two_models), tmp_path / "b")
    a, b = ((tmp_path / n / "model.safetensors").read_bytes() for n in "ab")
    assert a == b


def test_integers_are_kept_where_they_agree(two_models: Models, tmp_path: Path):
    for number, folder in enumerate(two_models):
        path = folder / "model.safetensors"
        tensors = load_file(path) | {"model.steps": torch.tensor([number])}
        save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"model\.steps: holds I64 values that differ"):
        merge(half(*two_models), tmp_path / "out")
    tensors["model.steps"] -= 1
    save_file(tensors, path, metadata={"format": "pt"})
    merge(half(*two_models, dtype="bfloat16"), tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["model.steps"].tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16])
def test_stored_types(two_models: Models, tmp_path: Path, dtype: torch.dtype):
    path = two_models[1] / "model.safetensors"
    stored = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(stored, path, metadata={"format": "pt"})
    merge(half(*two_models, out_dtype="float32"), tmp_path / "out")
    base, merged = (load_file(f / "model.safetensors") for f in (two_models[0], tmp_path / "out"))
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (base[name] + stored[name].float()) / 2)


def test_a_stale_quantization_config_is_left_out(two_models: Models, tmp_path: Path):
    for folder in two_models:
        change_config(folder, quantization_config={"quant_method": "bitsandbytes"})
    merge(half(*two_models), tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_kill_leaves_nothing_that_looks_complete(two_models: Models, tmp_path: Path):
    config, out = tmp_path / "m.yml", tmp_path / "out"
    config.write_text(yaml.safe_dump(half(*two_models)))
    code = (
        "import sys, time; from pathlib import Path; import toolkit.merge.to_disk as r;"
        "from toolkit.merge.config import load_merge_config;"
        "r.write_tokenizer = lambda *_: (print('here', flush=True), time.sleep(60));"
        f"r.run_merge(load_merge_config(Path({str(config)!r})), Path({str(out)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        with pytest.raises(MergeError, match="another process is merging into it"):
            merge(half(*two_models), out)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    left = [path.name for path in tmp_path.iterdir() if "out" in path.name]
    assert left == [".out.partial"]
    merge(half(*two_models), out)
    assert not (tmp_path / ".out.partial").exists()


def test_an_empty_folder_gives_way(two_models: Models, tmp_path: Path):
    (tmp_path / "out").mkdir()
    merge(half(*two_models), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_full_disk_is_told_before_anything_is_written(
    two_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(Exception, match=r"needs 115\.3 kB, but the disk has 0\.0 kB free"):
        merge(half(*two_models), tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_method_that_only_mergekit_knows(two_models: Models, tmp_path: Path):
    @merge_method(name="plugged_in", pretty_name="Plugged in")
    def plugged_in(group: TensorGroup, share: float = 0.5) -> torch.Tensor:
        a, b = group.tensors
        return a * share + b * (1 - share)

    registry.register(plugged_in)
    try:
        data = half(*two_models, parameters={"share": 0.25}) | {"merge_method": "plugged_in"}
        for model in data["models"]:
            del model["parameters"]
        plan = run_merge(parse_merge_config(data, where="test"), tmp_path / "out")
        assert plan.method.name == "plugged_in"
        assert "by mergekit" in describe_merge(parse_merge_config(data, where="test"))
    finally:
        registry._METHODS.pop("plugged_in")
    a, b, merged = (load_file(f / "model.safetensors") for f in (*two_models, tmp_path / "out"))
    assert {task.name for task in plan.tasks} == set(merged)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.25 * a[name] + 0.75 * b[name])
    assert (tmp_path / "out" / "merge.yaml").is_file()
    assert not (tmp_path / "out" / "README.md").exists()
    with pytest.raises(ConfigError, match="unknown method 'plugged_in'"):
        merge(data, tmp_path / "no")


def test_an_interrupt_is_passed_on(two_models: Models, tmp_path: Path):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        merge(half(*two_models), tmp_path / "out", advance=stop)
    assert time.monotonic() - started < 30
    assert not any("out" in path.name for path in tmp_path.iterdir())
