"""Plain values out of YAML and JSON files, whatever stands in them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import ConfigError, ToolkitError
from toolkit.limits import limit, raise_hint

JsonObject = dict[str, Any]
"""An object of a stranger's JSON file (config.json, tokenizer.json, settings of an adapter), in
which anything may stand; what is used of it is checked where it is used."""

JsonView = Mapping[str, Any]
"""The same where it is only looked at."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader to which a key given twice is a fault: YAML would keep the last silently."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys: set[Any] = set()
    # Keys are compared before `<<` is folded in: to override a merged value is meant, to write a
    # key twice is not.
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        # Not deep, PyYAML would hand out lists and mappings that are filled later.
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (dict, list)):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is not a plain value", key_node.start_mark
            )
        if key is None:
            raise yaml.constructor.ConstructorError(
                None, None, "a key is empty or null", key_node.start_mark
            )
        if key in keys:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} stands here twice", key_node.start_mark
            )
        keys.add(key)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(k, deep=True): loader.construct_object(v, deep=True)
        for k, v in node.value
    }


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def read_text(
    path: Path,
    error: type[ToolkitError] = ConfigError,
    size: int | None = None,
    bound: str | None = None,
) -> str:
    """A text file as a whole, without the mark that Windows' editors put before it.

    Args:
        path: of the file.
        error: kind of what is raised.
        size: most bytes that are taken; None sets no bound.
        bound: name of the limit to take in place of `size`, whose message says how to raise it.

    Raises:
        error: it cannot be read, is larger than `size`, or is not UTF-8.
    """
    size = limit(bound) if bound is not None else size
    hint = raise_hint(bound) if bound is not None else f"at most {size} are taken"
    try:
        if size is not None and path.stat().st_size > size:
            raise error(f"{path}: has {path.stat().st_size:,} bytes; {hint}.")
        with path.open(encoding="utf-8-sig") as file:
            # A pipe or a device tells no size, and may have no end.
            text = file.read() if size is None else file.read(size + 1)
        if size is not None and len(text) > size:
            raise error(f"{path}: has more than {size:,} bytes; {hint}.")
        return text
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror or cause}).") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{path}: is not UTF-8 text (byte {cause.start}).") from cause


def read_json(
    path: Path,
    error: type[ToolkitError] = ToolkitError,
    advice: str = "copy or download it again",
) -> Any:
    """The value of a JSON file.

    Args:
        path: of the file.
        error: kind of what is raised.
        advice: what to do about a damaged file; ends the sentence.

    Raises:
        error: it cannot be read, is larger or deeper than the limits, or is not JSON.
    """
    text = read_text(path, error, bound="JSON_BYTES")
    return parse_json(text, str(path), error, advice)


def parse_json(
    text: str | bytes,
    where: str,
    error: type[ToolkitError] = ToolkitError,
    advice: str = "copy or download it again",
) -> Any:
    """The value of a JSON text; see `read_json`."""
    try:
        value = decode_json(text)
        too_deep = _is_deeper(value, limit("NESTING"))
    except RecursionError:
        too_deep = True
    except ValueError as cause:
        raise error(f"{where}: is not valid JSON ({_short(cause)}); {advice}.") from cause
    if too_deep:
        raise error(f"{where}: is nested too deeply; levels: {raise_hint('NESTING')}.")
    return value


_HALF_WRITTEN = (
    re.compile(r"\\u[dD][89a-fA-F]"),
    re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]"),
)
_HALF = re.compile(r"[\ud800-\udfff]")


def decode_json(text: str | bytes) -> Any:
    """The value of a JSON text. Half characters, which JSON may hold and neither files nor
    tokenizers take, become U+FFFD, as in what is not UTF-8.

    >>> decode_json(r'["\\ud83d\\ude00", "\\ud83d"]') == ["\U0001f600", "\ufffd"]
    True
    """
    value = json.loads(text)
    seen = _HALF_WRITTEN[0].search(text) if isinstance(text, str) else _HALF_WRITTEN[1].search(text)
    if seen is None:  # nor where they come as pairs, which are whole
        return value
    return json.loads(_HALF.sub("\ufffd", json.dumps(value, ensure_ascii=False)))


def read_object(
    path: Path,
    error: type[ToolkitError] = ToolkitError,
    advice: str = "copy or download it again",
) -> dict[str, Any]:
    """The keys and values of a JSON file; see `read_json`.

    Raises:
        error: as there, or it holds something else than keys and values.
    """
    value = read_json(path, error, advice)
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise error(f"{path}: must hold keys and values (got {kind}); {advice}.")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and mappings are nested more than `depth` times; without recursion."""
    nested_values = [value] if isinstance(value, (dict, list)) else []
    for _ in range(depth):
        nested_values = [
            item
            for outer in nested_values
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, (dict, list))
        ]
        if not nested_values:
            return False
    return bool(nested_values)


def _short(cause: object, most: int = 200) -> str:
    words = " ".join(str(cause).split())
    return words if len(words) <= most else words[: most - 3] + "..."


def load_yaml(path: Path) -> dict[str, Any]:
    """Load a YAML mapping.

    Raises:
        ConfigError: the file cannot be read, is not YAML, is not a mapping, or is larger than the
            limits, its aliases counted as what they stand for.
    """
    return parse_yaml(_read_yaml(path), str(path))


def parse_yaml(
    text: str, where: str, loader: type[yaml.SafeLoader] | None = None
) -> dict[str, Any]:
    """The mapping of a YAML text; see `load_yaml`.

    Args:
        text: of the file.
        where: for messages.
        loader: a safe loader of another dialect.
    """
    documents = _parse_documents(text, where, loader)
    if len(documents) > 1:
        raise ConfigError(f"{where}: holds several documents (---); give each a file of its own.")
    return documents[0]


def load_yaml_documents(path: Path) -> list[dict[str, Any]]:
    """The mappings of a YAML file of one or several documents, under the rules of `load_yaml`.

    Raises:
        ConfigError: as there, with the number of the document.
    """
    return _parse_documents(_read_yaml(path), str(path))


def _read_yaml(path: Path) -> str:
    return read_text(path, bound="YAML_BYTES")


def _parse_documents(
    text: str, where: str, loader: type[yaml.SafeLoader] | None = None
) -> list[dict[str, Any]]:
    """At least one; empty ones, as behind a last `---`, are passed over."""
    if len(text) > limit("YAML_BYTES"):
        raise ConfigError(f"{where}: has {len(text):,} bytes; {raise_hint('YAML_BYTES')}.")
    yaml_reader = None
    try:
        # It is a SafeLoader: it constructs plain values only.
        yaml_reader = (loader or _UniqueKeyLoader)(text)
        yaml_reader.name = where
        documents = []
        while yaml_reader.check_node():
            node = yaml_reader.get_node()
            # On the nodes, where an alias is one object: nothing has been made of them yet.
            _refuse_growth(node, where)
            data = yaml_reader.construct_document(node)
            if data is not None:
                documents.append(data)
    except RecursionError as error:
        raise ConfigError(
            f"{where}: is nested too deeply; levels: {raise_hint('NESTING')}."
        ) from error
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        # All but the first: tags whose text the library takes for granted (!!int '', 2001-99-99).
        raise ConfigError(f"{where}: is not valid YAML: {_short(error)}") from error
    finally:
        if yaml_reader is not None:
            yaml_reader.dispose()
    # An empty file has no document, and is told that it lacks keys and values.
    for number, data in enumerate(documents or [None], start=1):
        if not isinstance(data, dict):
            place = f"{where}, document {number}" if len(documents) > 1 else where
            raise ConfigError(f"{place}: must hold keys and values (got {type(data).__name__}).")
    return documents


def refuse_hostile_yaml(path: Path) -> None:
    """Refuse a YAML file that a library will load, if it asks for more than the limits; whatever
    else is wrong with it, the library says itself.

    Raises:
        ConfigError: it does, or cannot be read.
    """
    text = _read_yaml(path)
    try:
        _refuse_growth(yaml.compose(text, yaml.SafeLoader), str(path))
    except RecursionError as error:
        raise ConfigError(
            f"{path}: is nested too deeply; levels: {raise_hint('NESTING')}."
        ) from error
    except yaml.YAMLError:
        return


def _refuse_growth(root: yaml.Node | None, where: str) -> None:
    """Refuse aliases that stand for more values than the limit, and ones that hold themselves.

    Nodes are shared by their aliases, so that sizes add up from below, each node looked at once.

    Raises:
        ConfigError: there are too many values, or they are nested too deeply.
    """
    if root is None:
        return
    most_nodes, deepest_nesting = limit("YAML_NODES"), limit("NESTING")
    # Depth first without recursion, which a hostile file would exhaust: each node is pushed twice,
    # and comes up the second time when its children have their sizes.
    sizes: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()
    stack: list[tuple[yaml.Node, bool]] = [(root, False)]
    while stack:
        node, is_done = stack.pop()
        children = _children(node)
        if is_done:
            open_nodes.discard(id(node))
            child_sizes = [sizes[id(child)] for child in children]
            size = 1 + sum(size for size, _ in child_sizes)
            depth = 1 + max((depth for _, depth in child_sizes), default=0)
            if size > most_nodes:
                raise ConfigError(
                    f"{where}: its aliases stand for {size:,} values or more; "
                    f"{raise_hint('YAML_NODES')}."
                )
            # A plain value counts as a level here, and is no nesting.
            if depth > deepest_nesting + 1:
                raise ConfigError(
                    f"{where}: is nested too deeply; levels: {raise_hint('NESTING')}."
                )
            sizes[id(node)] = (size, depth)
        # Met below itself: its second turn, in which it is closed, has not come yet.
        elif id(node) in open_nodes:
            line = node.start_mark.line + 1
            raise ConfigError(f"{where}: line {line}: an alias stands within what it stands for.")
        elif id(node) not in sizes:
            open_nodes.add(id(node))
            stack.append((node, True))
            stack += [(child, False) for child in children]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
