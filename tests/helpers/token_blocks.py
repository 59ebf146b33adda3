"""Blocks out of lists of token ids, for tests that need no documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from toolkit.data.blocks import Blocks, write_blocks, write_pack
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
    table: dict[str, object] = {"seed": seed, "separator": 0, "largest_token": 0}
    shards, entries = {}, []
    for name, documents in sources.items():
        flat = [0]
        for document in documents:
            flat += [*document, 0]
        np.save(folder / f"tokens/{name}.npy", np.array(flat, dtype=np.uint16))
        shards[name] = {"shards": [(f"tokens/{name}.npy", len(flat))], "has_targets": False}
        table["largest_token"] = max(int(max(flat)), int(str(table["largest_token"])))
    for stage, length in stages or (("train", block_tokens),):
        rows = []
        for name, documents in sources.items():
            sizes = np.array([len(document) + 1 for document in documents], dtype=np.int64)
            packed = pack(sizes, length, method)
            write_pack(folder, f"packs/{name}-{length}", packed, np.cumsum(sizes) - sizes)
            rows.append(
                {
                    "source": name,
                    "pack": f"packs/{name}-{length}",
                    "num_blocks": len(packed),
                    "num_targets": int(sizes.sum()),
                    "count": (counts or {}).get(name, len(packed)),
                }
            )
        entries.append({"name": stage, "sequence_length": length, "shares": rows})
    write_blocks(folder, {**table, "sources": shards, "stages": entries})
    return Blocks.open(folder, epochs)
