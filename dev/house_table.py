"""The shape of the code in figures: the table that a rebuilding is held to, before and after.

    python dev/house_table.py                 # of this checkout
    python dev/house_table.py --tree a b      # of others, side by side
    python dev/house_table.py --rooms train data   # of some rooms alone

What is counted, over `toolkit/` where nothing else is said:

- a function is any `def`, methods and inner ones too, from its `def` to its last line;
- nesting counts `if`, `for`, `while`, `with`, `try` and `match` within one another in a function,
  an `elif` as an `if` within the `if` before it;
- a circle of files is a group in which imports lead from each file to every other, those within
  functions and those for types alone too;
- an assigned name is a name wherever it is bound (by an assignment, a loop, a `with`, a field), and
  each time; it is compound where an underscore joins two words;
- a comment line holds nothing but a comment;
- the files of the merge stage are those within two steps of imports from the file with the stage,
  whatever room they stand in;
- public names are those that `__all__` of `toolkit/__init__.py` names, or that it binds.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

NESTING = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MERGE_STAGE = ("toolkit/pipeline/merge_stage.py", "toolkit/pipeline/merge_stage.py")


class Tree:
    """The package of one checkout, parsed."""

    def __init__(self, root: Path, rooms: Sequence[str] = ()) -> None:
        self.root = root
        paths = sorted((root / "toolkit").rglob("*.py"))
        self.texts = {
            path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
            for path in paths
            if not rooms or path.relative_to(root).parts[1] in rooms
        }
        self.trees = {name: ast.parse(text) for name, text in self.texts.items()}

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for tree in self.trees.values():
            yield from (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS))

    def file_of(self, module: str) -> str | None:
        place = module.replace(".", "/")
        return next((f for f in (f"{place}.py", f"{place}/__init__.py") if f in self.trees), None)

    def imports(self, name: str) -> set[str]:
        """Files of the package that a file imports, wherever in it."""
        found: set[str | None] = set()
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.Import):
                found.update(self.file_of(alias.name) for alias in node.names)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toolkit"):
                for alias in node.names:
                    whole = self.file_of(f"{node.module}.{alias.name}")
                    found.add(whole or self.file_of(str(node.module)))
        return {item for item in found if item is not None and item != name}


def nesting(node: ast.AST) -> int:
    """How deep statements stand within one another in a function."""
    return max(
        (nesting(child) + isinstance(child, NESTING) for child in ast.iter_child_nodes(node)),
        default=0,
    )


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files in which each leads to every other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in graph[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        reach[start] = seen
    groups = {
        tuple(sorted({a} | {b for b in reach[a] if a in reach[b]})) for a in graph if a in reach[a]
    }
    return [list(group) for group in sorted(groups)]


def within(graph: dict[str, set[str]], start: str, steps: int) -> set[str]:
    """Files that so many steps of imports reach from one."""
    seen = {start}
    for _ in range(steps):
        seen |= {other for name in seen for other in graph[name]}
    return seen


def public_names(tree: Tree) -> list[str]:
    if "toolkit/__init__.py" not in tree.trees:
        return []
    body = tree.trees["toolkit/__init__.py"].body
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    names: list[str] = []
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            names += [alias.asname or alias.name for alias in node.names]
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            names.append(node.name)
        if isinstance(node, ast.Assign):
            names += [ast.unparse(target) for target in node.targets]
    return names


def words(name: str) -> int:
    return len([part for part in name.strip("_").split("_") if part])


def measure(root: Path, rooms: Sequence[str] = ()) -> dict[str, str]:
    tree = Tree(root, rooms)
    functions = list(tree.functions())
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    names = [
        node.id
        for module in tree.trees.values()
        for node in ast.walk(module)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    lines = [line for text in tree.texts.values() for line in text.splitlines()]
    graph = {name: tree.imports(name) for name in tree.trees}
    stage = next((name for name in MERGE_STAGE if name in tree.trees), None)
    files = within(graph, stage, steps=2) if stage else set()
    longest = sorted(
        ((length, node.name) for length, node in zip(lengths, functions, strict=True)), reverse=True
    )
    classes: dict[str, int] = defaultdict(int)
    for module in tree.trees.values():
        for item in ast.walk(module):
            if isinstance(item, ast.ClassDef):
                classes[item.name] += 1

    def of_functions(count: int) -> str:
        return f"{100 * count / len(functions):.1f} % ({count} of {len(functions)})"

    open_values = sum(
        len(re.findall(r"\b(?:dict|Mapping)\[str, Any\]", text)) for text in tree.texts.values()
    )
    readme = root / "README.md"
    return {
        "functions over 50 lines": of_functions(sum(length > 50 for length in lengths)),
        "functions over 80 lines": of_functions(sum(length > 80 for length in lengths)),
        "longest function": f"{longest[0][1]}, {longest[0][0]} lines",
        "nesting of 4 and more": of_functions(sum(nesting(node) >= 4 for node in functions)),
        "circles of files": str(len(circles(graph))),
        "assigned names that are compound": (
            f"{100 * sum(words(name) > 1 for name in names) / len(names):.0f} % of {len(names)}"
        ),
        "mean letters of an assigned name": f"{sum(map(len, names)) / len(names):.1f}",
        "comment lines": (
            f"{100 * sum(line.lstrip().startswith('#') for line in lines) / len(lines):.1f} %"
        ),
        "files to open to understand the merge stage": (
            f"{len(files)} ({sum(len(tree.texts[f].splitlines()) for f in files):,} lines)"
        ),
        "README": f"{len(readme.read_text(encoding='utf-8').splitlines())} lines",
        "public Python names": str(len(public_names(tree))),
        "dict[str, Any] and Mapping[str, Any]": str(open_values),
        "class names used more than once": str(sum(count > 1 for count in classes.values())),
        "files of toolkit/": str(len(tree.texts)),
        "lines of toolkit/": f"{len(lines):,}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    here = Path(__file__).parent.parent
    parser.add_argument("--tree", type=Path, nargs="+", default=[here], help="checkouts")
    parser.add_argument("--rooms", nargs="+", default=[], help="folders of toolkit/, else all")
    parser.add_argument("--circles", action="store_true", help="list the circles of files")
    arguments = parser.parse_args()
    columns = [measure(root.resolve(), arguments.rooms) for root in arguments.tree]
    heads = [root.resolve().name for root in arguments.tree]
    print(f"| | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for row in columns[0]:
        print(f"| {row} | {' | '.join(column[row] for column in columns)} |")
    if arguments.circles:
        for root in arguments.tree:
            tree = Tree(root.resolve())
            for group in circles({name: tree.imports(name) for name in tree.trees}):
                print(f"{root}: {' <-> '.join(group)}")


if __name__ == "__main__":
    main()
