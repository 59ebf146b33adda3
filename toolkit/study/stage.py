"""A study put together: the runs that a recipe's claims name, scored on the same test documents.

RECIPE@variant@scale/… ─► study        under runs/RECIPE@scale/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ConfigError, EvaluationError
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.input_hashes import evaluation_inputs
from toolkit.evaluate.sets import EvaluationSet
from toolkit.machine import cache_folder, dtype_of
from toolkit.pipeline.heal import ensure_heal
from toolkit.pipeline.model_hashes import fingerprint
from toolkit.pipeline.models import ensure_data, ensure_general, ensure_specialist
from toolkit.pipeline.run import Run
from toolkit.pipeline.stages import ensure_merge, ensure_sft
from toolkit.progress import progress, say
from toolkit.recipe.load import load_recipe
from toolkit.section import parse_section, replace_values
from toolkit.stage import (
    Stage,
    content_hash,
    hash_file,
    hash_json,
    load_json,
    read_manifest,
    write_atomically,
    write_json,
)
from toolkit.statistics.seeds import named_seed
from toolkit.study.config import STEPS, ClaimSection, Step, StudySection, split_model
from toolkit.study.results import JudgedClaim, SetFigures, StudyResults
from toolkit.study.table import claim_lines, replace_tables
from toolkit.study.verdict import Items, measure_claim, pool
from toolkit.tokenizer_files import load_tokenizer

if TYPE_CHECKING:
    from toolkit.evaluate.cache import ScoreCache

STUDY = "study"
FIGURES = "study.json"
NOT_READ: dict[str, Any] = {"multiple_choice": (), "tasks": (), "behavior": None}
"""What of a recipe's `evaluate` no claim is about: nothing is asked, read or hashed for it."""

_SEED_NAMES = {"infilling": "middles"}
"""What resamples of a set are seeded by where it is not the set's name, so that figures stay."""

_ENSURE = {
    "general": ensure_general,
    "cpt": ensure_specialist,
    "merge": ensure_merge,
    "heal": ensure_heal,
    "sft": ensure_sft,
}


@dataclass(frozen=True)
class StudySubject:
    """A model that a study names.

    Attributes:
        name: name that the recipe has for it.
        run: run of its variant.
        step: stage that makes it.
        folder: folder that it stands in.
    """

    name: str
    run: Run
    step: Step
    folder: Path


def ensure_study(run: Run) -> Path:
    """The study of a recipe: every model that its claims name, and what they show.

    Args:
        run: run of the recipe at the scale wanted, without a variant.

    Raises:
        ConfigError: the recipe has no section `study`, or `run` is one of its variants.
        EvaluationError: the models were not made to be tested on the same documents.
    """
    section = run.recipe.study
    if section is None:
        raise ConfigError(
            f"{run.name}: the recipe has no section study; give it claims and what to measure of "
            "them (see recipes/ibrahim-replay.yaml)."
        )
    subjects = make_subjects(run, section)
    documents = common_documents(subjects, run)
    evaluate = replace_values(run.recipe.evaluate, **NOT_READ)
    stage = run.stage(
        STUDY,
        {
            "study": section.model_dump(mode="json"),
            "evaluate": run.recipe.evaluate.model_dump(
                mode="json", exclude={"prompts", "multiple_choice", "tasks"}
            ),
        },
        {
            "documents": hash_file(documents / "test.jsonl"),
            **{f"model {s.name}": fingerprint(s.folder) for s in subjects},
            **evaluation_inputs(evaluate),
        },
    )
    folder = run.ensure(stage, STUDY, lambda: run_study(run, section, stage, subjects, documents))
    for line in claim_lines(read_results(folder)):
        say(line)
    return folder


def make_subjects(run: Run, section: StudySection) -> list[StudySubject]:
    """The models of all claims, each made where it is not there yet, in the order of the steps."""
    model_names = dict.fromkeys(name for claim in section.claims for name in claim.measure.models())
    # In the order of the pipeline, so that a faulty recipe fails at its cheapest step.
    ordered_names = sorted(model_names, key=lambda name: STEPS.index(split_model(name)[1]))
    subjects = []
    for number, name in enumerate(ordered_names, 1):
        variant, step = split_model(name)
        say(f"{run.name}: model {number} of {len(ordered_names)}, {name}")
        variant_run = variant_of(run, variant)
        subjects.append(StudySubject(name, variant_run, step, _ENSURE[step](variant_run)))
    return subjects


def variant_of(run: Run, variant: str | None) -> Run:
    """The run of a variant, at the same scale.

    Raises:
        ConfigError: there is no such variant.
    """
    if variant is None or run.path is None:
        return run
    # The variant first: a scale is laid over it, and has the last word on sizes.
    layers = (variant, *run.layers)
    recipe = load_recipe(run.path, layers)
    return Run.of(run.path, recipe, run.runs, layers)


def common_documents(subjects: Sequence[StudySubject], run: Run) -> Path:
    """The data stage whose test documents all models are scored on.

    Raises:
        EvaluationError: two of the models' data stages hold other test documents.
    """
    # The general model has seen no documents of any stage: it is scored on those of the others.
    trained_subjects = [subject for subject in subjects if subject.step != "general"]
    if not trained_subjects:
        return ensure_data(run)
    not_tuned = [subject for subject in trained_subjects if subject.step != "sft"]
    data_name = "data" if not_tuned else "sft-data"
    folders = [
        # It stands there already: making the model needed it.
        subject.run.root / data_name if subject.run.recipe.trains else ensure_data(subject.run)
        for subject in not_tuned or trained_subjects
    ]
    document_hashes = [_hash_of_documents(folder / "test.jsonl") for folder in folders]
    for folder, documents_hash in zip(folders, document_hashes, strict=True):
        # Losses are paired by item: every model has to be scored on the very same documents.
        if documents_hash != document_hashes[0]:
            raise EvaluationError(
                f"{folder}: its test documents are not those of {folders[0]}, so models of the two "
                "cannot be compared; give the variants the same sources, splits and seed."
            )
    return folders[0]


def _hash_of_documents(path: Path) -> str:
    from toolkit.evaluate.likelihood import read_rows

    return hash_json([[row["id"], row["text"]] for row in read_rows(path)])


def run_study(
    run: Run, section: StudySection, stage: Stage, subjects: Sequence[StudySubject], documents: Path
) -> None:
    """Score the models and write `study.json`."""
    set_names = list(dict.fromkeys(claim.measure.test_set for claim in section.claims))
    items_by_set = score_subjects(run, subjects, documents, set_names)
    results = StudyResults(
        recipe=run.name,
        description=run.recipe.description,
        command=f"toolkit study run {run.name}",
        confidence=section.confidence,
        claims=tuple(
            _judge_claim(run, section, claim, items_by_set[claim.measure.test_set])
            for claim in section.claims
        ),
        figures={
            set_name: SetFigures(
                unit=items.unit,
                num_items=len(items.sizes),
                num_groups=len(set(items.groups)),
                models={model: items.figure(model) for model in items.losses},
                notes=items.notes,
            )
            for set_name, items in items_by_set.items()
        },
    )
    with stage.running() as work:
        write_json(work / FIGURES, results.model_dump(mode="json"))
        stage.finish({"verdicts": Counter(claim.verdict for claim in results.claims)})


def _judge_claim(run: Run, section: StudySection, claim: ClaimSection, items: Items) -> JudgedClaim:
    test_set = claim.measure.test_set
    measured = measure_claim(
        claim.measure,
        items,
        confidence=section.confidence,
        num_claims=len(section.claims),
        resamples=run.recipe.evaluate.bootstrap_resamples,
        seed=named_seed(run.recipe.seed, "study", _SEED_NAMES.get(test_set, test_set)),
    )
    return JudgedClaim(
        claim=claim.claim,
        source=claim.source,
        mark=claim.mark,
        measure=claim.measure,
        address=claim.address,
        interval=measured.interval,
        together=measured.together,
        unit=items.unit if claim.measure.unit == "difference" else claim.measure.unit,
        verdict=measured.verdict,
        note=measured.note,
    )


def score_subjects(
    run: Run, subjects: Sequence[StudySubject], documents: Path, set_names: Sequence[str]
) -> dict[str, Items]:
    """Losses of all models on these sets, pooled, by what claims call the set.

    Raises:
        ConfigError: a set does not exist.
        EvaluationError: a tokenizer cut the documents to other items, or a loss is not finite.
    """
    from toolkit.evaluate.cache import ScoreCache
    from toolkit.evaluate.load import settle_scoring

    # In the machine's cache and not among the runs: studies of several folders share models.
    cache = ScoreCache(cache_folder() / "scores.jsonl")
    # One type of arithmetic for all: a difference between two types would look like one of models.
    evaluate = settle_scoring(
        replace_values(run.recipe.evaluate, **NOT_READ), *(subject.folder for subject in subjects)
    )
    answers = retention_set(run, evaluate, documents) if "retention" in set_names else []
    first_sets: dict[str, list[EvaluationSet]] = {}
    losses_by_model: dict[str, dict[str, list[float]]] = {}
    with progress("study, models", len(subjects)) as advance:
        for subject in subjects:
            sets = document_sets(evaluate, subject, documents, set_names) | {"retention": answers}
            for set_name in set_names:
                if not sets.get(set_name):
                    raise ConfigError(
                        f"{run.name}: study: test_set: there is no test set {set_name!r}; there "
                        f"are {', '.join(key for key in sets if sets[key])}."
                    )
                # Items of the first model stand for all, once they are found to be the same.
                first = first_sets.setdefault(set_name, sets[set_name])
                _check_same_items(first, sets[set_name], subject.name)
            all_items = [items for set_name in set_names for items in sets[set_name]]
            losses_by_model[subject.name] = _score_subject(subject, all_items, cache, evaluate)
            advance(1, subject.name)
    return {set_name: pool(sets, losses_by_model) for set_name, sets in first_sets.items()}


def _score_subject(
    subject: StudySubject,
    all_items: Sequence[EvaluationSet],
    cache: ScoreCache,
    evaluate: EvaluateSection,
) -> dict[str, list[float]]:
    """Losses by set; the model is loaded where one of them is not in the cache."""
    from toolkit.checkpoint.load import load_causal_model

    model, model_hash = None, content_hash(subject.folder)
    losses_by_set: dict[str, list[float]] = {}
    for items in all_items:
        # Loaded at the first set that lacks a score, and kept for the rest.
        if model is None and len(cache.known(model_hash, items)) < len(items):
            model = load_causal_model(subject.folder, dtype_of(evaluate.precision))
        losses_by_set[items.name] = cache.score(model, model_hash, items)
    return losses_by_set


def document_sets(
    evaluate: EvaluateSection, subject: StudySubject, documents: Path, set_names: Sequence[str]
) -> dict[str, list[EvaluationSet]]:
    """Test documents in a model's own tokens, by source and by role, and infilling where named."""
    from toolkit.evaluate.documents import likelihood_sets
    from toolkit.evaluate.middles import middles_sets

    separator_token = read_manifest(documents)["results"]["separator_token_id"]
    tokenizer = load_tokenizer(subject.folder)
    test_documents = documents / "test.jsonl"
    sets = likelihood_sets(test_documents, tokenizer, separator_token, evaluate)
    # The role stands: a claim on a source of its name that is not all of it is refused.
    sets_by_name = {
        **{s.name: [s] for s in sets},
        **{role: [s for s in sets if s.role == role] for role in ("domain", "general")},
    }
    if "infilling" in set_names and evaluate.infilling is not None:
        # The first set is behind both sides; the second, behind the prefix alone, is no infilling.
        sets_by_name["infilling"] = middles_sets(
            test_documents, tokenizer, evaluate, evaluate.infilling
        )[:1]
    return sets_by_name


def retention_set(run: Run, evaluate: EvaluateSection, documents: Path) -> list[EvaluationSet]:
    """The general model's answers to the test prompts; it is asked once."""
    from toolkit.evaluate.load import load_sets
    from toolkit.evaluate.retention import LOSS

    return [
        s for s in load_sets(evaluate, documents, ensure_general(run), "test") if s.name == LOSS
    ]


def _check_same_items(
    first: Sequence[EvaluationSet], other: Sequence[EvaluationSet], name: str
) -> None:
    for one, two in zip(first, other, strict=True):
        if list(one.ids) != list(two.ids) or list(one.sizes) != list(two.sizes):
            raise EvaluationError(
                f"{one.name}: {name} is given other items than the models before it, so that "
                "losses cannot be paired."
            )


def write_tables(studies: Sequence[Path], page: Path) -> None:
    """Bring the tables of a page up to date.

    Args:
        studies: folders of complete studies, or their `study.json`.
        page: Markdown file; made where it does not exist.

    Raises:
        ConfigError: there is no study, or the page cannot be read.
        ToolkitError: a study is not complete.
    """
    if not studies:
        raise ConfigError(
            "toolkit study table: there is no study; run one, or name its study.json."
        )
    results = [read_results(path) for path in studies]
    try:
        # Read before it is opened for writing: what stands between tables is written by hand.
        page_text = page.read_text(encoding="utf-8") if page.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{page}: cannot be read as UTF-8 text ({error}).") from error
    with write_atomically(page) as file:
        file.write(replace_tables(page_text, results))
    say(f"{len(results)} tables written to {page}")


def read_results(path: Path) -> StudyResults:
    """What a study wrote, with the date of its manifest."""
    folder = path.parent if path.name == FIGURES else path
    # The date is the manifest's, so that `study.json` is the same whenever it is made.
    finished = read_manifest(folder)["finished"]
    result_values = {**load_json(folder / FIGURES), "finished": finished}
    return parse_section(StudyResults, result_values, where=str(folder / FIGURES), what="study")
