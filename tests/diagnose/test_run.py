"""The diagnosis as a person calls it: trained tiny models, a broken merge, the page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.conftest import paragraph
from toolkit.checkpoint import load as loading
from toolkit.cli import main
from toolkit.diagnose.results import DiagnosisResults
from toolkit.diagnose.run import load_text, run_diagnosis
from toolkit.diagnose.short_text import SHORT_TEXT
from toolkit.errors import ConfigError


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., Path],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """A folder with `general`, its specialist, their merge, and a text that they can predict."""
    root = tmp_path_factory.mktemp("trained")
    make_model(root / "general", seed=3)
    model = LlamaForCausalLM.from_pretrained(root / "general")
    random = torch.Generator().manual_seed(0)
    ids = torch.tensor([tiny_tokenizer(paragraph(seed))["input_ids"][:96] for seed in range(64)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(70):
        rows = ids[torch.randperm(len(ids), generator=random)[:16]]
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 59:
            model.save_pretrained(root / "general")
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
    shutil.copytree(root / "general", root / "specialist")
    model.save_pretrained(root / "specialist")
    models = [
        {"model": str(root / name), "parameters": {"weight": 0.5}}
        for name in ("general", "specialist")
    ]
    (root / "merge.yml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    (root / "text.txt").write_text("\n\n\n".join(paragraph(seed) for seed in range(100, 104)))
    return root


def toolkit(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["toolkit", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main.main()
    return int(stop.value.code or 0)


def broken(root: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    shutil.copytree(root / "general", out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def kinds(results: DiagnosisResults) -> set[str]:
    return {remark.kind for remark in results.remarks}


def test_run_and_diagnose(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("toolkit.diagnose.run.SHORT_TEXT", load_text(trained / "text.txt"))
    out = tmp_path / "out"
    assert toolkit(monkeypatch, "merge", "run", trained / "merge.yml", out, "--diagnose") == 0
    assert "Nothing is off" in capsys.readouterr().out
    results = json.loads((tmp_path / "out.diagnosis.json").read_text())
    assert results["parents"] == ["general", "specialist"]
    assert results["whole"]["distances"] == pytest.approx(
        {"general": 0.5, "specialist": 0.5}, abs=1e-3
    )
    assert not any("diagnosis" in path.name for path in out.iterdir())
    first, *by_layer = results["achieved"]
    assert (first["where"], first["model"]) == ("all", "specialist")
    assert [first[k] for k in ("asked", "computed", "stored")] == pytest.approx([0.5] * 3, abs=1e-3)
    assert [row["where"] for row in by_layer[:2]] == ["layer 0", "layer 1"]
    scored = {loss["label"]: loss["bits_per_byte"] for loss in results["losses"]}
    assert list(scored) == ["out", "general", "specialist"]
    assert max(scored.values()) < 1.5
    page = (tmp_path / "out.diagnosis.html").read_text()
    assert "Nothing is off" in page
    assert "Asked and stored" in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)  # nothing from the network


def test_swapped_layers(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def swap(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".layers.0." in name]:
            other = name.replace(".layers.0.", ".layers.1.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    out = broken(trained, tmp_path / "out", swap)
    parents = [f"--against={trained / name}" for name in ("general", "specialist")]
    text = ["--text", trained / "text.txt"]
    assert toolkit(monkeypatch, "merge", "diagnose", out, *parents, *text) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "The merge's loss is above both parents" in shown
    assert "lies outside of what its parents span" in shown
    assert "…" not in shown  # no figure is cut, however narrow the terminal
    assert list(tmp_path.iterdir()) == [out]  # no page was asked for


def test_gibberish_and_nan(trained: Path, tmp_path: Path):
    def scramble(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].flip(0)

    parents = [str(trained / name) for name in ("general", "specialist")]
    out = broken(trained, tmp_path / "scrambled", scramble)
    results = run_diagnosis(out, parents, text=trained / "text.txt")
    assert {"gibberish", "loss"} <= kinds(results)
    out = broken(trained, tmp_path / "nan", lambda t: t["model.norm.weight"].fill_(float("nan")))
    results = run_diagnosis(out, parents, text=trained / "text.txt")
    assert {"non_finite", "unscored"} <= kinds(results)
    assert "its weights hold NaN" in " ".join(results.summary)
    # Scores can be left out, where models do not fit into memory.
    results = run_diagnosis(out, parents, with_losses=False)
    assert kinds(results) == {"non_finite", "identical"}


def test_zero_rows_are_named_by_token(trained: Path, tmp_path: Path):
    out = broken(trained, tmp_path / "out", lambda t: t["model.embed_tokens.weight"][0].zero_())
    parents = [str(trained / name) for name in ("general", "specialist")]
    results = run_diagnosis(out, parents, with_losses=False)
    assert "token 0 '<|end|>'" in " ".join(results.summary)


def test_rows_that_only_a_larger_vocabulary_has_are_padding(trained: Path, tmp_path: Path):
    def lengthen(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if "embed_tokens" in n or "lm_head" in n]:
            rows = torch.zeros(32, tensors[name].shape[1], dtype=tensors[name].dtype)
            tensors[name] = torch.cat([tensors[name], rows])

    out = broken(trained, tmp_path / "out", lengthen)
    config = json.loads((out / "config.json").read_text())
    config["vocab_size"] += 32
    (out / "config.json").write_text(json.dumps(config))
    parents = [str(trained / name) for name in ("general", "specialist")]
    results = run_diagnosis(out, parents, with_losses=False)
    assert "zero" not in " ".join(results.summary)


def test_models_of_two_types_are_scored_in_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    low = LlamaForCausalLM.from_pretrained(trained / "specialist", dtype=torch.bfloat16)
    shutil.copytree(trained / "specialist", tmp_path / "low")
    low.save_pretrained(tmp_path / "low")
    dtypes, load = [], loading.load_causal_model

    def note(folder: Path, dtype: torch.dtype) -> Any:
        dtypes.append(dtype)
        return load(folder, dtype)

    monkeypatch.setattr(loading, "load_causal_model", note)
    text = trained / "text.txt"
    run_diagnosis(trained / "general", [str(tmp_path / "low")], text=text)
    assert dtypes == [torch.float32, torch.float32]


def test_a_page_is_not_written_over_its_figures(trained: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--html .*page\.json: the figures are written beside"):
        run_diagnosis(trained / "general", html=tmp_path / "page.json")
    assert not list(tmp_path.iterdir())


def test_texts(tmp_path: Path):
    assert 300 <= sum(len(text.split()) for text in SHORT_TEXT) <= 500
    (tmp_path / "a.txt").write_text("one\n\nstill one\n\n\ntwo\n")
    assert load_text(tmp_path / "a.txt") == ("one\n\nstill one", "two")
    (tmp_path / "b.txt").write_text(" \n")
    with pytest.raises(ConfigError, match="holds no text"):
        load_text(tmp_path / "b.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_text(tmp_path / "c.txt")
