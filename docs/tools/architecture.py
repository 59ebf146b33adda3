"""The page about the codebase: every file with its first docstring line, and who imports whom.

python docs/tools/architecture.py           # writes docs/architecture.md
python docs/tools/architecture.py --check   # exits 1 where it is not what would be written
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "toolkit"
PAGE = ROOT / "docs" / "architecture.md"

OPENING = """\
<!-- written by docs/tools/architecture.py; `make docs` writes it anew -->
# The codebase

Data flows one way: recipe → data → train → merge → evaluate → search → select → report → publish.
Each stage reads folders and writes one folder, which is complete once it holds a `manifest.json`;
nothing else is handed on. To find the place of a line of code, ask which folder under `runs/` it
helps to write. Code that writes none is ground that all rooms share, or a command.
`tests/test_layers.py` holds who may import whom; this page shows who does.
"""


def main() -> int:
    text = architecture_page()
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    if "--check" in sys.argv[1:]:
        print("docs/architecture.md: is not up to date; run `make docs`")
        return 1
    PAGE.write_text(text, encoding="utf-8")
    print("wrote docs/architecture.md")
    return 0


def architecture_page() -> str:
    """Rooms with what they import, then every file of each room."""
    files = sorted(PACKAGE.rglob("*.py"))
    folders = sorted({room_of(path) for path in files if len(parts_of(path)) > 1})
    parts = [OPENING, "\n## Who imports whom\n\n| room | what it is | imports |\n|---|---|---|\n"]
    for room in folders:
        used = sorted({name for path in files_of(room, files) for name in imported(path)} - {room})
        rooms = [name for name in used if name in folders]
        summary = first_line(PACKAGE / room / "__init__.py")
        parts.append(f"| `{room}/` | {summary} | {', '.join(rooms) or 'no other room'} |\n")
    parts.append("\n## Files beside the rooms\n\n")
    parts.append(file_table([path for path in files if len(parts_of(path)) == 1]))
    for room in folders:
        parts.append(f"\n## {room}/\n\n{first_line(PACKAGE / room / '__init__.py')}\n\n")
        own = [path for path in files_of(room, files) if path.name != "__init__.py"]
        parts.append(file_table(own))
    return "".join(parts)


def file_table(files: list[Path]) -> str:
    """Files and what each holds, a row per file that has a docstring."""
    rows = [
        f"| `{'/'.join(parts_of(path))}` | {line} |\n"
        for path in files
        if (line := first_line(path))
    ]
    return "| file | what it holds |\n|---|---|\n" + "".join(rows)


def first_line(path: Path) -> str:
    """The first sentence of a file's docstring, fit for a cell of a table."""
    if not path.is_file():
        return ""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.replace("|", "\\|").replace("<", "&lt;")


def imported(path: Path) -> Iterator[str]:
    """Rooms and files of the package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toolkit."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("toolkit."))


def parts_of(path: Path) -> tuple[str, ...]:
    return path.relative_to(PACKAGE).parts


def room_of(path: Path) -> str:
    return parts_of(path)[0]


def files_of(room: str, files: list[Path]) -> list[Path]:
    return [path for path in files if room_of(path) == room and len(parts_of(path)) > 1]


if __name__ == "__main__":
    sys.exit(main())
