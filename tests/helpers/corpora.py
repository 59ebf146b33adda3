"""Small corpora, and the data stage run on them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.conftest import paragraph
from toolkit.data.config import DataSection
from toolkit.data.run import run_data
from toolkit.stage import Stage, read_manifest


def write_corpus(folder: Path, count: int = 60) -> None:
    for name in ("domain", "general"):
        rows = []
        for number in range(count):
            chance = random.Random(f"{name}{number}")  # noqa: S311
            words = [f"{name[0]}{chance.randrange(3000)}" for _ in range(60)]
            rows.append(json.dumps({"text": f"{paragraph(number, 2)} {' '.join(words)}"}))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")


def section(folder: Path, **changes: Any) -> DataSection:
    split = {n: {"fraction": s} for n, s in (("train", 0.6), ("validation", 0.2), ("test", 0.2))}
    values: dict[str, Any] = {
        "sequence_length": 64,
        "sources": {
            "docs": {"role": "domain", "files": [f"{folder}/domain.jsonl"], "split": split},
            "web": {"role": "general", "files": [f"{folder}/general.jsonl"], "split": split},
        },
        "cleaning": {"max_overlap_fraction": 0.9},
    }
    return DataSection.model_validate({**values, **changes})


def run(data: DataSection, folder: Path, tokenizer: Path) -> dict[str, Any]:
    run_data(data, Stage(folder, {"x": 1}, {}, 5), tokenizer, lambda _: None)
    return dict(read_manifest(folder)["results"])
