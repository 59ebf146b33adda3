"""Specialists that a recipe names instead of training one: an adapter merged into the general
model, and the comparison with the general model before anything is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from toolkit.checkpoint.folder import stored_dtype
from toolkit.checkpoint.models import Models
from toolkit.checkpoint.references import PathAndRevision, find_folder
from toolkit.errors import ConfigError, Fault, MergeError, ToolkitError
from toolkit.load_yaml import read_object
from toolkit.merge.check.findings import as_sentence
from toolkit.merge.check.run import compare_models
from toolkit.merge.config import parse_merge_config
from toolkit.pipeline.merge_output import write_model
from toolkit.pipeline.model_hashes import fingerprint
from toolkit.pipeline.run import Run, ensure_stage
from toolkit.progress import say
from toolkit.recipe.model import ModelSection, SpecialistSection
from toolkit.recipe.schema import Recipe
from toolkit.search.space import GENERAL, SPECIALIST, SPECIALISTS
from toolkit.stage import MANIFEST, Stage, read_manifest


def refuse_training(run: Run) -> None:
    """
    Raises:
        ConfigError: the recipe names a finished specialist.
    """
    if not run.recipe.trains:
        raise ConfigError(
            f"{run.name}: the recipe names a finished specialist, so there is nothing to train; "
            f"`toolkit merge choose {run.name}` chooses a merge of it."
        )


def merge_adapter(
    run: Run, section: SpecialistSection, general: Path, name: str, title: str
) -> Path:
    """The folder of the general model with an adapter merged into it, as a stage of this name.

    Raises:
        MergeError: there is no such adapter, or it was made for a model with other tensors.
    """
    assert section.adapter is not None  # noqa: S101  (whoever calls has one)
    adapter = find_folder(PathAndRevision(section.adapter, section.revision))
    stage = run.stage(
        name,
        {"strength": section.strength},
        {"general": fingerprint(general), "adapter": fingerprint(adapter)},
    )
    return ensure_stage(stage, title, lambda: _write_adapted(run, section, general, adapter, stage))


def _write_adapted(
    run: Run, section: SpecialistSection, general: Path, adapter: Path, stage: Stage
) -> None:
    # By whole paths, which `parse_reference` finds as folders whatever signs are in their names.
    plain, adapted = str(general.resolve()), f"{general.resolve()}+{adapter.resolve()}"
    weights = {adapted: section.strength}
    if section.strength != 1.0:
        # `linear` divides by the sum of the weights, which therefore is 1. Rounded, as 1 - 0.9 is
        # not 0.1 in binary and the weight is written out.
        weights[plain] = round(1.0 - section.strength, 12)
    config = parse_merge_config(
        {
            "merge_method": "linear",
            "models": [{"model": m, "parameters": {"weight": w}} for m, w in weights.items()],
            "dtype": "float32",
            "out_dtype": str(stored_dtype(general)).removeprefix("torch."),
        },
        where="specialist.adapter",
    )
    # Compared before the stage begins: an adapter that does not fit leaves nothing behind.
    findings = compare_models(config, Models())
    _refuse_errors(
        f"{section.adapter}: cannot be merged into the general model, {general}:", findings
    )
    if (trained_on := foreign_base(adapter, run.recipe.model)) is not None:
        say(f"  careful: {_of_another(section.adapter or '', trained_on)}")
    with stage.running() as work:
        write_model(config, {}, work, stage.seed)
        (work / "merge.yaml").unlink()  # it names folders of this machine
        stage.finish({"adapter": section.adapter, "strength": section.strength})


def _of_another(adapter: str, trained_on: str) -> str:
    return (
        f"{adapter} says that it was trained on {trained_on}; its tensors fit, but of other "
        "weights it is another model. Make sure that they are the same"
    )


def foreign_base(adapter: Path, model: ModelSection) -> str | None:
    """The model that an adapter says it was trained on, where that surely is called otherwise than
    the general model; None where it is not told, or may be the same."""
    try:
        trained_on = read_object(adapter / "adapter_config.json").get("base_model_name_or_path")
    except ToolkitError:
        return None  # whoever opens it says so
    if not isinstance(trained_on, str) or not trained_on:
        return None
    # peft writes down whatever was typed: a folder here, one of another machine, or a hub name.
    # Only the first and the last can be told apart from the general model.
    if Path(trained_on).is_dir():
        place = model.path
        is_other = place is not None and place.resolve() != Path(trained_on).resolve()
        return trained_on if is_other else None
    # The hub takes names in any case.
    known_names = {name.lower() for name in (model.hub, model.name) if name}
    is_public = trained_on.count("/") == 1 and not trained_on.startswith((".", "/"))
    return (
        trained_on if is_public and known_names and trained_on.lower() not in known_names else None
    )


def refuse_unfit(run: Run, general: Path, specialists: Mapping[str, Path]) -> None:
    """Compare finished specialists with the general model as `toolkit merge check` would, before
    anything is scored; what is only doubtful is said.

    Args:
        run: run of the recipe.
        general: folder of the general model.
        specialists: their folders, by what they are called.

    Raises:
        MergeError: one cannot be merged with the general model, or is the general model.
    """
    folders = {GENERAL: general, **specialists}
    # The comparison reads every tensor of all models: not for a merge that stands.
    if _were_merged(run.root / "merge", folders):
        return
    models = [{"model": name, "parameters": {"weight": 1.0}} for name in folders]
    config = parse_merge_config({"merge_method": "linear", "models": models}, where="specialist")
    findings = compare_models(config, Models(folders))
    _refuse_errors(f"{run.name}: its models cannot be merged with each other:", findings)
    for name, folder in specialists.items():
        if are_same_tensors(general, folder):
            raise MergeError(
                f"{run.name}: {name} ({folder}) is the general model itself, tensor by tensor, so "
                "there is nothing to choose; check that the right model is given."
            )


def _refuse_errors(opening: str, findings: Sequence[Fault]) -> None:
    errors = [as_sentence(finding) for finding in findings if finding.severity == "error"]
    if errors:
        raise MergeError("\n  ".join([opening, *errors]))
    for finding in findings:
        if finding.severity == "warning":
            say(f"  careful: {as_sentence(finding)}")


def _were_merged(folder: Path, folders: Mapping[str, Path]) -> bool:
    """Whether a merge stage stands that was made from these very models."""
    if not (folder / MANIFEST).is_file():
        return False
    inputs = read_manifest(folder)["inputs"]
    own_keys = {GENERAL, SPECIALIST}
    return all(
        inputs.get(name if name in own_keys else f"{SPECIALISTS}/{name}") == fingerprint(model)
        for name, model in folders.items()
    )


def are_same_tensors(one: Path, other: Path) -> bool:
    """Whether two models hold the same numbers, whatever types they are stored in."""
    models = Models({"one": one, "other": other})
    first, second = models.checkpoint("one"), models.checkpoint("other")
    if set(first.names) != set(second.names):
        return False
    for name in first.names:  # most often the first tensor tells
        # float64 holds bfloat16, float16 and float32 exactly, so types do not matter.
        is_same = first.info(name).shape == second.info(name).shape and torch.equal(
            first.tensor(name).double(), second.tensor(name).double()
        )
        # Given back at once: two whole models need not fit in memory.
        first.give_back(name)
        second.give_back(name)
        if not is_same:
            return False
    return True


def training_remarks(recipe: Recipe) -> list[str]:
    """What has to be said of figures where specialists were trained elsewhere."""
    sections = dict(recipe.specialists)
    if recipe.specialist is not None:
        sections["the specialist"] = recipe.specialist
    remarks = []
    unknown = [name for name, section in sections.items() if section.run is None]
    for name, section in sections.items():
        if section.run is not None:
            remarks.append(
                f"{name.capitalize() if name not in recipe.specialists else name} is that of the "
                f"recipe {section.run}; its training documents were not compared with these "
                "evaluation documents, and what it has seen of them flatters it."
            )
    if recipe.specialist is not None and unknown:
        remarks.append(
            "The specialist was trained elsewhere, and what it was trained on is not known here: "
            "evaluation documents that it has seen flatter it."
        )
    elif unknown:
        remarks.append(
            f"The specialists {', '.join(unknown)} were trained elsewhere, and what they were "
            "trained on is not known here: evaluation documents that they have seen flatter them."
        )
    for section in sections.values():
        if section.adapter is None:
            continue
        adapter = find_folder(PathAndRevision(section.adapter, section.revision))
        if (trained_on := foreign_base(adapter, recipe.model)) is not None:
            remarks.append(f"{_of_another(section.adapter, trained_on)}.")
    return remarks
