"""What a recipe says about questions and texts that are made of its documents. No torch here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from toolkit.section import Count, Fraction, Section


class QuestionsSection(Section):
    """Closed-book questions out of the recipe's own documents: `toolkit questions write`.

    Facts are found by patterns in English text: amounts, percentages, numbers, dates, names, terms,
    cells of tables, and words left out. A question is kept where the general model picks the right
    option with the passage beside it, and does not know it without."""

    num_questions: Count = 100
    """Of each set at most: one of validation and test documents, one of training documents."""

    per_document: Count = 4
    """Questions of one document at most."""

    num_options: Annotated[int, Field(ge=2, le=8)] = 4
    """Options of a question. The wrong ones are answers of the same kind from the same sources,
    about as likely to the general model without the document as the right one."""

    passage_characters: Annotated[int, Field(ge=200, le=20_000)] = 800
    """Of a document, so much around the fact is put beside the question."""

    most_known: Fraction = 0.5
    """A question is dropped where the general model without the document gives the right answer
    more than this share, among all answers of its kind that are at hand."""

    sources: tuple[str, ...] = ()
    """Names of the sources to ask about; by default all of role `domain`."""

    subjects: dict[str, str] = Field(default_factory=dict)
    """Whom or what the documents of a group are about, by patterns of group names, such as
    `{"tgt*": Target Corporation}`. By default the company that they name most often, if any."""
