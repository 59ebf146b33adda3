"""Each check fails for its own reason, and all are shown at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.publish.conftest import RESULTS
from toolkit.errors import ConfigError, PublishError
from toolkit.evaluate.config import BEHAVIOR_TITLES
from toolkit.publish.checks import (
    CHECKS,
    CheckedBundle,
    CheckResult,
    parse_accepted,
    refuse_failed,
    run_checks,
    show_findings,
)
from toolkit.publish.license_texts import find_agreements
from toolkit.publish.material import Material, find_parents, parent_section
from toolkit.publish.public import public_recipe
from toolkit.publish.stage import make_bundle
from toolkit.select.results import MergeResults

REPO = "org/tiny"


@pytest.fixture
def subject(material: Material) -> CheckedBundle:
    folder = make_bundle(material, "safetensors", REPO, {})
    (folder / "SHA256SUMS").unlink()
    return of(material, folder)


def results_with(**changes: Any) -> MergeResults:
    return MergeResults.model_validate({**RESULTS, **changes})


def of(material: Material, folder: Path, repository: str = REPO) -> CheckedBundle:
    parents = find_parents(material.recipe, repository)
    section = material.recipe.publish
    given = {
        "general": (section.general.license_file, section.general.notice_file),
        "specialist": (section.specialist.license_file, section.specialist.notice_file),
    }
    return CheckedBundle(
        folder=folder,
        repository=repository,
        format="safetensors",
        parents=parents,
        agreements=find_agreements(parents, material.places, given),
        license=(section.license, section.license_name),
        results=results_with(),
        withheld=[],
        base=material.general,
    )


def faults(subject: CheckedBundle, check: str) -> str:
    return "\n".join(next(f.faults for f in run_checks(subject, {}) if f.check == check))


def only(subject: CheckedBundle) -> list[str]:
    return [finding.check for finding in run_checks(subject, {}) if finding.state == "failed"]


def test_a_sound_bundle_passes_all(subject: CheckedBundle):
    assert only(subject) == []
    assert [f.check for f in run_checks(subject, {})] == list(CHECKS)


def change(subject: CheckedBundle, act: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = subject.folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    act(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_number_that_is_none(subject: CheckedBundle):
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")

    change(subject, spoil)
    assert faults(subject, "weights") == "model.layers.1.mlp.up_proj.weight: holds NaN or infinity"
    assert "not finite" in faults(subject, "loads")


def test_names_and_shapes(subject: CheckedBundle):
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.bias"] = torch.zeros(32)
        del tensors["model.layers.0.mlp.up_proj.weight"]
        tensors["model.norm.weight"] = torch.ones(31)

    change(subject, spoil)
    found = faults(subject, "weights").splitlines()
    assert found == [
        "model.layers.0.mlp.up_proj.weight: is missing; the config asks for [64, 32]",
        "model.norm.bias: is no tensor of the model in config.json",
        "model.norm.weight: is [31], but the config asks for [32]",
    ]


def test_a_cut_file(subject: CheckedBundle):
    path = subject.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "its header speaks of" in faults(subject, "weights")
    assert only(subject) == ["weights", "loads"]


def test_a_tokenizer_that_cannot_be_read(subject: CheckedBundle):
    (subject.folder / "tokenizer.json").write_text('{"version": "1.0"}')
    assert "holds no tokenizer that can be read" in faults(subject, "tokenizer")


def test_a_tokenizer_that_loses_text(subject: CheckedBundle):
    path = subject.folder / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace('"normalizer": null', '"normalizer": {"type": "Lowercase"}'))
    assert path.read_text() != text
    assert "comes back from its tokens as 'net revenue" in faults(subject, "tokenizer")


def test_a_tokenizer_larger_than_the_model(subject: CheckedBundle):
    config = subject.folder / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 320', '"vocab_size": 300'))
    assert "it has 320 tokens, but the model has rows for 300" in faults(subject, "tokenizer")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("pytorch_model.bin", b"x"),
        ("optimizer.pt", b"x"),
        ("harmless.json.txt", b"\x80\x04\x95pickle"),
        ("harmless.model", b"PK\x03\x04zip"),
        ("modeling_tiny.py", b"import os"),
    ],
)
def test_pickles_and_code(subject: CheckedBundle, name: str, data: bytes):
    (subject.folder / name).write_bytes(data)
    assert name in faults(subject, "pickles")


@pytest.mark.parametrize("header_bytes", [0x0280, 0x4B50])
def test_a_header_s_length_may_begin_as_a_pickle_does(subject: CheckedBundle, header_bytes: int):
    path = subject.folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors, path, metadata={"format": "pt"})
    data = path.read_bytes()
    old_bytes = int.from_bytes(data[:8], "little")
    header_bytes += 0x10000 if old_bytes > header_bytes else 0
    header = data[8 : 8 + old_bytes].ljust(header_bytes)
    path.write_bytes(header_bytes.to_bytes(8, "little") + header + data[8 + old_bytes :])
    assert path.read_bytes()[:2] in {b"\x80\x02", b"PK"}
    assert only(subject) == []
    # The name alone proves nothing.
    path.write_bytes(b"\x80\x02}q\x00.")
    assert "begins as a pickle does" in faults(subject, "pickles")


def test_a_library_that_gives_up_fails_its_check(
    subject: CheckedBundle, monkeypatch: pytest.MonkeyPatch
):
    def give_up(_: object) -> tuple[list[str], str]:
        return [json.dumps(object())], ""  # a TypeError, raised by what is not ours

    monkeypatch.setitem(cast(dict[str, object], CHECKS), "loads", give_up)
    assert "could not be made: " in faults(subject, "loads")
    assert only(subject) == ["loads"]

    def own_bug(_: object) -> tuple[list[str], str]:
        raise KeyError("ours")

    monkeypatch.setitem(cast(dict[str, object], CHECKS), "loads", own_bug)
    with pytest.raises(KeyError, match="ours"):
        only(subject)


def test_a_further_parent_s_text_is_named_in_the_recipe(
    make_material: Callable[..., Material], recipe_values: dict[str, Any], tmp_path: Path
):
    recipe_values["model"]["license"] = "mit"
    recipe_values["models"] = {"law": {"hub": "org/law", "license": "mit"}}
    material = make_material(recipe_values)
    (material.general / "LICENSE").write_text("Copyright (c) Jane")
    parents = find_parents(material.recipe, REPO, ["law"])
    assert [parent.role for parent in parents] == ["general", "specialist", "law"]
    given = {parent.role: (None, None) for parent in parents}
    subject = replace(
        of(material, material.merged),
        parents=parents,
        agreements=find_agreements(parents, material.places, given),
    )
    assert "the text of mit is not at hand for org/law" in faults(subject, "duties")
    assert "publish.parents.law.license_file" in faults(subject, "duties")
    (tmp_path / "law.txt").write_text("Copyright (c) John")
    recipe_values["publish"]["parents"] = {
        "law": {"license_file": str(tmp_path / "law.txt"), "name": "org/law-7b"}
    }
    again = make_material_again(material, recipe_values)
    law = find_parents(again.recipe, REPO, ["law"])[-1]
    assert law.name == "org/law-7b"
    assert parent_section(again.recipe.publish, law).license_file == tmp_path / "law.txt"
    values = again.recipe.model_dump(mode="json", exclude_unset=True)
    published = public_recipe(values, again.recipe.publish, "org/base", None)
    assert published["publish"]["parents"] == {"law": {"name": "org/law-7b"}}  # type: ignore[index]


def test_terms_are_known_however_they_are_written(
    make_material: Callable[..., Material], recipe_values: dict[str, Any]
):
    recipe_values["model"]["license"] = "gemma"
    recipe_values["publish"]["license"] = "Gemma"
    material = make_material(recipe_values)
    (material.general / "LICENSE").write_text("Gemma Terms of Use\n")
    folder = make_bundle(material, "safetensors", REPO, {})
    assert "license: gemma\n" in (folder / "README.md").read_text()


def test_test_sets_scored_twice(subject: CheckedBundle):
    twice = replace(subject, results=results_with(test_scorings=2))
    assert faults(twice, "test") == (
        "the test sets were scored 2 times; what was chosen after the first look is biased"
    )


def test_a_source_that_must_not_leave(
    make_material: Callable[..., Material], recipe_values: dict[str, Any]
):
    recipe_values["publish"]["sources"] = {"docs": {"not_for_publication": True}}
    material = make_material(recipe_values)
    with pytest.raises(PublishError, match=r"failed \(sources\)"):
        make_bundle(material, "safetensors", REPO, {})


def test_a_local_path_in_the_recipe(
    make_material: Callable[..., Material],
    recipe_values: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    recipe_values["data"]["sources"]["docs"]["files"] = [f"{tmp_path}/docs/*.txt"]
    material = make_material(recipe_values)
    with pytest.raises(PublishError, match=r"failed \(private\)"):
        make_bundle(material, "safetensors", REPO, {})
    assert f"recipe.yaml, line 12: a path of this machine ({tmp_path})" in capsys.readouterr().out
    # A public name for the source takes the paths' place.
    recipe_values["publish"]["sources"] = {"docs": {"dataset": "org/filings"}}
    folder = make_bundle(make_material_again(material, recipe_values), "safetensors", REPO, {})
    assert "org/filings" in (folder / "recipe.yaml").read_text()
    assert "- org/filings" in (folder / "README.md").read_text()


def make_material_again(material: Material, values: dict[str, Any]) -> Material:
    from toolkit.recipe.schema import Recipe
    from toolkit.section import parse_section

    return replace(material, recipe=parse_section(Recipe, values, where="x", what="recipe"))


def test_a_general_model_without_a_public_name(
    make_material: Callable[..., Material], recipe_values: dict[str, Any]
):
    del recipe_values["model"]["name"]
    with pytest.raises(PublishError, match=r"failed \(parents\)"):
        make_bundle(make_material(recipe_values), "safetensors", REPO, {})


def test_nothing_new(subject: CheckedBundle):
    same = replace(subject, results=results_with(any_merge=False))
    assert "there is nothing new" in faults(same, "merge")


def test_llama_s_duties(
    make_material: Callable[..., Material],
    recipe_values: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
):
    recipe_values["model"]["license"] = "llama3"
    material = make_material(recipe_values)
    with pytest.raises(PublishError, match=r"failed \(duties\)"):
        make_bundle(material, "safetensors", REPO, {})
    shown = capsys.readouterr().out
    assert "the text of llama3 is not at hand for org/base" in shown
    assert "llama3 asks for a name that begins with 'Llama 3'" in shown
    # The agreement in the parent's folder and a name that fits are all it takes.
    (material.general / "LICENSE").write_text("META LLAMA 3 COMMUNITY LICENSE AGREEMENT\n")
    (material.general / "USE_POLICY.md").write_text("Do no harm.\n")
    folder = make_bundle(material, "safetensors", "org/Llama-3-tiny", {})
    assert "AGREEMENT" in (folder / "LICENSE").read_text()
    assert (folder / "USE_POLICY.md").is_file()
    assert "Meta Llama 3 Community License" in (folder / "NOTICE").read_text()
    card = (folder / "README.md").read_text()
    assert "**Built with Meta Llama 3**" in card
    assert "license: llama3" in card


def test_terms_that_do_not_go_together(
    make_material: Callable[..., Material],
    recipe_values: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
):
    recipe_values["model"]["license"] = "gemma"
    recipe_values["publish"]["specialist"] = {"license": "cc-by-nc-4.0", "name": "org/special"}
    with pytest.raises(PublishError, match="licenses"):
        make_bundle(make_material(recipe_values), "safetensors", REPO, {})
    shown = capsys.readouterr().out
    assert "the terms gemma and cc-by-nc-4.0 cannot both hold of one model" in shown


def test_all_failures_are_shown_at_once(subject: CheckedBundle, capsys: pytest.CaptureFixture[str]):
    (subject.folder / "model.bin").write_bytes(b"x")
    (subject.folder / "report.json").write_text('{"from": "/home/jane/work"}')
    worse = replace(subject, results=results_with(any_merge=False, test_scorings=3))
    findings = run_checks(worse, {"merge": "wanted"})
    show_findings(findings)
    shown = capsys.readouterr().out
    for name in ("private", "pickles", "test"):
        assert f"failed    {name}" in shown
    assert "accepted  merge      wanted" in shown
    assert "passed    weights" in shown
    with pytest.raises(PublishError, match=r"3 of 13 checks failed \(private, pickles, test\)"):
        refuse_failed(findings, Path("x"))
    refuse_failed([CheckResult("test", ("f",), "", "reason")], Path("x"))


@pytest.mark.parametrize(("low", "is_fault"), [(0.02, True), (-0.01, False)])
def test_answers_that_surely_got_worse_are_not_published(
    subject: CheckedBundle, low: float, is_fault: bool
):
    values = results_with().model_dump(mode="json")
    name = BEHAVIOR_TITLES["unfinished"]
    values["sets"] = [*values["sets"], {**values["sets"][-1], "name": name, "unit": "error"}]
    values["models"]["merge"]["set_changes"][name] = {"estimate": 0.1, "low": low, "high": 0.2}
    counted = replace(subject, results=results_with(**values))
    found = faults(counted, "behavior")
    assert ("answers that do not end: their share rose by 10%, at least by 2%" in found) is is_fault


def test_acceptance_needs_a_check_and_a_reason():
    assert parse_accepted(["merge=only  to\ntry"]) == {"merge": "only to try"}
    with pytest.raises(ConfigError, match="did you mean licenses"):
        parse_accepted(["licences=fine"])
    with pytest.raises(ConfigError, match="test is accepted twice"):
        parse_accepted(["test=a", "test=b"])
    with pytest.raises(ConfigError, match="give a reason"):
        parse_accepted(["test="])


def test_checks_do_not_change_the_bundle(subject: CheckedBundle):
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in subject.folder.iterdir()}
    run_checks(subject, {})
    after = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in subject.folder.iterdir()}
    assert before == after
    assert os.environ["HF_HUB_OFFLINE"] == "1"
