"""Lines of JSON: one reader for all files of them, and lines that hold their own sum.

Whatever stands in a line (no JSON, another value than keys and values, numbers without end, lists
within lists without end) is one fault at one place.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.load_yaml import parse_json, read_text

_SUM = "sum"


def split_lines(text: str) -> list[str]:
    """Lines of a file of JSON lines that hold something.

    Not `splitlines`: strings of JSON may hold U+2028, U+0085 and their like as they are.
    """
    return [line for line in text.split("\n") if line.strip()]


def iterate_rows(
    path: Path,
    error: type[ToolkitError] = ToolkitError,
    advice: str = "copy or download it again",
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and values of each line of a file, `FILE:NUMBER` first; empty lines are passed over.

    Raises:
        error: the file cannot be read, or a line holds no keys and values.
    """
    for number, line in enumerate(read_text(path, error).split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parse_row(line, where, error, advice)


def parse_row(
    line: str | bytes,
    where: str,
    error: type[ToolkitError] = ToolkitError,
    advice: str = "copy or download it again",
) -> dict[str, Any]:
    """The keys and values of a line.

    Raises:
        error: it holds something else.
    """
    row = parse_json(line, where, error, advice)
    if not isinstance(row, dict):
        raise error(f"{where}: must hold keys and values (got {type(row).__name__}); {advice}.")
    return row


def sealed(row: Mapping[str, object]) -> dict[str, object]:
    """A row with its own sum, so that it is told from a damaged one when it is read again."""
    return {**row, _SUM: _sum(row)}


def unsealed(row: Any) -> dict[str, Any] | None:
    """A row without its sum; None where it does not fit it, or has none.

    >>> unsealed(sealed({"a": 1})), unsealed({"a": 1})
    ({'a': 1}, None)
    """
    # Python evaluates the left side first: the sum is out of the row before the rest is summed.
    plain = dict(row) if isinstance(row, dict) else {}
    return plain if plain.pop(_SUM, None) == _sum(plain) else None


def _sum(row: Mapping[str, object]) -> int:
    # It finds lines that a crash cut or mixed up, not forgeries, so a cheap sum will do.
    return zlib.crc32(json.dumps(row, sort_keys=True).encode())
