"""Blocks out of lists of token ids, for tests that need no documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from toolkit.data.blocks import (
    Blocks,
    BlocksTable,
    ShareEntry,
    SourceEntry,
    StageEntry,
    write_blocks,
    write_pack,
)
from toolkit.data.packing import pack


def make_blocks(
    folder: Path,
    sources: dict[str, Sequence[Sequence[int]]],
    block_tokens: int = 32,
    *,
    seed: int = 7,
    counts: dict[str, int] | None = None,
    method: str = "best_fit",
    stages: Sequence[tuple[str, int]] = (),
    epochs: int = 1,
) -> Blocks:
    """Write and open blocks; each source is one shard, 0 the separator."""
    (folder / "tokens").mkdir(parents=True, exist_ok=True)
    (folder / "packs").mkdir(exist_ok=True)
    entries: dict[str, SourceEntry] = {}
    for name, documents in sources.items():
        flat = [0]
        for document in documents:
            flat += [*document, 0]
        np.save(folder / f"tokens/{name}.npy", np.array(flat, dtype=np.uint16))
        entries[name] = SourceEntry([(f"tokens/{name}.npy", len(flat))], has_targets=False)
    stage_entries = []
    for stage, length in stages or (("train", block_tokens),):
        shares = []
        for name, documents in sources.items():
            sizes = np.array([len(document) + 1 for document in documents], dtype=np.int64)
            packed = pack(sizes, length, method)
            pack_name = f"packs/{name}-{length}"
            write_pack(folder, pack_name, packed, np.cumsum(sizes) - sizes)
            count = (counts or {}).get(name, len(packed))
            shares.append(ShareEntry(name, pack_name, len(packed), int(sizes.sum()), count))
        stage_entries.append(StageEntry(stage, length, shares))
    every_document = (document for documents in sources.values() for document in documents)
    largest = max((token for document in every_document for token in document), default=0)
    write_blocks(folder, BlocksTable(seed, 0, int(largest), entries, stage_entries))
    return Blocks.open(folder, epochs)
