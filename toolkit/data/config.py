"""What a recipe says about documents. No torch here, and nothing slow."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from toolkit.config import Fraction, Length, PositiveInt, Section, at_most
from toolkit.data.source_config import (
    SPLITS,
    ArtefactSection,
    Role,
    SourceSection,
    SplitName,
    SplitRule,
)

__all__ = [
    "KNOWN_FIM_TOKENS",
    "SPLITS",
    "ArtefactSection",
    "CleaningSection",
    "DataSection",
    "FimSection",
    "Role",
    "SourceSection",
    "SplitName",
    "SplitRule",
    "StageSection",
]

KNOWN_FIM_TOKENS: tuple[tuple[str, str, str], ...] = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<PRE>", "<SUF>", "<MID>"),
)
"""Tokens for prefix, suffix and middle that code models use."""

Pii = Literal["email", "phone", "iban", "us_ssn", "credit_card", "ip_address"]


class CleaningSection(Section):
    """What is left out before anything is learned; each step is counted in the manifest."""

    collapse_spaces: bool = True
    """Write several spaces within a line as one. Not for code, where they align and are quoted."""

    min_words: Annotated[int, Field(ge=0)] = 20
    """Shorter documents are left out. Here and below, a character of Chinese or Japanese counts as
    a word, and so does about a syllable of Thai, Lao, Khmer or Burmese: they have no spaces."""

    max_words: PositiveInt | None = None
    """Longer ones too."""

    max_repeated_line_fraction: Fraction = 0.5
    """Leave out documents of which more characters than this stand in lines that came before
    (Rae et al. 2021, Gopher, use 0.2 for web pages; tables and code repeat more)."""

    max_repeated_ngram_fraction: Fraction = 0.5
    """The same of words that stand in runs of ten words that came before."""

    exact_duplicates: bool = True
    """Keep one of several documents with the same words."""

    near_duplicates: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.8
    """Keep one of several documents whose sets of five-word runs are at least so alike (estimated
    Jaccard index, MinHash; Broder 1997); null turns it off."""

    decontaminate_words: Annotated[int, Field(ge=5)] | None = 13
    """Length in words of a run that a training document must not have in common with the tuning and
    test documents (Brown et al. 2020); null turns it off."""

    max_overlap_fraction: Fraction = 0.1
    """Training documents are left out when more of their runs than this are also in tuning or test:
    a shared phrase is language, a shared page is a leak."""

    max_contained_fraction: Fraction = 0.5
    """They are left out as well when they hold more than this share of any one evaluation text's
    runs, however long they are themselves."""

    decontaminate_files: tuple[str, ...] = ()
    """Texts of other evaluations (txt, jsonl, json) that training must not have seen either."""

    pii: tuple[Pii, ...] = ()
    """Kinds of personal data to replace by placeholders such as `<EMAIL>`. Patterns find what has a
    form; names and addresses of people have none."""


class FimSection(Section):
    """Fill-in-the-middle (Bavarian et al. 2022): prefix, suffix and then the middle."""

    rate: Fraction = 0.9
    """Share of documents that are rearranged; Code Llama's figure."""

    spm_fraction: Fraction = 0.5
    """Share of those in the order suffix, prefix, middle; the others prefix, suffix, middle."""

    piece_characters: PositiveInt | None = None
    """Cut documents into pieces of at least so many characters, at the ends of lines, and rearrange
    each by itself (Bavarian et al., at the level of the context): for blocks much shorter than
    documents, which would seldom hold a prefix, its suffix and its middle."""

    tokens: tuple[str, str, str] | None = None
    """Tokens for prefix, suffix and middle; by default those that code models use are looked for in
    the tokenizer."""


class StageSection(Section):
    """One stage of a curriculum: its own mixture, length and amount."""

    name: str
    """For the log."""

    tokens: PositiveInt
    """Tokens to train on in this stage."""

    shares: dict[str, Annotated[float, Field(ge=0.0)]]
    """Share of the tokens from each source; together they are 1."""

    sequence_tokens: Annotated[int, Field(ge=8), at_most("TOKENS")] | None = None
    """Length of a block; by default `data.sequence_tokens`."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if sum(self.shares.values()) <= 0.0:
            raise ValueError("shares: they sum to zero, so there is nothing to train on")
        return self


class DataSection(Section):
    """From sources to packed blocks of tokens."""

    sources: dict[str, SourceSection]
    """Sources by name; the name appears in every document's id."""

    sequence_tokens: Annotated[int, Field(ge=8), at_most("TOKENS")] = 512
    """Length of a training block in tokens."""

    replay_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.15
    """Share of the training tokens that are general text. 0.05 to 0.25 has been shown to work
    (Ibrahim et al. 2024), by how far the domain lies from the original data."""

    stages: tuple[StageSection, ...] = ()
    """A curriculum; without one, all domain text is seen once an epoch, with replay."""

    max_repeats: Annotated[float, Field(ge=1.0)] = 4.0
    """How often one source may be seen within an epoch or stage. Up to four times, repeated text is
    worth nearly as much as new text (Muennighoff et al. 2023)."""

    packing: Literal["best_fit", "concatenate"] = "best_fit"
    """`best_fit` cuts only documents longer than a block and leaves a little room; `concatenate`
    fills every block and cuts documents at its end. Documents never see each other in either."""

    end_of_document: str | None = None
    """Token that stands between documents; by default the tokenizer's end-of-sequence token. An
    instruct model's is often the end of a *turn*, and the pre-training separator fits better."""

    cleaning: CleaningSection = CleaningSection()
    fim: FimSection = FimSection()

    evaluation_document_tokens: Length | None = None
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
        for number, stage in enumerate(self.stages):
            for name in stage.shares:
                if name not in self.sources:
                    raise ValueError(
                        f"stages.{number}.shares: there is no source {name!r}; "
                        f"sources: {', '.join(self.sources)}"
                    )
        return self


def depends_on_seed(section: DataSection) -> bool:
    """Whether another seed would train, tune or test on other documents.

    It does where a hash decides: between splits that are open to one group, which documents a limit
    leaves, and how text is rearranged. Only groups that are named in full are known to be apart.

    >>> rules = {"train": {"groups": ["a", "b"]}, "test": {"groups": ["c"]}}
    >>> sources = {
    ...     "own": {"role": "domain", "files": ["x.csv"], "split": rules},
    ...     "web": {"role": "general", "files": ["y.csv"], "split": rules},
    ... }
    >>> depends_on_seed(DataSection.model_validate({"sources": sources}))
    False
    >>> rules["test"] = {"groups": ["*"]}
    >>> depends_on_seed(DataSection.model_validate({"sources": sources}))
    True
    """
    return bool(section.stages) or any(map(_is_divided_by_hash, section.sources.values()))


def _is_divided_by_hash(source: SourceSection) -> bool:
    rules = [rule for rule in source.split.values() if rule.share > 0.0]
    if source.fim or any(rule.max_tokens is not None for rule in rules):
        return True
    groups = [name for rule in rules for name in set(rule.groups)]
    is_apart = len(set(groups)) == len(groups) and not any(
        set(name) & set("*?[") for name in groups
    )
    return len(rules) > 1 and not is_apart


def identity_of_data(section: DataSection) -> dict[str, Any]:
    """The settings that a data stage depends on: not what is only known of a source."""
    values = section.model_dump(mode="json")
    for source in values["sources"].values():
        del source["tokens"]
        if source["group_folders"] is None:
            del source["group_folders"]
    if section.fim.piece_characters is None:
        del values["fim"]["piece_characters"]
    return values
