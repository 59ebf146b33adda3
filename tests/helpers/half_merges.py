"""Half of one model and half of another, merged to disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toolkit.merge.config import parse_merge_config
from toolkit.merge.to_disk import run_merge

Models = tuple[Path, Path]


def half(*folders: Path | str, **more: Any) -> dict[str, Any]:
    models = [{"model": str(f), "parameters": {"weight": 0.5}} for f in folders]
    return {"merge_method": "linear", "models": models, **more}


def merge(data: dict[str, Any], out: Path, **options: Any) -> dict[str, Any]:
    """Run a merge and read the config that it wrote."""
    run_merge(parse_merge_config(data, where="test"), out, **options)
    values: dict[str, Any] = json.loads((out / "config.json").read_text())
    return values
