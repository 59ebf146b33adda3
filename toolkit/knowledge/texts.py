"""The stage that writes texts: training documents of a recipe in, `runs/NAME/written/` out.

`texts.jsonl` is what a source of the recipe names (`written_from`): each text with its document's
name and group, so that none comes into another split than the document. Texts that have runs of
words in common with validation or test documents are left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from toolkit.data.config import DataSection
from toolkit.data.overlap import Overlap, write_known_runs
from toolkit.data.split import stable_unit
from toolkit.data.words import word_hashes
from toolkit.errors import DataError, EvaluationError
from toolkit.knowledge.config import WritingSection
from toolkit.knowledge.documents import (
    SplitDocument,
    chosen_sources,
    find_subjects,
    holds_documents,
    is_english,
    read_split_documents,
)
from toolkit.knowledge.exercises import WrittenText, compose_texts, find_exercises
from toolkit.knowledge.facts import Corpus, passage_around
from toolkit.knowledge.writer import Writer
from toolkit.progress import progress, say
from toolkit.stage import Stage, load_json, write_atomically, write_json

TEXTS = "texts.jsonl"
WRITING_KEY = "writing.writer"
_MOST_DOCUMENTS = 1_000_000
_RUNS = "runs"
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_INSTRUCTIONS = {
    "rephrased": """Here is a passage from {about}:

{passage}

Say the same in other words, in clear prose, with every fact and every figure as it is.
""",
    "answers": """Here is a passage from {about}:

{passage}

Write five questions about its facts, each with its answer behind it, as "Question: …" and
"Answer: …" on lines of their own. Name in each question whatever it is about. Write nothing else.
""",
}
"""What a model is asked for, by kind of text."""

_SHORTEST_SHARE, _LONGEST_SHARE = 0.2, 3.0
"""A text of a model must have so much of its passage's length."""


def run_writing(
    section: WritingSection, data: DataSection, stage: Stage, data_folder: Path
) -> None:
    """Write texts of training documents.

    Args:
        section: the recipe's.
        data: its documents.
        stage: where to write.
        data_folder: of the finished data stage.

    Raises:
        DataError: there are no training documents in English, or nothing can be made of them.
        EvaluationError: the writer cannot be asked, or nothing that it writes can be used.
    """
    with stage.running() as work:
        training, held_out = _read_documents(section, data, data_folder, stage.seed)
        subjects = find_subjects([one.document for one in training], section.subjects)
        texts = list(_exercise_texts(section, training, subjects, stage.seed))
        counts: Counter[str] = Counter()
        if section.writer is not None:
            texts += _model_texts(section, training, subjects, work, stage.seed, counts)
        texts = _without_overlap(texts, held_out, data, work, counts)
        if not texts:
            raise DataError(
                "writing: the training documents hold nothing that patterns find (amounts, dates, "
                "names, lists, tables in whole sentences), so there is no text to write; name a "
                "model in writing.writer."
            )
        with write_atomically(work / TEXTS) as file:
            file.writelines(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in texts)
        counts.update(text.kind for text in texts)
        num_bytes = sum(len(text.text.encode()) for text in texts)
        say(f"  {len(texts)} texts of {num_bytes:,} bytes: {_listing(counts)}")
        # The answers were kept to go on after an interruption; what was taken of them is in the
        # texts.
        leftovers = tuple(path.name for path in work.glob("part-*"))
        results = {"num_texts": len(texts), "num_bytes": num_bytes, "counts": dict(counts)}
        stage.finish(results, drop=(*leftovers, _RUNS))


def _listing(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def _read_documents(
    section: WritingSection, data: DataSection, folder: Path, seed: int
) -> tuple[list[SplitDocument], list[SplitDocument]]:
    """Training documents to write about, and all of validation and test.

    Raises:
        DataError: none of the training documents is in English.
    """
    sources = chosen_sources(data, section.sources, "writing.sources")
    training = read_split_documents(
        data, folder, sources, ("train",), seed=seed, most_documents=section.num_documents
    )
    # All sources of documents, not those written about alone: nothing of a test may come in.
    all_sources = {name: one for name, one in data.sources.items() if holds_documents(one)}
    held_out = read_split_documents(
        data, folder, all_sources, ("validation", "test"), seed=seed,
        most_documents=_MOST_DOCUMENTS,
    )  # fmt: skip
    english = [one for one in training if is_english(one.document.text)]
    if num_others := len(training) - len(english):
        say(f"  {num_others} of {len(training)} documents are not in English and are left out:")
        say("  exercises are found by patterns of English text")
    if not english:
        raise DataError(
            f"writing: {'none of the' if training else 'there are no'} training documents of "
            f"{', '.join(sources)}{' is in English' if training else ''}; exercises are found by "
            "patterns of English text. Name other sources in writing.sources."
        )
    return english, held_out


def _exercise_texts(
    section: WritingSection,
    documents: Sequence[SplitDocument],
    subjects: Mapping[str, str],
    seed: int,
) -> Iterator[WrittenText]:
    corpus = Corpus(documents)
    for one in documents:
        subject = subjects.get(one.document.group, "")
        exercises = find_exercises(one, corpus, section.exercises, seed=seed, subject=subject)
        yield from compose_texts(
            one,
            exercises,
            seed=seed,
            subject=subject,
            passage_characters=section.passage_characters,
            per_text=section.exercises_per_text,
        )


def _model_texts(
    section: WritingSection,
    documents: Sequence[SplitDocument],
    subjects: Mapping[str, str],
    work: Path,
    seed: int,
    counts: Counter[str],
) -> list[WrittenText]:
    """What a model writes about a passage of each document; what it answered is kept.

    Raises:
        EvaluationError: it cannot be asked, or nothing that it writes can be used.
    """
    assert section.writer is not None  # noqa: S101  (the caller has one)
    writer = Writer(section.writer, WRITING_KEY)
    chosen = sorted(documents, key=lambda one: stable_unit(seed, "passage", one.document.id))
    chosen = chosen[: section.writer.num_passages]
    texts: list[WrittenText] = []
    answer = ""
    with progress("written by a model", len(chosen) * len(section.asked_for)) as advance:
        for number, one in enumerate(chosen):
            document = one.document
            # By hash, so that a run that goes on shows the passage that its answers are about.
            place = int(stable_unit(seed, "place", document.id) * len(document.text))
            passage = passage_around(document.text, place, section.asked_characters)
            about = subjects.get(document.group) or "a document"
            for kind in section.asked_for:
                path = work / f"part-{kind}-{number:05d}.json"
                # Answers are the dear part: each is on the disk before the next is asked for.
                if not path.is_file():
                    prompt = _INSTRUCTIONS[kind].format(about=about, passage=passage)
                    write_json(path, writer.ask(prompt))
                answer = str(load_json(path)).strip()
                advance(1, "")
                if problem := find_problem(answer, passage):
                    counts[f"left out, {problem}"] += 1
                    continue
                name = f"{document.id}~{kind}"
                texts.append(WrittenText(name, document.id, document.group, kind, answer))
    if chosen and not texts:
        quoted = " ".join(answer.split())[:80]
        raise EvaluationError(
            f"{WRITING_KEY}: nothing that {section.writer.name} writes can be used "
            f"({_listing(counts)}), such as {quoted!r}; take another model, or raise "
            "max_new_tokens."
        )
    return texts


def find_problem(answer: str, passage: str) -> str:
    """Why a model's text is not taken; empty where it is.

    >>> find_problem("It sold 7 mills in all, and then rested.", "It sold 5 mills, and rested.")
    'a figure that the passage has not'
    """
    share = len(answer) / max(1, len(passage))
    if not _SHORTEST_SHARE <= share <= _LONGEST_SHARE:
        return "too short or too long"
    figures = {_plain(figure) for figure in _NUMBER.findall(passage)}
    # Small numbers may be a list's own.
    if any(_plain(one) not in figures and len(one) > 1 for one in _NUMBER.findall(answer)) or (
        any(one not in passage for one in re.findall(r"(?<![\d.,])[4-9](?![\d.,])", answer))
    ):
        return "a figure that the passage has not"
    return ""


def _plain(figure: str) -> str:
    return figure.replace(",", "").rstrip(".")


def _without_overlap(
    texts: Sequence[WrittenText],
    held_out: Sequence[SplitDocument],
    data: DataSection,
    work: Path,
    counts: Counter[str],
) -> list[WrittenText]:
    """Texts that have too little in common with validation and test documents to give them away."""
    cleaning = data.cleaning
    if cleaning.decontamination_ngram is None or not texts:
        return list(texts)
    folder = work / _RUNS
    folder.mkdir(exist_ok=True)
    evaluation_texts = [one.document.text for one in held_out]
    write_known_runs(folder, evaluation_texts, cleaning.decontamination_ngram)
    overlap = Overlap(
        folder,
        cleaning.decontamination_ngram,
        cleaning.max_overlap_fraction,
        cleaning.max_contained_fraction,
    )
    is_clean = overlap.is_clean(*word_hashes([text.text for text in texts]))
    if num_overlapping := int((~is_clean).sum()):
        counts["left out, in validation or test"] += num_overlapping
    return [text for text, clean in zip(texts, is_clean.tolist(), strict=True) if clean]
