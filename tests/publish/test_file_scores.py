"""Files scored against the merge: by pairs, with a limit for each set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import PublishError
from toolkit.evaluate.sets import EvaluationSet
from toolkit.publish import stage as publish_stage
from toolkit.publish.file_scores import FileLoss, FileScorer, compare_losses
from toolkit.publish.material import Material
from toolkit.publish.stage import make_bundle
from toolkit.stage import load_json
from toolkit.statistics.interval import Interval


def made_set(name: str, unit: str, num_items: int, size: float) -> EvaluationSet:
    ids = [f"{name}/{number}" for number in range(num_items)]
    return EvaluationSet(
        name=name,
        role="domain",
        unit=unit,
        ids=ids,
        groups=ids,
        sizes=[size] * num_items,
        costs=[1] * num_items,
        content_hash=name,
        score=lambda _model, rows: [0.0] * len(rows),
    )


def test_a_loss_by_pairs():
    # Eight documents of 10 bytes: 8 to 15 of loss, and half more under the file: +0.05 a byte.
    docs = made_set("docs", "bits per byte", 8, 10.0)
    merge = [8.0 + number for number in range(8)]
    losses = {"merge": {"docs": merge}, "file": {"docs": [loss + 0.5 for loss in merge]}}
    (found,) = compare_losses([docs], losses, tolerance=0.05)
    assert found.merge == pytest.approx(1.15)
    assert found.change.estimate == pytest.approx(0.05)
    assert found.change.low == pytest.approx(0.05)  # every document loses the same
    assert found.limit == pytest.approx(0.0575)
    assert found.fault is None
    (strict,) = compare_losses([docs], losses, tolerance=0.04)
    assert strict.fault is not None
    assert "docs: loses +0.0500" in strict.fault


def test_answers_have_a_share_as_limit():
    answers = made_set("answers that do not end", "error", 40, 1.0)
    losses = {
        "merge": {answers.name: [0.0] * 40},
        "file": {answers.name: [1.0] * 12 + [0.0] * 28},
    }
    (found,) = compare_losses([answers], losses, tolerance=0.05)
    assert found.limit == 0.05
    assert found.change.estimate == pytest.approx(0.3)
    assert found.change.low > 0.05
    assert found.fault is not None


def test_what_is_watched_is_shown_and_not_judged():
    # A divergence from the general model is near 0, and any share of it nearer still.
    watched = replace(made_set("retention KL", "nats per token", 8, 10.0), role="watch")
    losses = {"merge": {watched.name: [0.1] * 8}, "file": {watched.name: [0.5] * 8}}
    (found,) = compare_losses([watched], losses, tolerance=0.05)
    assert found.change.estimate == pytest.approx(0.04)
    assert found.limit is None
    assert found.fault is None


@pytest.mark.parametrize(
    ("out_dtype", "scored"), [("bfloat16", []), ("float32", ["tiny-BF16.gguf"])]
)
def test_a_file_is_scored_unless_it_holds_the_merge_s_own_numbers(
    make_material: Callable[..., Material],
    recipe_values: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    out_dtype: str,
    scored: list[str],
):
    titles: list[str] = []

    def losses_of(_: object, __: Path, title: str) -> list[FileLoss]:
        titles.append(title)
        return []

    # The data stage of these runs holds no documents: they are not asked for before a file is.
    monkeypatch.setattr(FileScorer, "losses_of", losses_of)
    recipe_values["publish"] |= {"gguf_tolerance": 0.05, "gguf": ["F32", "BF16"]}
    make_bundle(make_material(recipe_values, out_dtype=out_dtype), "gguf", "org/tiny", {})
    assert titles == scored


def test_what_was_not_scored_is_said(material: Material, capsys: pytest.CaptureFixture[str]):
    make_bundle(material, "gguf", "org/tiny", {})
    assert "files      not scored, as publish.gguf_tolerance is null" in capsys.readouterr().out


@pytest.mark.parametrize(("low", "state"), [(0.01, "passed"), (0.1, "failed")])
def test_a_loss_beyond_the_tolerance_stops_the_upload(
    make_material: Callable[..., Material],
    recipe_values: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    low: float,
    state: str,
):
    class Scorer:
        def __init__(self, *_: Any) -> None:
            """As the real one, of a material and a tolerance."""

        def losses_of(self, folder: Path, title: str) -> list[FileLoss]:
            assert (folder / "model.safetensors").is_file()
            assert title == "tiny-Q8_0.gguf"  # F32 is the merge exactly
            change = Interval(low + 0.01, low, low + 0.02)
            return [FileLoss("docs", "bits per byte", 1.0, change, 0.05)]

    monkeypatch.setattr(publish_stage, "FileScorer", Scorer)
    recipe_values["publish"]["gguf_tolerance"] = 0.05
    material = make_material(recipe_values)
    if state == "failed":
        with pytest.raises(PublishError, match=r"checks failed \(.*files"):
            make_bundle(material, "gguf", "org/tiny", {})
        return
    folder = make_bundle(material, "gguf", "org/tiny", {})
    record = load_json(folder / "bundle.json")["files"]["tiny-Q8_0.gguf"]
    assert record["losses"]["docs"]["change"]["low"] == low
    assert "+0.0200 (+0.0100 to +0.0300)" in (folder / "README.md").read_text()
    assert (folder / "Modelfile").read_text().startswith("FROM ./tiny-Q8_0.gguf")
