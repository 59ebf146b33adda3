"""Questions out of a recipe's own documents: made once, then written for a person to strike in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.errors import DataError
from toolkit.evaluate.load import settle_scoring
from toolkit.json_lines import iterate_rows
from toolkit.knowledge.config import identity_of_questions
from toolkit.knowledge.questions import (
    FACTS,
    KEPT,
    SETS,
    describe_power,
    run_questions,
)
from toolkit.knowledge.review import read_review, write_review
from toolkit.pipeline.model_hashes import fingerprint
from toolkit.pipeline.models import ensure_data, ensure_general
from toolkit.pipeline.run import Run, ensure_stage
from toolkit.progress import say
from toolkit.stage import content_hash, lock_alone, read_manifest

QUESTIONS = "questions"
_ROW_KEYS = (
    "id", "split", "document", "group", "kind", "question", "choices", "answer", "sentence",
    "passage", "written_by",
)  # fmt: skip


def write_questions(run: Run) -> Path:
    """Write a recipe's questions and their pages below `runs/NAME/questions/`.

    Raises:
        DataError: the documents hold no facts, or none is kept.
        EvaluationError: a file to be written again is none of questions.
    """
    folder = run.root / QUESTIONS
    folder.mkdir(parents=True, exist_ok=True)
    with (run.root / f".{QUESTIONS}.lock").open("a+") as lock_file:
        # One writer at a time: each reads what was struck and writes the file again, so that of
        # two at once one would lose a person's work.
        lock_alone(lock_file.fileno(), folder, "writing questions")
        for set_name in SETS:
            if (path := folder / f"{set_name}.jsonl").is_file():
                read_review(path)  # said before minutes are spent
        facts_folder = ensure_facts(run)
        _write_files(run, facts_folder, folder)
    return folder


def ensure_facts(run: Run) -> Path:
    """The folder of a recipe's facts, made where it is not up to date."""
    general, data = ensure_general(run), ensure_data(run)
    recipe = run.recipe
    evaluate = settle_scoring(recipe.evaluate, general)
    section = recipe.questions
    config = {"questions": identity_of_questions(section), "precision": evaluate.precision}
    inputs = {"general": fingerprint(general), "data": content_hash(data)}
    if section.writer is not None and section.writer.path is not None:
        inputs["writer"] = fingerprint(section.writer.path)
    stage = run.stage("question-facts", config, inputs)
    return ensure_stage(
        stage,
        "facts",
        lambda: run_questions(section, recipe.data, evaluate, stage, general, data),
    )


def _write_files(run: Run, facts_folder: Path, folder: Path) -> None:
    rows_by_set: dict[str, list[dict[str, Any]]] = {name: [] for name in SETS}
    for _, row in iterate_rows(facts_folder / FACTS):
        if row["outcome"] == KEPT:
            # A fact's row also holds how the general model answered, which no question shows.
            question = {key: row[key] for key in _ROW_KEYS if key in row}
            rows_by_set[row["set"]].append(question)
    counts = read_manifest(facts_folder)["results"]["sets"]
    title = f"{run.name}: questions of {{}} documents"
    for set_name, rows in rows_by_set.items():
        path = folder / f"{set_name}.jsonl"
        # Else the questions of an earlier call would still be asked, of facts that are gone.
        if not rows and path.is_file():
            write_review(path, [], title.format(set_name))
            say(
                f"{set_name}: keeps no questions any more; {path} holds those alone that are struck"
            )
    if not any(rows_by_set.values()):
        raise DataError(
            "questions: none is kept of the facts found "
            f"({_describe_outcomes(counts)}); give longer passages (questions.passage_characters) "
            "or a larger general model."
        )
    for set_name, rows in rows_by_set.items():
        if not rows:
            say(
                f"{set_name}: no questions ({_describe_outcomes({set_name: counts.get(set_name)})})"
            )
            continue
        path = folder / f"{set_name}.jsonl"
        num_struck = write_review(path, rows, title.format(set_name))
        figures = counts[set_name]
        say(f"{set_name}: {len(rows)} questions, {num_struck} struck ({path})")
        say(f"  {_describe_outcomes({set_name: figures})}")
        say(
            f"  of what it does not know, the general model is right on "
            f"{figures['right_with']:.0%} with the passage, {figures['right_without']:.0%} "
            f"without; of those kept on {figures['known_kept']:.0%} without, and with answers "
            f"shuffled on {figures['shuffled']:.0%} with it"
        )
        # Read back from the file: struck questions of an earlier call are no longer asked.
        remaining = [row for row in read_review(path).values() if not row["struck"]]
        for sentence in describe_power(remaining, set_name, run.recipe.select.confidence):
            say(f"  {sentence}")
    say(f"Read {folder}/*.html and strike what you would not ask. In the recipe:")
    say("evaluate:\n  multiple_choice:")
    for set_name, rows in rows_by_set.items():
        if rows:
            # Both evaluation splits stand in one file; a row's own split says where it is asked.
            split_field = "split_field: split, " if set_name == "evaluation" else ""
            say(
                f"  - {{name: {set_name} facts, role: watch, files: [{folder}/{set_name}.jsonl], "
                f"{split_field}group_field: document}}"
            )


def _describe_outcomes(counts: dict[str, Any]) -> str:
    outcomes = [
        f"{number} {outcome}"
        for figures in counts.values()
        for outcome, number in (figures or {"outcomes": {}})["outcomes"].items()
    ]
    return ", ".join(outcomes) or "no facts found"
