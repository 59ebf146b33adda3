"""Files that a user brings, to sources of a new recipe: formats, fields, groups and amounts.

Everything is seen by the readers of the data stage, so what is found here is what they will read.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from toolkit.data.artifacts import list_members
from toolkit.data.config import CleaningSection, Role, SourceSection
from toolkit.data.files import (
    SourceFile,
    is_archive,
    is_hidden,
    local_paths,
    source_files,
    split_pattern,
)
from toolkit.data.formats import FORMATS, Faults, format_of, read_rows
from toolkit.data.paged import OLD_FORMATS
from toolkit.data.unpacked import OPENERS
from toolkit.data.words import count_words
from toolkit.errors import ConfigError, DataError
from toolkit.plan.new_fields import RowFields, choose_fields
from toolkit.plan.sample import Sample, sample_source
from toolkit.plan.token_budget import ASSUMED_TOKENS_PER_BYTE
from toolkit.plan.verdict import words_of

_ROW_FORMATS = ("jsonl", "csv", "parquet")
_ROW_FILES, _ROWS = 20, 500
"""Files and rows of each that are looked at for their fields."""

_DEEPEST = 3
_MOST_SHORT = 0.3
"""Share of documents dropped as too short, beyond which `min_words` is what is wrong."""

_ADVICE = {
    **dict.fromkeys((".zip", ".7z", ".rar"), "unpack the archives"),
    ".json": "write lists as .jsonl (jq -c '.[]' a.json > a.jsonl)",
    **{old: f"save {old} as {new}" for old, new in OLD_FORMATS.items()},
}
"""What to do with files of these endings, which are documents but are not read."""

_LISTED_FILES, _SHOWN_KINDS = 50, 5


@dataclass
class DraftSource:
    """One source of the new recipe.

    Attributes:
        name: of the source.
        values: keys of the source, `split` left out.
        reasons: why, by key of the source.
        sample: what was read of it; all of it is in the split `train` here.
        cleaning: settings that its documents ask for, each with why.
        notes: what is worth knowing and is no setting.
        tokens_per_byte: ratio of its text under the model's tokenizer.
    """

    name: str
    values: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)
    tokens_per_byte: float = ASSUMED_TOKENS_PER_BYTE
    sample: Sample = field(default_factory=lambda: Sample("", "domain"))
    cleaning: dict[str, tuple[Any, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def role(self) -> Role:
        return SourceSection.model_validate(self.values).role

    @property
    def num_documents(self) -> int:
        return len(self.sample.sizes)

    @property
    def num_groups(self) -> int:
        return len({size.group for size in self.sample.sizes})

    @property
    def has_own_groups(self) -> bool:
        """Whether fields or folders tell the groups, rather than files."""
        return bool(self.values.get("group_field") or self.values.get("group_folders"))

    @property
    def all_bytes(self) -> float:
        """Cleaned text of all of it, as far as was seen how much that is."""
        seen_bytes = float(sum(size.num_bytes for size in self.sample.sizes))
        unique_bytes = seen_bytes * (1.0 - (self.sample.duplicate_fraction or 0.0))
        return unique_bytes / (self.sample.seen_fraction or 1.0)


def draft_sources(
    patterns: Sequence[str], role: Role, taken_names: Collection[str], *, seconds: float
) -> list[DraftSource]:
    """Look at files, folders and globs.

    Args:
        patterns: as on the command line.
        role: of what is made of them.
        taken_names: names that other sources have.
        seconds: to read for, all together.

    Raises:
        ConfigError: a path is not there, or holds nothing that can be read.
    """
    option = "--documents" if role == "domain" else "--general"
    names = set(taken_names)
    drafts: list[DraftSource] = []
    for pattern in dict.fromkeys(patterns):
        try:
            for draft in _drafts_of(pattern, role, names):
                names.add(draft.name)
                drafts.append(draft)
        except DataError as error:
            raise ConfigError(f"{option} {error}") from error
    for draft in drafts:
        try:
            _look(draft, seconds / len(drafts))
        except DataError as error:
            raise ConfigError(f"{option}: {error}") from error
    return drafts


def _drafts_of(pattern: str, role: Role, taken_names: Collection[str]) -> Iterator[DraftSource]:
    """A source for each kind of rows among the files of a pattern."""
    if "://" in pattern:
        remote: dict[str, Any] = {"role": role, "files": [pattern]}
        why = "it is on another machine: nothing of it was looked at"
        yield DraftSource(_name_of(pattern, role, taken_names), remote, {"files": why})
        return
    places, notes = _readable(pattern, role)
    files = _files_of(pattern, places, is_all=not notes)
    kinds = _row_kinds(SourceSection(role=role, files=tuple(files)))
    # Files whose rows have other fields need a source of their own.
    places_by_kind: dict[RowFields | None, list[str]] = {}
    for place in places:
        places_by_kind.setdefault(kinds.get(place), []).append(place)
    names = set(taken_names)
    for kind, kind_places in places_by_kind.items():
        if len(places_by_kind) > 1:
            files = _files_of(pattern, kind_places, is_all=False)
        values: dict[str, Any] = {"role": role, "files": files}
        reasons: dict[str, str] = {}
        if kind is not None:
            values |= kind.settings
            reasons |= kind.reasons
        elif (depth := _group_depth(pattern, kind_places)) is not None:
            values["group_folders"] = depth
            reasons["group_folders"] = "files of one folder belong together"
        name = _name_of(split_pattern(pattern)[0], role, names)
        names.add(name)
        yield DraftSource(name, values, reasons, notes=notes)
        notes = []


def _readable(pattern: str, role: Role) -> tuple[list[str], list[str]]:
    """Files that a format is known for, and a note on each kind of others.

    Raises:
        DataError: there are none.
    """
    places = _local_places(SourceSection(role=role, files=(pattern,)))
    readable = [place for place in places if _ending(place) in FORMATS]
    left_out = Counter(_ending(place) for place in places if _ending(place) not in FORMATS)
    notes = [_left_out_note(pattern, left_out)] if left_out else []
    if not readable:
        raise DataError(
            f"{pattern}: holds nothing that can be read ({len(places)} files: "
            f"{', '.join(ending or 'no ending' for ending in left_out)})"
            f"{''.join(f'; {text}' for text in _advice(left_out))}. "
            f"Readable are {', '.join(sorted(FORMATS))}."
        )
    return readable, notes


def _local_places(source: SourceSection) -> list[str]:
    """Local files of a source; those in an archive as `archive.zip//name`."""
    places: list[str] = []
    for pattern, paths in local_paths(source).items():
        member_pattern = split_pattern(pattern)[1]
        for path in paths:
            if not is_archive(path.name):
                places.append(path.as_posix())
                continue
            places += [
                f"{path.as_posix()}//{name}"
                for name in sorted(list_members(path))
                if not is_hidden(name) and fnmatch.fnmatchcase(name, member_pattern or "*")
            ]
    return places


def _advice(left_out: Counter[str]) -> list[str]:
    return list(dict.fromkeys(text for ending, text in _ADVICE.items() if left_out[ending]))


def _left_out_note(pattern: str, left_out: Counter[str]) -> str:
    kinds = [
        f"{count:,} {f'*{ending}' if ending else 'without an ending'}"
        for ending, count in left_out.most_common(_SHOWN_KINDS)
    ]
    if (num_more := len(left_out) - len(kinds)) > 0:
        kinds.append(f"{num_more:,} more kinds")
    advice = _advice(left_out)
    to_have_them = f"; to have them, {', '.join(advice)}" if advice else ""
    return f"{pattern}: files that nothing reads are left out ({', '.join(kinds)}){to_have_them}"


def _ending(place: str) -> str:
    """The ending that tells the format."""
    path = Path(place)
    return _suffix(place).lower().removesuffix(path.suffix.lower() if _is_packed(path) else "")


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() in OPENERS


def _suffix(place: str) -> str:
    """The ending as it is written, that of a compressed file whole: `.jsonl.gz`."""
    path = Path(place)
    return Path(path.stem).suffix + path.suffix if _is_packed(path) else path.suffix


def _files_of(pattern: str, places: Sequence[str], *, is_all: bool) -> list[str]:
    """Patterns for some of the files that a pattern means, or itself for all of them."""
    if is_all:
        return [pattern]
    packed = [place for place in places if is_archive(place.partition("//")[0])]
    plain = [place for place in places if place not in set(packed)]
    files = dict.fromkeys(f"{place.partition('//')[0]}//*{_suffix(place)}" for place in packed)
    if Path(pattern).is_dir():
        suffixes = dict.fromkeys(map(_suffix, plain))
        return [*(f"{pattern.rstrip('/')}/**/*{suffix}" for suffix in suffixes), *files]
    if len(plain) > _LISTED_FILES:
        raise DataError(
            f"{pattern}: means files of several kinds; give a pattern for each, such as "
            f"{pattern}{_suffix(plain[0])}."
        )
    return [*plain, *files]


def _row_kinds(source: SourceSection) -> dict[str, RowFields]:
    """Fields of the files that are made of rows, by the file's name."""
    kinds: dict[str, RowFields] = {}
    by_signature: dict[object, RowFields] = {}
    by_ending: dict[str, RowFields] = {}
    others: list[str] = []
    for file in source_files(source):
        if format_of(file.name, "auto") not in _ROW_FORMATS:
            continue
        # Only so many are looked at: rows of every file of a large folder would take minutes.
        if len(kinds) < _ROW_FILES and (rows := _first_rows(file)):
            found = choose_fields(rows, file.name)
            kinds[file.name] = by_signature.setdefault(found.signature, found)
            by_ending[_ending(file.name)] = kinds[file.name]
        else:
            others.append(file.name)
    # Empty files, and the later ones of very many, are taken to be like the last of their ending.
    for name in others:
        if (kind := by_ending.get(_ending(name))) is not None:
            kinds[name] = kind
    return kinds


def _first_rows(file: SourceFile) -> list[dict[str, Any]]:
    with file.open() as stream:
        rows = read_rows(stream, file.name, format_of(file.name, "auto"), Faults(skip=True))
        return [row.fields for row in islice(rows, _ROWS) if row.fields]


def _group_depth(pattern: str, places: Sequence[str]) -> int | None:
    """How many folders below a given folder or archive divide its files; None where none do."""
    root = Path(pattern)
    if not root.is_dir() and not is_archive(root.name):
        return None
    relative_parts = [Path(place).relative_to(root).parts for place in places]
    for depth in range(1, _DEEPEST + 1):
        folders = {parts[:-1][:depth] for parts in relative_parts}
        if len(folders) > 1:
            deep = sum(len(parts) > depth for parts in relative_parts)
            # Files that lie beside the folders stand for themselves; where most do, the folders
            # mean something else.
            return depth if deep > 0.5 * len(places) and len(folders) < len(places) else None
    return None


def _name_of(pattern: str, role: Role, taken_names: Collection[str]) -> str:
    """A short name for a source, from its path."""
    wild = any(sign in pattern for sign in "*?[")
    parts = [part for part in Path(pattern).parts if not any(sign in part for sign in "*?[")]
    last = Path(parts[-1] if parts else "")
    stem = last.name if wild or Path(pattern).is_dir() else last.name.split(".")[0]
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
    name = name or ("documents" if role == "domain" else "general_text")
    numbered = (f"{name}_{number}" for number in range(2, 1_000_000))
    return name if name not in taken_names else next(n for n in numbered if n not in taken_names)


def _look(draft: DraftSource, seconds: float) -> None:
    """Read of the source for so long, and set what follows from its documents."""
    if "://" in str(draft.values["files"][0]):
        draft.sample = Sample(draft.name, draft.values["role"], why=draft.reasons["files"])
        return
    _read(draft, seconds)
    sample = draft.sample
    if sample.dropped["short"] > _MOST_SHORT * max(1, sample.read_documents):
        share = sample.dropped["short"] / sample.read_documents
        why = f"{share:.0%} of {draft.name} have fewer than {CleaningSection().min_words} words"
        draft.cleaning["min_words"] = (5, why)
        _read(draft, seconds)
    if draft.values.get("group_field") and draft.num_groups < 2 and draft.num_documents > 1:
        group = draft.values.pop("group_field")
        draft.reasons.pop("group_field")
        draft.notes.append(f"{draft.name}: all rows have the same {group}, so it divides nothing")
        _read(draft, seconds)
    _set_cleaning(draft)
    if not draft.num_documents:
        raise DataError(_nothing_left(draft))


def _read(draft: DraftSource, seconds: float) -> None:
    """Read with damage counted, and all documents kept for the look."""
    everything = {"train": {"fraction": 1.0}}
    values = {**draft.values, "split": everything, "skip_damaged": True}
    source = SourceSection.model_validate(values)
    cleaning = CleaningSection(**{key: value for key, (value, _) in draft.cleaning.items()})
    draft.sample = sample_source(draft.name, source, cleaning, seed=0, seconds=seconds)
    damage = draft.sample.damage
    if damage is not None and damage.counts["damaged"]:
        draft.values["skip_damaged"] = True
        draft.reasons["skip_damaged"] = (
            f"{damage.counts['damaged']} damaged of those looked at are left out and counted, "
            f"first {damage.shown[0]}"
        )
    elif not draft.sample.whole:
        draft.values["skip_damaged"] = True
        draft.reasons["skip_damaged"] = (
            "only part of it was looked at: what is damaged in the rest is left out and counted"
        )


def _set_cleaning(draft: DraftSource) -> None:
    texts = [document.text for document in draft.sample.documents[:200]]
    if not texts:
        return
    # Of writing without spaces a character counts as a word; in words it is about half of one.
    spaced_words = sum(len(text.split()) for text in texts)
    if sum(map(count_words, texts)) > 3 * spaced_words:
        why = "text without spaces: a character counts as a word, and a word has about two"
        draft.cleaning["decontamination_ngram"] = (26, why)
    endings = Counter(map(_ending, _places_of(draft)))
    plain = {ending for ending, kind in FORMATS.items() if kind == "text"}
    code = plain - {".txt", ".md", ".rst", ".tex"}
    if sum(endings[ending] for ending in code) > 0.5 * endings.total():
        draft.cleaning["collapse_spaces"] = (False, "code: spaces align it and stand in strings")


def _places_of(draft: DraftSource) -> list[str]:
    files = tuple(draft.values["files"])
    return _local_places(SourceSection(role=draft.values["role"], files=files))


def _nothing_left(draft: DraftSource) -> str:
    sample = draft.sample
    files = ", ".join(draft.values["files"])
    if sample.damage is not None and sample.damage.shown and not sample.read_documents:
        return f"{files}: nothing in it can be read; first {sample.damage.shown[0]}"
    left_out = ", ".join(
        f"{sample.dropped[reason]} {reason}"
        for reason in ("short", "long", "repetitive")
        if sample.dropped[reason]
    )
    read = f"{sample.read_documents} documents were read"
    return f"{files}: holds no text to learn from ({read}{'; ' + left_out if left_out else ''})."


def describe(draft: DraftSource) -> str:
    """One line on what was seen."""
    sample = draft.sample
    if sample.why:
        return f"{draft.name}: {sample.why}"
    at_least = "" if sample.whole else "more than "
    seen = f"{at_least}{counted(draft.num_documents, 'document')}"
    if draft.num_groups < draft.num_documents:
        what = draft.values.get("group_field") or (
            "folder" if "group_folders" in draft.values else "file"
        )
        seen += f" in {counted(draft.num_groups, 'group')} (by {what})"
    tokens = words_of(draft.all_bytes * draft.tokens_per_byte)
    kinds = Counter(_ending(place).removeprefix(".") for place in _places_of(draft))
    kind = ", ".join(f"{count:,} {name}" for name, count in kinds.most_common(4))
    return f"{draft.name}: {seen}, about {tokens} tokens (files: {kind})"


def counted(number: int, noun: str) -> str:
    """
    >>> counted(1, "group"), counted(1200, "file")
    ('1 group', '1,200 files')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
