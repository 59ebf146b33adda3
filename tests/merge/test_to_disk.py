"""Merges on disk and in memory: equal to each other, and to mergekit's."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from toolkit.checkpoint.stored_names import parameters_by_name
from toolkit.errors import ConfigError, MergeError
from toolkit.merge import to_disk as module
from toolkit.merge.config import parse_merge_config
from toolkit.merge.describe import describe_merge
from toolkit.merge.in_memory import LiveMerge
from toolkit.merge.to_disk import run_merge

TUNED = {"model": "TUNED"}
CASES: dict[str, dict[str, Any]] = {
    "linear": {
        "merge_method": "linear",
        "models": [
            {"model": "BASE", "parameters": {"weight": 0.3}},
            {**TUNED, "parameters": {"weight": 0.7}},
        ],
    },
    "task_arithmetic": {
        "merge_method": "task_arithmetic",
        "base_model": "BASE",
        "models": [{**TUNED, "parameters": {"weight": 0.6}}],
    },
    "slerp": {
        "merge_method": "slerp",
        "base_model": "BASE",
        "models": [TUNED],
        "parameters": {"t": [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 0.4}]},
    },
    "ties": {
        "merge_method": "ties",
        "base_model": "BASE",
        "models": [{**TUNED, "parameters": {"weight": [0.2, 0.8], "density": 0.37}}],
        "parameters": {"normalize": False},
    },
    "slices": {
        "merge_method": "linear",
        "slices": [
            {"sources": [{"model": "BASE", "layer_range": [0, 2], "parameters": {"weight": 1.0}}]},
            {"sources": [{"model": "TUNED", "layer_range": [1, 2], "parameters": {"weight": 1.0}}]},
        ],
    },
}


def filled(case: dict[str, Any], base: Path, tuned: Path, **more: Any) -> dict[str, Any]:
    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: fill(value) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(value) for value in node]
        return {"BASE": str(base), "TUNED": str(tuned)}.get(node, node)

    return {**fill(copy.deepcopy(case)), **more}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
def test_equal_to_mergekit(
    two_models: tuple[Path, Path], tmp_path: Path, name: str, out_dtype: str
):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge as mergekit_run
    from mergekit.options import MergeOptions

    data = filled(CASES[name], *two_models, dtype="float32", out_dtype=out_dtype)
    run_merge(parse_merge_config(data, where="test"), tmp_path / "ours")
    theirs = tmp_path / "theirs"
    mergekit_run(MergeConfiguration.model_validate(data), str(theirs), MergeOptions(quiet=True))
    a = load_file(tmp_path / "ours" / "model.safetensors")
    b = load_file(next(theirs.glob("*.safetensors")))
    assert set(a) == set(b)
    for tensor in a:
        assert a[tensor].dtype == b[tensor].dtype == getattr(torch, out_dtype)
        if name == "slerp":  # theirs sums the angle in float32
            torch.testing.assert_close(a[tensor], b[tensor], rtol=1e-2, atol=1e-6)
        else:
            torch.testing.assert_close(a[tensor], b[tensor], rtol=2e-7, atol=1e-8)


def test_mergekit_s_slerp_is_ours_to_the_last_place(two_models: tuple[Path, Path]):
    from mergekit.merge_methods.slerp import slerp as theirs

    from toolkit.merge.methods.slerp import slerp

    a, b = (load_file(folder / "model.safetensors") for folder in two_models)
    for name in a:
        whole = theirs(torch.tensor([0.4]), a[name][None], b[name][None])[0]
        torch.testing.assert_close(slerp([b[name]], a[name], t=0.4), whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["linear", "slerp", "ties"])
def test_live_merges_have_the_same_bytes(two_models: tuple[Path, Path], tmp_path: Path, name: str):
    data = filled(CASES[name], *two_models, out_dtype="bfloat16")
    config = parse_merge_config(data, where="test")
    run_merge(config, tmp_path / "disk")
    model = AutoModelForCausalLM.from_pretrained(two_models[0], dtype=torch.bfloat16)
    live = LiveMerge({str(folder): folder for folder in two_models})
    live.apply(config, model)
    on_disk = load_file(tmp_path / "disk" / "model.safetensors")
    named = parameters_by_name(model)
    assert all(torch.equal(named[tensor], on_disk[tensor]) for tensor in on_disk)
    assert live.distance(model, str(two_models[0])) > 0.0


def test_the_merge_is_a_whole_model(two_models: tuple[Path, Path], tmp_path: Path):
    config = parse_merge_config(filled(CASES["linear"], *two_models), where="test")
    run_merge(config, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template
    ids = tokenizer("the company", return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]
    assert (tmp_path / "out" / "merge.yaml").is_file()


def test_shards_hold_the_same(two_models: tuple[Path, Path], tmp_path: Path):
    config = parse_merge_config(filled(CASES["ties"], *two_models), where="test")
    run_merge(config, tmp_path / "one")
    run_merge(config, tmp_path / "many", shard_bytes=20_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    a = AutoModelForCausalLM.from_pretrained(tmp_path / "one").state_dict()
    b = AutoModelForCausalLM.from_pretrained(tmp_path / "many").state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_differing_shapes_are_named(tmp_path: Path, make_model: Callable[..., Path]):
    a = make_model(tmp_path / "a")
    b = make_model(tmp_path / "b", intermediate_size=48)
    with pytest.raises(MergeError) as caught:
        run_merge(parse_merge_config(filled(CASES["linear"], a, b), where="t"), tmp_path / "out")
    message = str(caught.value)
    assert "mlp" in message
    assert "[64, 32]" in message or "[32, 64]" in message
    assert "48" in message
    assert f"(in {a / 'model.safetensors'} and {b / 'model.safetensors'})" in message
    assert not (tmp_path / "out").exists()


def test_a_missing_tensor_is_named(two_models: tuple[Path, Path], tmp_path: Path):
    path = two_models[1] / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("model.norm.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"model\.norm\.weight"):
        run_merge(
            parse_merge_config(filled(CASES["linear"], *two_models), where="t"), tmp_path / "out"
        )


def test_a_tensor_under_another_name_is_named(two_models: tuple[Path, Path], tmp_path: Path):
    path = two_models[1] / "model.safetensors"
    tensors = {k.replace("up_proj", "upper_proj"): v for k, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    config = parse_merge_config(filled(CASES["linear"], *two_models), where="t")
    with pytest.raises(MergeError, match=r"up_proj.*has not, which has .*\.0\.mlp\.upper_proj"):
        run_merge(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("ties", {"density": 1.2, "weight": 1.0}, "density: must be from 0 to 1 (got 1.2)"),
        ("ties", {"density": [0.5, 1.2], "weight": 1.0}, "(got 1.2)"),
        ("linear", {"weight": -0.3}, "weight: [0.3, -0.3] sum to zero"),
    ],
)
def test_a_refused_value_is_said_to_be_whose(
    two_models: tuple[Path, Path],
    tmp_path: Path,
    name: str,
    parameters: dict[str, Any],
    words: str,
):
    data = filled(CASES[name], *two_models)
    data["models"][-1]["parameters"] = parameters
    with pytest.raises(MergeError) as caught:
        run_merge(parse_merge_config(data, where="t"), tmp_path / "out", num_threads=1)
    place = "model.layers.1" if name == "ties" and words == "(got 1.2)" else "model.embed_tokens"
    owner = f"for {two_models[1]} " if name == "ties" else ""
    assert words in str(caught.value)
    assert f"It is so {owner}in {place}" in str(caught.value)
    assert not list(tmp_path.glob("*out*"))


def test_a_device_that_is_not_there(two_models: tuple[Path, Path], tmp_path: Path):
    config = parse_merge_config(filled(CASES["linear"], *two_models), where="t")
    for device in ("nowhere", "meta"):
        with pytest.raises(MergeError, match=f"device {device}: torch cannot compute there"):
            run_merge(config, tmp_path / "out", device=device)


@pytest.mark.parametrize("name", ["linear", "slerp", "ties"])
def test_a_named_device_computes_by_the_definition(
    name: str, two_models: tuple[Path, Path], tmp_path: Path
):
    config = parse_merge_config(filled(CASES[name], *two_models, dtype="bfloat16"), where="t")
    assert "by the torch definition" in describe_merge(config, device="cpu:0")
    for out, device in (("kernel", "cpu"), ("torch", "cpu:0")):
        run_merge(config, tmp_path / out, device=device)
    kernel, named = (tmp_path / out / "model.safetensors" for out in ("kernel", "torch"))
    assert kernel.read_bytes() == named.read_bytes()


def test_nan_is_refused_unless_allowed(two_models: tuple[Path, Path], tmp_path: Path):
    path = two_models[1] / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    config = parse_merge_config(filled(CASES["linear"], *two_models), where="t")
    with pytest.raises(MergeError, match=r"model\.norm\.weight: holds NaN"):
        run_merge(config, tmp_path / "out")
    run_merge(config, tmp_path / "out", allow_non_finite=True)


def test_an_interruption_leaves_nothing(
    two_models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_tokenizer", interrupted)
    config = parse_merge_config(filled(CASES["linear"], *two_models), where="t")
    before = {path: path.read_bytes() for f in two_models for path in f.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        run_merge(config, tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []
    assert {path: path.read_bytes() for f in two_models for path in f.iterdir()} == before


def test_an_existing_folder_is_not_overwritten(two_models: tuple[Path, Path], tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    config = parse_merge_config(filled(CASES["linear"], *two_models), where="t")
    with pytest.raises(MergeError, match="not empty"):
        run_merge(config, tmp_path / "out")


def test_a_folder_that_cannot_be_made(two_models: tuple[Path, Path], tmp_path: Path):
    (tmp_path / "file").write_text("x")
    config = parse_merge_config(filled(CASES["linear"], *two_models), where="t")
    with pytest.raises(MergeError, match=r"file/out: cannot be made \(Not a directory\)"):
        run_merge(config, tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "x"


def test_the_plan_says_what_will_be_done_and_does_nothing(
    two_models: tuple[Path, Path], tmp_path: Path
):
    before = sorted(tmp_path.rglob("*"))
    config = parse_merge_config(filled(CASES["ties"], *two_models), where="t")
    text = describe_merge(config)
    assert "ties: 20 tensors, 2 layers" in text
    assert "20 tensors by a fused kernel" in text
    assert "weight 0.8, density 0.37" in text
    other = filled(CASES["slerp"], *two_models, merge_method="nearswap")
    assert "20 tensors by the torch definition" in describe_merge(
        parse_merge_config(other, where="t")
    )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": {"tokens": {"xyzzy": {"force": True}}}}, "no model has the token 'xyzzy'"),
        ({"chat_template": "chatlm"}, "did you mean chatml"),
    ],
)
def test_what_is_not_supported_is_said(
    two_models: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], words: str
):
    data = filled(CASES["linear"], *two_models, **changes)
    with pytest.raises((MergeError, ConfigError), match=words):
        run_merge(parse_merge_config(data, where="t"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokenizer_and_template_come_from_where_they_are_said_to(
    two_models: tuple[Path, Path], tmp_path: Path
):
    (two_models[1] / "chat_template.jinja").write_text("{{ 'tuned' }}")
    data = filled(CASES["linear"], *two_models, tokenizer_source=str(two_models[1]))
    run_merge(parse_merge_config(data, where="t"), tmp_path / "a")
    assert (tmp_path / "a" / "chat_template.jinja").read_text() == "{{ 'tuned' }}"
    data = filled(CASES["linear"], *two_models, chat_template="{{ 'mine' }}")
    run_merge(parse_merge_config(data, where="t"), tmp_path / "b")
    assert (tmp_path / "b" / "chat_template.jinja").read_text() == "{{ 'mine' }}"


def test_trimming_over_the_whole_model(two_models: tuple[Path, Path], tmp_path: Path):
    data = filled(CASES["ties"], *two_models, merge_method="ties_global")
    data["models"][0]["parameters"] = {"weight": 1.0, "density": 0.25}
    run_merge(parse_merge_config(data, where="t"), tmp_path / "out")
    base, tuned, merged = (
        load_file(folder / "model.safetensors") for folder in (*two_models, tmp_path / "out")
    )
    deltas = torch.cat([(tuned[name] - base[name]).flatten() for name in base])
    kept = torch.cat([(merged[name] != base[name]).flatten() for name in base])
    assert int(kept.sum()) == int(0.25 * deltas.numel())
    assert deltas.abs()[kept].min() >= deltas.abs()[~kept].max()
    data["models"][0]["parameters"]["density"] = [0.1, 0.9]
    with pytest.raises(ConfigError, match="one number a model"):
        run_merge(parse_merge_config(data, where="t"), tmp_path / "no")


def test_trimming_over_the_whole_model_of_a_base_in_8_bits(
    two_models: tuple[Path, Path], tmp_path: Path
):
    # numpy has no such type: the threshold was then that of the tuned model by itself.
    base = load_file(two_models[0] / "model.safetensors")
    packed = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in base.items()}
    for name, state in {
        "packed": packed,
        "wide": {n: t.float() for n, t in packed.items()},
    }.items():
        shutil.copytree(two_models[0], tmp_path / name)
        save_file(state, tmp_path / name / "model.safetensors")
        data = filled(CASES["ties"], tmp_path / name, two_models[1], merge_method="ties_global")
        data["models"][0]["parameters"] = {"weight": 1.0, "density": 0.25}
        config = parse_merge_config({**data, "dtype": "float32"}, where="t")
        run_merge(config, tmp_path / f"of {name}")
    of_packed, of_wide = (
        (tmp_path / f"of {name}" / "model.safetensors").read_bytes() for name in ("packed", "wide")
    )
    assert of_packed == of_wide


def test_random_masks_depend_on_seed_and_name_alone(two_models: tuple[Path, Path], tmp_path: Path):
    data = filled(CASES["ties"], *two_models, merge_method="dare_linear", parameters={})
    config = parse_merge_config(data, where="t")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_merge(config, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merge_methd": "x"}, "did you mean merge_method"),
        ({"slices": []}, "exactly one of models, slices and modules"),
        ({"parameters": {"normalise": True}}, "did you mean normalize"),
        ({"parameters": {"weight": []}}, "must be a value, a list over depth"),
        ({"merge_method": "linaer"}, "did you mean linear"),
        ({"merge_method": "xyz"}, "unknown method 'xyz'. Known: "),
        ({"parameters": {"embed_slrep": True}}, "has no such parameter. Its parameters: weight"),
        ({"parameters": {"weight": "abc"}}, "parameters.weight: must be of type float (got 'abc')"),
    ],
)
def test_faults_of_a_configuration(
    two_models: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], words: str
):
    with pytest.raises(ConfigError) as caught:
        data = filled(CASES["linear"], *two_models, **changes)
        run_merge(parse_merge_config(data, where="m.yaml"), tmp_path / "out")
    assert words in str(caught.value)
