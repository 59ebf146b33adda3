"""What a merge stage leaves: the merge as a plain mergekit configuration and as a model on disk,
answers of the three models, `report.json` and the page."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from toolkit.checkpoint.folder import stored_dtype
from toolkit.errors import ToolkitError
from toolkit.generate.answers import answer_rows
from toolkit.generate.prompts import GENERAL_PROMPTS
from toolkit.json_lines import iterate_rows
from toolkit.library_errors import first_line
from toolkit.merge.achieved import AchievedFractions
from toolkit.merge.config import MergeConfig, parse_merge_config
from toolkit.merge.to_disk import achieved_by, run_merge, to_yaml
from toolkit.pipeline.merge_inputs import MergeInputs
from toolkit.progress import progress, say
from toolkit.report.again import again_of
from toolkit.report.measured_section import PromptAnswers
from toolkit.report.page import write_page
from toolkit.report.training_section import TrainingRow
from toolkit.search.space import GENERAL
from toolkit.section import check_section
from toolkit.select.results import REPORT, AchievedRow, MergeResults
from toolkit.stage import MANIFEST, Stage, hash_file, load_json, write_json

ANSWERS = "answers.json"
_CONFIG = "merge.yaml"


def write_merge(
    config: MergeConfig, inputs: MergeInputs, stage: Stage
) -> tuple[MergeConfig, tuple[AchievedRow, ...]]:
    """Write a candidate as a model and as merge.yaml into the folder that the stage works in.

    Returns:
        The configuration as it was written, and what it achieves.
    """
    names = references(inputs.folders, stage.all_runs)
    plain = named(config, names, stored_dtype(inputs.general))
    folders = {names[name]: folder for name, folder in inputs.folders.items()}
    seed = inputs.recipe.seed
    write_model(plain, folders, stage.work, seed)
    achieved = achieved_by(config, stage.work, folders=inputs.folders, seed=seed)
    return plain, achieved_rows(achieved)


def achieved_rows(
    achieved: AchievedFractions | None, label: Callable[[str], str] = str
) -> tuple[AchievedRow, ...]:
    """What a merge asked and achieved, as results have it.

    Args:
        achieved: fractions by model; None where nothing is known.
        label: what to call a model.
    """
    rows = achieved.rows() if achieved is not None else ()
    return tuple(
        AchievedRow(where=where, model=label(model), **asdict(fractions))
        for where, model, fractions in rows
    )


def references(folders: Mapping[str, Path], runs: Path) -> dict[str, str]:
    """How merge.yaml refers to models, so that nothing of this machine enters.

    Paths count from the folder the command runs in, or from the one that holds the folder of all
    runs; of a model that stands in neither only the folder's name is said.

    Args:
        folders: folders of the models, by the names that the search has for them.
        runs: folder of all runs.

    >>> places = {"general": Path("/models/llama"), "specialist": Path("/big/runs/x/cpt")}
    >>> references(places, Path("/big/runs"))
    {'general': './llama', 'specialist': './runs/x/cpt'}
    """
    paths = {name: _absolute(folder) for name, folder in folders.items()}
    bases = [_absolute(base) for base in (Path(), runs.parent)]
    texts_by_name: dict[str, str] = {}
    for name, path in paths.items():
        # The root holds every path: counted from it, all folders of this machine would be written
        # out.
        base = next((b for b in bases if b != b.parent and path.is_relative_to(b)), path.parent)
        # Beginning with a dot, so that mergekit does not take it for a name on the hub.
        texts_by_name[name] = f"./{path.relative_to(base).as_posix()}"
    texts = list(texts_by_name.values())  # folders of one name are told apart by what they are
    told_apart = {
        name: text if texts.count(text) == 1 else f"./{name}"
        for name, text in texts_by_name.items()
    }
    if len(set(told_apart.values())) < len(told_apart):  # a folder has the name of another model
        return {name: f"./{name}" for name in told_apart}
    return told_apart


def _absolute(path: Path) -> Path:
    """Without following links: a folder is spoken of where its owner sees it."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def named(config: MergeConfig, names: Mapping[str, str], dtype: torch.dtype) -> MergeConfig:
    """A candidate as a plain mergekit configuration: float32 arithmetic, one cast.

    Args:
        config: configuration of the candidate.
        names: what to call its models, by the names it has for them.
        dtype: type that the merge is written in.
    """
    # Through JSON, so that nested parts are plain values that can be walked.
    plain = json.loads(config.model_dump_json(exclude_none=True))

    def rename(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                key: names.get(value, value) if key in {"model", "base_model"} else rename(value)
                for key, value in node.items()
            }
        return [rename(item) for item in node] if isinstance(node, list) else node

    # In float32 and cast once at the end, as the search computed it: the figures are those of this
    # very file.
    values = {**rename(plain), "dtype": "float32", "out_dtype": str(dtype).removeprefix("torch.")}
    return parse_merge_config(values, where="merge.yaml")


def write_model(config: MergeConfig, folders: Mapping[str, Path], work: Path, seed: int) -> None:
    """Merge to disk beside the scores, as far as a killed call has not done it; what one left of
    another merge is removed.

    Args:
        config: configuration from `named`.
        folders: folders of its models, by what it calls them.
        work: folder that the stage works in.
        seed: seed of random methods.
    """
    merged = work / "model"
    # The folder appears whole or not at all, and its files are then moved, merge.yaml among them:
    # wherever that stands, it tells of which merge the files are.
    tells = next((p for p in (merged / _CONFIG, work / _CONFIG) if p.is_file()), None)
    if tells is None or tells.read_text(encoding="utf-8") != to_yaml(config):
        shutil.rmtree(merged, ignore_errors=True)
        of_another = [work / _CONFIG, work / ANSWERS, *work.glob("*.safetensors*")]
        for path in of_another:
            path.unlink(missing_ok=True)
        with progress("writing the merge", 1) as advance:
            run_merge(config, merged, folders=folders, seed=seed)
            advance(1, "")
    if not merged.is_dir():
        return
    # Renamed one by one, on one disk: no byte of the model is copied.
    for path in sorted(merged.iterdir()):
        path.rename(work / path.name)
    merged.rmdir()


def write_report(results: MergeResults, inputs: MergeInputs, stage: Stage, merge_yaml: str) -> None:
    """Write `answers.json`, `report.json` and `report.html` beside the merged model.

    Args:
        results: what the merge stage found.
        inputs: what it was made from, with the recipe as it was read.
        stage: the merge stage, in whose working folder the merged model stands already.
        merge_yaml: text of the chosen merge.
    """
    work, recipe = stage.work, inputs.recipe
    answers = _ask_models(inputs, work)
    # Of a model that no stage of ours made a file of this name is something else.
    specialist = inputs.specialist
    is_ours = recipe.trains or (specialist is not None and (specialist / MANIFEST).is_file())
    hashes = {
        **stage.inputs,
        **{path.name: hash_file(path) for path in sorted(work.glob("*.safetensors"))},
    }
    values = recipe.model_dump(mode="json", exclude_unset=True)
    write_json(work / REPORT, results.as_json())
    write_page(
        results,
        work / "report.html",
        merge_yaml=merge_yaml,
        training=read_metrics(specialist / "metrics.jsonl") if specialist and is_ours else (),
        answers=answers,
        again=again_of(results.recipe, values, hashes, trains=recipe.trains),
    )


def _ask_models(inputs: MergeInputs, work: Path) -> list[PromptAnswers]:
    """Answers of the three models, made once, even where the stage was interrupted after them."""
    path = work / ANSWERS
    if path.is_file():
        return _parse_answers(load_json(path), path)
    models = {GENERAL: inputs.general, **inputs.specialists, "merge": work}
    try:
        rows = answer_rows(models, (*GENERAL_PROMPTS, *inputs.recipe.evaluate.prompts))
    except (ToolkitError, RuntimeError, ValueError, TypeError) as error:
        # They illustrate the figures, which are done: not worth losing a search for.
        said = first_line(error, most=1000)
        say(f"  the report has no answers side by side: {said}")
        return []
    write_json(path, rows)
    return _parse_answers(rows, path)


def _parse_answers(rows: Sequence[object], path: Path) -> list[PromptAnswers]:
    answers = []
    own_keys = set(PromptAnswers.model_fields)
    for row in rows:
        if isinstance(row, dict):  # answers of several specialists stand by their names
            others = {name: text for name, text in row.items() if name not in own_keys}
            own = {name: text for name, text in row.items() if name in own_keys}
            row = {**own, "specialists": others} if others else own
        answer, faults = check_section(PromptAnswers, row)
        if answer is None:
            raise ToolkitError(f"{path}: {faults[0]}; remove the file and run the stage again.")
        answers.append(answer)
    return answers


def read_metrics(path: Path) -> list[TrainingRow]:
    """Rows of a training log, as far as the page draws them; none where there is no log.

    Raises:
        ToolkitError: a row is damaged.
    """
    if not path.is_file():
        return []
    advice = "run its stage again"
    rows = []
    for where, values in iterate_rows(path, advice=advice):
        row, faults = check_section(TrainingRow, values)
        if row is None:
            raise ToolkitError(f"{where}: {faults[0]}; {advice}.")
        rows.append(row)
    return rows
