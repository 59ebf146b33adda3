"""Sections of a recipe: frozen, strict, and able to name every fault at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.errors import ConfigError, did_you_mean


class Section(BaseModel):
    """One part of a recipe. Values never change after reading; unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]

SectionT = TypeVar("SectionT", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader to which a key given twice is a fault: YAML would keep the last silently."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (dict, list)):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is not a plain value", key_node.start_mark
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


def load_yaml(path: Path) -> dict[str, Any]:
    """Load a YAML mapping.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}).") from error
    try:
        # _UniqueKeyLoader is a SafeLoader: it constructs plain values only.
        data = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold keys and values (got {type(data).__name__}).")
    return data


def parse_section(section: type[SectionT], data: object, *, where: str, what: str) -> SectionT:
    """Check `data` against `section`.

    Args:
        section: the pydantic model to build.
        data: plain values, as from YAML.
        where: the file or key that the values come from, for the message.
        what: what they should have been, such as "recipe".

    Raises:
        ConfigError: one line for each fault, each at its key.
    """
    found, faults = check_section(section, data)
    if found is None:
        raise ConfigError("\n  ".join([f"{where} is not a valid {what}:", *faults]))
    return found


def check_section(section: type[SectionT], data: object) -> tuple[SectionT | None, list[str]]:
    """The section that `data` makes, or None and a line for each fault, each at its key."""
    try:
        return section.model_validate(data), []
    except ValidationError as error:
        faults = error.errors(include_url=False)
        return None, [_fault_line(section, fault) for fault in faults]


def _fault_line(section: type[BaseModel], fault: Any) -> str:
    path = [part for part in fault["loc"] if not str(part).startswith(("function-", "tagged-"))]
    key = ".".join(str(part) for part in path) or "(top level)"
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        known = _known_keys(section, path[:-1])
        hint = did_you_mean(str(path[-1]), known)
        return f"{key}: unknown key{hint or _listed(known)}"
    if kind == "missing":
        return f"{key}: is missing"
    if "error" in context:  # our own validators already speak to the user
        return f"{key}: {context['error']}"
    words = {
        "greater_than": "must be greater than {gt}",
        "greater_than_equal": "must be at least {ge}",
        "less_than": "must be less than {lt}",
        "less_than_equal": "must be at most {le}",
        "literal_error": "must be one of {expected}",
        "enum": "must be one of {expected}",
    }
    message = (
        words[kind].format(**context)
        if kind in words
        else fault["msg"][0].lower() + fault["msg"][1:]
    )
    value = repr(fault["input"])
    return f"{key}: {message} (got {value if len(value) <= 80 else value[:77] + '...'})"


def _listed(known: list[str]) -> str:
    return f"; known here: {', '.join(known)}" if known else ""


def _known_keys(section: type[BaseModel], path: list[Any]) -> list[str]:
    """Field names of the section that `path` leads to, so that a wrong key gets a suggestion."""
    current: Any = section
    for part in path:
        fields = getattr(current, "model_fields", None)
        annotation = fields[part].annotation if fields and part in fields else current
        candidates = [model for model in _models_in(annotation) if model is not current]
        if not candidates:
            continue
        current = candidates[0]
    fields = getattr(current, "model_fields", {})
    return [field.alias or name for name, field in fields.items()]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
