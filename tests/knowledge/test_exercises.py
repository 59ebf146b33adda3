"""Texts that say again what a document says."""

from __future__ import annotations

from tests.helpers.facts import document
from toolkit.knowledge.config import EXERCISE_KINDS, ExerciseKind
from toolkit.knowledge.exercises import Exercise, compose_texts, find_exercises
from toolkit.knowledge.facts import Corpus

TEXT = """2. Pumps

Pumps of this kind include ring pumps, gear pumps, and one screw pump. The plant in the valley was \
sold to a buyer for $201 million. Priming is defined as filling the housing with water before the \
pump is turned on. The rest of the paragraph is here to be long enough.

Sales (millions) | 2025 | 2024
Ring pumps | 12 | 13
Gear pumps | 14 | —
"""


def exercises_of(*kinds: ExerciseKind) -> list[Exercise]:
    one = document(TEXT)
    return find_exercises(one, Corpus([one]), kinds, seed=0, subject="")


def test_each_kind_of_exercise():
    texts = {kind: [one.text for one in exercises_of(kind)] for kind in EXERCISE_KINDS}
    assert texts["enumerations"] == [
        "Question: Complete the list. Pumps of this kind include …\n"
        "Answer: ring pumps; gear pumps; one screw pump"
    ]
    assert any(text.endswith("Answer: $201 million") for text in texts["blanks"])
    assert texts["definitions"][0].startswith('Question: What is said of "Priming"?')
    assert texts["titles"][0].endswith("Answer: Pumps")
    assert texts["tables"] == [
        'In the table "Sales" (millions), the entry for "Ring pumps" under "2025" is 12.\n'
        'In the table "Sales" (millions), the entry for "Ring pumps" under "2024" is 13.\n'
        'In the table "Sales" (millions), the entry for "Gear pumps" under "2025" is 14.'
    ]


def test_texts_name_their_document_and_hold_its_passage():
    one, exercises = document(TEXT, group="acme"), exercises_of(*EXERCISE_KINDS)
    texts = list(
        compose_texts(
            one, exercises, seed=0, subject="Acme Inc.", passage_characters=400, per_text=3
        )
    )
    assert [text.id for text in texts] == [f"s/a~{number}" for number in range(len(texts))]
    assert {(text.parent, text.group) for text in texts} == {("s/a", "acme")}
    assert all(text.text.startswith("Acme Inc.\n\n") for text in texts)
    assert "Pumps of this kind" in texts[0].text
    (alone, *_) = compose_texts(
        one, exercises, seed=0, subject="", passage_characters=0, per_text=9
    )
    assert alone.text.startswith(("Question", "In the table"))
