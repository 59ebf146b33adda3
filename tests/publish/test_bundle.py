"""The bundle holds what is needed, says nothing of this machine, and comes out the same."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.publish.conftest import RESULTS
from toolkit.errors import PublishError
from toolkit.publish.bundle import SUMS, parse_sums, read_sums
from toolkit.publish.material import Material
from toolkit.publish.stage import make_bundle
from toolkit.stage import appearing

REPO = "org/tiny-finance"


def make(material: Material, kind: Any = "safetensors", **accepted: str) -> Path:
    return make_bundle(material, kind, REPO, accepted)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def card(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


def test_what_is_in_it(material: Material):
    folder = make(material)
    assert set(files(folder)) == {
        *("README.md", "LICENSE", "SHA256SUMS", "bundle.json", "merge.yaml", "recipe.yaml"),
        *("config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"),
        *("tokenizer.json", "tokenizer_config.json", "report.html", "report.json"),
    }
    assert "Apache License" in (folder / "LICENSE").read_text()
    for name, digest in read_sums(folder).items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    weights = (material.merged / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == weights


def test_names_in_place_of_folders(material: Material, tmp_path: Path):
    folder = make(material)
    merge = yaml.safe_load((folder / "merge.yaml").read_text())
    assert [m["model"] for m in merge["models"]] == ["org/base", f"{REPO}-specialist"]
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["model"] == {"name": "org/base", "license": "apache-2.0", "hub": "org/base"}
    everything = b"".join(data for name, data in files(folder).items() if name != "tokenizer.json")
    assert str(tmp_path).encode() not in everything
    assert b"is_local" not in everything


def test_where_a_study_lay_is_not_published(
    make_material: Callable[..., Material], recipe_values: dict[str, Any]
):
    recipe_values["search"] = {"num_trials": 9, "storage": "postgresql://me:secret@host/db"}
    folder = make(make_material(recipe_values))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["search"] == {"num_trials": 9}
    assert not [name for name, data in files(folder).items() if b"secret@host" in data]


def test_the_same_run_gives_the_same_bytes(material: Material, capsys: pytest.CaptureFixture[str]):
    first = files(make(material))
    assert files(make(material)) == first
    assert "up to date" in capsys.readouterr().out
    (material.root / "publish").rename(material.root / "aside")
    assert files(make(material)) == first


def test_what_a_killed_call_left_is_cleared_away(material: Material):
    (material.root / "publish/.safetensors.partial").mkdir(parents=True)
    (material.root / "publish/.safetensors.partial/half.safetensors").write_bytes(b"x")
    assert "half.safetensors" not in files(make(material))
    assert not (material.root / "publish/.safetensors.partial").exists()


def test_one_process_at_a_time(material: Material):
    with (
        appearing(material.root / "publish/safetensors"),
        pytest.raises(PublishError, match="another process is making"),
    ):
        make(material)


def test_a_changed_file_is_made_anew(material: Material):
    folder = make(material)
    before = files(folder)
    (folder / "README.md").write_text("mine")
    (folder / "extra.json").write_text("{}")
    assert files(make(material)) == before


def test_the_card(material: Material):
    text = (make(material) / "README.md").read_text()
    found = ModelCard(text).data
    assert found.base_model == ["org/base"]
    assert found.license == "apache-2.0"
    assert found.language == ["en"]
    assert found.library_name == "transformers"
    assert found.to_dict()["base_model_relation"] == "merge"
    assert [r.metric_value for r in found.eval_results] == [0.75, 1.02]
    assert found.eval_results[0].dataset_name == "docs (domain, 4 documents)"
    assert "| this model | 0.7500 (0.7400 to 0.7600)<br>-0.1500 (-0.1600 to -0.1400)" in text
    assert "On test items that were scored once, lower is better" in text
    assert "It was tested on docs (4 items), web (5 items)." in text
    assert "one of 3 candidates" in text
    assert "| docs (local files) | domain | public | 1,234 |  | 2 documents |" in text
    assert "| training loss, first and last step | 2.500, 1.500 nats a token |" in text


def test_the_cards_snippet_runs(material: Material, tmp_path: Path):
    """As a user would run it, where the repository's name is this folder."""
    folder = make(material)
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "user/org").mkdir(parents=True)
    (tmp_path / "user" / REPO).symlink_to(folder.resolve())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path / "user",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(material.merged)
    tokenizer = AutoTokenizer.from_pretrained(material.merged)
    messages = [{"role": "user", "content": "What is a balance sheet?"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    length = inputs["input_ids"].shape[1]
    assert done.stdout == tokenizer.decode(answer[0, length:], skip_special_tokens=True) + "\n"


def test_gguf(material: Material):
    folder = make(material, "gguf")
    assert {p.name for p in folder.glob("*.gguf")} == {
        "tiny-finance-F32.gguf",
        "tiny-finance-Q8_0.gguf",
    }
    assert "model.safetensors" not in files(folder)
    record = json.loads((folder / "bundle.json").read_text())["files"]
    assert record["tiny-finance-F32.gguf"]["largest"] == 0.0
    assert 0.0 < record["tiny-finance-Q8_0.gguf"]["relative"] < 0.01
    found = card(folder).data
    assert found.to_dict()["base_model_relation"] == "quantized"
    assert found.library_name == "gguf"
    assert "| tiny-finance-F32.gguf | " in (folder / "README.md").read_text()
    whole = AutoModelForCausalLM.from_pretrained(material.merged, dtype=torch.float32)
    again = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="tiny-finance-F32.gguf", dtype=torch.float32
    )
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.equal(
        whole.generate(tokens, max_new_tokens=8, do_sample=False),
        again.generate(tokens, max_new_tokens=8, do_sample=False),
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapter(material: Material):
    from peft import PeftModel

    folder = make(material, "adapter")
    names = set(files(folder))
    assert {"adapter_model.safetensors", "adapter_config.json", "adapter.json"} <= names
    assert not {"model.safetensors", "config.json"} & names
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "org/base"
    found = card(folder).data
    assert found.base_model == ["org/base"]
    assert found.to_dict()["base_model_relation"] == "adapter"
    # Random models differ by noise, of which rank 4 of 32 keeps little: the card says how little.
    record = json.loads((folder / "bundle.json").read_text())["files"]["adapter_model.safetensors"]
    base = AutoModelForCausalLM.from_pretrained(material.general, dtype=torch.float32)
    before = {n: p.clone() for n, p in base.named_parameters() if "_proj" in n}
    tuned = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    merged = AutoModelForCausalLM.from_pretrained(material.merged, dtype=torch.float32)
    wanted = dict(merged.named_parameters())
    got = dict(tuned.named_parameters())
    with torch.no_grad():
        missed = sum(float((got[n] - wanted[n]).square().sum()) for n in before)
        whole = sum(float((wanted[n] - before[n]).square().sum()) for n in before)
    # Factors are stored in bfloat16, which adds a little to the error that was reckoned.
    assert (missed / whole) ** 0.5 == pytest.approx(record["relative_error"], rel=2e-3)
    assert f"{record['relative_error']:.3f}" in (folder / "README.md").read_text()


def test_nothing_is_sent_or_kept_when_a_check_fails(
    make_material: Callable[..., Material], recipe_values: dict[str, Any]
):
    material = make_material(recipe_values, results={**RESULTS, "test_scorings": 2})
    with pytest.raises(PublishError, match=r"1 of 13 checks failed \(test\)"):
        make(material)
    assert not (material.root / "publish/safetensors").exists()
    assert not (material.root / "publish/safetensors.refused" / SUMS).exists()


def test_what_is_accepted_goes_on_record(
    make_material: Callable[..., Material], recipe_values: dict[str, Any]
):
    material = make_material(recipe_values, results={**RESULTS, "test_scorings": 2})
    folder = make(material, test="a bug in the first call", merge="not needed")
    record = json.loads((folder / "bundle.json").read_text())
    assert record["checks"]["test"] == "accepted"
    assert record["accepted"] == {"test": "a bug in the first call"}
    text = (folder / "README.md").read_text()
    assert "- `test`: a bug in the first call" in text
    assert "scored 2 times, so that what was chosen after the first look is biased" in text
    assert "not needed" not in text


def test_checksums_name_only_files_inside():
    for line in ("ab" * 32 + "  ../x", "ab" * 32 + "  /etc/passwd", "ab  x", "ab" * 32 + " x"):
        with pytest.raises(PublishError, match="line 1"):
            parse_sums(line, "here")
