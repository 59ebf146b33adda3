"""What a recipe says about questions and texts that are made of its documents. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from toolkit.section import Count, Fraction, Length, Section, refuse_unless_one

ExerciseKind = Literal["blanks", "tables", "enumerations", "definitions", "titles"]
EXERCISE_KINDS: tuple[ExerciseKind, ...] = (
    "blanks", "tables", "enumerations", "definitions", "titles",
)  # fmt: skip
AskedFor = Literal["rephrased", "answers"]


class WriterSection(Section):
    """A model that writes: exactly one of `endpoint` and `path`."""

    endpoint: str | None = None
    """Address of a server that speaks OpenAI's protocol, up to `/v1`, such as
    `http://localhost:8000/v1`."""

    path: Path | None = None
    """Folder of a local model with a chat template."""

    model: str | None = None
    """Name of the model at the endpoint, or of the local one for people. It goes onto the model
    card."""

    license: str
    """Terms of what the model writes, for the model card. Some forbid training on it."""

    key_variable: str | None = None
    """Environment variable that holds the endpoint's key. The key is written and printed nowhere,
    and sent over https, or to this machine, alone."""

    max_new_tokens: Length = 512
    """An answer is cut to this length."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0
    """Of an endpoint's answers; a local model answers greedily."""

    timeout_seconds: Annotated[float, Field(gt=0.0, le=3600.0)] = 120.0
    """An endpoint that takes longer for one answer is asked again."""

    num_retries: Annotated[int, Field(ge=0, le=10)] = 3
    """How often an endpoint that is down, slow or busy is asked again."""

    num_passages: Count = 40
    """Passages that it is shown, of each set of questions, or of the documents to write about."""

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        address = urlsplit(endpoint)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("must be an address such as http://localhost:8000/v1")
        if address.username is not None or address.password is not None or address.query:
            raise ValueError("must hold no key; name the variable that does in key_variable")
        return endpoint.rstrip("/")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        refuse_unless_one(self, ("endpoint", "path"))
        if self.endpoint is not None and not self.model:
            raise ValueError("model: an endpoint has several; name the one that is to write")
        if self.path is not None and self.key_variable is not None:
            raise ValueError("key_variable belongs to endpoint, which is not given")
        return self

    @property
    def name(self) -> str:
        """For people."""
        return self.model or (self.path.name if self.path is not None else "")


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
    more than this share among nine answers of its kind, or none of them is likelier."""

    sources: tuple[str, ...] = ()
    """Names of the sources to ask about; by default all of role `domain`."""

    subjects: dict[str, str] = Field(default_factory=dict)
    """Whom or what the documents of a group are about, by patterns of group names, such as
    `{"tgt*": Target Corporation}`. By default the company that they name most often, if any."""

    writer: WriterSection | None = None
    """A model that writes further questions, with wrong answers to each; they are kept by the same
    rule. By default none."""


class WritingSection(Section):
    """More text from the recipe's own training documents: `toolkit data write`.

    By patterns of English text: passages with exercises about them. With a `writer` also what a
    model writes. A source names what was written by `written_from`."""

    exercises: tuple[ExerciseKind, ...] = EXERCISE_KINDS
    """Kinds of exercises: blanks to fill, tables read out, enumerations to name, definitions, and
    titles of paragraphs."""

    exercises_per_text: Count = 6
    """Exercises that stand together, of one document."""

    passage_characters: Annotated[int, Field(ge=0, le=100_000)] = 1200
    """Of a document, so much stands before the exercises about it; 0 leaves it out."""

    num_documents: Count = 100_000
    """Training documents that are written about at most; a hash decides which."""

    sources: tuple[str, ...] = ()
    """Names of the sources to write about; by default all of role `domain`."""

    subjects: dict[str, str] = Field(default_factory=dict)
    """As `questions.subjects`."""

    writer: WriterSection | None = None
    """A model that writes further texts. One with a figure that its passage has not is left out."""

    asked_for: Annotated[tuple[AskedFor, ...], Field(min_length=1)] = ("rephrased", "answers")
    """What the model is asked for: the passage in other words, questions with answers."""

    asked_characters: Annotated[int, Field(ge=200, le=100_000)] = 1200
    """Of a document, so much is shown to the model."""


def identity_of_questions(section: QuestionsSection) -> dict[str, object]:
    """The settings that facts depend on: not how patiently a writer is asked, nor its terms."""
    values = section.model_dump(mode="json")
    if section.writer is None:
        del values["writer"]
    else:
        values["writer"] = identity_of_writer(section.writer)
    return values


def identity_of_writer(section: WriterSection) -> dict[str, object]:
    """The settings that what a model writes depends on."""
    without_effect = {"timeout_seconds", "num_retries", "key_variable", "license", "path"}
    return section.model_dump(mode="json", exclude=without_effect)


def identity_of_writing(section: WritingSection) -> dict[str, object]:
    """The settings that written texts depend on."""
    values = section.model_dump(mode="json")
    if section.writer is None:
        # Without a writer the others change nothing, so they make no new stage.
        for key in ("writer", "asked_for", "asked_characters"):
            del values[key]
    else:
        values["writer"] = identity_of_writer(section.writer)
    return values
