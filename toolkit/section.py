"""Sections of a recipe: frozen, strict, and able to name every fault at once."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from toolkit.errors import ConfigError, did_you_mean
from toolkit.limits import limit, raise_hint


class Section(BaseModel):
    """One part of a recipe. Values never change after reading; unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
