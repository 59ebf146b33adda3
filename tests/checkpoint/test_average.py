"""Averages of model folders, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from tests.helpers.architectures import small_model
from tests.helpers.wrappers import small_wrapper
from toolkit.checkpoint.average import (
    average_folders,
    average_states,
    average_weights,
    parse_weights,
)
from toolkit.checkpoint.load import load_causal_model
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.training_state import StateWriter
from toolkit.errors import CheckpointError, ConfigError, MergeError


def folder(path: Path, values: dict[str, torch.Tensor]) -> Path:
    path.mkdir()
    save_file(values, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text(path.name)
    return path


def test_worked_example(tmp_path: Path):
    a = folder(tmp_path / "a", {"x": torch.tensor([1.0, 2.0]), "n": torch.tensor([3])})
    b = folder(tmp_path / "b", {"x": torch.tensor([3.0, -2.0]), "n": torch.tensor([3])})
    assert average_folders([a, b], [0.25, 0.75], tmp_path / "out") == 2
    made = load_file(tmp_path / "out/model.safetensors")
    assert made["x"].tolist() == [2.5, -1.0]  # 0.25 * 1 + 0.75 * 3, 0.25 * 2 - 0.75 * 2
    assert made["n"].tolist() == [3]
    assert (tmp_path / "out/tokenizer.json").read_text() == "b"  # as in the last


def test_the_mean_of_bfloat16_is_cast_once(tmp_path: Path):
    # 1 + 2^-7 is the next bfloat16 after 1.
    values = [1.0, 1.0 + 2**-7, 1.0 + 2**-7]
    folders = [
        folder(tmp_path / str(n), {"x": torch.tensor([v], dtype=torch.bfloat16)})
        for n, v in enumerate(values)
    ]
    average_folders(folders, average_weights(3), tmp_path / "out")
    made = load_file(tmp_path / "out/model.safetensors")["x"]
    assert made.dtype == torch.bfloat16
    assert made.tolist() == [1.0 + 2**-7]  # 1 + 2/3 * 2^-7 is nearer to it than to 1


def test_models_that_differ_are_refused_and_leave_nothing(tmp_path: Path):
    a = folder(tmp_path / "a", {"x": torch.zeros(2)})
    shape = folder(tmp_path / "shape", {"x": torch.zeros(3)})
    name = folder(tmp_path / "name", {"x": torch.zeros(2), "y": torch.zeros(1)})
    integers = [folder(tmp_path / f"i{n}", {"x": torch.tensor([n])}) for n in range(2)]
    for others, words in (
        ([a, shape], r"x: is \[2\] in .*a, elsewhere \[3\]"),
        ([a, name], r"y: .*name has it and .*a does not"),
        (integers, "x: holds integers that differ"),
    ):
        with pytest.raises(CheckpointError, match=words):
            average_folders(others, [0.5, 0.5], tmp_path / "out")
        assert not list(tmp_path.glob("*out*"))
    with pytest.raises(MergeError, match="exists and is not empty"):
        average_folders([a, a], [0.5, 0.5], name)


@pytest.mark.parametrize("text", ["1", "1,2,3", "1,x", "1,-1", "1,inf", "1e308,1e308"])
def test_weights_that_cannot_be(text: str):
    with pytest.raises(ConfigError, match="--weights"):
        parse_weights(text, 2)


def test_one_model_is_no_average():
    with pytest.raises(ConfigError, match="two models at least"):
        average_weights(1)
    with pytest.raises(ConfigError, match="at most 1"):
        average_weights(2, 1.5)


def test_a_damaged_model_is_named(tmp_path: Path):
    sound = folder(tmp_path / "sound", {"x": torch.tensor([1.0, 2.0])})
    for number, value in enumerate((float("nan"), float("inf"))):
        damaged = folder(tmp_path / f"damaged{number}", {"x": torch.tensor([1.0, value])})
        with pytest.raises(CheckpointError, match=rf"x: holds NaN .*damaged{number}/model\.safet"):
            average_folders([sound, damaged], [0.5, 0.5], tmp_path / "out")
    large = [folder(tmp_path / f"l{n}", {"x": torch.tensor([6e4]).half()}) for n in range(2)]
    with pytest.raises(CheckpointError, match="larger than F16 can hold"):
        average_folders(large, [2.0, -0.5], tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_configs_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plain = folder(tmp_path / "plain", {"x": torch.zeros(2)})

    def other(name: str, **values: object) -> Path:
        path = folder(tmp_path / name, {"x": torch.zeros(2)})
        (path / "config.json").write_text(json.dumps({"model_type": "llama", **values}))
        return path

    average_folders(
        [plain, other("same", rope_theta=10000.0, dtype="float16")], [0.5, 0.5], tmp_path / "1"
    )
    assert "config.json: " not in capsys.readouterr().err
    average_folders([plain, other("far", rope_theta=5e5)], [0.5, 0.5], tmp_path / "2")
    assert "rope_parameters.rope_theta is 10000.0, in" in capsys.readouterr().err
    heads = other("heads", num_attention_heads=64, num_key_value_heads=64)
    with pytest.raises(CheckpointError, match=r"head_dim is 128, in .*heads 64"):
        average_folders([plain, heads], [0.5, 0.5], tmp_path / "3")


def write_states(path: Path, model: Any, *shifts: float) -> list[int]:
    """States of a model whose parameters are moved by each amount in turn."""
    steps = []
    writer = StateWriter(path, keep=len(shifts))
    for step, shift in enumerate(shifts, start=1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(shift)
        writer.save(step, model, torch.optim.SGD(model.parameters()), {})
        steps.append(step)
    writer.wait()
    return steps


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["qwen3_moe", "gemma3", "llama"])
def test_states_of_models_that_files_store_otherwise(tmp_path: Path, model_type: str):
    made = small_wrapper(model_type) if model_type == "gemma3" else small_model(model_type)
    made.save_pretrained(tmp_path / "like")
    model = load_causal_model(tmp_path / "like", torch.float32)
    steps = write_states(tmp_path / "states", model, 0.01, 0.02)
    (tmp_path / "work").mkdir()
    average_states(tmp_path / "states", steps, [0.5, 0.5], tmp_path / "like", tmp_path / "work")
    averaged = load_causal_model(tmp_path / "work", torch.float32)
    # moved by 0.01, then by 0.03: on the whole by 0.02, and 0.01 less than the last
    last = dict(model.named_parameters())
    for name, parameter in averaged.named_parameters():
        assert_close(parameter, last[name] - 0.01, atol=1e-5, rtol=1e-5)
    assert set(open_checkpoint(tmp_path / "work").names) == set(
        open_checkpoint(tmp_path / "like").names
    )


def test_states_of_adapters_are_refused(tmp_path: Path):
    small_model("llama").save_pretrained(tmp_path / "like")
    steps = write_states(tmp_path / "states", torch.nn.Linear(2, 2), 0.1, 0.2)
    (tmp_path / "work").mkdir()
    with pytest.raises(CheckpointError, match="is no tensor of the model: the mean of"):
        average_states(tmp_path / "states", steps, [0.5, 0.5], tmp_path / "like", tmp_path / "work")
