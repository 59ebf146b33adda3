"""The stages of a recipe in their order; each runs what it needs first, and nothing twice.

general model ─► data ─► cpt ─► merge        all under runs/<recipe>/

Fine-tuning, the article's third stage, comes after:

merge ─► sft-data ─► sft        beside the other stages
"""

from __future__ import annotations

import sys
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.evaluate.config import identity_of_evaluation
from toolkit.machine import check_cache
from toolkit.pipeline.finished import refuse_unfit
from toolkit.pipeline.merge_inputs import MergeInputs
from toolkit.pipeline.model_hashes import fingerprint
from toolkit.pipeline.models import (
    ensure_data,
    ensure_general,
    ensure_models,
    ensure_specialist,
    ensure_specialists,
    ensure_start,
)
from toolkit.pipeline.run import Run, first_alone
from toolkit.pipeline.run import ensure_stage as _ensure
from toolkit.pipeline.specialist import cpt_stage, data_stage, trained_folder, watch_identity
from toolkit.progress import say
from toolkit.search.space import SPECIALIST
from toolkit.select.config import identity_of_selection
from toolkit.select.results import MergeResults, read_results
from toolkit.shipped import find_in, folders_of
from toolkit.stage import MANIFEST, Stage, content_hash, hash_file, hash_json, read_manifest
from toolkit.train.config import identity_of, without_effect


def choose_merge(run: Run, *, score_test_again: bool = False) -> MergeResults:
    """Choose the merge of a recipe, and write it to `run.root / "merge"`.

    What it needs is made first; nothing that is up to date is made again.

    Args:
        run: run of the recipe.
        score_test_again: whether the test documents may be scored for another choice.

    Returns:
        Every figure of the merge stage.
    """
    return read_results(ensure_merge(run, score_test_again=score_test_again))


def ensure_merge(run: Run, *, score_test_again: bool = False) -> Path:
    """The folder of the merge stage: search, choice, test, and the merged model on disk."""
    from toolkit.merge.in_memory_proof import refuse_unless_live
    from toolkit.pipeline.merge_search import num_workers
    from toolkit.pipeline.set_power import say_expected

    check_cache()  # answers are kept there
    general = ensure_general(run)
    if not run.recipe.trains:  # known before documents are read
        refuse_unfit(run, general, ensure_specialists(run))
    data = ensure_data(run)
    # Nothing is trained for this answer: what is said next is for those who have hours before
    # them.
    # Asked of a specialist that stands: to know of which stage it is, conversations are written,
    # which takes long and is for nothing where the next line refuses.
    may_stand = any((root / "cpt" / MANIFEST).is_file() for root in (run.root, *run.also))
    is_trained = not run.recipe.trains or (
        may_stand and cpt_stage(run, ensure_start(run), data).is_complete()
    )
    # Whether merges of this architecture can be made in memory is found out before training, and
    # not when the search begins.
    refuse_unless_live(general, not is_trained)
    say_expected(run, data, general, is_trained=is_trained)
    specialists = ensure_specialists(run)
    inputs = MergeInputs(run.name, run.recipe, general, specialists, data, ensure_models(run))
    stage = merge_stage(run, inputs)

    def merge() -> None:
        from toolkit.pipeline.merge_stage import run_merge_stage

        worker = [sys.executable, "-m", "toolkit", "search", "worker", run.asked_for]
        helpers = [
            [*worker, "--runs", str(run.runs), "--number", str(number)]
            for number in range(1, num_workers(run.recipe))
        ]
        run_merge_stage(inputs, stage, helpers=helpers, score_test_again=score_test_again)

    return _ensure(stage, "merge", merge)


def merge_stage(run: Run, inputs: MergeInputs) -> Stage:
    """The merge stage of these inputs, as it would be identified."""
    from toolkit.evaluate.input_hashes import evaluation_inputs

    recipe = run.recipe
    texts = {
        # A merge of such a name is refused later, at the key of the recipe; here it only needs a
        # hash.
        name: "missing"
        if (path := find_in(folders_of("merges"), name)) is None
        else hash_file(path)
        for name in recipe.search.merges
    }
    return run.stage(
        "merge",
        {
            "evaluate": identity_of_evaluation(recipe.evaluate),
            "search": recipe.search.identity(),
            "select": identity_of_selection(recipe.select),
            **({"owners": recipe.find_owners()} if recipe.specialists else {}),
            **({"start": recipe.train.start} if recipe.train.start is not None else {}),
        },
        {
            "general": fingerprint(inputs.general),
            **{inputs.hash_key(n): fingerprint(f) for n, f in inputs.specialists.items()},
            "data": content_hash(inputs.data),
            "merges": hash_json(texts),
            **{f"models/{name}": fingerprint(folder) for name, folder in inputs.others.items()},
            **evaluation_inputs(recipe.evaluate),
        },
    )


def join_merge(run: Run, *, number: int, wait_seconds: float) -> None:
    """Work on the search of a merge stage that is under way, here or on another machine.

    Raises:
        ToolkitError: a stage before it is not complete, or no search is under way.
    """
    from toolkit.pipeline.merge_search import (
        begun_precision,
        join_search,
        prepare_search,
        wait_for_study,
    )

    recipe, data = run.recipe, run.root / "data"
    # All stages that a worker depends on. It must find them, as making them here could differ from
    # what the search was begun with.
    made = [data]
    if recipe.trains:
        specialist = trained_folder(run)
        made.append(specialist)
    named = {run.root: recipe.specialist} | {
        run.root / "specialists" / name: section for name, section in recipe.specialists.items()
    }
    made += [
        place / "specialist"
        for place, section in named.items()
        if section is not None and (section.adapter is not None or section.artifact is not None)
    ]
    if recipe.tokenizer is not None:
        made.append(run.root / "general-extended")
    elif any((recipe.model.artifact, recipe.model.moe, recipe.model.scratch)):
        made.append(run.root / "general")
    made += [
        run.root / "models" / name / "general"
        for name, section in recipe.models.items()
        if section.artifact is not None or section.moe is not None
    ]
    for folder in made:
        read_manifest(folder)  # a worker runs no stage itself
    general = ensure_general(run)
    specialists = {SPECIALIST: specialist} if recipe.trains else ensure_specialists(run)
    inputs = MergeInputs(run.name, recipe, general, specialists, data, ensure_models(run))
    stage = merge_stage(run, inputs)
    # The search may have ended while the worker started.
    if stage.is_complete():
        say(f"merge: up to date ({stage.folder}); there is nothing to search")
        return
    place, study = inputs.place(stage.work), inputs.study
    wait_for_study(place, study, wait_seconds)
    search = prepare_search(inputs, stage, precision=begun_precision(place, study))
    join_search(search, stage, number=number)


def show_outcome(folder: Path) -> None:
    """Print the table of a complete merge stage."""
    from toolkit.report.table import outcome_table

    outcome_table(read_results(folder), folder)


_STARTS = {"merge": ensure_merge, "specialist": ensure_specialist, "general": ensure_general}


def ensure_sft(run: Run) -> Path:
    """The sft stage: the model that the recipe starts from, fine-tuned on conversations.

    Raises:
        ConfigError: the recipe has no section `sft`.
    """
    from toolkit.pipeline.training import train_stage

    section = run.recipe.sft
    if section is None:
        raise ConfigError(
            f"{run.name}: the recipe has no section sft; give it `data` with conversations "
            "(messages_field) and `train` (see recipes/finance.yaml)."
        )

    def before() -> tuple[Path, Path]:
        start = _STARTS[section.start](run)
        return start, data_stage(run, "sft-data", section.data, start)

    # The start may be a whole merge stage, which one process makes.
    start, data = first_alone(before)
    stage = run.stage(
        "sft",
        {
            "train": identity_of(section.train),
            "start": section.start,
            **watch_identity(section.train, run.recipe.evaluate),
        },
        {"start": fingerprint(start), "data": content_hash(data)},
        without_effect(section.train),
    )
    return run.ensure(
        stage,
        "sft",
        lambda: train_stage(section.train, section.data, run.recipe.evaluate, stage, start, data),
    )
