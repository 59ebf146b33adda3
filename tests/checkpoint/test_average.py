"""Averages of model folders, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.checkpoint.average import average_folders, average_weights, parse_weights
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
