"""`merge check`: a good merge gives no finding, and a bad one gives all of them at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from toolkit.cli import main
from toolkit.errors import Fault
from toolkit.merge.check.configs import plain_values
from toolkit.merge.check.findings import as_sentence, findings_text
from toolkit.merge.check.run import check_merge
from toolkit.merge.moments import write_moments

Models = tuple[Path, Path]


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def ties(base: Path, *tuned: Path | str, **parameters: Any) -> dict[str, Any]:
    settings = {"weight": 0.5, "density": 0.5} | parameters
    models = [{"model": str(folder), "parameters": settings} for folder in tuned]
    return {"merge_method": "ties", "base_model": str(base), "models": models}


def check(data: dict[str, Any], tmp_path: Path, **options: Any) -> list[Fault]:
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump(data))
    return check_merge(path, **options)


def has(findings: list[Fault], severity: str, where: str, *words: str) -> bool:
    return any(
        f.severity == severity
        and f.where.endswith(where)
        and all(w in as_sentence(f) for w in words)
        for f in findings
    )


def test_a_good_merge_gives_no_finding(two_models: Models, tmp_path: Path):
    assert check(ties(*two_models), tmp_path) == []
    linear = {
        "merge_method": "linear",
        "models": [{"model": str(m), "parameters": {"weight": 0.5}} for m in two_models],
    }
    assert check(linear, tmp_path) == []
    layers = [{"sources": [{"model": str(two_models[1]), "layer_range": [0, 2]}]}] * 2
    assert check({"merge_method": "passthrough", "slices": layers}, tmp_path) == []


def test_all_faults_at_once(two_models: Models, tmp_path: Path):
    base, tuned = two_models
    change_config(tuned, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    change_config(tuned, eos_token_id=7)
    change_tensors(tuned, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    change_tensors(tuned, lambda t: t["model.norm.weight"].fill_(float("nan")))
    change_tensors(
        tuned, lambda t: t.update({"model.layers.0.mlp.gate_proj.weight": torch.ones(8, 32)})
    )
    (tuned / "chat_template.jinja").write_text("{{ 'other' }}")
    (tuned / "generation_config.json").unlink(missing_ok=True)
    data = ties(base, tuned, "/nowhere/at/all", densitty=0.3, weight="heavy")
    data["models"][0]["parameters"]["density"] = [{"filter": "self_atn", "value": 0.2}]
    data["dtyp"] = "bfloat16"
    found = check(data, tmp_path)
    assert has(found, "error", "dtyp", "unknown key; did you mean dtype?")
    assert has(found, "error", "/nowhere/at/all", "no such model folder")
    assert has(found, "error", "models.0.parameters.densitty", "did you mean density?")
    assert has(found, "error", "models.1.parameters.densitty", "did you mean density?")
    assert has(found, "error", "models.0.parameters.weight", "'heavy'")
    assert has(found, "error", "tuned", "lacks model.layers.1.mlp.up_proj.weight")
    assert has(found, "error", "gate_proj.weight", "[64, 32]", "[8, 32]")
    assert has(found, "error", "tuned", "NaN or infinity in model.norm.weight")
    assert has(found, "warning", "tuned", "rope_theta is 500000.0", "10000.0")
    assert has(found, "warning", "tuned", "eos_token_id is 7", "0")
    assert has(found, "warning", "tuned", "chat template")
    assert has(found, "warning", "models.0.parameters.density", "'self_atn'")
    assert [f.severity for f in found] == sorted(f.severity for f in found)  # errors first
    text = findings_text(found)
    assert text.splitlines()[0] == f"errors ({sum(f.severity == 'error' for f in found)})"
    assert len(text.splitlines()) == len(found) + 3  # one line each, two titles, the sum


def test_what_the_plan_refuses_is_said_once(tmp_path: Path, make_model: Callable[..., Path]):
    base = make_model(tmp_path / "base", seed=1)
    deep = make_model(tmp_path / "deep", seed=1, num_hidden_layers=3)
    found = check(ties(base, deep), tmp_path)
    errors = [as_sentence(f) for f in found if f.severity == "error"]
    assert len(errors) == 1
    assert "has 3 layers in model.layers" in errors[0]
    biased = make_model(tmp_path / "biased", seed=1, attention_bias=True)
    found = check(ties(base, biased), tmp_path)
    errors = [as_sentence(f) for f in found if f.severity == "error"]
    assert len(errors) == 1
    assert "lacks 8 tensors like model.layers.*.self_attn.k_proj.bias (2), " in errors[0]
    assert "1 more kind" in errors[0]


@pytest.mark.parametrize(
    ("changes", "severity", "words"),
    [
        ({"num_attention_heads": 8, "head_dim": 8}, "error", "num_attention_heads is 8"),
        ({"model_type": "mistral"}, "warning", "model_type is mistral"),
        ({"hidden_act": "gelu"}, "warning", "hidden_act is gelu"),
        ({"max_position_embeddings": 512}, "note", "max_position_embeddings is 512"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "warning", "rope_scaling"),
        ({"quantization_config": {"quant_method": "gptq"}}, "note", "is quantized (gptq), and"),
        ({"vocab_size": 300}, "warning", "has 300 rows of embeddings, and 20 tokens beyond"),
    ],
)
def test_configs(
    two_models: Models, tmp_path: Path, changes: dict[str, Any], severity: str, words: str
):
    change_config(two_models[1], **({"rope_parameters": None} | changes))
    found = check(ties(*two_models), tmp_path)
    assert has(found, severity, "tuned", words)
    assert sum(f.severity == "error" for f in found) == (severity == "error")


def test_a_default_that_is_written_out_is_no_difference(two_models: Models, tmp_path: Path):
    change_config(two_models[0], rope_parameters=None, rope_theta=10000.0, head_dim=None)
    change_config(two_models[1], rope_parameters=None, rope_theta=None, head_dim=8)
    assert check(ties(*two_models), tmp_path) == []
    change_config(two_models[1], head_dim=16)  # of 32 in 4 heads the default is 8
    assert has(check(ties(*two_models), tmp_path), "error", "tuned", "head_dim is 16", "8")


def test_stored_types(two_models: Models, tmp_path: Path):
    name = "model.layers.0.mlp.up_proj.weight"
    shutil.copytree(two_models[1], tmp_path / "packed")
    change_tensors(tmp_path / "packed", lambda t: t.update({name: (t[name] * 100).to(torch.int8)}))
    assert has(check(ties(two_models[0], tmp_path / "packed"), tmp_path), "error", "packed", "I8")
    change_tensors(tmp_path / "packed", lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))
    found = check(ties(two_models[0], tmp_path / "packed"), tmp_path)
    assert has(found, "warning", "packed", "F8_E4M3", "merge the bfloat16 original")
    change_tensors(two_models[1], lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    found = check(ties(*two_models) | {"dtype": "float16"}, tmp_path)
    assert has(found, "note", "dtype", "tuned BF16", "base F32")
    assert has(found, "warning", "dtype", "65504")


def rename_token(folder: Path, number: int, new: str) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    vocab = values["model"]["vocab"]
    old = next(token for token, found in vocab.items() if found == number)
    vocab[new] = vocab.pop(old)
    path.write_text(json.dumps(values))


def test_vocabularies(two_models: Models, tmp_path: Path):
    base, tuned = two_models
    rename_token(tuned, 300, "<tool>")
    found = check(ties(base, tuned), tmp_path)
    assert has(found, "warning", "tuned", "1 of 320 ids stand for other tokens", "'<tool>'", "300")
    assert has(found, "warning", "tuned", "has 1 tokens that", "'<tool>'")
    for number in range(200, 300):
        rename_token(tuned, number, f"<{number}>")
    found = check(ties(base, tuned), tmp_path)
    assert has(found, "error", "tuned", "101 of 320 ids stand for other tokens")
    shutil.copytree(tuned, tmp_path / "wide")
    name = "model.embed_tokens.weight"
    change_tensors(tmp_path / "wide", lambda t: t.update({name: torch.ones(330, 32)}))
    found = check(ties(base, tmp_path / "wide"), tmp_path)
    assert has(found, "error", name, "[320, 32]", "[330, 32]", "tokenizer_source")
    (tuned / "tokenizer.json").unlink()
    assert has(check(ties(base, tuned), tmp_path), "warning", "tuned", "has no tokenizer")


def test_templates(two_models: Models, tmp_path: Path):
    (two_models[0] / "chat_template.jinja").unlink()
    found = check(ties(*two_models), tmp_path)
    assert has(found, "warning", "base", "has no chat template", "chat_template: auto")
    assert check(ties(*two_models) | {"chat_template": "auto"}, tmp_path) == []
    found = check(ties(*two_models) | {"chat_template": "chatmll"}, tmp_path)
    assert has(found, "error", "chat_template", "did you mean chatml?")


def test_adapters(two_models: Models, tmp_path: Path):
    base, tuned = two_models
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"], r=2)
    )
    model.save_pretrained(tmp_path / "lora")
    found = check(ties(base, f"{base}+{tmp_path / 'lora'}"), tmp_path)
    assert has(found, "warning", "lora", "is identical to", "task vector is zero")  # B is zero
    found = check(ties(base, f"{tuned}+{tmp_path / 'lora'}"), tmp_path)
    assert has(found, "warning", "lora", "trained on", str(base))
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = {k.replace("q_proj", "c_proj"): v for k, v in load_file(file).items()}
    save_file(tensors, file)
    (tuned / "chat_template.jinja").write_text("other")
    found = check(ties(base, f"{tuned}+{tmp_path / 'lora'}"), tmp_path)
    words = "2 tensors like model.layers.*.self_attn.c_proj.weight, which the model has not"
    assert has(found, "error", "lora", words)
    assert has(
        found, "warning", "lora", "chat template"
    )  # the model under it is checked all the same


def test_twins_and_strangers(two_models: Models, tmp_path: Path, make_model: Callable[..., Path]):
    base, tuned = two_models
    shutil.copytree(base, tmp_path / "copy")
    found = check(ties(base, tuned, tmp_path / "copy"), tmp_path)
    assert has(found, "warning", "copy", "is identical to", "base", "task vector is zero")
    stranger = make_model(tmp_path / "stranger", seed=9)
    found = check(ties(base, stranger), tmp_path)
    assert has(found, "warning", "stranger", "seems unrelated", "makes gibberish")
    assert len(found) == 1
    layers = [{"sources": [{"model": str(m), "layer_range": [0, 2]}]} for m in (base, stranger)]
    assert check({"merge_method": "passthrough", "slices": layers}, tmp_path) == []
    change_tensors(tuned, lambda t: t["model.layers.1.mlp.up_proj.weight"].zero_())
    found = check(ties(base, tuned), tmp_path)
    assert has(found, "warning", "tuned", "is zero in all samples of model.layers.1.mlp.up_proj")


@pytest.mark.parametrize(
    ("method", "parameters", "severity", "where", "words"),
    [
        ("linear", {"weight": 1.0, "normalize": False}, "warning", "weight", "sum to 2 without"),
        ("ties", {"weight": 2.0, "normalize": False}, "warning", "weight", "[2] sum to 2 without"),
        ("ties", {"weight": 0.5, "lambda": 3.0}, "warning", "lambda", "added 3 times"),
        ("ties", {"weight": 0.5, "density": 1.0}, "note", "density", "ties trims nothing"),
        ("ties", {"weight": 0.5, "density": 0.01}, "warning", "density", "less than 0.1"),
        ("ties", {"weight": 0.5, "density": 1.5}, "error", "density", "must be from 0 to 1"),
        ("ties", {"weight": 0.0}, "warning", "tuned", "weight 0 in every tensor"),
        ("ties", {"weight": -0.5}, "note", "weight", "has a negative one"),
        ("slerp", {"t": 1.5}, "warning", "t", "is 1.5, outside 0"),
        ("slerp", {"t": [0.0, 1.5]}, "warning", "t", "in 9 of 20 tensors"),
        (
            "dare_ties",
            {"weight": 0.5, "density": 0.3, "rescale": False},
            "warning",
            "rescale",
            "30%",
        ),
        ("task_arithmetic", {"weight": 0.5, "density": 0.3}, "note", "density", "no effect"),
        ("della", {"weight": 0.5, "density": 0.3, "epsilon": 0.4}, "error", "epsilon", "0.3"),
    ],
)
def test_parameters(
    two_models: Models,
    tmp_path: Path,
    method: str,
    parameters: dict[str, Any],
    severity: str,
    where: str,
    words: str,
):
    base, tuned = map(str, two_models)
    models = [{"model": tuned}]
    data: dict[str, Any] = {"merge_method": method, "models": models, "parameters": parameters}
    if method == "linear":
        models.append({"model": base})
    else:
        data["base_model"] = base
    assert has(check(data, tmp_path), severity, where, words)


def test_room_for_the_output(two_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("x")
    found = check(ties(*two_models), tmp_path, out=tmp_path / "out")
    assert [as_sentence(f) for f in found] == [
        f"{tmp_path / 'out'}: exists and is not empty (it holds file); give another "
        "folder or remove it."
    ]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    found = check(ties(*two_models), tmp_path, out=tmp_path / "other")
    assert has(found, "error", str(tmp_path), "the disk has 1.0 kB free")


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_merges_by_statistics(two_models: Models, tmp_path: Path, method: str):
    text = tmp_path / "texts.txt"
    text.write_text("The company reported revenue in 2021. " * 20)
    models = []
    for folder in two_models:
        out = tmp_path / f"{folder.name}.safetensors"
        write_moments(folder, text, out, kind=method, num_tokens=40, window_tokens=20)  # type: ignore[arg-type]
        parameters = {"weight": 1.0, "statistics": str(out)}
        models.append({"model": str(folder), "parameters": parameters})
    data = {"merge_method": method, "models": models}
    # It divides by the weights itself: that they sum to 2 scales nothing.
    assert check(data, tmp_path) == []
    other = "fisher" if method == "regmean" else "regmean"
    found = check({**data, "merge_method": other}, tmp_path)
    assert has(found, "error", "safetensors", f"holds statistics for {method}")
    (tmp_path / "tuned.safetensors").unlink()
    assert has(check(data, tmp_path), "error", "statistics", "cannot be read")


def test_a_density_without_effect_makes_no_model_idle(two_models: Models, tmp_path: Path):
    data = ties(*two_models, density=0.0)
    assert has(check(data, tmp_path), "warning", "tuned", "density 0 in every tensor")
    found = check({**data, "merge_method": "task_arithmetic"}, tmp_path)
    assert [(f.severity, f.where) for f in found] == [("note", "density")]


def test_room_is_looked_for_where_the_output_goes(
    two_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # An empty folder that is there may be another disk, mounted.
    (tmp_path / "disk").mkdir()
    usage = shutil.disk_usage(tmp_path)
    free_bytes = {tmp_path / "disk": 1000}
    monkeypatch.setattr(
        shutil, "disk_usage", lambda p: usage._replace(free=free_bytes.get(p, usage.free))
    )
    found = check(ties(*two_models), tmp_path, out=tmp_path / "disk")
    assert has(found, "error", str(tmp_path / "disk"), "the disk has 1.0 kB free")


def test_rope_settings_by_kind_of_layer():
    def by_kind(full: float, sliding: float) -> dict[str, Any]:
        kinds = {"full_attention": full, "sliding_attention": sliding}
        return {
            "rope_parameters": {
                kind: {"rope_theta": theta, "rope_type": "default"} for kind, theta in kinds.items()
            }
        }

    values = plain_values(by_kind(1e6, 1e4))
    assert (values["rope_theta"], values["rope_local_base_freq"]) == (1e6, 1e4)
    assert values["rope_scaling"] is None
    older = plain_values({"rope_theta": 1e6, "rope_local_base_freq": 1e4})
    assert {key: values[key] for key in older} == older
    assert plain_values(by_kind(1e6, 5e4))["rope_local_base_freq"] == 5e4


def test_a_sentencepiece_model_is_no_token(two_models: Models, tmp_path: Path):
    for folder in two_models:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(b"pieces")
    assert check(ties(*two_models), tmp_path) == []
    (two_models[1] / "tokenizer.model").write_bytes(b"other pieces")
    found = check(ties(*two_models), tmp_path)
    assert [f.what for f in found] == [f"its tokenizer.model is not that of {two_models[0]}"]
    (two_models[1] / "tokenizer.model").unlink()
    (two_models[1] / "vocab.json").write_text(json.dumps({"a": 0}))
    found = check(ties(*two_models), tmp_path)
    assert [f.what for f in found] == [f"its tokenizer.model is not that of {two_models[0]}"]


@pytest.mark.parametrize(("parameters", "code"), [({}, 0), ({"density": 2.0}, 1)])
def test_the_exit_code(
    two_models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    parameters: dict[str, Any],
    code: int,
):
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump(ties(*two_models, **parameters)))
    monkeypatch.setattr("sys.argv", ["toolkit", "merge", "check", str(path)])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == code
    shown = capsys.readouterr().out
    assert ("1 error, 0 warnings, 0 notes" in shown) == bool(code)
