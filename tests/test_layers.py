"""The law of the house: what each room may import, and what no file may do.

Data flows through; each stage is one room. Each rule is one test that lists its offenders. A room
finds its place by asking which folder under `runs/` it helps to write; what helps to write none is
ground, tool or roof.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "toolkit"

GROUND = {
    "bounded",
    "errors",
    "file_hashes",
    "json_lines",
    "leftovers",
    "library_errors",
    "limits",
    "load_yaml",
    "machine",
    "progress",
    "section",
    "shipped",
    "stage",
    "statistics",
    "tokenizer_files",
}
"""Anyone may use it; it uses nobody above."""

PATH = {
    "data": GROUND,
    "checkpoint": GROUND,
    "train": GROUND | {"data", "checkpoint"},
    "merge": GROUND | {"checkpoint"},
    "adapter": GROUND | {"checkpoint", "merge"},
    "generate": GROUND | {"checkpoint"},
    "evaluate": GROUND | {"data", "checkpoint", "generate"},
    "knowledge": GROUND | {"data", "checkpoint", "generate", "evaluate"},
    "search": GROUND | {"merge", "evaluate"},
    "select": GROUND | {"evaluate", "search"},
    "report": GROUND | {"select"},
    "recipe": GROUND,  # and the config.py of any room: see `may_import`
}
"""The main path in the order of the data, and the recipe that speaks of all of it."""

BESIDE = {"publish", "plan", "diagnose", "study", "compare", "mixture_law"}
"""Each may use the pipeline and what is below it, and none of them another."""

MAY_IMPORT = {
    **dict.fromkeys(GROUND, GROUND),
    **PATH,
    "pipeline": GROUND | set(PATH),
    **dict.fromkeys(BESIDE, GROUND | set(PATH) | {"pipeline"}),
    "cli": GROUND | set(PATH) | {"pipeline"} | BESIDE,
    "__init__": GROUND | set(PATH) | {"pipeline"} | BESIDE,
    "__main__": {"cli"},
}


@dataclass(frozen=True)
class Import:
    """One name that a file imports from the package."""

    file: str
    module: str
    name: str

    @property
    def room(self) -> str:
        return self.module.split(".")[1]


@cache
def sources() -> dict[str, ast.Module]:
    """Every file of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def room_of(file: str) -> str:
    return file.split(".")[1]


def module_file(module: str) -> str | None:
    """The file that a dotted name is: a module's own, or a package's `__init__`."""
    if module in sources():
        return module
    return f"{module}.__init__" if f"{module}.__init__" in sources() else None


@cache
def imports() -> tuple[Import, ...]:
    """All imports of the package by itself, those within functions and for types alone too."""
    found = []
    for file, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toolkit"):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    if module_file(whole) is not None:  # a module, not a name of one
                        found.append(Import(file, whole, ""))
                    elif node.module != "toolkit":  # else `__version__`
                        found.append(Import(file, str(node.module), alias.name))
            elif isinstance(node, ast.Import):
                found += [
                    Import(file, alias.name, "")
                    for alias in node.names
                    if alias.name.startswith("toolkit.")
                ]
    return tuple(found)


def may_import(item: Import) -> bool:
    room = room_of(item.file)
    if item.room == room or item.room in MAY_IMPORT.get(room, set()):
        return True
    return room == "recipe" and item.module.split(".")[2:] == ["config"]


def cycles() -> list[list[str]]:
    """Circles of files: groups in which each leads to every other (Tarjan 1972)."""
    graph: dict[str, set[str]] = defaultdict(set)
    for item in imports():
        target = module_file(item.module)
        if target is not None and target != item.file:
            graph[item.file].add(target)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(file: str) -> None:
        index[file] = low[file] = len(index)
        stack.append(file)
        for other in sorted(graph[file]):
            if other not in index:
                visit(other)
                low[file] = min(low[file], low[other])
            elif other in stack:
                low[file] = min(low[file], index[other])
        if low[file] == index[file]:
            group = stack[stack.index(file) :]
            del stack[stack.index(file) :]
            if len(group) > 1:
                found.append(sorted(group))

    for file in sorted(sources()):
        if file not in index:
            visit(file)
    return sorted(found)


def rule_rooms() -> list[str]:
    return [f"{room}: has no place" for room in {room_of(f) for f in sources()} - set(MAY_IMPORT)]


def rule_imports() -> list[str]:
    return [f"{i.file} imports {i.module}" for i in imports() if not may_import(i)]


def rule_circles() -> list[str]:
    return [f"circle: {' <-> '.join(group)}" for group in cycles()]


def rule_typer() -> list[str]:
    return [
        f"{file} imports typer"
        for file, tree in sources().items()
        if room_of(file) != "cli"
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(a.name == "typer" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "typer")
    ]


def rule_classes() -> list[str]:
    places: dict[str, list[str]] = defaultdict(list)
    for file, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(file)
    return [
        f"class {name}: in {', '.join(sorted(files))}"
        for name, files in places.items()
        if len(files) > 1
    ]


def rule_underscores() -> list[str]:
    return [
        f"{i.file} imports {i.module}.{i.name}"
        for i in imports()
        if i.name.startswith("_") and room_of(i.file) != i.room
    ]


def test_every_room_has_a_place_in_the_table():
    assert rule_rooms() == []


def test_what_is_imported_exists():
    """Modules that are imported inside functions too, which no import of the package would miss."""
    missing = [f"{i.file}: {i.module}" for i in imports() if module_file(i.module) is None]
    assert missing == []


def test_imports_go_one_way():
    assert rule_imports() == []


def test_files_form_no_circle():
    assert rule_circles() == []


def test_only_the_command_line_imports_typer():
    assert rule_typer() == []


def test_class_names_are_unique():
    assert rule_classes() == []


def test_underscored_names_stay_in_their_room():
    assert rule_underscores() == []


def test_configuration_is_read_without_torch():
    """`--help` and a bad recipe are answered at once."""
    slow = {"torch", "transformers", "accelerate", "numba", "mergekit", "datasets"}
    offenders = []
    for file, tree in sources().items():
        if not (file.endswith(".config") or room_of(file) in {"cli", "recipe"}):
            continue
        for node in tree.body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            offenders += [f"{file} imports {n}" for n in names if n.split(".")[0] in slow]
    assert offenders == []


def test_no_test_module_is_imported_by_another():
    """What tests share stands in `tests/helpers/` or in a `conftest.py`."""
    offenders = []
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
                modules = [str(node.module), *(f"{node.module}.{a.name}" for a in node.names)]
                offenders += [
                    f"{path.relative_to(PACKAGE.parent)} imports {module}"
                    for module in modules
                    if module.split(".")[-1].startswith("test_")
                ]
    assert offenders == []
