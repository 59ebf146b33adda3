"""The data stage: recipe section in, `runs/<recipe>/data/` out.

Reads top to bottom: texts cleaned in shards, duplicates, evaluation sets, tokens in shards, blocks.
`blocks.json` with `tokens/` and `packs/` is what training reads; `validation.jsonl` and
`test.jsonl` are documents with their text; `documents.csv` lists every document used, `report.md`
what was left out and why.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.data.blocks import BlocksTable, SourceEntry, StageEntry, write_blocks
from toolkit.data.config import DataSection, SourceSection
from toolkit.data.duplicates import drop_exact, drop_near, keep_copies_together
from toolkit.data.edgar import (
    fetch_filing,
    find_filings,
    pin_filings,
    read_filing_list,
    say_what_is_fetched,
    write_filing_list,
)
from toolkit.data.encode import (
    Encoder,
    TextTokenizer,
    find_fim_tokens,
    find_separator,
    open_conversations,
    open_tokenizer,
)
from toolkit.data.evaluation_texts import (
    EvaluationSets,
    choose_evaluation,
    read_other_evaluations,
    write_documents,
)
from toolkit.data.files import local_bytes
from toolkit.data.mixture import tokens_by_source
from toolkit.data.overlap import Overlap, write_known_runs
from toolkit.data.split import split_ranks
from toolkit.data.stage_blocks import plan_stages, write_packs
from toolkit.data.summary import DataSummary, SourceCounts, describe, summarize, write_report
from toolkit.data.texts import (
    SHARD_BYTES,
    SourceTexts,
    TextIndex,
    load_index,
    read_names,
    write_texts,
)
from toolkit.data.tokens import Frame, TokenTable, tokenize
from toolkit.data.workers import WorkerProcesses
from toolkit.errors import DataError
from toolkit.section import replace_values
from toolkit.stage import Stage, write_atomically

Say = Callable[[str], None]
_TEXTS = "texts"


def run_data(
    section: DataSection,
    stage: Stage,
    tokenizer_folder: Path,
    say: Say,
    *,
    for_training: bool = True,
) -> None:
    """Read, clean, split, tokenize and pack every source of the recipe.

    Args:
        section: sources, and what becomes of them.
        stage: where to write.
        tokenizer_folder: folder of the model whose tokenizer counts and cuts.
        say: is told what was done.
        for_training: whether documents are trained on; else only evaluation sets are made, and
            documents of a `train` split are left aside.

    Raises:
        DataError: a split that is needed has no documents, or replay text runs out.
    """
    with WorkerProcesses() as workers:
        # Processes take seconds to start, in which small sources are read already.
        if any(local_bytes(source) > 4 * SHARD_BYTES for source in section.sources.values()):
            workers.start()
        summary = _DataRun(section, stage, tokenizer_folder, workers, say, for_training).act()
    say(describe(summary))


@dataclass(frozen=True)
class _DataRun:
    """One run of the stage: what all of its parts need."""

    section: DataSection
    stage: Stage
    tokenizer_folder: Path
    workers: WorkerProcesses
    say: Say
    for_training: bool

    def act(self) -> DataSummary:
        section, stage = self.section, self.stage
        tokenizer = TextTokenizer(self.tokenizer_folder)
        frame = self._find_frame(tokenizer)
        # What can be wrong with the recipe is found before hours of reading.
        other_evaluations = read_other_evaluations(section.cleaning.decontaminate_files)
        self._refuse_unreadable(tokenizer)
        with stage.running() as work:
            for folder in (_TEXTS, *(("tokens", "packs") if self.for_training else ())):
                (work / folder).mkdir(exist_ok=True)
            texts = work / _TEXTS
            texts_by_source = self._read_sources(texts)
            counts = {name: Counter(found.counts) for name, found in texts_by_source.items()}
            index = load_index(texts, [found.shards for found in texts_by_source.values()])
            # The workers load the tokenizer while this process looks for duplicates.
            self.workers.prepare(open_tokenizer, self.tokenizer_folder)
            # Duplicates go first: a text that stands in two splits would make the test too easy.
            usable = _drop_duplicates(section, index, list(counts.values()))
            evaluation = choose_evaluation(section, texts, index, usable, tokenizer)
            tables: dict[str, TokenTable] = {}
            if self.for_training:
                overlap = self._find_overlap(evaluation, other_evaluations, texts)
                tables = self._tokenize(tokenizer, frame, texts, index, usable, overlap, work)
            _count_overlaps(index, tables, counts)
            _count_unused(index, usable, tables, evaluation, counts)
            _refuse_empty(section, tables if self.for_training else None, evaluation, counts)

            # From here on tokens count, not texts: pieces go to blocks, and blocks to stages.
            stage_entries: list[StageEntry] = []
            if self.for_training:
                num_blocks = write_packs(section, tables, work)
                stage_entries = plan_stages(section, tables, num_blocks)
                write_blocks(work, _blocks_table(stage.seed, frame, tables, stage_entries))
            # What was used is written down: filings, evaluation sets, documents, figures.
            _complete_filing_lists(section, work)
            for split, documents in evaluation.items():
                write_documents(work / f"{split}.jsonl", documents)
            _write_document_list(work / "documents.csv", section, texts, index, tables, evaluation)
            damaged = {n: found.damaged for n, found in texts_by_source.items() if found.damaged}
            summary = summarize(
                section, index, tables, stage_entries, evaluation, counts, frame, damaged
            )
            write_report(work / "report.md", summary)
            # Cleaned texts only serve to go on after an interruption.
            stage.finish(summary.to_json(), drop=(_TEXTS,))
        return summary

    def _find_frame(self, tokenizer: TextTokenizer) -> Frame:
        separator = find_separator(self.section.end_of_document, tokenizer)
        return Frame(separator, tokenizer.start_or(separator))

    def _refuse_unreadable(self, tokenizer: TextTokenizer) -> None:
        """
        Raises:
            DataError: the tokenizer lacks what a source needs: tokens of fill-in-the-middle, or a
                chat template.
        """
        sources = self.section.sources.values()
        if self.for_training and any(source.fim for source in sources):
            find_fim_tokens(self.section.fim, tokenizer.vocabulary)
        if any(source.messages_field for source in sources):
            open_conversations(self.tokenizer_folder)

    def _read_sources(self, texts: Path) -> dict[str, SourceTexts]:
        """Cleaned texts of every source, in shards."""
        texts_by_source: dict[str, SourceTexts] = {}
        for number, (name, source) in enumerate(self.section.sources.items()):
            if source.edgar is not None:
                pinned = pin_filings(source.edgar, _filing_list(texts.parent, name))
                source = replace_values(source, edgar=pinned)
                say_what_is_fetched(name, find_filings(pinned))
            found = texts_by_source[name] = write_texts(
                number,
                name,
                source,
                self.section.cleaning,
                seed=self.stage.seed,
                folder=texts,
                tokenizer=self.tokenizer_folder,
                workers=self.workers,
                parent=self.section.sources.get(source.written_from or ""),
            )
            _refuse_no_targets(name, source, found)
            num_read = found.counts.get("read", 0)
            self.say(f"  {name}: {_num_kept(found.counts):,} documents of {num_read:,}")
        return texts_by_source

    def _find_overlap(
        self, evaluation: EvaluationSets, other_evaluations: list[str], texts: Path
    ) -> Overlap | None:
        """What training text must not share with evaluation texts; None where it may."""
        cleaning = self.section.cleaning
        if cleaning.decontamination_ngram is None:
            return None
        own_texts = [item.document.text for items in evaluation.values() for item in items]
        write_known_runs(texts, own_texts + other_evaluations, cleaning.decontamination_ngram)
        return Overlap(
            texts,
            cleaning.decontamination_ngram,
            cleaning.max_overlap_fraction,
            cleaning.max_contained_fraction,
        )

    def _tokenize(
        self,
        tokenizer: TextTokenizer,
        frame: Frame,
        texts: Path,
        index: TextIndex,
        usable: NDArray[np.bool_],
        overlap: Overlap | None,
        work: Path,
    ) -> dict[str, TokenTable]:
        """Domain sources first: they say how much general text the share of replay needs."""
        section = self.section
        tables: dict[str, TokenTable] = {}
        needed_tokens = tokens_by_source(section)
        domain_tokens = 0.0
        in_order = sorted(section.sources.items(), key=lambda item: item[1].role != "domain")
        numbers = {name: number for number, name in enumerate(section.sources)}
        for name, source in in_order:
            split_rule = source.split.get("train")
            limits = [split_rule.max_tokens if split_rule else None, needed_tokens[name]]
            if source.role == "general" and not section.stages:
                limits.append(_replay_tokens(section, domain_tokens))
            encoder = Encoder(self.tokenizer_folder, self.stage.seed, start=frame.start)
            if source.fim:
                fim_ids = find_fim_tokens(section.fim, tokenizer.vocabulary)
                encoder = Encoder(
                    self.tokenizer_folder, self.stage.seed, section.fim, fim_ids, frame.start
                )
            training_split = usable & (index.source == numbers[name]) & (index.split == 0)
            table = tables[name] = tokenize(
                texts,
                index,
                np.flatnonzero(training_split),
                min((limit for limit in limits if limit is not None), default=None),
                encoder=encoder,
                frame=frame,
                vocabulary=len(tokenizer),
                overlap=overlap,
                folder=work / "tokens",
                workers=self.workers,
            )
            if source.role == "domain":
                domain_tokens += table.num_targets * (source.weight or 1.0)
        return {name: tables[name] for name in section.sources}


def _replay_tokens(section: DataSection, domain_tokens: float) -> int:
    """Tokens of general text that the share of replay needs."""
    fraction = section.replay_fraction
    if fraction <= 0:
        return 0
    # A little more, since whole blocks are taken from it.
    return int(domain_tokens * fraction / (1.0 - fraction) + 2 * section.sequence_length)


def _refuse_no_targets(name: str, source: SourceSection, found: SourceTexts) -> None:
    """
    Raises:
        DataError: all conversations of a source are damaged.
    """
    num_damaged = found.counts.get("damaged", 0)
    if source.messages_field and num_damaged and not found.counts.get("read"):
        raise DataError(
            f"data.sources.{name}: none of its {num_damaged:,} conversations has anything to "
            f"learn, such as {found.damaged[0]}"
        )


def _num_kept(counts: dict[str, int]) -> int:
    num_left_out = sum(counts.get(reason, 0) for reason in ("short", "long", "repetitive"))
    return counts.get("read", 0) - num_left_out


def _drop_duplicates(
    section: DataSection, index: TextIndex, counts: list[Counter[str]]
) -> NDArray[np.bool_]:
    """Of equal or nearly equal documents one stays, where its own draw sends it: the first, but
    what is for evaluation alone before the others (`split_ranks`).

    Args:
        section: how strict to be.
        index: all documents; of equal ones that all stay, the split may change.
        counts: what became of the documents of each source; gains those that are left out.

    Returns:
        Which documents stay, `[D]`.
    """
    usable = index.split >= 0
    reasons = [("in no split", ~usable)]
    rank = split_ranks(index.open_to)
    if section.cleaning.drop_exact_duplicates:
        # Documents in no split must not push others out.
        is_repeated = np.zeros(len(usable), dtype=np.bool_)
        is_repeated[usable] = drop_exact(index.exact[usable], rank[usable])
        reasons.append(("repeated", is_repeated))
        usable = usable & ~is_repeated
    else:
        stays_with_group = [source.group_together for source in section.sources.values()]
        can_move = ~np.array(stays_with_group, np.bool_)[index.source]
        keep_copies_together(index.exact, index.split, index.open_to, can_move, usable)
    threshold = section.cleaning.near_duplicate_similarity
    if threshold is not None and index.signature.shape[1]:
        is_near = drop_near(index.signature, rank, threshold, usable)
        reasons.append(("nearly repeated", is_near))
        usable = usable & ~is_near
    for reason, left_out in reasons:
        for number, counter in enumerate(counts):
            of_source = left_out & (index.source == number)
            if of_source.any():
                _count_documents(counter, reason, index, of_source)
    return usable


def _count_documents(
    counter: Counter[str], reason: str, index: TextIndex, documents: NDArray[np.bool_]
) -> None:
    counter[reason] += int(documents.sum())
    counter[f"{reason}, bytes"] += int(index.num_bytes[documents].sum())


def _count_overlaps(index: TextIndex, tables: dict[str, TokenTable], counts: SourceCounts) -> None:
    for name, table in tables.items():
        counts[name]["overlaps evaluation"] = len(table.overlapping)
        num_bytes = int(index.num_bytes[table.overlapping].sum())
        counts[name]["overlaps evaluation, bytes"] = num_bytes


def _count_unused(
    index: TextIndex,
    usable: NDArray[np.bool_],
    tables: dict[str, TokenTable],
    evaluation: EvaluationSets,
    counts: SourceCounts,
) -> None:
    """Documents that nothing is wrong with, beyond what the recipe asks for."""
    is_unused = usable.copy()
    for table in tables.values():
        is_unused[table.index] = is_unused[table.overlapping] = False
    for items in evaluation.values():
        is_unused[[item.number for item in items]] = False
    for number, counter in enumerate(counts.values()):
        counter["not needed"] = counter["not needed, bytes"] = 0
        _count_documents(counter, "not needed", index, is_unused & (index.source == number))


def _refuse_empty(
    section: DataSection,
    tables: dict[str, TokenTable] | None,
    evaluation: EvaluationSets,
    counts: SourceCounts,
) -> None:
    """
    Args:
        section: the sources.
        tables: training tokens by source; None where nothing is trained.
        evaluation: documents of the evaluation splits.
        counts: what became of the documents of each source.

    Raises:
        DataError: there is nothing to train on, or nothing of a role to evaluate on.
    """
    sizes: dict[str, int] = {}
    if tables is not None:
        sizes["training documents of the domain"] = sum(
            len(tables[name].index) for name, s in section.sources.items() if s.role == "domain"
        )
    for split, items in evaluation.items():
        for role in section.roles:
            sizes[f"{split} documents of role {role}"] = sum(item.role == role for item in items)
    missing = [name for name, size in sizes.items() if size == 0]
    if missing:
        counts_text = "; ".join(
            f"{name}: "
            + ", ".join(f"{key} {count}" for key, count in c.items() if not key.endswith("bytes"))
            for name, c in counts.items()
        )
        raise DataError(
            f"data: there are no {', no '.join(missing)}. Documents by source: {counts_text}. "
            "Check the sources' files, their `split`, and data.cleaning (min_words is "
            f"{section.cleaning.min_words})."
        )


def _blocks_table(
    seed: int, frame: Frame, tables: dict[str, TokenTable], stages: list[StageEntry]
) -> BlocksTable:
    largest_token = max((table.largest for table in tables.values()), default=0)
    return BlocksTable(
        seed=seed,
        separator=frame.separator,
        largest_token=max(largest_token, frame.separator, frame.start),
        sources={
            name: SourceEntry(table.files, table.has_targets) for name, table in tables.items()
        },
        stages=stages,
    )


def _filing_list(work: Path, name: str) -> Path:
    return work / "filings" / f"{name}.jsonl"


def _complete_filing_lists(section: DataSection, work: Path) -> None:
    """Give the lists that the sources were read by the hashes of what was read."""
    for name, source in section.sources.items():
        if source.edgar is not None:
            path = _filing_list(work, name)
            write_filing_list(path, [fetch_filing(f, source.edgar) for f in read_filing_list(path)])


def _write_document_list(
    path: Path,
    section: DataSection,
    texts: Path,
    index: TextIndex,
    tables: dict[str, TokenTable],
    evaluation: EvaluationSets,
) -> None:
    """Every document that is used, one per line: where it stands, how large it is."""
    with write_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "role", "group", "split", "tokens", "bytes"])
        for number, (name, table) in enumerate(tables.items()):
            source_role = section.sources[name].role
            num_tokens = dict(zip(table.index.tolist(), table.num_tokens.tolist(), strict=True))
            shards = index.shard[table.index]
            # Shard by shard, so that each file is opened once.
            for shard in np.unique(shards).tolist():
                members = table.index[shards == shard]
                member_names = read_names(texts, number, shard, index.row[members])
                for place, (identity, group) in zip(members.tolist(), member_names, strict=True):
                    row = [identity, source_role, group, "train", num_tokens[place]]
                    writer.writerow([*row, int(index.num_bytes[place])])
        for split, items in evaluation.items():
            for item in items:
                document = item.document
                row = [document.id, item.role, document.group, split, item.num_tokens]
                writer.writerow([*row, len(document.text.encode())])
