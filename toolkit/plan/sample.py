"""A bounded look at a recipe's own documents, before the data stage has run.

Documents are read as the data stage reads and cleans them, until a source ends or its time is up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from toolkit.data.clean import clean_documents
from toolkit.data.config import ArtifactSection, CleaningSection, SourceSection
from toolkit.data.duplicates import drop_exact, drop_near, exact_keys, signatures
from toolkit.data.edgar import find_filings
from toolkit.data.files import local_paths
from toolkit.data.formats import Faults
from toolkit.data.sources import Document, read_documents
from toolkit.data.split import assign_split, stable_unit
from toolkit.data.words import spread, word_codes
from toolkit.errors import DataError
from toolkit.library_errors import first_line
from toolkit.machine import cache_folder

KEPT_BYTES = 4 << 20
"""Text of a source that is kept for a closer look."""

_BATCH = 64


class DocumentSize(NamedTuple):
    """A cleaned document, for whoever divides documents: its id, its group and its bytes."""

    id: str
    group: str
    num_bytes: int


@dataclass
class Sample:
    """What was seen of one source.

    Attributes:
        name, role: name and role of the source.
        documents: documents for a closer look, chosen by hash among those read.
        read_documents, read_bytes: what was read, before cleaning.
        sizes: every cleaned document that was read.
        dropped: number of documents that cleaning left out, by reason.
        damage: what was damaged, where the source leaves such out.
        train_documents: number of cleaned documents in the training split.
        split_bytes: cleaned text by split.
        split_documents: number of cleaned documents by split.
        validation_groups, test_groups: groups that the documents of these splits belong to.
        duplicate_fraction: share of the kept documents' bytes that repeats another of them.
        whole: whether everything was read, so that amounts are counted rather than estimated.
        seen_fraction: estimated share of the source that was read; None where nothing tells.
        is_talk: whether the documents are conversations.
        why: reason that nothing was read, where nothing was.
    """

    name: str
    role: str
    documents: list[Document] = field(default_factory=list)
    read_documents: int = 0
    read_bytes: int = 0
    sizes: list[DocumentSize] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    damage: Faults | None = None
    train_documents: int = 0
    split_bytes: Counter[str] = field(default_factory=Counter)
    split_documents: Counter[str] = field(default_factory=Counter)
    validation_groups: set[str] = field(default_factory=set)
    test_groups: set[str] = field(default_factory=set)
    duplicate_fraction: float | None = None
    whole: bool = False
    seen_fraction: float | None = None
    is_talk: bool = False
    why: str = ""

    def count(self, document: Document, split: str | None, num_bytes: int) -> None:
        """Count a cleaned document in its split."""
        self.sizes.append(DocumentSize(document.id, document.group, num_bytes))
        self.split_bytes[split or "none"] += num_bytes
        self.split_documents[split or "none"] += 1
        self.train_documents += split == "train"
        if split == "validation":
            self.validation_groups.add(document.group)
        if split == "test":
            self.test_groups.add(document.group)

    @property
    def estimated_train_bytes(self) -> float | None:
        """Bytes of training text in all of the source, without repeated documents; at least that
        where only a part was read and nothing tells how large a part; None where none was."""
        if self.why:
            return None
        unique_bytes = self.split_bytes["train"] * (1.0 - (self.duplicate_fraction or 0.0))
        return unique_bytes / (self.seen_fraction or 1.0)


def sample_source(
    name: str,
    source: SourceSection,
    cleaning: CleaningSection,
    *,
    seed: int,
    seconds: float,
    fetch_seconds: float = 20.0,
) -> Sample:
    """Read documents of one source for so long.

    A hub that cannot be reached, or an artifact that takes too long to fetch, is said in `why`;
    damage in the documents is an error here as it is in the data stage.

    Raises:
        DataError: local documents are missing or damaged.
    """
    sample = Sample(name, source.role, is_talk=source.messages_field is not None)
    if source.artifact is not None and not is_fetched(source.artifact, fetch_seconds):
        artifact = source.artifact
        sample.why = (
            f"{artifact.package} {artifact.version} is not in the cache and could not be fetched "
            f"within {fetch_seconds:.0f} s"
        )
        return sample
    if source.hub is None and source.edgar is None:
        _read(sample, source, cleaning, seed, seconds)
        return sample
    if source.hub is not None:
        sample.why = _hub_trouble(source.hub.dataset, source.hub.revision)
    if not sample.why:
        try:
            _read(sample, source, cleaning, seed, seconds)
        except DataError as error:
            sample.why = str(error)
    return sample


def _read(
    sample: Sample, source: SourceSection, cleaning: CleaningSection, seed: int, seconds: float
) -> None:
    stop_time = time.monotonic() + seconds
    sample.damage = Faults(source.skip_damaged)
    documents = read_documents(sample.name, source, sample.damage)
    kept_documents: list[tuple[float, Document]] = []
    kept_bytes = 0
    highest_hash = 1.0  # documents of lower hashes are kept: a choice that no order changes
    # Ends without `break` only where the source does, which is what `whole` says.
    while batch := list(islice(documents, _BATCH)):
        cleaned_documents, _, _ = clean_documents(batch, cleaning, sample.dropped)
        sample.read_documents += len(batch)
        sample.read_bytes += sum(len(d.text.encode("utf-8", "replace")) for d in batch)
        for document in cleaned_documents:
            split = assign_split(document, source, seed)
            num_bytes = len(document.text.encode())
            sample.count(document, split, num_bytes)
            if split != "train":
                continue
            document_hash = stable_unit("plan", seed, document.id)
            if document_hash < highest_hash:
                kept_documents.append((document_hash, document))
                kept_bytes += num_bytes
        # At twice the size, so that sorting is rare.
        if kept_bytes > 2 * KEPT_BYTES:
            kept_documents, kept_bytes, highest_hash = _thin_out(kept_documents)
        if time.monotonic() > stop_time:
            break
    else:
        sample.whole = True
    sample.documents = [d for _, d in sorted(kept_documents, key=lambda pair: pair[0])]
    sample.seen_fraction = 1.0 if sample.whole else _seen_fraction(source, sample, last=batch)
    sample.duplicate_fraction = duplicate_fraction(sample.documents, cleaning)


def _thin_out(
    hashed_documents: list[tuple[float, Document]],
) -> tuple[list[tuple[float, Document]], int, float]:
    """The documents of lowest hash, up to the bytes that are kept, and the hash beyond them."""
    num_bytes = 0
    lowest_documents: list[tuple[float, Document]] = []
    for document_hash, document in sorted(hashed_documents, key=lambda pair: pair[0]):
        num_bytes += len(document.text.encode())
        if lowest_documents and num_bytes > KEPT_BYTES:
            return lowest_documents, num_bytes, document_hash
        lowest_documents.append((document_hash, document))
    return lowest_documents, num_bytes, 1.0


def _seen_fraction(source: SourceSection, sample: Sample, last: list[Document]) -> float | None:
    """Estimated share of a source that was read, where it was not read to its end."""
    if source.tokens is not None:
        return None  # the recipe says how much there is
    fraction = _fraction_of_files(source, sample, last)
    if source.max_documents is None:
        return fraction
    # A limit may be more than there is: whichever of the two ends first is the end of the source.
    return max(fraction or 0.0, min(1.0, sample.read_documents / source.max_documents))


def _fraction_of_files(source: SourceSection, sample: Sample, last: list[Document]) -> float | None:
    if source.edgar is not None and last:
        filings = [filing.key for filing in find_filings(source.edgar)]
        last_filing = last[-1].id.removeprefix(f"{sample.name}/").rpartition("#")[0]
        if last_filing not in filings:
            return None
        return (filings.index(last_filing) + 0.5) / len(filings)
    if source.files is None or not last:
        return None
    paths = _local_files(source)
    file_sizes = [path.stat().st_size for path in paths]
    # Files are read in a stable order: the one being read bounds what was seen. Its name is the
    # longest in the document's id: `letter-1` stands in `letter-10` too.
    stems = [path.stem.split(".")[0] for path in paths]
    named = [n for n, stem in enumerate(stems) if stem in last[-1].id]
    if not named:
        return None
    number = max(named, key=lambda n: len(stems[n]))
    if number == 0 and paths[0].suffix in {".jsonl", ".ndjson", ".csv", ".txt"}:
        return min(1.0, sample.read_bytes / sum(file_sizes))
    bytes_before = sum(file_sizes[:number])
    return (bytes_before + file_sizes[number] / 2.0) / sum(file_sizes) if number else None


def _local_files(source: SourceSection) -> list[Path]:
    """Files of a source in their order; none where one of its patterns is not local."""
    if any("://" in pattern for pattern in source.files or ()):
        return []
    return [path for paths in local_paths(source).values() for path in paths]


def duplicate_fraction(documents: list[Document], cleaning: CleaningSection) -> float:
    """Share of the text that stands in documents which repeat another one, or nearly."""
    if not documents:
        return 0.0
    codes, offsets = word_codes([document.text for document in documents])
    word_hashes = spread(codes)
    num_bytes = np.array([len(document.text.encode()) for document in documents], dtype=np.float64)
    # Which of two alike is dropped does not matter here, only how much.
    no_rank = np.zeros(len(documents))
    is_repeated = drop_exact(exact_keys(word_hashes, offsets), no_rank)
    if cleaning.near_duplicate_similarity is not None:
        signature_rows = signatures(word_hashes, offsets)
        is_repeated |= drop_near(
            signature_rows, no_rank, cleaning.near_duplicate_similarity, ~is_repeated
        )
    return float(num_bytes[is_repeated].sum() / num_bytes.sum())


def is_fetched(artifact: ArtifactSection, seconds: float) -> bool:
    """Whether an artifact is in the cache, or can be brought there within so many seconds."""
    artifact_folder = cache_folder() / "artifacts" / artifact.sha256
    if artifact_folder.is_dir() and any(
        not path.name.startswith(".") for path in artifact_folder.iterdir()
    ):
        return True
    # In a process of its own, which can be stopped in the middle of a download.
    fetch_code = (
        "import sys; from toolkit.data.config import ArtifactSection as A; "
        "from toolkit.data.artifacts import fetch_artifact as f; "
        "f(A.model_validate_json(sys.argv[1]))"
    )
    command = [sys.executable, "-c", fetch_code, artifact.model_dump_json()]
    no_output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, start_new_session=True, **no_output) as process:  # type: ignore[call-overload]
        try:
            return bool(process.wait(timeout=seconds) == 0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)  # Python then removes what it began
            try:
                process.wait(timeout=2.0)
            except subprocess.TimeoutExpired:  # started where interrupts are ignored
                os.killpg(process.pid, signal.SIGKILL)
            return False


def _hub_trouble(dataset: str, revision: str | None) -> str:
    """Why a dataset of the hub cannot be read now, or nothing; asks for its card only."""
    if Path(dataset).exists():
        return ""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return f"{dataset}: the hub is switched off here (HF_HUB_OFFLINE)"
    try:
        HfApi().dataset_info(dataset, revision=revision, timeout=5.0)
    except Exception as error:  # whatever the connection, the hub or its client raises
        reason = first_line(error)
        return f"{dataset}: the hub cannot be reached, or does not have it ({reason})"
    return ""
