"""The end of the merge stage: answers of the three models, `report.json` and the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.generate.answers import answer_rows
from toolkit.generate.prompts import GENERAL_PROMPTS
from toolkit.json_lines import iterate_rows
from toolkit.manifest import Stage, hash_file, load_json, write_json
from toolkit.progress import say
from toolkit.recipe import Recipe
from toolkit.report.again import again_of
from toolkit.report.page import write_page


def write_report(
    results: Mapping[str, Any],
    work: Path,
    *,
    stage: Stage,
    recipe: Recipe,
    general: Path,
    specialist: Path,
    merge_yaml: str,
) -> None:
    """Write `answers.json`, `report.json` and `report.html` beside the merged model.

    Args:
        results: of the merge stage.
        work: its folder, in which the merged model stands already.
        stage: the merge stage, for the hashes of what it read.
        recipe: all of it.
        general: folder of the general model.
        specialist: folder of the cpt stage, with its `metrics.jsonl`.
        merge_yaml: the chosen merge.
    """
    answers = _answers(recipe, {"general": general, "specialist": specialist, "merge": work}, work)
    hashes = {
        **stage.inputs,
        **{path.name: hash_file(path) for path in sorted(work.glob("*.safetensors"))},
    }
    values = recipe.model_dump(mode="json", exclude_unset=True)
    write_json(work / "report.json", results)
    write_page(
        results,
        work / "report.html",
        merge_yaml=merge_yaml,
        training=read_metrics(specialist / "metrics.jsonl"),
        answers=answers,
        again=again_of(results["recipe"], values, hashes),
    )


def _answers(recipe: Recipe, models: Mapping[str, Path], work: Path) -> list[dict[str, str]]:
    """Made once, even where the stage was interrupted after them."""
    path = work / "answers.json"
    if path.is_file():
        rows: list[dict[str, str]] = load_json(path)
        return rows
    try:
        rows = answer_rows(models, (*GENERAL_PROMPTS, *recipe.evaluate.prompts))
    except (ToolkitError, RuntimeError, ValueError, TypeError) as error:
        # They illustrate the figures, which are done: not worth losing a search for.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"  the report has no answers side by side: {first}")
        return []
    write_json(path, rows)
    return rows


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a training log; none where there is no log."""
    if not path.is_file():
        return []
    return [row for _, row in iterate_rows(path, advice="run its stage again")]
