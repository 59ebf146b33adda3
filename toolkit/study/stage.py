"""A study put together: the runs that a recipe's claims name, scored on the same test documents.

RECIPE@variant@scale/… ─► study        under runs/RECIPE@scale/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError, EvaluationError
from toolkit.evaluate.sets import EvaluationSet
from toolkit.pipeline.model_hashes import fingerprint
from toolkit.pipeline.models import ensure_data, ensure_general, ensure_specialist
from toolkit.pipeline.run import Run
from toolkit.pipeline.stages import ensure_merge, ensure_sft
from toolkit.progress import progress, say
from toolkit.recipe.load import load_recipe
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
from toolkit.study.config import STEPS, Step, StudySection, split_model
from toolkit.study.table import claim_lines, replace_tables
from toolkit.tokenizer_files import load_tokenizer

STUDY = "study"
FIGURES = "study.json"
_SEED_NAMES = {"infilling": "middles"}
"""What resamples of a set are seeded by where it is not the set's name, so that figures stay."""

_ENSURE = {
    "general": ensure_general,
    "cpt": ensure_specialist,
    "merge": ensure_merge,
    "sft": ensure_sft,
}


@dataclass(frozen=True)
class StudySubject:
    """A model that a study names.

    Attributes:
        name: as the recipe names it.
        run: of its variant.
        step: what makes it.
        folder: where it stands.
    """

    name: str
    run: Run
    step: Step
    folder: Path


def ensure_study(run: Run) -> Path:
    """The study of a recipe: every model that its claims name, and what they show.

    Args:
        run: of the recipe, at the scale wanted, without a variant.

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
    evaluate = run.recipe.evaluate
    stage = run.stage(
        STUDY,
        {
            "study": section.model_dump(mode="json"),
            "evaluate": evaluate.model_dump(
                mode="json", exclude={"prompts", "multiple_choice", "tasks"}
            ),
        },
        {
            "documents": hash_file(documents / "test.jsonl"),
            **{f"model {s.name}": fingerprint(s.folder) for s in subjects},
        },
    )
    folder = run.ensure(stage, STUDY, lambda: run_study(run, section, stage, subjects, documents))
    for line in claim_lines(load_json(folder / FIGURES)):
        say(line)
    return folder


def make_subjects(run: Run, section: StudySection) -> list[StudySubject]:
    """The models of all claims, each made where it is not there yet, in the order of the steps."""
    names = dict.fromkeys(name for claim in section.claims for name in claim.measure.models())
    ordered = sorted(names, key=lambda name: STEPS.index(split_model(name)[1]))
    subjects = []
    for number, name in enumerate(ordered, 1):
        variant, step = split_model(name)
        say(f"{run.name}: model {number} of {len(ordered)}, {name}")
        own = variant_of(run, variant)
        subjects.append(StudySubject(name, own, step, _ENSURE[step](own)))
    return subjects


def variant_of(run: Run, variant: str | None) -> Run:
    """The run of a variant, at the same scale.

    Raises:
        ConfigError: there is no such variant.
    """
    if variant is None or run.path is None:
        return run
    layers = (variant, *run.layers)
    recipe = load_recipe(run.path, layers)
    return Run.of(run.path, recipe, run.runs, layers)


def common_documents(subjects: Sequence[StudySubject], run: Run) -> Path:
    """The data stage whose test documents all models are scored on.

    Raises:
        EvaluationError: two of the models' data stages hold other test documents.
    """
    trained = [s for s in subjects if s.step != "general"]
    plain = [s for s in trained if s.step != "sft"]
    if not trained:
        return ensure_data(run)
    name = "data" if plain else "sft-data"
    folders = [s.run.root / name for s in plain or trained]
    hashes = [_hash_of_documents(folder / "test.jsonl") for folder in folders]
    for folder, found in zip(folders, hashes, strict=True):
        if found != hashes[0]:
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
    from toolkit.statistics.seeds import named_seed
    from toolkit.study.verdict import Items, measure_claim

    evaluate = run.recipe.evaluate
    wanted = list(dict.fromkeys(claim.measure.test_set for claim in section.claims))
    found = score_subjects(run, subjects, documents, wanted)
    claims = []
    for claim in section.claims:
        test_set = claim.measure.test_set
        items: Items = found[test_set]
        measured = measure_claim(
            claim.measure,
            items,
            confidence=section.confidence,
            num_claims=len(section.claims),
            resamples=evaluate.bootstrap_resamples,
            seed=named_seed(run.recipe.seed, "study", _SEED_NAMES.get(test_set, test_set)),
        )
        claims.append(
            {
                **claim.model_dump(mode="json"),
                "address": claim.address,
                "interval": vars(measured.interval),
                "together": vars(measured.together),
                "unit": items.unit if claim.measure.unit == "difference" else claim.measure.unit,
                "verdict": measured.verdict,
                "note": measured.note,
            }
        )
    figures = {
        on: {
            "unit": items.unit,
            "num_items": len(items.sizes),
            "num_groups": len(set(items.groups)),
            "models": {model: items.figure(model) for model in items.losses},
            "notes": list(items.notes),
        }
        for on, items in found.items()
    }
    results = {
        "recipe": run.name,
        "description": run.recipe.description,
        "command": f"toolkit study run {run.name}",
        "confidence": section.confidence,
        "claims": claims,
        "figures": figures,
    }
    with stage.running() as work:
        write_json(work / FIGURES, results)
        verdicts = [claim["verdict"] for claim in claims]
        stage.finish({"verdicts": {v: verdicts.count(v) for v in dict.fromkeys(verdicts)}})


def score_subjects(
    run: Run, subjects: Sequence[StudySubject], documents: Path, wanted: Sequence[str]
) -> dict[str, Any]:
    """Losses of all models on the sets wanted, pooled, by what claims call them.

    Raises:
        ConfigError: a set does not exist.
        EvaluationError: a tokenizer cut the documents to other items, or a loss is not finite.
    """
    from toolkit.checkpoint.load import load_causal_model, scoring_dtype
    from toolkit.evaluate.cache import ScoreCache
    from toolkit.machine import cache_folder
    from toolkit.study.verdict import pool

    cache = ScoreCache(cache_folder() / "scores.jsonl")
    answers = retention_set(run, documents) if "retention" in wanted else []
    first: dict[str, list[EvaluationSet]] = {}
    losses: dict[str, dict[str, list[float]]] = {}
    with progress("study, models", len(subjects)) as advance:
        for subject in subjects:
            sets = {**document_sets(run, subject, documents, wanted), "retention": answers}
            model, name = None, content_hash(subject.folder)
            own = losses[subject.name] = {}
            for on in wanted:
                if not sets.get(on):
                    raise ConfigError(
                        f"{run.name}: study: test_set: there is no test set {on!r}; there are "
                        f"{', '.join(key for key in sets if sets[key])}."
                    )
                _same_items(first.setdefault(on, sets[on]), sets[on], subject.name)
                for items in sets[on]:
                    if model is None and len(cache.known(name, items)) < len(items):
                        model = load_causal_model(
                            subject.folder,
                            scoring_dtype(subject.folder, run.recipe.evaluate.precision),
                        )
                    own[items.name] = cache.score(model, name, items)
            advance(1, subject.name)
    return {on: pool(members, losses) for on, members in first.items()}


def document_sets(
    run: Run, subject: StudySubject, documents: Path, wanted: Sequence[str]
) -> dict[str, list[EvaluationSet]]:
    """Test documents in a model's own tokens, by source and by role, and infilling where wanted."""
    from toolkit.evaluate.documents import likelihood_sets
    from toolkit.evaluate.load import settle_scoring
    from toolkit.evaluate.middles import middles_sets

    separator = read_manifest(documents)["results"]["separator_token_id"]
    tokenizer = load_tokenizer(subject.folder)
    path = documents / "test.jsonl"
    evaluate = settle_scoring(run.recipe.evaluate, subject.folder)
    sets = likelihood_sets(path, tokenizer, separator, evaluate)
    found = {
        **{role: [s for s in sets if s.role == role] for role in ("domain", "general")},
        **{s.name: [s] for s in sets},
    }
    if "infilling" in wanted and evaluate.infilling is not None:
        found["infilling"] = middles_sets(path, tokenizer, evaluate, evaluate.infilling)[:1]
    return found


def retention_set(run: Run, documents: Path) -> list[EvaluationSet]:
    """The general model's answers to the test prompts; it is asked once."""
    from toolkit.evaluate.load import load_sets
    from toolkit.evaluate.retention import LOSS

    section = run.recipe.evaluate.model_copy(update={"multiple_choice": (), "tasks": ()})
    return [s for s in load_sets(section, documents, ensure_general(run), "test") if s.name == LOSS]


def _same_items(first: Sequence[EvaluationSet], other: Sequence[EvaluationSet], name: str) -> None:
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
        ConfigError: there is none, or the page cannot be read.
        ToolkitError: a study is not complete.
    """
    if not studies:
        raise ConfigError(
            "toolkit study table: there is no study; run one, or name its study.json."
        )
    found = [figures_of(path) for path in studies]
    try:
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{page}: cannot be read as UTF-8 text ({error}).") from error
    with write_atomically(page) as file:
        file.write(replace_tables(text, found))
    say(f"{len(found)} tables written to {page}")


def figures_of(path: Path) -> dict[str, Any]:
    """What a study wrote, with the date of its manifest."""
    folder = path.parent if path.name == FIGURES else path
    manifest = read_manifest(folder)
    return {**load_json(folder / FIGURES), "finished": manifest["finished"]}
