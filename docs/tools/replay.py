"""Figures of `benchmarks/replay.py` for the guide: no texts, no ids, only bits per byte.

    python docs/tools/replay.py finance sweeps/finance.jsonl    # into docs/figures/replay.json
    python docs/tools/pictures.py                               # draws them

Changes are paired with the general model by document, as the sweep's own table has them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import replay as sweep  # noqa: E402  (benchmarks/replay.py)

FIGURES = ROOT / "docs" / "figures" / "replay.json"


def main() -> None:
    name, path = sys.argv[1], Path(sys.argv[2])
    rows = sweep.load_rows(path)
    start = next(row for row in rows if row["rate"] is None)
    cells = [cell_of(row, start) for row in rows if row["rate"] is not None]
    figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    figures[name] = {
        "validation_documents": {
            role: start["roles"].count(role) for role in ("domain", "general")
        },
        "domain_tokens": max(cell["domain_tokens"] for cell in cells),
        "general_model": {role: start[role] for role in ("domain", "general")},
        "cells": sorted(cells, key=lambda cell: (cell["replay"], cell["rate"])),
    }
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"{name}: {len(cells)} cells in {FIGURES.relative_to(ROOT)}")


def cell_of(row: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    cell = {key: row[key] for key in ("replay", "rate", "domain_tokens", "general_tokens")}
    cell |= {"num_steps": row["num_steps"]}
    for role in ("domain", "general"):
        cell[role] = row[role]
        cell[f"{role}_change"] = sweep.interval(row, role, start)
    return cell


if __name__ == "__main__":
    main()
