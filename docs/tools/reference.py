"""The reference pages of the guide, out of the command line and the recipe's sections.

python docs/tools/reference.py           # writes docs/reference/*.md
python docs/tools/reference.py --check   # exits 1 where they are not what would be written
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from pydantic import BaseModel  # noqa: E402  (the tree's own package is found first)
from pydantic_core import PydanticUndefined  # noqa: E402

FOLDER = ROOT / "docs" / "reference"
NOTE = "<!-- written by docs/tools/reference.py; `make docs` writes it anew -->\n"


def main() -> int:
    pages = {
        "commands.md": commands_page(),
        "recipe.md": recipe_page(),
        "methods.md": methods_page(),
    }
    stale = [
        name
        for name, text in pages.items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/reference/{name}: is not up to date; run `make docs`")
        return int(bool(stale))
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(pages[name], encoding="utf-8")
        print(f"wrote docs/reference/{name}")
    return 0


# The command line


def commands_page() -> str:
    """Every command of the toolkit with its arguments and options."""
    import typer

    from toolkit.cli.main import app

    root = typer.main.get_command(app)
    parts = [
        NOTE,
        "# Commands\n",
        "`make` runs the common ones; see [getting started](../getting-started.md). Flags say "
        "*where*; whatever changes a number stands in the [recipe](recipe.md). `toolkit COMMAND "
        "--help` says the same as this page.\n",
        "Exit codes: 0 done, 1 an error in one line, 2 a bad recipe or flag, 130 stopped.\n",
    ]
    for words, command in leaves(root, ()):
        parts.append(f"## toolkit {' '.join(words)}\n")
        parts.append(f"{command.help or ''}\n")
        parts.append(f"```text\n{usage(words, command)}\n```\n")
        if rows := [parameter_row(parameter) for parameter in command.params]:
            parts.append("| | default | what |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Commands that do something, with the words that lead to them."""
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name in command.commands:
        yield from leaves(command.commands[name], (*words, name))


def usage(words: tuple[str, ...], command: Any) -> str:
    arguments = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = parameter.name.upper()
            name += "..." if parameter.nargs == -1 else ""
            arguments.append(name if parameter.required else f"[{name}]")
        elif parameter.required:
            arguments.append(f"{parameter.opts[0]} {value_name(parameter)}")
    return " ".join(["toolkit", *words, *arguments])


def parameter_row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{parameter.name.upper()}`"
    elif parameter.is_flag:
        name = " / ".join(f"`{o}`" for o in (*parameter.opts, *parameter.secondary_opts))
    else:
        name = f"`{parameter.opts[0]} {value_name(parameter)}`"
    default = parameter.default
    if parameter.required:
        shown = "must be given"
    elif parameter.is_flag if parameter.param_type_name == "option" else False:
        shown = ("on" if default else "off") if default is not None else ""
    else:
        shown = "" if default in (None, (), [], "") else f"`{default}`"
    return f"| {name} | {shown} | {cell(getattr(parameter, 'help', '') or '')} |"


def value_name(parameter: Any) -> str:
    kinds = {int: "NUMBER", float: "NUMBER", Path: "PATH"}
    return kinds.get(parameter.type_descriptor.annotation, "TEXT")


# Merge methods


def methods_page() -> str:
    """Every merge method with what it does, its parameters and its paper."""
    import inspect
    from importlib import import_module

    from toolkit.merge.registry import all_methods

    import_module("toolkit.merge.methods")  # registers them

    parts = [
        NOTE,
        "# Merge methods\n",
        "What stands under `merge_method:` in a merge, with the parameters that stand under "
        "`parameters:`, of the merge or of a model. How to choose: [Choosing a merge "
        "method](../merging.md).\n",
    ]
    for method in all_methods().values():
        base = "must be given" if method.needs_base else "used" if method.accepts_base else "unused"
        text, _, rest = (inspect.getdoc(method.function) or "").partition("\n\nArgs:\n")
        words = argument_words(rest.split("\n\n")[0])
        rows = [
            f"| `{p.name}` | {'each model' if p.per_model else 'the merge'} | "
            f"{'**must be given**' if p.required else f'`{shown_value(p.default)}`'} | "
            f"{cell(words.get(p.name) or words.get(p.name + '_', ''))} |"
            for p in method.parameters.values()
        ]
        parts.append(f"## {method.name}\n")
        parts.append(f"{escape(text.strip())}\n")
        random = "; random, seeded by tensor name" if method.is_random else ""
        parts.append(f"Base model: {base}{random}. [Reference]({method.reference})\n")
        if rows:
            parts.append(
                "| parameter | of | default | what |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
            )
    return "\n".join(parts)


def argument_words(text: str) -> dict[str, str]:
    """What a docstring says under `Args:`, by argument.

    >>> argument_words("    a: first\\n        of all.\\n    b: second.")
    {'a': 'first of all.', 'b': 'second.'}
    """
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if (begun := re.match(r"    (\w+): (.*)", line)) is not None:
            name = begun.group(1)
            found[name] = begun.group(2)
        elif name:
            found[name] += " " + line.strip()
    return found


def shown_value(value: Any) -> str:
    value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    return str(value).lower() if isinstance(value, bool) else f"{value}"


# The recipe


def recipe_page() -> str:
    """Every key of a recipe: section by section, in the order of the file."""
    from toolkit.compare.config import WaysSection
    from toolkit.recipe import layers
    from toolkit.recipe.schema import Recipe

    parts = [
        NOTE,
        "# Recipe\n",
        "One YAML file is one whole run. Keys that are not here are faults, each reported at its "
        "key with a suggestion. A key without a default must be given.\n",
    ]
    parts += section_tables(Recipe, "The file")
    parts.append("## Layers\n")
    parts.append(f"{paragraphs(layers.__doc__)}\n")
    parts += section_tables(WaysSection, "A file of ways")
    return "\n".join(parts)


def section_tables(root: type[BaseModel], name: str) -> list[str]:
    """A heading and a table of keys for each section of a file.

    Args:
        root: all of the file.
        name: what the file is called.
    """
    parts = []
    for path, section in sections(root):
        parts.append(f"## {path or name}\n")
        parts.append(f"{paragraphs(section.__doc__)}\n")
        rows = []
        for name, field in section.model_fields.items():
            kind = shown_type(field.annotation)
            what = cell(field.description or inner_words(field.annotation))
            rows.append(f"| `{field.alias or name}` | {kind} | {shown_default(field)} | {what} |")
        parts.append(
            "| key | type | default | what |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return parts


def sections(root: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Each section with the path that leads to it; one that stands in several places once."""
    waiting: list[tuple[str, type[BaseModel]]] = [("", root)]
    seen: set[type[BaseModel]] = set()
    while waiting:
        path, section = waiting.pop(0)
        if section in seen:
            continue
        seen.add(section)
        yield path, section
        below = []
        for name, field in section.model_fields.items():
            for model, mark in models_in(field.annotation):
                below.append((f"{path}.{name}{mark}".lstrip("."), model))
        waiting = below + waiting


def models_in(annotation: Any, mark: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, mark
        return
    if get_origin(annotation) is dict:
        mark += ".NAME"
    elif get_origin(annotation) in {tuple, list}:
        mark += "[]"
    for part in get_args(annotation):
        if part is not Ellipsis:
            yield from models_in(part, mark)


def shown_type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin in {Union, types.UnionType}:
        return " or ".join(dict.fromkeys(shown_type(part) for part in parts))
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is dict:
        return f"{shown_type(parts[1])} by name"
    if origin in {tuple, list}:
        if len(parts) == 2 and parts[1] is Ellipsis:
            return f"list of {shown_type(parts[0])}"
        return f"{len(parts)} values: {', '.join(shown_type(part) for part in parts)}"
    if origin is not None and parts:  # Annotated
        return shown_type(parts[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""),
        str(getattr(annotation, "__name__", annotation)).lower(),
    )


def shown_default(field: Any) -> str:
    default = field.default
    if field.default_factory is not None:
        default = field.default_factory()
    if default is PydanticUndefined:
        return "**must be given**"
    if default is None:
        return "null"
    if default in ((), {}):
        return "empty"
    if isinstance(default, BaseModel):
        return "its defaults"
    if isinstance(default, dict):
        return "see below"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{default}`" if str(default) else "empty"


def inner_words(annotation: Any) -> str:
    """For a key without words of its own: the first line of the section it holds."""
    found = next(models_in(annotation), None)
    return (found[0].__doc__ or "").strip().splitlines()[0] if found else ""


def paragraphs(text: str | None) -> str:
    lines = [line.strip() for line in (text or "").strip().splitlines()]
    return escape("\n".join(lines))


def cell(text: str) -> str:
    return escape(" ".join(text.split())).replace("|", "\\|")


def escape(text: str) -> str:
    """Markdown in which a `*` outside of code stays a `*`, and `<` one too."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        p if p.startswith("`") else p.replace("<", "&lt;").replace("*", "\\*") for p in pieces
    )


if __name__ == "__main__":
    sys.exit(main())
