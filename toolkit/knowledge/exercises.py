"""Texts that say again what a document says: exercises found by patterns.

A text is a passage with questions and answers about it, as readers of schoolbooks know them: blanks
to fill, lists to name, tables read out, what a term means, what the passage is about.

Reference:
    Cheng et al. 2024, Adapting large language models to domains via reading comprehension, whose
    tasks are found by patterns too, though by others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toolkit.data.split import stable_unit
from toolkit.knowledge.config import ExerciseKind
from toolkit.knowledge.documents import SplitDocument
from toolkit.knowledge.facts import Corpus, find_facts, passage_around, read_out
from toolkit.knowledge.passages import NamedTable, is_value, split_blocks, split_sentences

_LIST = re.compile(
    r"^(?P<before>.{3,160}?)\s(?P<verb>includes?|including|such as|consists? of|comprises?)\s"
    r"(?P<items>[^.;:()]+?,[^.;:()]+?,? and [^.;:(),]+)(?=[.;])"
)
_DEFINITION = re.compile(
    r"^[\"“]?(?P<term>[A-Z][\w -]{2,40}?)[\"”]? (?:means|is defined as|refers to|represents"
    r"|is calculated as|is an? \w+ (?:that|of|which)) .{20,}$"
)
_FEWEST_EXERCISES = 2
_MOST_ENTRIES = 24


@dataclass(frozen=True)
class Exercise:
    """A question with its answer, or a statement alone.

    Attributes:
        kind: what it was made from.
        place: in the document's text.
        text: as it stands in the written text.
    """

    kind: ExerciseKind
    place: int
    text: str


def find_exercises(
    one: SplitDocument, corpus: Corpus, kinds: Sequence[ExerciseKind], *, seed: int, subject: str
) -> list[Exercise]:
    """Exercises of a document in the order of its text.

    Args:
        one: the document.
        corpus: all documents.
        kinds: to look for.
        seed: of the recipe.
        subject: whom the document is about; empty where it is not known.
    """
    text = one.document.text
    paragraphs, tables = split_blocks(text)
    found: list[Exercise] = []
    if "blanks" in kinds:
        facts = find_facts(one, corpus, seed=seed, passage_characters=200, subject=subject)
        found += [
            Exercise(
                "blanks",
                max(0, text.find(fact.sentence)),
                f"Question: What belongs in the blank? {fact.blanked}\nAnswer: {fact.answer}",
            )
            for fact in facts
            if fact.kind != "table"
        ]
    for paragraph in paragraphs:
        for sentence in split_sentences(paragraph.text):
            place = paragraph.start + paragraph.text.find(sentence)
            if "enumerations" in kinds:
                found += [Exercise("enumerations", place, one) for one in _lists(sentence)]
            definition = _DEFINITION.match(sentence)
            if "definitions" in kinds and definition is not None:
                term = definition["term"].strip()
                question = f'Question: What is said of "{term}"?\nAnswer: {sentence}'
                found.append(Exercise("definitions", place, question))
        if "titles" in kinds and paragraph.heading and len(paragraph.text.split()) >= 25:
            title = re.sub(r"^(?:Note |Item )?\d+[A-C]?[.:]? (?:[-–—] )?", "", paragraph.heading)
            about = (
                f"Question: What is the part about that begins with “{_beginning(paragraph.text)}”?"
            )
            found.append(Exercise("titles", paragraph.start, f"{about}\nAnswer: {title}"))
    if "tables" in kinds:
        found += [Exercise("tables", table.start, "\n".join(_entries(table))) for table in tables]
    return sorted({one.text: one for one in found if one.text}.values(), key=lambda one: one.place)


def _beginning(text: str) -> str:
    return " ".join(text.split()[:8]) + " …"


def _lists(sentence: str) -> Iterator[str]:
    """
    >>> print(*_lists("Our rooms include one in Bonn, two in Kiel, and a barn."))
    Question: Complete the list. Our rooms include …
    Answer: one in Bonn; two in Kiel; a barn
    """
    match = _LIST.match(sentence)
    if match is None:
        return
    items = [item.strip() for item in re.split(r",\s(?:and\s)?|\sand\s", match["items"])]
    items = [item for item in items if item]
    if len(items) >= 3 and all(len(item.split()) <= 8 for item in items):
        beginning = f"{match['before']} {match['verb']} …"
        yield f"Question: Complete the list. {beginning}\nAnswer: {'; '.join(items)}"


def _entries(table: NamedTable) -> list[str]:
    """A table read out, entry by entry."""
    return [
        read_out(table, label, column, cell)
        for label, cells in table.rows
        for column, cell in zip(table.columns, cells, strict=True)
        if is_value(cell) and not is_value(label)
    ][:_MOST_ENTRIES]


@dataclass(frozen=True)
class WrittenText:
    """A text made of a document.

    Attributes:
        id: unique, and the same each time: the document's own and a number.
        parent: id of the document.
        group: of the document.
        kind: `exercises`, or what a model was asked for.
        text: the text itself.
    """

    id: str
    parent: str
    group: str
    kind: str
    text: str


def compose_texts(
    one: SplitDocument,
    exercises: Sequence[Exercise],
    *,
    seed: int,
    subject: str,
    passage_characters: int,
    per_text: int,
) -> Iterator[WrittenText]:
    """Texts of a few exercises each, behind the passage that they are about.

    Args:
        one: the document.
        exercises: in the order of its text.
        seed: of the recipe.
        subject: whom the document is about; empty where it is not known.
        passage_characters: of a passage; 0 leaves it out.
        per_text: exercises of a text at most.
    """
    for number, start in enumerate(range(0, len(exercises), per_text)):
        chosen = list(exercises[start : start + per_text])
        # One exercise is hardly a text; a table read out is many sentences.
        if len(chosen) < _FEWEST_EXERCISES and all(item.kind != "tables" for item in chosen):
            continue
        parts = [subject] if subject else []
        if passage_characters:
            middle = chosen[len(chosen) // 2].place
            parts.append(passage_around(one.document.text, middle, passage_characters))
        chosen.sort(key=lambda item: stable_unit(seed, "exercise", one.document.id, item.text))
        text = "\n\n".join([*parts, *(item.text for item in chosen)])
        yield WrittenText(
            f"{one.document.id}~{number}", one.document.id, one.document.group, "exercises", text
        )
