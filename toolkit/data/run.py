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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.blocks import write_blocks, write_pack
from toolkit.data.config import DataSection, SourceSection
from toolkit.data.duplicates import drop_exact, drop_near
from toolkit.data.edgar import (
    fetch_filing,
    find_filings,
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
    EvaluationDocument,
    choose_evaluation,
    read_other_evaluations,
    write_documents,
)
from toolkit.data.files import local_bytes
from toolkit.data.mixture import plain_counts, stage_counts, wanted_tokens
from toolkit.data.overlap import Overlap, write_known_runs
from toolkit.data.packing import pack
from toolkit.data.split import split_ranks
from toolkit.data.summary import describe, summarize, write_report
from toolkit.data.texts import SHARD_BYTES, TextIndex, load_index, read_names, write_texts
from toolkit.data.tokens import TokenTable, tokenize
from toolkit.data.workers import WorkerProcesses
from toolkit.errors import DataError
from toolkit.stage import Stage, write_atomically

Say = Callable[[str], None]
_TEXTS = "texts"


def run_data(section: DataSection, stage: Stage, tokenizer_folder: Path, say: Say) -> None:
    """Read, clean, split, tokenize and pack every source of the recipe.

    Raises:
        DataError: a split that is needed has no documents, or replay text runs out.
    """
    with WorkerProcesses() as workers:
        if any(local_bytes(source) > 4 * SHARD_BYTES for source in section.sources.values()):
            workers.start()
        _run(section, stage, tokenizer_folder, workers, say)


def _run(
    section: DataSection, stage: Stage, tokenizer_folder: Path, workers: WorkerProcesses, say: Say
) -> None:
    tokenizer = TextTokenizer(tokenizer_folder)
    separator = find_separator(section.end_of_document, tokenizer)
    start = tokenizer.start_or(separator)
    # What can be wrong with the recipe is found before hours of reading.
    others = read_other_evaluations(section.cleaning.decontaminate_files)
    if any(source.fim for source in section.sources.values()):
        find_fim_tokens(section.fim, tokenizer.vocabulary)
    if any(source.messages_field for source in section.sources.values()):
        open_conversations(tokenizer_folder)
    with stage.running() as work:
        for folder in (_TEXTS, "tokens", "packs"):
            (work / folder).mkdir(exist_ok=True)
        texts = work / _TEXTS
        read: dict[str, dict[str, Any]] = {}
        for number, (name, source) in enumerate(section.sources.items()):
            if source.edgar is not None:
                say_what_is_fetched(name, find_filings(source.edgar))
            read[name] = write_texts(
                number,
                name,
                source,
                section.cleaning,
                seed=stage.seed,
                folder=texts,
                tokenizer=tokenizer_folder,
                workers=workers,
            )
            _refuse_no_targets(name, source, read[name])
            say(f"  {name}: {_kept(read[name]['counts']):,} documents of "
                f"{read[name]['counts'].get('read', 0):,}")  # fmt: skip
        counts = {name: Counter(entry["counts"]) for name, entry in read.items()}
        index = load_index(texts, [entry["shards"] for entry in read.values()])
        workers.prepare(open_tokenizer, tokenizer_folder)
        usable = _without_duplicates(section, index, list(counts.values()))
        chosen = choose_evaluation(section, texts, index, usable, tokenizer)

        overlap = _overlap(section, chosen, others, texts)
        tables = _tokenize_all(
            section, stage.seed, tokenizer_folder, tokenizer, (separator, start),
            texts, index, usable, overlap, work / "tokens", workers,
        )  # fmt: skip
        for name, table in tables.items():
            counts[name]["overlaps evaluation"] = len(table.overlapping)
            counts[name]["overlaps evaluation, bytes"] = int(
                index.num_bytes[table.overlapping].sum()
            )
        _count_unused(index, usable, tables, chosen, counts)
        _check(section, tables, chosen, counts)

        blocks = _write_packs(section, tables, work)
        stages = _stages(section, tables, blocks)
        largest = max((table.largest for table in tables.values()), default=0)
        write_blocks(
            work,
            {
                "seed": stage.seed,
                "separator": separator,
                "largest_token": max(largest, separator, start),
                "sources": {
                    name: {"shards": table.files, "has_targets": table.has_targets}
                    for name, table in tables.items()
                },
                "stages": stages,
            },
        )
        for name, source in section.sources.items():
            if source.edgar is not None:
                listed = [fetch_filing(f, source.edgar) for f in find_filings(source.edgar)]
                write_filing_list(work / "filings" / f"{name}.jsonl", listed)
        for split, items in chosen.items():
            write_documents(work / f"{split}.jsonl", items)
        _write_table(work / "documents.csv", section, texts, index, tables, chosen)
        results = summarize(section, index, tables, stages, chosen, counts)
        results["separator_token_id"] = separator
        results["damaged"] = {n: entry["damaged"] for n, entry in read.items() if entry["damaged"]}
        write_report(work / "report.md", results)
        stage.finish(results, drop=(_TEXTS,))
    say(describe(results))


def _refuse_no_targets(name: str, source: SourceSection, read: dict[str, Any]) -> None:
    """
    Raises:
        DataError: all conversations of a source are damaged.
    """
    damaged = read["counts"].get("damaged", 0)
    if source.messages_field and damaged and not read["counts"].get("read"):
        raise DataError(
            f"data.sources.{name}: none of its {damaged:,} conversations has anything to learn, "
            f"such as {read['damaged'][0]}"
        )


def _kept(counts: dict[str, int]) -> int:
    out = sum(counts.get(reason, 0) for reason in ("short", "long", "repetitive"))
    return counts.get("read", 0) - out


def _without_duplicates(
    section: DataSection, index: TextIndex, counts: list[Counter[str]]
) -> NDArray[np.bool_]:
    """Of equal or nearly equal documents one stays, where its own draw sends it: the first, but
    what is for evaluation alone before the others (`split_ranks`)."""
    usable = index.split >= 0
    reasons = [("in no split", ~usable)]
    rank = split_ranks(index.open_to)
    if section.cleaning.drop_exact_duplicates:
        # Documents in no split must not push others out.
        repeated = np.zeros(len(usable), dtype=np.bool_)
        repeated[usable] = drop_exact(index.exact[usable], rank[usable])
        reasons.append(("repeated", repeated))
        usable = usable & ~repeated
    else:
        _keep_copies_together(section, index, usable)
    threshold = section.cleaning.near_duplicate_similarity
    if threshold is not None and index.signature.shape[1]:
        near = drop_near(index.signature, rank, threshold, usable)
        reasons.append(("nearly repeated", near))
        usable = usable & ~near
    for reason, which in reasons:
        for number, counter in enumerate(counts):
            here = which & (index.source == number)
            if here.any():
                counter[reason] += int(here.sum())
                counter[f"{reason}, bytes"] += int(index.num_bytes[here].sum())
    return usable


def _keep_copies_together(
    section: DataSection, index: TextIndex, usable: NDArray[np.bool_]
) -> None:
    """Equal documents that all stay go to one split, where their groups are open to it."""
    together = [source.group_together for source in section.sources.values()]
    is_free = ~np.array(together, np.bool_)[index.source]
    rows = np.flatnonzero(usable)
    if not len(rows):
        return
    # Documents that stay with their group decide before those that can move.
    rank = split_ranks(index.open_to[rows])
    order = np.lexsort((rows, is_free[rows], rank, *index.exact[rows].T))
    rows = rows[order]
    begins = np.r_[True, (index.exact[rows[1:]] != index.exact[rows[:-1]]).any(axis=1)]
    split = index.split[rows[begins]][np.cumsum(begins) - 1]
    moves = is_free[rows] & (index.open_to[rows] >> split & 1).astype(np.bool_)
    index.split[rows[moves]] = split[moves]


def _count_unused(
    index: TextIndex,
    usable: NDArray[np.bool_],
    tables: dict[str, TokenTable],
    chosen: dict[Any, list[EvaluationDocument]],
    counts: dict[str, Counter[str]],
) -> None:
    """Documents that nothing is wrong with, beyond what the recipe asks for."""
    unused = usable.copy()
    for table in tables.values():
        unused[table.index] = unused[table.overlapping] = False
    for items in chosen.values():
        unused[[item.number for item in items]] = False
    for number, counter in enumerate(counts.values()):
        here = unused & (index.source == number)
        counter["not needed"] = int(here.sum())
        counter["not needed, bytes"] = int(index.num_bytes[here].sum())


def _overlap(
    section: DataSection,
    chosen: dict[Any, list[EvaluationDocument]],
    others: list[str],
    texts: Path,
) -> Overlap | None:
    cleaning = section.cleaning
    if cleaning.decontamination_ngram is None:
        return None
    known = [item.document.text for items in chosen.values() for item in items]
    write_known_runs(texts, known + others, cleaning.decontamination_ngram)
    return Overlap(
        texts,
        cleaning.decontamination_ngram,
        cleaning.max_overlap_fraction,
        cleaning.max_contained_fraction,
    )


def _tokenize_all(
    section: DataSection,
    seed: int,
    tokenizer_folder: Path,
    tokenizer: TextTokenizer,
    frame: tuple[int, int],
    texts: Path,
    index: TextIndex,
    usable: NDArray[np.bool_],
    overlap: Overlap | None,
    folder: Path,
    workers: WorkerProcesses,
) -> dict[str, TokenTable]:
    """Domain sources first: they say how much general text the share of replay needs."""
    tables: dict[str, TokenTable] = {}
    wanted = wanted_tokens(section)
    domain_tokens = 0.0
    for role in ("domain", "general"):
        for number, (name, source) in enumerate(section.sources.items()):
            if source.role != role:
                continue
            rule = source.split.get("train")
            limits = [rule.max_tokens if rule else None, wanted[name]]
            if role == "general" and not section.stages:
                share = section.replay_fraction
                # A little more, since whole blocks are taken from it.
                need = domain_tokens * share / (1.0 - share) + 2 * section.sequence_length
                limits.append(int(need) if share > 0 else 0)
            encoder = Encoder(tokenizer_folder, seed, start=frame[1])
            if source.fim:
                ids = find_fim_tokens(section.fim, tokenizer.vocabulary)
                encoder = Encoder(tokenizer_folder, seed, section.fim, ids, frame[1])
            pool = np.flatnonzero(usable & (index.source == number) & (index.split == 0))
            tables[name] = tokenize(
                texts,
                index,
                pool,
                min((limit for limit in limits if limit is not None), default=None),
                encoder=encoder,
                separator=frame[0], start=frame[1],
                vocabulary=len(tokenizer),
                overlap=overlap,
                folder=folder,
                workers=workers,
            )  # fmt: skip
            if role == "domain":
                tokens = int(tables[name].num_tokens.sum()) + len(tables[name].num_tokens)
                domain_tokens += tokens * (source.weight or 1.0)
    return {name: tables[name] for name in section.sources}


def _check(
    section: DataSection,
    tables: dict[str, TokenTable],
    chosen: dict[Any, list[EvaluationDocument]],
    counts: dict[str, Counter[str]],
) -> None:
    trained = sum(len(tables[n].index) for n, s in section.sources.items() if s.role == "domain")
    sizes = {"training documents of the domain": trained}
    for split, items in chosen.items():
        for role in ("domain", "general"):
            sizes[f"{split} documents of role {role}"] = sum(i.role == role for i in items)
    missing = [name for name, count in sizes.items() if count == 0]
    if missing:
        found = "; ".join(
            f"{name}: " + ", ".join(f"{k} {v}" for k, v in c.items() if not k.endswith("bytes"))
            for name, c in counts.items()
        )
        raise DataError(
            f"data: there are no {', no '.join(missing)}. Documents by source: {found}. "
            "Check the sources' files, their `split`, and data.cleaning (min_words is "
            f"{section.cleaning.min_words})."
        )


def _write_packs(
    section: DataSection, tables: dict[str, TokenTable], work: Path
) -> dict[tuple[str, int], int]:
    """Pack every source at every length that a stage uses; returns the numbers of blocks."""
    blocks: dict[tuple[str, int], int] = {}
    lengths = [stage.sequence_length or section.sequence_length for stage in section.stages]
    for length in sorted({*(lengths or [section.sequence_length])}):
        for number, (name, table) in enumerate(tables.items()):
            bases = np.cumsum([0, *(size for _, size in table.files)])
            packed = pack(table.num_tokens + 1, length, section.packing)
            write_pack(work, _pack_name(number, length), packed, bases[table.file] + table.start)
            blocks[name, length] = len(packed)
    return blocks


def _pack_name(number: int, length: int) -> str:
    return f"packs/{number:02d}-{length}"


def _stages(
    section: DataSection, tables: dict[str, TokenTable], blocks: dict[tuple[str, int], int]
) -> list[dict[str, Any]]:
    targets = {name: int((table.num_tokens + 1).sum()) for name, table in tables.items()}
    numbers = {name: number for number, name in enumerate(tables)}

    def entry(name: str, length: int, counts: dict[str, int]) -> dict[str, Any]:
        shares = [
            {
                "source": source,
                "pack": _pack_name(numbers[source], length),
                "num_blocks": blocks[source, length],
                "num_targets": targets[source],
                "count": count,
            }
            for source, count in counts.items()
        ]
        return {"name": name, "sequence_length": length, "shares": shares}

    def at(length: int) -> dict[str, int]:
        return {name: blocks[name, length] for name in tables}

    if not section.stages:
        length = section.sequence_length
        return [entry("train", length, plain_counts(section, at(length), targets))]
    entries = []
    for number, stage in enumerate(section.stages):
        length = stage.sequence_length or section.sequence_length
        counts = stage_counts(section, number, at(length), targets)
        entries.append(entry(stage.name, length, counts))
    return entries


def _write_table(
    path: Path,
    section: DataSection,
    texts: Path,
    index: TextIndex,
    tables: dict[str, TokenTable],
    chosen: dict[Any, list[EvaluationDocument]],
) -> None:
    with write_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "role", "group", "split", "tokens", "bytes"])
        for number, (name, table) in enumerate(tables.items()):
            role = section.sources[name].role
            sizes = dict(zip(table.index.tolist(), table.num_tokens.tolist(), strict=True))
            shards = index.shard[table.index]
            for shard in np.unique(shards).tolist():
                members = table.index[shards == shard]
                names = read_names(texts, number, shard, index.row[members])
                for place, (identity, group) in zip(members.tolist(), names, strict=True):
                    row = [identity, role, group, "train", sizes[place]]
                    writer.writerow([*row, int(index.num_bytes[place])])
        for split, items in chosen.items():
            for item in items:
                document = item.document
                row = [document.id, item.role, document.group, split, item.num_tokens]
                writer.writerow([*row, len(document.text.encode())])
