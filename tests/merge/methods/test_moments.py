"""RegMean and Fisher: exact on linear networks, and from files that are written by texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.conftest import paragraph
from toolkit.checkpoint.load import load_causal_model
from toolkit.errors import MergeError
from toolkit.merge import moments as moments_module
from toolkit.merge.config import parse_merge_config
from toolkit.merge.methods.moments import fisher, regmean
from toolkit.merge.moments import write_moments
from toolkit.merge.to_disk import run_merge
from toolkit.tokenizer_files import load_tokenizer


def test_regmean_is_the_least_squares_merge_of_linear_networks():
    torch.manual_seed(0)
    inputs = [torch.randn(40, 6) * torch.rand(6), torch.randn(50, 6) * torch.rand(6)]
    matrices = [torch.randn(3, 6), torch.randn(3, 6)]
    merged = regmean(
        matrices, weight=[1.0, 1.0], statistics=[], alpha=1.0, moments=[x.T @ x for x in inputs]
    )
    outputs = [x @ w.T for x, w in zip(inputs, matrices, strict=True)]
    expected = torch.linalg.lstsq(torch.cat(inputs), torch.cat(outputs)).solution.T
    assert_close(merged, expected, rtol=1e-4, atol=1e-5)


def test_regmean_leaves_what_no_text_reaches_at_the_mean():
    # The third input is never there: its column is the plain mean, whatever the others are.
    grams = [torch.diag(torch.tensor([1.0, 3.0, 0.0])), torch.diag(torch.tensor([3.0, 1.0, 0.0]))]
    merged = regmean(
        [torch.ones(1, 3), torch.zeros(1, 3)], weight=[1.0, 1.0], statistics=[], moments=grams
    )
    assert_close(merged, torch.tensor([[0.25, 0.75, 0.5]]))


def test_fisher_is_the_mean_by_information():
    # (2 * 4 + 1 * 1) / 3 = 3;  without information the mean, (4 + 1) / 2 = 2.5
    information = [torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])]
    merged = fisher(
        [torch.tensor([4.0, 4.0]), torch.tensor([1.0, 1.0])],
        weight=[1.0, 1.0],
        statistics=[],
        moments=information,
    )
    assert_close(merged, torch.tensor([3.0, 2.5]))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text(paragraph(1, sentences=30))
    return path


def config_of(method: str, folder: Path):
    models = [
        {
            "model": name,
            "parameters": {"weight": 1.0, "statistics": str(folder / f"{name}.safetensors")},
        }
        for name in ("base", "tuned")
    ]
    return parse_merge_config({"merge_method": method, "models": models}, where="x")


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_statistics_of_texts_are_merged_by(
    two_models: tuple[Path, Path], texts: Path, tmp_path: Path, method: str
):
    folders = dict(zip(("base", "tuned"), two_models, strict=True))
    for name, folder in folders.items():
        out = tmp_path / f"{name}.safetensors"
        read = write_moments(folder, texts, out, kind=method, num_tokens=100, window_tokens=32)
        assert read == 100
    run_merge(config_of(method, tmp_path), tmp_path / "merged", folders=folders)
    merged = load_file(tmp_path / "merged/model.safetensors")
    tensors = [load_file(folder / "model.safetensors") for folder in two_models]
    moments = [load_file(tmp_path / f"{name}.safetensors") for name in folders]
    function = {"regmean": regmean, "fisher": fisher}[method]
    for name, tensor in merged.items():
        expected = function(
            [one[name] for one in tensors],
            weight=[1.0, 1.0],
            statistics=[],
            moments=[one.get(name) for one in moments],
        )
        assert_close(tensor, expected)
    assert any(
        not torch.allclose(tensor, (tensors[0][name] + tensors[1][name]) / 2)
        for name, tensor in merged.items()
    )


def test_the_moments_are_those_of_the_layer_s_inputs(
    two_models: tuple[Path, Path], texts: Path, tmp_path: Path
):
    out = tmp_path / "base.safetensors"
    write_moments(two_models[0], texts, out, kind="regmean", num_tokens=20, window_tokens=20)
    model = load_causal_model(two_models[0], torch.float32).eval()
    caught: list[torch.Tensor] = []
    layer = model.model.layers[1].mlp.down_proj
    layer.register_forward_pre_hook(lambda _, given: caught.append(given[0][0]))
    tokens = load_tokenizer(two_models[0])(texts.read_text())["input_ids"][:20]
    with torch.no_grad():
        model(torch.tensor([tokens]))
    found = load_file(out)["model.layers.1.mlp.down_proj.weight"]
    assert_close(found, caught[0].T @ caught[0] / 20)


@pytest.mark.parametrize(("method", "shape"), [(regmean, (4, 4)), (fisher, (3, 4))])
def test_moments_follow_the_tensors_to_their_device(
    method: Callable[..., torch.Tensor], shape: tuple[int, int]
):
    # The engine reads them to the CPU; a device without memory stands for any other.
    tensors = [torch.empty(3, 4, device="meta") for _ in range(2)]
    merged = method(tensors, weight=[1.0, 1.0], statistics=[], moments=[torch.ones(shape)] * 2)
    assert merged.is_meta


@pytest.mark.parametrize("num_tokens", [1, 7, 300, 10_000])
def test_no_more_of_a_text_is_tokenized_than_is_read(
    two_models: tuple[Path, Path], num_tokens: int
):
    text = paragraph(1, sentences=400)
    tokenizer = load_tokenizer(two_models[0])
    sizes: list[int] = []

    def counted(text: str) -> Any:
        sizes.append(len(text))
        return tokenizer(text)

    windows = list(moments_module.cut_windows(counted, iter([text]), num_tokens, 16))
    whole = tokenizer(text)["input_ids"][:num_tokens]
    cut = [whole[first : first + 16] for first in range(0, len(whole), 16)]
    assert windows == [window for window in cut if len(window) > 1]
    assert num_tokens > 300 or sum(sizes) < len(text)


def test_a_layer_without_a_name_in_files_has_no_statistics(
    two_models: tuple[Path, Path], texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # As of tensors that transformers holds joined, and files apart.
    from toolkit.checkpoint import stored_names

    name = "model.layers.1.mlp.down_proj.weight"

    def without_one(model: Any) -> dict[str, torch.Tensor]:
        return {key: value for key, value in real(model).items() if key != name}

    real = stored_names.parameters_by_name
    monkeypatch.setattr(stored_names, "parameters_by_name", without_one)
    out = tmp_path / "base.safetensors"
    write_moments(two_models[0], texts, out, kind="regmean", num_tokens=40, window_tokens=20)
    found = load_file(out)
    assert name not in found
    assert found["model.layers.0.mlp.down_proj.weight"].any()


def test_statistics_of_another_model_are_refused(
    two_models: tuple[Path, Path], texts: Path, tmp_path: Path, make_model: Callable[..., Path]
):
    folders = dict(zip(("base", "tuned"), two_models, strict=True))
    wide = make_model(tmp_path / "wide", intermediate_size=48)
    for name in folders:
        out = tmp_path / f"{name}.safetensors"
        write_moments(wide, texts, out, kind="regmean", num_tokens=40, window_tokens=20)
    words = r"down_proj.weight: its statistics in .* are \[48, 48\], and must be \[64, 64\]"
    with pytest.raises(MergeError, match=words):
        run_merge(config_of("regmean", tmp_path), tmp_path / "out", folders=folders)


def test_files_that_do_not_suit_are_said(
    two_models: tuple[Path, Path], texts: Path, tmp_path: Path, make_model: Callable[..., Path]
):
    folders = dict(zip(("base", "tuned"), two_models, strict=True))
    with pytest.raises(MergeError, match="cannot be read"):
        run_merge(config_of("regmean", tmp_path), tmp_path / "out", folders=folders)
    for name, folder in folders.items():
        out = tmp_path / f"{name}.safetensors"
        write_moments(folder, texts, out, kind="fisher", num_tokens=40, window_tokens=20)
    with pytest.raises(MergeError, match="holds statistics for fisher, and the merge is regmean"):
        run_merge(config_of("regmean", tmp_path), tmp_path / "out", folders=folders)
    assert not (tmp_path / "out").exists()
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(MergeError, match="holds no text"):
        write_moments(
            two_models[0], empty, tmp_path / "x", kind="fisher", num_tokens=9, window_tokens=9
        )
