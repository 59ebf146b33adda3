"""What patterns find in a text, and what they leave alone."""

from __future__ import annotations

import pytest

from tests.helpers.facts import facts_of
from toolkit.data.sources import Document
from toolkit.knowledge.documents import find_subjects, is_english
from toolkit.knowledge.facts import answers_by_form, passage_around
from toolkit.knowledge.passages import split_blocks, split_sentences


@pytest.mark.parametrize(
    ("sentence", "kind", "answer"),
    [
        ("The plant in the valley was sold to a buyer for $201 million.", "amount", "$201 million"),
        ("The margin of the division fell to 3.4 percent last year.", "percent", "3.4 percent"),
        ("The loan to the new owner was signed on March 3, 2021.", "date", "March 3, 2021"),
        ("The vendor is paid by the group not later than 120 days.", "number", "120 days"),
        ("All repairs of the plant are done by Kessler Pumps.", "name", "Kessler Pumps"),
        ('The people who buy from us are referred to as "guests" here.', "term", "guests"),
        ("The old method was given up because of its practicality.", "cloze", "practicality"),
    ],
)  # fmt: skip
def test_each_kind_is_found(sentence: str, kind: str, answer: str):
    (fact,) = facts_of(sentence)
    assert (fact.kind, fact.answer) == (kind, answer)
    assert fact.blanked.count("____") == 1
    assert fact.blanked.replace("____", answer) == sentence
    assert sentence.startswith(fact.lead.removeprefix("… "))


def test_what_cannot_be_understood_alone_is_not_asked():
    unclear = "It was sold to the new owner of the plant for $201 million."
    short = "Sales were $3 million."
    reference = "The rules for the whole of the group are explained below in Note 7 days."
    assert not facts_of("\n\n".join([unclear, short, reference]))


def test_an_answer_that_stands_everywhere_is_no_fact_of_one_document():
    sentence = "The books of the group were closed for the year on March 3, 2021."
    others = [f"Text {number} says March 3, 2021 as well." for number in range(5)]
    assert facts_of(sentence)
    assert not facts_of(sentence, *others)


def test_tables_are_read_out_where_columns_have_names():
    text = (
        "Net Sales\n\nNet Sales (millions) | 2025 | 2024\nBeauty (b) | $13,214 | $13,173\n"
        "Other | 5 | 6"
    )
    (fact,) = facts_of(text)
    assert fact.kind == "table"
    assert fact.sentence in {
        f'In the table "Net Sales" (millions), the entry for "Beauty" under "{year}" is {value}.'
        for year, value in (("2025", "$13,214"), ("2024", "$13,173"))
    }
    assert not facts_of(
        "Beauty | $13,214 | $13,173\nFood | $24,136 | $23,828"
    )  # no names of columns
    _, (table,) = split_blocks("A | 2025 | 2024\nCash | 10 | 11\nCash | 12 | 13\nDebt | 14 | 15")
    assert [label for label, _ in table.rows] == ["Debt"]  # which cash, nobody can say


def test_answers_of_one_form_stand_in_for_each_other():
    facts = facts_of("The mill was sold for $201 million in the end, to its own staff alone.")
    pools = answers_by_form(facts)
    assert pools["amount $### million"] == pools["amount $# million"] == ["$201 million"]


def test_sentences_end_where_they_end():
    text = "Dr. Ames of Apex Corp. paid $2.5 million. No. 4 is new. (It works.) Fine."
    assert list(split_sentences(text)) == [
        "Dr. Ames of Apex Corp. paid $2.5 million.", "No. 4 is new.", "(It works.)", "Fine.",
    ]  # fmt: skip


def test_a_passage_holds_the_fact_even_in_one_long_line():
    line = " ".join(f"word{number}" for number in range(1000))
    place = line.index("word500")
    assert "word500" in (passage := passage_around(line, place, 400))
    assert len(passage) <= 400
    lines = "\n".join(f"line {number}" for number in range(100))
    assert "line 50\n" in passage_around(lines, lines.index("line 50"), 100)


def test_whom_documents_are_about():
    texts = ["Apex Corp. sells pumps. Apex Corp. is old. The shares of Apex Corp. rose."]
    documents = [Document("s/a", "s", "apex-2025", texts[0]), Document("s/b", "s", "b", "None.")]
    assert find_subjects(documents, {}) == {"apex-2025": "Apex Corp."}
    assert find_subjects(documents, {"b*": "Bolt"})["b"] == "Bolt"


def test_other_languages_are_told_from_tables():
    assert not is_english("Les ventes ont progressé de deux pour cent au cours de cet exercice.")
    assert is_english("Net Sales | 2025 | 2024\nBeauty | $13,214 | $13,173")


def test_a_table_that_is_referred_to_is_no_name():
    assert not [
        f
        for f in facts_of("The plants of the group are listed in Table Mountain.")
        if f.kind == "name"
    ]
