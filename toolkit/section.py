"""Sections of a recipe: frozen, strict, and able to name every fault at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeGuard, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from toolkit.errors import ConfigError, Fault, did_you_mean
from toolkit.limits import limit, raise_hint


class Section(BaseModel):
    """One part of a recipe. Values never change after reading; unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    former_keys: ClassVar[Mapping[str, str]] = {}
    """New names of keys by the former ones, so that an older file is told what to write. A key of
    a mapping in this section is written with its path: `split.tuning`."""


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]


def at_most(name: str) -> AfterValidator:
    """A bound of `limits` on a number that memory or time is taken in proportion to."""

    def check(value: int) -> int:
        if value > limit(name):
            raise ValueError(f"{raise_hint(name)} (got {value:,})")
        return value

    return AfterValidator(check)


Count = Annotated[PositiveInt, at_most("COUNT")]
"""Of things that each take time or memory."""

Length = Annotated[PositiveInt, at_most("TOKENS")]
"""In tokens."""

SectionT = TypeVar("SectionT", bound=BaseModel)


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
    checked, faults = check_section(section, data)
    if checked is None:
        raise ConfigError.listing(f"{where} is not a valid {what}:", faults)
    return checked


def replace_values(section: SectionT, **values: object) -> SectionT:
    """A section with other values under some keys.

    pydantic's `model_copy(update=…)` takes any key and keeps a misspelled one without a word; it
    checks no value either, so the values must come from sections or from code.

    Raises:
        TypeError: the section has no such key.
    """
    if unknown_keys := values.keys() - type(section).model_fields.keys():
        raise TypeError(f"{type(section).__name__} has no {', '.join(sorted(unknown_keys))}")
    return section.model_copy(update=values)


def refuse_unless_one(section: BaseModel, places: Sequence[str]) -> None:
    """For validators of sections that say where something is, each place under a key of its own.

    Raises:
        ValueError: none of the keys is given, or several are.
    """
    given = [name for name in places if getattr(section, name) is not None]
    if len(given) != 1:
        raise ValueError(
            f"give exactly one of {', '.join(places)} (got {', '.join(given) or 'none'})"
        )


def check_section(section: type[SectionT], data: object) -> tuple[SectionT | None, list[Fault]]:
    """The section that `data` makes, or None and what is wrong, each at its key."""
    try:
        return section.model_validate(data), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    # A key that must be given and stands there under its former name is not missing as well.
    renamed = {place for detail in details if (place := _renamed_to(section, _path_of(detail)))}
    return None, [
        _fault_of(section, detail)
        for detail in details
        if detail["type"] != "missing" or _path_of(detail) not in renamed
    ]


def _path_of(detail: ErrorDetails) -> tuple[str | int, ...]:
    """The keys and places that lead to a fault, without what pydantic adds about its types."""
    return tuple(
        part
        for part in detail["loc"]
        if part != "[key]" and not str(part).startswith(("function-", "tagged-"))
    )


def _renamed_to(
    section: type[BaseModel], path: Sequence[str | int]
) -> tuple[str | int, ...] | None:
    """The path that a former key at `path` is written with now, or None where it is no such key."""
    for start in range(len(path)):
        owner = _model_at(section, path[:start])
        former = ".".join(map(str, path[start:]))
        new = getattr(owner, "former_keys", {}).get(former)
        if new is not None:
            return (*path[:-1], new)
    return None


def _fault_of(section: type[BaseModel], detail: ErrorDetails) -> Fault:
    path = _path_of(detail)
    return Fault(".".join(map(str, path)) or "(top level)", _what_is_wrong(section, path, detail))


def _what_is_wrong(
    section: type[BaseModel], path: tuple[str | int, ...], detail: ErrorDetails
) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    # A former key is unknown; in a mapping whose keys are listed it is a wrong literal.
    if kind in {"extra_forbidden", "literal_error"} and (now := _renamed_to(section, path)):
        return f"is called {now[-1]} now"
    if kind == "extra_forbidden":
        known_keys = _known_keys(section, path[:-1])
        return f"unknown key{did_you_mean(str(path[-1]), known_keys) or _listed(known_keys)}"
    if kind == "missing":
        return "is missing"
    if "error" in context:  # our own validators already speak to the user
        return str(context["error"])
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
        else detail["msg"][0].lower() + detail["msg"][1:]
    )
    value = repr(detail["input"])
    return f"{message} (got {value if len(value) <= 80 else value[:77] + '...'})"


def _listed(known_keys: list[str]) -> str:
    return f"; known here: {', '.join(known_keys)}" if known_keys else ""


def _known_keys(section: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Field names of the section that `path` leads to, so that a wrong key gets a suggestion."""
    fields = getattr(_model_at(section, path), "model_fields", {})
    return [field.alias or name for name, field in fields.items()]


def _model_at(section: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    """The section that a path of keys, names and places leads to, or None where none stands."""
    annotations: list[Any] = [section]
    for part in path:
        annotations = [inner for one in annotations for inner in _annotations_at(one, part)]
    return next((one for one in annotations if _is_model(one)), None)


def _annotations_at(annotation: Any, part: str | int) -> Iterator[Any]:
    """The types that may stand under one key, name or place of a value of a type."""
    if _is_model(annotation):
        for name, field in annotation.model_fields.items():
            if part in {name, field.alias}:
                yield from _alternatives(field.annotation)
    # The type of a mapping's keys is among them; it is no section, and drops out later.
    elif get_origin(annotation) in {dict, list, tuple}:
        for inner in get_args(annotation):
            yield from _alternatives(inner)


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The types of which a value may be one, without what is said about them."""
    if get_origin(annotation) in {Union, UnionType}:
        for one in get_args(annotation):
            yield from _alternatives(one)
    elif get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    else:
        yield annotation


def _is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
