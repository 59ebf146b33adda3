"""Merge configurations as model cards on the hub give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def card(text: str, folder: Path, dtype: str) -> dict[str, Any]:
    names = {"A": str(folder / "a"), "B": str(folder / "b"), "BASE": str(folder / "base")}

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: fill(value) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(value) for value in node]
        return names.get(node, node) if isinstance(node, str) else node

    return {**fill(yaml.safe_load(text)), "dtype": dtype}
