"""What may stand where a number or a name is to be found: `{search: …}` in a `merges/*.yaml`.

weight: {search: [0.2, 1.0]}                                    anything between
weight: {search: {range: [0.01, 1], log: true, name: weight}}   by its logarithm; `integer: true`
weight: {search: {grid: [0.4, 0.6]}}                            one of these numbers
merge_method: {search: {choice: [ties, dare_ties]}}             one of these values
weight: {search: 1 - alpha}                                     what is left of another one
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.errors import ConfigError, sentence_end

Value = bool | int | float | str
DIGITS = 4
"""Significant digits of a number that is found: a candidate's name then says all of it."""

_COMPLEMENT = re.compile(r"^\s*1\s*-\s*([A-Za-z_]\w*)\s*$")
_KINDS = ("range", "grid", "choice")


@dataclass(frozen=True)
class Range:
    """Any number from `low` to `high`."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def at(self, share: float) -> Value:
        """The number this far along, 0 to 1.

        >>> Range(0.01, 1.0, log=True).at(0.5)
        0.1
        """
        if self.log:
            value = math.exp(
                math.log(self.low) + share * (math.log(self.high) - math.log(self.low))
            )
        else:
            value = self.low + share * (self.high - self.low)
        if self.integer:
            return round(value)
        # Rounding to digits may step over either end.
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def share(self, value: Any) -> float:
        """How far along a number is, 0 to 1."""
        low, high, here = self.low, self.high, float(value)
        if self.log:
            low, high, here = math.log(low), math.log(high), math.log(here)
        return (here - low) / (high - low)


@dataclass(frozen=True)
class Options:
    """One of these; `ordered` where they are numbers in rising order, as of a grid."""

    values: tuple[Value, ...]
    ordered: bool

    def at(self, share: float) -> Value:
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def share(self, value: Any) -> float:
        """The middle of the value's own part of [0, 1]."""
        return (self.values.index(value) + 0.5) / len(self.values)


Unknown = Range | Options


def complement_of(wanted: Any) -> str | None:
    """The name in `1 - NAME`, or None.

    >>> complement_of("1 - alpha")
    'alpha'
    """
    match = _COMPLEMENT.match(wanted) if isinstance(wanted, str) else None
    return match[1] if match else None


def default_name(key: str) -> str:
    """What an unknown without a name is called: the parameter, and places in lists after it.

    >>> default_name("models.1.parameters.weight.0.value.2")
    'weight_0_2'
    >>> default_name("merge_method")
    'merge_method'
    """
    parts = key.split(".")
    if "parameters" in parts:
        parts = parts[len(parts) - parts[::-1].index("parameters") :]
    return "_".join(part for part in parts if part != "value")


def parse_unknown(wanted: Any, where: str, key: str) -> tuple[str, Unknown]:
    """Name and kind of what stands under `search`.

    Raises:
        ConfigError: the notation is unknown, or a range or list is empty, reversed or of wrong
            values; the message begins with the file and the key.
    """

    def fault(at: str, what: str, value: Any) -> ConfigError:
        return ConfigError(f"{where}: {key}.search{at}: {what} (got {value!r}).")

    if isinstance(wanted, list):
        wanted = {"range": wanted}
    given_kinds = [
        given_kind for given_kind in _KINDS if isinstance(wanted, Mapping) and given_kind in wanted
    ]
    if len(given_kinds) != 1:
        raise fault(
            "",
            "must be [low, high], {range: [low, high]}, {grid: […]}, {choice: […]} (with name: … "
            "where two would be called alike), or `1 - NAME`",
            wanted,
        )
    given_kind = given_kinds[0]
    known_keys = {given_kind, "name"} | ({"log", "integer"} if given_kind == "range" else set())
    for other in wanted:
        if other not in known_keys:
            raise ConfigError(
                f"{where}: {key}.search.{other}: unknown key"
                f"{sentence_end(str(other), known_keys)} "
                f"Known beside {given_kind}: {', '.join(sorted(known_keys - {given_kind}))}."
            )
    name = str(wanted.get("name", default_name(key)))
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise fault(".name", "must be a word of letters, digits and _", name)
    values = wanted[given_kind]
    if given_kind == "range":
        return name, _range(wanted, fault)
    if not isinstance(values, list) or not values:
        what = "list of numbers" if given_kind == "grid" else "list of values"
        raise fault(f".{given_kind}", f"must be a {what}, with one at least", values)
    if given_kind == "grid":
        if not all(map(_is_number, values)):
            raise fault(".grid", "must be a list of numbers", values)
        return name, Options(tuple(sorted({float(value) for value in values})), ordered=True)
    if not all(isinstance(value, (bool, int, float, str)) for value in values):
        raise fault(".choice", "must be a list of plain values", values)
    return name, Options(tuple(dict.fromkeys(values)), ordered=False)


def _range(wanted: Mapping[str, Any], fault: Any) -> Range:
    bounds = wanted["range"]
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(map(_is_number, bounds)):
        raise fault(".range", "must be two numbers, [low, high]", bounds)
    for flag in ("log", "integer"):
        if not isinstance(wanted.get(flag, False), bool):
            raise fault(f".{flag}", "must be true or false", wanted[flag])
    low, high = bounds
    if low >= high:
        what = "is empty" if low == high else "is reversed"
        raise fault(".range", f"{what}; the first number must be below the second", bounds)
    log, integer = wanted.get("log", False), wanted.get("integer", False)
    if log and low <= 0:
        raise fault(".range", "must be above 0 where log is true", bounds)
    if integer and (low != int(low) or high != int(high)):
        raise fault(".range", "must be whole numbers where integer is true", bounds)
    return Range(float(low), float(high), log, integer)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
