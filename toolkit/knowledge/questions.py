"""The stage that makes questions: documents of a recipe in, `runs/NAME/question-facts/` out.

`facts.jsonl` holds every fact that was asked of the general model, kept or not, and why. It reads
top to bottom: documents, facts, those that stand in training text too left out, then asking, a few
at a time; after an interruption those that were asked are not asked again.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.checkpoint.load import load_causal_model
from toolkit.data.config import DataSection, SplitName
from toolkit.data.split import stable_unit
from toolkit.data.words import run_hashes, word_hashes
from toolkit.errors import DataError
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.lm_eval_model import RequestEncoder
from toolkit.knowledge.config import QuestionsSection, WriterSection
from toolkit.knowledge.documents import (
    SplitDocument,
    chosen_sources,
    find_subjects,
    is_english,
    read_split_documents,
)
from toolkit.knowledge.facts import Corpus, Fact, answers_by_form, find_facts
from toolkit.knowledge.free_questions import WRITER_KEY, write_free_facts
from toolkit.knowledge.options import AskedFact, ask_facts
from toolkit.knowledge.writer import Writer
from toolkit.machine import dtype_of
from toolkit.progress import progress, say
from toolkit.stage import Stage, load_json, write_atomically, write_json
from toolkit.statistics.paired import expected_change
from toolkit.statistics.power import power_of
from toolkit.tokenizer_files import load_tokenizer

SetName = Literal["evaluation", "training"]
SETS: dict[SetName, tuple[SplitName, ...]] = {
    "evaluation": ("validation", "test"),
    "training": ("train",),
}
"""Sets of questions, and the splits whose documents they are about."""

FACTS = "facts.jsonl"
_CHUNK = 24
"""Facts that are asked together, and written at once."""

_CANDIDATES_PER_QUESTION = 3
"""Facts of a document that may be asked for each question that it may have."""

_RUN_WORDS = 8

_ALIKE = 0.5
"""Sentences with one answer that share more of their words say the same."""

ASSUMED_CHANGED = 0.3
"""Share of answers that two models give differently, where it is said what a set can see."""

KEPT = "kept"


@dataclass(frozen=True)
class QuestionCounts:
    """What asking came to for one set.

    Attributes:
        outcomes: facts by what became of them; `kept` are questions.
        right_without, right_with: share of the facts that the general model does not know which it
            answers without and with the passage, before any other is left out.
        known_kept: the share that it answers without the passage, of those kept.
        shuffled: the share it answers with the passage, were the right options drawn anew.
    """

    outcomes: dict[str, int]
    right_without: float
    right_with: float
    known_kept: float
    shuffled: float


def run_questions(
    section: QuestionsSection,
    data: DataSection,
    evaluate: EvaluateSection,
    stage: Stage,
    general: Path,
    data_folder: Path,
) -> None:
    """Find facts and ask the general model for them.

    Args:
        section: the recipe's.
        data: its documents.
        evaluate: precision and batches of scoring, settled.
        stage: where to write.
        general: folder of the general model.
        data_folder: of the finished data stage.

    Raises:
        DataError: there are no documents, none in English, or no facts in them.
    """
    with stage.running() as work:
        documents = read_documents_of(section, data, data_folder, stage.seed)
        subjects = find_subjects([one.document for one in documents], section.subjects)
        facts_by_set = find_candidates(section, documents, subjects, stage.seed)
        all_facts = [fact for facts in facts_by_set.values() for fact in facts]
        # Before a model's own questions come in, which bring wrong answers of their own.
        pools = answers_by_form(all_facts)
        if section.writer is not None:
            add_free_facts(section, section.writer, documents, subjects, facts_by_set, stage, work)
        model = None
        encoder = RequestEncoder(load_tokenizer(general))
        rows: list[dict[str, Any]] = []
        counts: dict[str, QuestionCounts] = {}
        # Asking: a chunk at a time, read back from the disk, so that a run that goes on comes to
        # the same.
        for set_name, facts in facts_by_set.items():
            asked_rows: list[dict[str, Any]] = []
            kept_by_document: Counter[str] = Counter()
            with progress(f"questions of {set_name} documents", section.num_questions) as advance:
                for number, chunk in enumerate(_chunks(facts, kept_by_document, section)):
                    path = work / f"part-{set_name}-{number:05d}.json"
                    if not path.is_file():
                        # Loaded for the first chunk that is missing: a run that was nearly done may
                        # need no model.
                        model = model or load_causal_model(general, dtype_of(evaluate.precision))
                        asked = ask_facts(
                            chunk,
                            pools,
                            subjects,
                            model,
                            encoder,
                            num_options=section.num_options,
                            most_known=section.most_known,
                            batch_tokens=evaluate.batch_tokens,
                            seed=stage.seed,
                        )
                        write_json(path, [_row(one, set_name, section) for one in asked])
                    num_before = kept_by_document.total()
                    asked_rows += _count_kept(load_json(path), kept_by_document, section)
                    advance(kept_by_document.total() - num_before, "")
            if asked_rows:
                counts[set_name] = _count(asked_rows)
            rows += asked_rows
        # All of both sets, kept or not: what became of each fact can be looked up.
        with write_atomically(work / FACTS) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        results = {
            "subjects": subjects,
            "sets": {name: asdict(one) for name, one in counts.items()},
        }
        parts = tuple(path.name for path in work.glob("part-*"))
        stage.finish(results, drop=parts)


def _count_kept(
    rows: list[dict[str, Any]], kept_by_document: Counter[str], section: QuestionsSection
) -> list[dict[str, Any]]:
    """Rows of a chunk, counted by document where they are kept; those beyond what is asked for,
    which the last chunk may bring, are marked."""
    for row in rows:
        if row["outcome"] != KEPT:
            continue
        if kept_by_document.total() >= section.num_questions:
            row["outcome"] = "not needed"
        else:
            kept_by_document[row["document"]] += 1
    return rows


def read_documents_of(
    section: QuestionsSection, data: DataSection, folder: Path, seed: int
) -> list[SplitDocument]:
    """The documents to ask about, those of other languages left out.

    Raises:
        DataError: there are none of validation and test, or none in English.
    """
    sources = chosen_sources(data, section.sources, "questions.sources")
    documents = [
        document
        for splits in SETS.values()
        for document in read_split_documents(
            data, folder, sources, splits, seed=seed, most_documents=2 * section.num_questions
        )
    ]
    if not any(one.split != "train" for one in documents):
        raise DataError(
            f"questions: there are no validation or test documents of {', '.join(sources)}; give "
            "the sources such splits, or name others in questions.sources."
        )
    english = [one for one in documents if is_english(one.document.text)]
    if num_others := len(documents) - len(english):
        say(f"  {num_others} of {len(documents)} documents are not in English and are left out:")
        say("  facts are found by patterns of English text")
    if not english:
        raise DataError(
            "questions: none of the documents is in English, and facts are found by patterns of "
            "English text; write questions of your own (evaluate.multiple_choice)."
        )
    return english


def find_candidates(
    section: QuestionsSection,
    documents: Sequence[SplitDocument],
    subjects: Mapping[str, str],
    seed: int,
) -> dict[SetName, list[Fact]]:
    """Facts of each set in the order in which they are asked for: one of each document in turn.

    Raises:
        DataError: the validation and test documents hold none.
    """
    corpus = Corpus(documents)
    training_runs = _runs([one.document.text for one in documents if one.split == "train"])
    facts_by_set: dict[SetName, list[Fact]] = {}
    for set_name, splits in SETS.items():
        places: list[tuple[int, float, Fact]] = []
        seen: dict[str, list[set[str]]] = defaultdict(list)
        for one in documents:
            if one.split not in splits:
                continue
            facts = find_facts(
                one,
                corpus,
                seed=seed,
                passage_characters=section.passage_characters,
                subject=subjects.get(one.document.group, ""),
            )
            # A question that training text answers tells nothing of what was learned from
            # documents.
            if set_name == "evaluation":
                facts = [fact for fact in facts if not _is_trained_on(fact, training_runs)]
            turn = 0
            for fact in facts:
                if turn == _CANDIDATES_PER_QUESTION * section.per_document:
                    break
                if not _is_said_before(fact, seen[fact.answer]):
                    places.append((turn, stable_unit(seed, "turn", fact.id), fact))
                    turn += 1
        facts_by_set[set_name] = [fact for _, _, fact in sorted(places, key=lambda one: one[:2])]
    if not facts_by_set["evaluation"]:
        raise DataError(
            "questions: the validation and test documents hold no facts that patterns find "
            "(amounts, dates, names, terms, tables in whole sentences); write questions of your "
            "own (evaluate.multiple_choice)."
        )
    return facts_by_set


def _is_said_before(fact: Fact, seen: list[set[str]]) -> bool:
    """Whether nearly the same sentence has the same answer; else it is put to those seen."""
    words = set(fact.sentence.split())
    if any(len(words & other) > _ALIKE * min(len(words), len(other)) for other in seen):
        return True
    seen.append(words)
    return False


def add_free_facts(
    section: QuestionsSection,
    writer_section: WriterSection,
    documents: Sequence[SplitDocument],
    subjects: dict[str, str],
    facts_by_set: dict[SetName, list[Fact]],
    stage: Stage,
    work: Path,
) -> None:
    """Put what a model asks before what patterns found."""
    writer = Writer(writer_section, WRITER_KEY)
    for set_name, splits in SETS.items():
        members = [one for one in documents if one.split in splits]
        num_passages = min(len(members), writer_section.num_passages)
        with progress(f"written about {set_name} documents", num_passages) as advance:
            free_facts = write_free_facts(
                members,
                section,
                subjects,
                writer,
                seed=stage.seed,
                work=work,
                set_name=set_name,
                advance=advance,
            )
        facts_by_set[set_name] = free_facts + facts_by_set[set_name]


def _runs(texts: Sequence[str]) -> set[int]:
    hashes, _ = run_hashes(*word_hashes(texts), _RUN_WORDS)
    return set(hashes.tolist())


def _is_trained_on(fact: Fact, training_runs: set[int]) -> bool:
    """Whether training text says the same: the eight words that end with the answer."""
    said = f"{fact.lead} {fact.answer}".split()[-_RUN_WORDS:]
    return not training_runs.isdisjoint(_runs([" ".join(said)]))


def _chunks(
    facts: Sequence[Fact], kept_by_document: Counter[str], section: QuestionsSection
) -> Iterator[list[Fact]]:
    """Facts a few at a time, until there are enough questions; none of documents that have theirs.

    What a chunk holds follows from the outcomes before it, which are on the disk.
    """
    waiting = list(facts)
    while waiting and kept_by_document.total() < section.num_questions:
        chunk: list[Fact] = []
        in_chunk: Counter[str] = Counter()
        rest: list[Fact] = []
        for fact in waiting:
            num_kept = kept_by_document[fact.document]
            if num_kept >= section.per_document:
                continue
            if len(chunk) < _CHUNK and num_kept + in_chunk[fact.document] < section.per_document:
                chunk.append(fact)
                in_chunk[fact.document] += 1
            else:
                rest.append(fact)
        waiting = rest
        if chunk:
            yield chunk


def _row(asked: AskedFact, set_name: SetName, section: QuestionsSection) -> dict[str, Any]:
    fact = asked.fact
    outcome = KEPT
    if asked.is_known:
        outcome = "known without the document"
    elif not asked.options:
        outcome = "too few answers of its kind"
    elif not asked.is_right_with:
        outcome = "not answered with the document"
    return {
        "id": fact.id,
        "set": set_name,
        "split": fact.split,
        "document": fact.document,
        "group": fact.group,
        "kind": fact.kind,
        "question": asked.prompt,
        "choices": list(asked.options),
        "answer": asked.answer,
        "sentence": fact.sentence,
        "passage": fact.passage,
        "outcome": outcome,
        "known_share": round(asked.known_share, 4),
        "right_without": asked.is_right_without,
        "right_with": asked.is_right_with,
        **({"written_by": section.writer.name} if section.writer and fact.kind == "free" else {}),
    }


def _count(rows: Sequence[Mapping[str, Any]]) -> QuestionCounts:
    asked = [row for row in rows if row["choices"]]
    kept = [row for row in rows if row["outcome"] == KEPT]
    # The model picks the right option of all that are kept; another one drawn is right by chance.
    shuffled = [
        int(stable_unit("shuffled", row["id"]) * len(row["choices"])) == row["answer"]
        for row in kept
    ]
    return QuestionCounts(
        outcomes=dict(Counter(row["outcome"] for row in rows)),
        right_without=_mean([row["right_without"] for row in asked]),
        right_with=_mean([row["right_with"] for row in asked]),
        known_kept=_mean([row["right_without"] for row in kept]),
        shuffled=_mean(shuffled),
    )


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def describe_power(rows: Sequence[Mapping[str, Any]], name: str, confidence: float) -> list[str]:
    """What each split of a set of questions can see, a sentence for each.

    Args:
        rows: the questions that are not struck.
        name: of the set.
        confidence: of the bound that decides.
    """
    documents_by_split: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        documents_by_split[row["split"]][row["document"]] += 1
    sentences = []
    for split, documents in documents_by_split.items():
        num_items, num_groups = documents.total(), len(documents)
        scatter = (ASSUMED_CHANGED * num_groups / num_items) ** 0.5
        change = expected_change(scatter, num_groups)
        power = power_of(f"{name}, {split}", "domain", "error", num_items, None, change, confidence)
        sentences.append(power.sentence)
    return sentences
