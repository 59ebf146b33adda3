"""Questions that a model writes about passages, read out of whatever it answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from toolkit.data.split import stable_unit
from toolkit.errors import EvaluationError
from toolkit.knowledge.config import QuestionsSection
from toolkit.knowledge.documents import SplitDocument
from toolkit.knowledge.facts import Fact, passage_around
from toolkit.knowledge.writer import Writer
from toolkit.progress import Advance
from toolkit.stage import hash_json, load_json, write_json

WRITER_KEY = "questions.writer"
_MOST_WRONG = 6
_LONGEST_QUESTION, _LONGEST_ANSWER = 400, 160
_PATIENCE = 8
"""So many passages without a single usable question, and the writer is given up."""

_INSTRUCTION = """Here is a passage from {about}:

{passage}

Write three questions about facts of this passage. Somebody who has read the passage must be able
to answer each without seeing it again, and nobody else. Name in the question whatever it is about;
do not say "the passage". Answer with JSON alone: a list of three objects with "question", "answer"
(a few words, as the passage has them) and "wrong" (a list of six wrong answers of the same kind).
"""


def write_free_facts(
    documents: Sequence[SplitDocument],
    section: QuestionsSection,
    subjects: dict[str, str],
    writer: Writer,
    *,
    seed: int,
    work: Path,
    set_name: str,
    advance: Advance,
) -> list[Fact]:
    """Facts that a model asks for, one passage of each document; what it answered is kept.

    Args:
        documents: of one set.
        section: how many passages, and how long.
        subjects: whom each group is about.
        writer: the model.
        seed: of the recipe.
        work: folder of the answers.
        set_name: of the set, for their names.
        advance: told of each passage.

    Raises:
        EvaluationError: the writer cannot be asked, or nothing that it answers can be used.
    """
    assert section.writer is not None  # noqa: S101  (the caller has a writer of it)
    chosen = sorted(documents, key=lambda one: stable_unit(seed, "passage", one.document.id))
    facts: list[Fact] = []
    answer = ""
    for number, one in enumerate(chosen[: section.writer.num_passages]):
        text = one.document.text
        place = int(stable_unit(seed, "place", one.document.id) * len(text))
        passage = passage_around(text, place, section.passage_characters)
        about = subjects.get(one.document.group) or "a document"
        path = work / f"part-written-{set_name}-{number:05d}.json"
        if not path.is_file():
            write_json(path, writer.ask(_INSTRUCTION.format(about=about, passage=passage)))
        answer = str(load_json(path))
        facts += read_questions(answer, one, passage, section.num_options - 1)
        advance(1, "")
        # A model that cannot write such JSON is told from a few passages, not after all of them.
        if number + 1 == _PATIENCE and not facts:
            break
    if chosen and not facts:
        quoted = " ".join(answer.split())
        raise EvaluationError(
            f"{WRITER_KEY}: {section.writer.name} wrote no question that can be used, but "
            f"{quoted[:80]!r}; take a model that writes JSON when it is asked to."
        )
    return facts


def read_questions(answer: str, one: SplitDocument, passage: str, num_wrong: int) -> Iterator[Fact]:
    """Usable questions of an answer, in which other words may stand around the JSON.

    Args:
        answer: what the model wrote.
        one: the document.
        passage: what the model was shown.
        num_wrong: wrong answers that a question must have.
    """
    for item in _read_list(answer):
        if not isinstance(item, dict):
            continue
        question, right, wrong = (item.get(key) for key in ("question", "answer", "wrong"))
        if not _is_text(question, _LONGEST_QUESTION) or not _is_text(right, _LONGEST_ANSWER):
            continue
        question, right = " ".join(question.split()), " ".join(right.split())
        rivals = {
            " ".join(text.split()).casefold(): " ".join(text.split())
            for text in (wrong if isinstance(wrong, list) else ())
            if _is_text(text, _LONGEST_ANSWER)
        }
        # Models put the right answer among the wrong ones now and then.
        rivals.pop(right.casefold(), None)
        if len(rivals) < num_wrong or right.casefold() in question.casefold():
            continue
        yield Fact(
            id=hash_json([one.document.id, question, right])[:16],
            kind="free",
            form="free",
            answer=right,
            blanked=question,
            lead="",
            sentence=f"{question} {right}",
            heading="",
            document=one.document.id,
            group=one.document.group,
            source=one.document.source,
            split=one.split,
            passage=passage,
            rivals=tuple(rivals.values())[:_MOST_WRONG],
        )


def _read_list(answer: str) -> list[Any]:
    # Models put words around the JSON, or a fence of code.
    start, stop = answer.find("["), answer.rfind("]")
    try:
        found = json.loads(answer[start : stop + 1]) if 0 <= start < stop else []
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def _is_text(value: Any, longest: int) -> TypeGuard[str]:
    return isinstance(value, str) and 1 <= len(value.strip()) <= longest
