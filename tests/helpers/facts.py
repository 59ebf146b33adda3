"""Facts of a text that a test writes."""

from __future__ import annotations

from toolkit.data.sources import Document
from toolkit.knowledge.documents import SplitDocument
from toolkit.knowledge.facts import Corpus, Fact, find_facts


def document(text: str, name: str = "a", group: str = "g") -> SplitDocument:
    return SplitDocument(Document(f"s/{name}", "s", group, text), "test")


def facts_of(text: str, *others: str) -> list[Fact]:
    documents = [document(text), *(document(other, f"o{n}") for n, other in enumerate(others))]
    corpus = Corpus(documents)
    return find_facts(documents[0], corpus, seed=0, passage_characters=800)
