"""Which packs of blocks every stage of training reads, and how much of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from toolkit.data.blocks import ShareEntry, StageEntry, write_pack
from toolkit.data.config import DataSection
from toolkit.data.mixture import plain_counts, stage_counts
from toolkit.data.packing import pack
from toolkit.data.tokens import TokenTable

BlockNumbers = dict[tuple[str, int], int]
"""Number of blocks by source and by length in tokens."""


def write_packs(section: DataSection, tables: dict[str, TokenTable], work: Path) -> BlockNumbers:
    """Pack every source at every length that a stage uses."""
    num_blocks: BlockNumbers = {}
    lengths = {stage.sequence_length or section.sequence_length for stage in section.stages}
    for length in sorted(lengths or {section.sequence_length}):
        for number, (name, table) in enumerate(tables.items()):
            file_starts = np.cumsum([0, *(size for _, size in table.files)])
            packed = pack(table.num_tokens + 1, length, section.packing)
            document_starts = file_starts[table.file] + table.start
            write_pack(work, _pack_name(number, length), packed, document_starts)
            num_blocks[name, length] = len(packed)
    return num_blocks


def _pack_name(source_number: int, length: int) -> str:
    return f"packs/{source_number:02d}-{length}"


def plan_stages(
    section: DataSection, tables: dict[str, TokenTable], num_blocks: BlockNumbers
) -> list[StageEntry]:
    """How many blocks of each source every stage takes.

    Raises:
        DataError: a source would have to be repeated too often.
    """
    num_targets = {name: table.num_targets for name, table in tables.items()}
    source_numbers = {name: number for number, name in enumerate(tables)}

    def entry(name: str, length: int, counts: dict[str, int]) -> StageEntry:
        shares = [
            ShareEntry(
                source=source,
                pack=_pack_name(source_numbers[source], length),
                num_blocks=num_blocks[source, length],
                num_targets=num_targets[source],
                count=count,
            )
            for source, count in counts.items()
        ]
        return StageEntry(name, length, shares)

    def blocks_at(length: int) -> dict[str, int]:
        return {name: num_blocks[name, length] for name in tables}

    if not section.stages:
        length = section.sequence_length
        return [entry("train", length, plain_counts(section, blocks_at(length), num_targets))]
    entries = []
    for number, stage in enumerate(section.stages):
        length = stage.sequence_length or section.sequence_length
        counts = stage_counts(section, number, blocks_at(length), num_targets)
        entries.append(entry(stage.name, length, counts))
    return entries
