"""Documents of a finished data stage, whole and by split, as they are asked about."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from toolkit.data.clean import clean_documents
from toolkit.data.config import DataSection, SourceSection, SplitName
from toolkit.data.sources import Document, read_documents
from toolkit.data.split import stable_unit
from toolkit.errors import ConfigError, sentence_end
from toolkit.section import replace_values

_TOGETHER = 64

_COMMON_WORDS = frozenset(
    [
        "the",
        "of",
        "and",
        "to",
        "in",
        "a",
        "for",
        "is",
        "on",
        "that",
        "by",
        "with",
        "as",
        "are",
        "or",
        "be",
        "from",
        "at",
    ]
)
_LEAST_COMMON = 0.12
"""Share of an English text's words that are among the above; tables have few words to count."""

_LIST_SIGN = re.compile(r"^[ \t]*[•◦▪·–—*-][ \t]*(?=\S)", re.MULTILINE)

_COMPANY = re.compile(
    r"\b((?:[A-Z][\w&'’.-]*,? ){1,4}"
    r"(?:Inc\.|Corporation|Corp\.|Company|plc|PLC|Ltd\.?|Limited|LLC|AG|SE|N\.V\.|S\.A\.))(?!\w)"
)


@dataclass(frozen=True)
class SplitDocument:
    """A document with the split that the data stage gave it."""

    document: Document
    split: SplitName


def chosen_sources(data: DataSection, names: Sequence[str], key: str) -> dict[str, SourceSection]:
    """The sources to take documents of: those named, or all of the domain; never conversations, nor
    what was written from others.

    Args:
        data: the recipe's.
        names: of sources; none means all of role `domain`.
        key: of the recipe that holds the names, for messages.

    Raises:
        ConfigError: a name is of no source of documents.
    """
    for name in names:
        if name not in data.sources:
            raise ConfigError(
                f"{key}: there is no source {name!r}{sentence_end(name, data.sources)} "
                f"Sources: {', '.join(data.sources)}."
            )
        if not holds_documents(data.sources[name]):
            raise ConfigError(
                f"{key}: {name!r} holds conversations or written texts, and only documents are "
                "read for facts; leave it out."
            )
    return {
        name: source
        for name, source in data.sources.items()
        if holds_documents(source) and (name in names if names else source.role == "domain")
    }


def holds_documents(source: SourceSection) -> bool:
    """Whether a source is of documents, not of conversations or of what was written from others."""
    return source.messages_field is None and source.written_from is None


def read_split_documents(
    data: DataSection,
    folder: Path,
    sources: Mapping[str, SourceSection],
    splits: Sequence[SplitName],
    *,
    seed: int,
    most_documents: int,
) -> list[SplitDocument]:
    """Whole, cleaned documents that a data stage put into some splits, in the order of sources,
    without the signs that lists begin with.

    The stage's own evaluation files hold documents cut to length; these are not cut.

    Args:
        data: the recipe's.
        folder: of the finished data stage; its `documents.csv` says which documents are used.
        sources: to read.
        splits: to take.
        seed: of the recipe.
        most_documents: of each split at most; a hash decides which.
    """
    chosen = _choose(folder, sources, splits, seed, most_documents)
    documents: list[SplitDocument] = []
    for name, source in sources.items():
        splits_by_id = chosen.get(name, {})
        if source.edgar is not None:
            filings = str(folder / "filings" / f"{name}.jsonl")
            pinned = replace_values(
                source.edgar, companies=(), sic=None, years=None, filings=filings
            )
            source = replace_values(source, edgar=pinned)
        waiting: list[Document] = []
        if not splits_by_id:
            continue
        missing_ids = set(splits_by_id)
        for document in read_documents(name, source):
            # Ids may stand twice in a stranger's file; the first one is read.
            if document.id in missing_ids:
                missing_ids.discard(document.id)
                waiting.append(document)
            # The rest of a large source is not read when all that was chosen is found.
            if not missing_ids:
                break
        for start in range(0, len(waiting), _TOGETHER):
            batch = waiting[start : start + _TOGETHER]
            cleaned, _, _ = clean_documents(batch, data.cleaning, Counter())
            for one in cleaned:
                plain = replace(one, text=_LIST_SIGN.sub("", one.text))
                documents.append(SplitDocument(plain, splits_by_id[one.id]))
    return documents


def _choose(
    folder: Path,
    sources: Mapping[str, SourceSection],
    splits: Sequence[SplitName],
    seed: int,
    most_documents: int,
) -> dict[str, dict[str, SplitName]]:
    """By source, the splits of the documents to read by their ids."""
    ids_by_split: dict[SplitName, list[tuple[float, str, str]]] = {split: [] for split in splits}
    with (folder / "documents.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            source_name = row["id"].split("/", 1)[0]
            for split in splits:
                if row["split"] == split and source_name in sources:
                    place = stable_unit(seed, "knowledge", row["id"])
                    ids_by_split[split].append((place, source_name, row["id"]))
    chosen: dict[str, dict[str, SplitName]] = defaultdict(dict)
    for split, places in ids_by_split.items():
        for _, source_name, document_id in sorted(places)[:most_documents]:
            chosen[source_name][document_id] = split
    return chosen


def is_english(text: str) -> bool:
    """Whether a text has the small words of English as often as English has, or is hardly words at
    all (a table).

    >>> is_english("The price of the shares rose in the second quarter of the year, by a tenth.")
    True
    >>> is_english("Der Kurs der Aktien stieg im zweiten Quartal des Jahres um ein Zehntel an.")
    False
    """
    words = re.findall(r"[^\W\d_]+", _without_tables(text).lower())
    if len(words) < 8:
        return text.isascii()
    return sum(word in _COMMON_WORDS for word in words) / len(words) >= _LEAST_COMMON


def _without_tables(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if " | " not in line)


def find_subjects(
    documents: Iterable[Document], named_subjects: Mapping[str, str]
) -> dict[str, str]:
    """Whom the documents of each group are about, where it is said or can be seen.

    Args:
        documents: of all groups.
        named_subjects: by patterns of group names, as the recipe has them.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for document in documents:
        found = _COMPANY.findall(document.text)
        counts[document.group].update(name for name in found if not name.startswith("The "))
    subjects: dict[str, str] = {}
    for group, name_counts in counts.items():
        named = next((s for p, s in named_subjects.items() if fnmatchcase(group, p)), None)
        ranked = name_counts.most_common(2)
        # Named hardly more often than another, it may be a competitor of the one that is meant.
        is_clear = bool(ranked) and ranked[0][1] >= 3
        is_clear = is_clear and (len(ranked) == 1 or ranked[0][1] >= 1.5 * ranked[1][1])
        if named or is_clear:
            subjects[group] = named or ranked[0][0]
    return subjects
