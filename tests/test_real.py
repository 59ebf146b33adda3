"""SmolLM2 on a few thousand tokens of real filings, through the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.processors import AVX2_ONLY, is_fast_in_bfloat16
from toolkit.data.artifacts import fetch_artifact
from toolkit.errors import DataError
from toolkit.load_yaml import load_yaml
from toolkit.recipe.load import load_recipe

ROOT = Path(__file__).parent.parent
FINANCE = ROOT / "recipes" / "finance.yaml"

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", autouse=True)
def artifacts() -> None:
    """Fetch what is not cached; without an index there is nothing real to test (but in CI)."""
    recipe = load_recipe(FINANCE)
    wanted = [recipe.model.artifact, *(s.artifact for s in recipe.data.sources.values())]
    try:
        for artifact in wanted:
            assert artifact is not None
            fetch_artifact(artifact)
    except DataError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no artifacts: {error}")


@pytest.mark.parametrize("processor", ["as it is", "without bfloat16"])
def test_finance_at_a_small_scale(tmp_path: Path, processor: str):
    # Beside other tests a thread would wait for those that other processes hold up.
    alone = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) == 1
    threads = os.cpu_count() if alone else 1
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    precision = "bf16" if is_fast_in_bfloat16() else "fp32"
    if processor == "without bfloat16":
        if precision == "fp32":
            pytest.skip("this machine has no bfloat16: the test ran on it as it is")
        environment, precision = environment | AVX2_ONLY, "fp32"
    values = load_yaml(FINANCE)
    sources = values["data"]["sources"]
    sources["filings"]["split"]["train"]["max_tokens"] = 4000
    for source in sources.values():
        for split in ("validation", "test"):
            source["split"][split]["max_tokens"] = 1000
    sources["filings"]["split"]["test"]["max_tokens"] = 2000
    values["search"] |= {"merges": ["slerp"], "sweep": [0.6, 0.3], "num_trials": 4}
    values["evaluate"] = {"bootstrap_resamples": 1000, "retention": {"num_prompts": 12}}
    values["train"]["forgetting_monitor"] = {"evaluations": 1, "tokens_per_role": 600}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", "merge", "choose", "small.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "packing:" not in done.stdout  # the probe finds nothing amiss with a Llama
    run = tmp_path / "runs" / "small"
    results = json.loads((run / "merge" / "report.json").read_text())
    assert results["precision"] == {"scoring": precision, "training": precision}

    # Where SmolLM2 starts on all test documents of the recipe (dev/LOG.md), and how much one
    # document differs from another there; far from that the text, the tokenizer or the conversion
    # would be wrong. Four standard errors of the few documents scored here.
    start = results["models"]["general"]
    for role, whole in (("domain", 0.9538), ("general", 1.0497)):
        error = 0.15 / results["test"][role] ** 0.5
        assert abs(start[role]["estimate"] - whole) < 4 * error, (role, start[role], error)
    assert results["models"]["specialist"]["domain_change"]["high"] < 0.0

    rows = [json.loads(line) for line in (run / "data" / "test.jsonl").read_text().splitlines()]
    assert {row["group"] for row in rows if row["role"] == "domain"} == {"tgt_2026_10k"}
    lines = (run / "data" / "validation.jsonl").read_text().splitlines()
    validation = {json.loads(line)["id"] for line in lines}
    assert not validation & {row["id"] for row in rows}

    tokenizer = AutoTokenizer.from_pretrained(run / "merge")
    assert tokenizer.tokenize(" sales 2025") == ["Ġsales", "Ġ", "2", "0", "2", "5"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(run / "merge")
    assert model.dtype == torch.bfloat16
    answer = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    text = tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])
    assert "Paris" in text  # it is still the model that was chosen
