"""All sets of a recipe, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.conftest import paragraph
from toolkit.errors import EvaluationError
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.documents import likelihood_sets
from toolkit.evaluate.load import load_sets, refuse_overlap, refuse_too_few, settle_scoring


@pytest.fixture
def stages(tmp_path: Path, make_model: Callable[..., Path]) -> tuple[Path, Path]:
    """A data stage with two sources, and a general model."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "manifest.json").write_text(json.dumps({"results": {"separator_token_id": 0}}))
    for start, split in ((0, "validation"), (20, "test")):
        rows = [
            {
                "id": f"{source}/{n}",
                "role": role,
                "group": f"{source}{n if role == 'general' else n % 2}",
                "text": paragraph(start + n + 100 * (role == "general")),
            }
            for source, role in (("filings", "domain"), ("news", "general"))
            for n in range(10)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (data / f"{split}.jsonl").write_text(text)
    return data, make_model(tmp_path / "general")


def small(**more: Any) -> EvaluateSection:
    return EvaluateSection.model_validate(
        {"window_tokens": 64, "retention": {"num_prompts": 3, "max_new_tokens": 4}, **more}
    )


def test_everything_at_once(
    stages: tuple[Path, Path],
    model,
    tmp_path: Path,
    question_file: Path,
    write_task: Callable[..., Path],
):
    folder = write_task(
        "mine",
        question_file,
        output_type="multiple_choice",
        doc_to_text="question",
        doc_to_choice="choices",
        doc_to_target="answer",
    )
    section = small(
        multiple_choice=[
            {"name": "asked", "files": [str(question_file)], "role": "watch", "limit": 5}
        ],
        tasks=[{"task": "mine", "include_path": str(folder), "limit": 4}],
    )
    sets = {
        split: load_sets(section, *stages, split, cache=tmp_path / "cache")
        for split in ("validation", "test")
    }
    names = ["filings", "news", "retention", "retention KL", "asked", "mine"]
    for found in sets.values():
        assert [one.name for one in found] == names
        for one in found:
            losses = one.score(model, range(len(one)))
            assert len(losses) == len(one) == len(one.groups) == len(one.sizes) == len(one.costs)
    refuse_overlap(sets["validation"], sets["test"])


def test_groups_are_the_sample_and_one_group_alone_is_said(
    stages: tuple[Path, Path], tiny_tokenizer
):
    path = stages[0] / "test.jsonl"
    filings, news = likelihood_sets(path, tiny_tokenizer, 0, EvaluateSection())
    assert (filings.num_groups, news.num_groups) == (2, 10)  # two companies: wide, and honest
    assert filings.note == news.note == ""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [row for row in rows if row["role"] != "domain" or row["group"] == filings.groups[0]]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    filings, _ = likelihood_sets(path, tiny_tokenizer, 0, EvaluateSection())
    assert filings.num_groups == len(filings)
    assert "how another group would score is not known" in filings.note


def test_overlap_by_content_is_refused(stages: tuple[Path, Path], tiny_tokenizer):
    data = stages[0]
    rows = (data / "validation.jsonl").read_text().splitlines()
    copied = {**json.loads(rows[0]), "id": "filings/renamed"}
    copied["text"] = copied["text"].replace(" ", "  ")  # white space does not make it another text
    with (data / "test.jsonl").open("a") as file:
        file.write(json.dumps(copied) + "\n")
    validation, test = (
        likelihood_sets(data / f"{split}.jsonl", tiny_tokenizer, 0, EvaluateSection())
        for split in ("validation", "test")
    )
    with pytest.raises(EvaluationError, match=r"1 test items .* filings/renamed .* filings/0"):
        refuse_overlap(validation, test)


def test_a_set_of_one_document_is_refused_before_anything_is_scored(
    stages: tuple[Path, Path], tiny_tokenizer
):
    data = stages[0]
    rows = [json.loads(row) for row in (data / "test.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["role"] == "general"]
    kept.append(next(row for row in rows if row["role"] == "domain"))
    (data / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    whole, one = (
        likelihood_sets(data / f"{name}.jsonl", tiny_tokenizer, 0, EvaluateSection())
        for name in ("validation", "one")
    )
    refuse_too_few(whole, whole)
    with pytest.raises(EvaluationError, match=r"filings: its test set has 1 document.* 2 at least"):
        refuse_too_few(whole, one)
    # A set that is only watched decides nothing, and may be as small as it is.
    refuse_too_few(whole, [replace(one[0], role="watch"), *whole])
    domain = [items for items in whole if items.role == "domain"]
    for validation, test, split in ((domain, whole, "validation"), (whole, domain, "test")):
        with pytest.raises(EvaluationError, match=f"no set of the {split} split has role general"):
            refuse_too_few(validation, test)


def test_names_and_roles_are_checked(
    stages: tuple[Path, Path], question_file: Path, tmp_path: Path
):
    choices = [{"name": "news", "files": [str(question_file)]}]
    with pytest.raises(EvaluationError, match="two sets are called 'news'"):
        load_sets(small(multiple_choice=choices), *stages, "test", cache=tmp_path / "c")
    rows = (stages[0] / "test.jsonl").read_text().splitlines()
    general = [row for row in rows if json.loads(row)["role"] == "general"]
    (stages[0] / "test.jsonl").write_text("\n".join(general))
    with pytest.raises(EvaluationError, match="role domain"):
        load_sets(small(), *stages, "test", cache=tmp_path / "c")


def test_models_that_are_compared_are_scored_in_one_type(
    tmp_path: Path, make_model: Callable[..., Path]
):
    model = LlamaForCausalLM.from_pretrained(make_model(tmp_path / "full"))
    model.to(torch.bfloat16).save_pretrained(tmp_path / "low")
    places = tmp_path / "full", tmp_path / "low"
    section = EvaluateSection(precision="stored")
    assert settle_scoring(section, tmp_path / "low").precision == "bf16"
    assert settle_scoring(section, *places).precision == "fp32"
    assert settle_scoring(section, tmp_path / "low", tmp_path / "low").precision == "bf16"
    assert settle_scoring(EvaluateSection(precision="bf16"), *places).precision == "bf16"
