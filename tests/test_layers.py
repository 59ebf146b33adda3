"""The import table is the architecture: data flows one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "toolkit"
COMMON = {"errors", "config", "manifest", "file_hashes", "plain", "progress"}
COMMON |= {"machine", "statistics", "limits", "library_errors", "bounded", "tokenizer_files"}
COMMON |= {"model_values", "leftovers", "json_lines"}
MAY_IMPORT = {
    "errors": set(),
    "limits": {"errors"},
    "library_errors": {"errors"},
    "streams": set(),
    "model_values": {"errors", "plain"},
    "bounded": {"errors", "limits", "library_errors"},
    "plain": {"errors", "limits"},
    "tokenizer_files": {"errors", "limits", "library_errors", "bounded", "plain"},
    "json_lines": {"errors", "plain"},
    "config": {"errors", "plain", "limits"},
    "leftovers": set(),
    "file_hashes": {"machine", "leftovers"},
    "manifest": {"errors", "config", "file_hashes", "plain", "leftovers"},
    "progress": set(),
    "machine": {"errors", "progress", "library_errors", "leftovers"},
    "statistics": {"errors"},
    "checkpoint": COMMON,
    "data": COMMON,
    "train": COMMON | {"checkpoint", "data", "model_config"},
    "merge": COMMON | {"checkpoint"},
    "adapter": COMMON | {"checkpoint", "merge"},
    "evaluate": COMMON | {"checkpoint", "data", "generate"},
    "generate": COMMON | {"checkpoint", "merge"},
    "search": COMMON | {"merge", "evaluate"},
    "select": COMMON | {"evaluate", "search"},
    "model_config": COMMON | {"data"},
    "plan": COMMON | {"model_config", "data", "train", "checkpoint", "evaluate"},
    "report": COMMON,
    "study": COMMON | {"evaluate"},
    "publish": COMMON | {"checkpoint"},
}
"""recipe, stages, entry and cli sit on top and may import everything."""

ON_TOP = {
    "__init__",
    "__main__",
    "recipe",
    "recipe_checks",
    "recipe_layers",
    "stages",
    "entry",
    "cli",
}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toolkit."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("toolkit."))


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_folder_has_a_place_in_the_table():
    assert {layer_of(path) for path in FILES} == set(MAY_IMPORT) | ON_TOP


def test_what_is_imported_exists():
    """Modules that are imported inside functions too, which no import of the package would miss."""
    missing = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.module if isinstance(node, ast.ImportFrom) else None
            if name is not None and name.startswith("toolkit."):
                place = PACKAGE.parent / name.replace(".", "/")
                if not place.is_dir() and not place.with_suffix(".py").is_file():
                    missing.append(f"{path}: {name}")
    assert not missing


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path):
    layer = layer_of(path)
    if layer in ON_TOP:
        return
    forbidden = set(imports(path)) - MAY_IMPORT[layer] - {layer}
    assert not forbidden, f"{path}: {layer} must not import {forbidden}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.name in {"config.py", "cli.py", "model_config.py"}], ids=str
)
def test_configuration_is_read_without_torch(path: Path):
    top = ast.parse(path.read_text(encoding="utf-8")).body
    names = {
        alias.name.split(".")[0]
        for node in top
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
    assert not names & {"torch", "transformers", "accelerate", "numba", "mergekit", "datasets"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_files_stay_small(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
