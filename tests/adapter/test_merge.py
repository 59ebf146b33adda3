"""Adapters merged with each other: peft's own sums, and dense arithmetic by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.helpers.adapters import make_adapter, through_peft
from toolkit.adapter.folder import FactorSettings
from toolkit.adapter.merge import merge_adapters
from toolkit.checkpoint.lora import open_adapter
from toolkit.errors import ConfigError, MergeError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.methods.ties import ties

pytestmark = pytest.mark.filterwarnings("ignore")
Q, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def base(tmp_path: Path, make_model: Callable[..., Path]) -> Path:
    return make_model(tmp_path / "base")


@pytest.fixture
def loras(tmp_path: Path, base: Path) -> tuple[Path, Path]:
    """Of ranks 4 and 4; the second changes down_proj too."""
    one = make_adapter(base, tmp_path / "one", target_modules=["q_proj"])
    torch.manual_seed(8)
    two = make_adapter(
        base, tmp_path / "two", target_modules=["q_proj", "down_proj"], use_rslora=True
    )
    return one, two


def change(adapter: Path, name: str) -> Tensor:
    opened = open_adapter(adapter)
    found = opened.parts[name]
    a, b = (opened.tensors.tensor(found[f"lora_{part}"]).float() for part in "AB")
    return opened.scale(name) * b @ a


def merge(loras: tuple[Path, Path], out: Path, method: str = "linear", **more: Any) -> Any:
    settings = FactorSettings(**more.pop("settings", {}))
    weights = more.pop("weights", (0.25, 0.75))
    data: dict[str, Any] = {
        "merge_method": method,
        "models": [
            {"model": str(path), "parameters": {"weight": weight}}
            for path, weight in zip(loras, weights, strict=True)
        ],
        **more,
    }
    return merge_adapters(parse_merge_config(data, where="t"), out, settings)


def test_a_weighted_sum_is_peft_s(loras: tuple[Path, Path], base: Path, tmp_path: Path):
    merge(loras, tmp_path / "out", parameters={"normalize": False})
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), loras[0], "one")
    model.load_adapter(loras[1], "two")
    model.add_weighted_adapter(["one", "two"], [0.25, 0.75], "sum", combination_type="cat")
    model.set_adapter("sum")
    theirs, ours = model.merge_and_unload().state_dict(), through_peft(base, tmp_path / "out")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_a_sum_is_whole_and_a_rank_cuts_it_optimally(loras: tuple[Path, Path], tmp_path: Path):
    report = merge(loras, tmp_path / "whole")
    assert {row.rank for row in report.layers if row.name == Q} == {8}
    assert {row.rank for row in report.layers if row.name == DOWN} == {4}
    assert max(row.error for row in report.layers) < 1e-5
    whole = 0.25 * change(loras[0], Q) + 0.75 * change(loras[1], Q)
    assert torch.allclose(change(tmp_path / "whole", Q), whole, atol=1e-5)
    assert torch.allclose(
        change(tmp_path / "whole", DOWN), 0.75 * change(loras[1], DOWN), atol=1e-5
    )
    report = merge(loras, tmp_path / "cut", settings={"rank": 2})
    values = torch.linalg.svdvals(whole.double())
    optimum = float((values[2:].square().sum() / values.square().sum()).sqrt())
    row = next(row for row in report.layers if row.name == Q)
    assert row.rank == 2
    assert row.error == pytest.approx(optimum, rel=1e-3)


def test_ties_over_whole_changes(loras: tuple[Path, Path], tmp_path: Path):
    parameters = {"density": 0.5}
    merge(loras, tmp_path / "out", "ties", parameters=parameters, settings={"rank": 32})
    changes = [change(path, Q) for path in loras]
    zero = torch.zeros_like(changes[0])
    expected = ties(changes, zero, weight=(0.25, 0.75), density=(0.5, 0.5))
    assert torch.allclose(change(tmp_path / "out", Q), expected, atol=1e-5)


def test_how_an_adapter_is_written_does_not_matter(loras: tuple[Path, Path], tmp_path: Path):
    """The same change through other factors merges the same: `B R` and `R^-1 A`."""
    from safetensors.torch import load_file, save_file

    file = loras[0] / "adapter_model.safetensors"
    merge(loras, tmp_path / "before", "ties", parameters={"density": 0.5}, settings={"rank": 32})
    state = load_file(file)
    for name in [name for name in state if "lora_A" in name]:
        turn = torch.linalg.qr(torch.randn(4, 4)).Q * 3.0
        state[name] = torch.linalg.inv(turn) @ state[name]
        other = name.replace("lora_A", "lora_B")
        state[other] = state[other] @ turn
    save_file(state, file)
    merge(loras, tmp_path / "after", "ties", parameters={"density": 0.5}, settings={"rank": 32})
    assert torch.allclose(change(tmp_path / "before", Q), change(tmp_path / "after", Q), atol=1e-4)


def test_random_methods_repeat(loras: tuple[Path, Path], tmp_path: Path):
    for number, seed in enumerate((1, 1, 2)):
        parameters = {"density": 0.5}
        settings = {"seed": seed, "rank": 32}
        merge(loras, tmp_path / str(number), "dare_ties", parameters=parameters, settings=settings)
    files = [(tmp_path / str(n) / "adapter_model.safetensors").read_bytes() for n in range(3)]
    assert files[0] == files[1]
    assert files[0] != files[2]


@pytest.mark.parametrize(
    ("method", "more", "error", "words"),
    [
        ("tees", {}, ConfigError, "did you mean ties"),
        ("slerp", {"parameters": {"t": 0.5}, "weights": None}, ConfigError, "slerp merges weights"),
        ("ties", {"parameters": {"dense": 0.5}}, ConfigError, "did you mean density"),
        ("linear", {"weights": (1.0, -1.0)}, MergeError, "sum to zero"),
        ("linear", {"tokenizer_source": "union"}, ConfigError, "adapters have none"),
        ("linear", {"settings": {"rank": 0}}, ConfigError, "at least 1"),
    ],
)
def test_what_cannot_be_is_said(
    loras: tuple[Path, Path],
    tmp_path: Path,
    method: str,
    more: dict[str, Any],
    error: type[Exception],
    words: str,
):
    if more.get("weights", True) is None:
        config = {"merge_method": method, "models": [{"model": str(path)} for path in loras]}
        with pytest.raises(error, match=words):
            merge_adapters(
                parse_merge_config(config | {"parameters": more["parameters"]}, where="t"),
                tmp_path / "out",
                FactorSettings(),
            )
    else:
        with pytest.raises(error, match=words):
            merge(loras, tmp_path / "out", method, **more)
    assert not (tmp_path / "out").exists()


def test_adapters_that_do_not_go_together(
    loras: tuple[Path, Path], base: Path, tmp_path: Path, make_model: Callable[..., Path]
):
    wide = make_model(tmp_path / "wide", intermediate_size=96)
    other = make_adapter(wide, tmp_path / "other", target_modules=["down_proj"])
    with pytest.raises(MergeError, match=r"adapters must be of one model"):
        merge((loras[1], other), tmp_path / "out")
    dora = make_adapter(base, tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(MergeError, match="is a DoRA"):
        merge((loras[0], dora), tmp_path / "out")
    saved = make_adapter(
        base, tmp_path / "saved", target_modules=["q_proj"], modules_to_save=["norm"]
    )
    with pytest.raises(MergeError, match=r"stores .*norm\.weight whole"):
        merge((loras[0], saved), tmp_path / "out")


def test_the_folder_says_what_it_is(loras: tuple[Path, Path], base: Path, tmp_path: Path):
    merge(loras, tmp_path / "out")
    values = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert values["peft_type"] == "LORA"
    assert values["base_model_name_or_path"] == str(base)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["merge"]["merge_method"] == "linear"
