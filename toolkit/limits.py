"""Bounds on what a file may ask of this machine before it is refused.

Files come from strangers: a kilobyte of YAML, gzip or a template can ask for hours or for all
memory. Each bound lies far above what real files need, and an environment variable raises it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ConfigError


@dataclass(frozen=True)
class Limit:
    """One bound.

    Attributes:
        default: its value where nothing is set.
        meaning: what it bounds, for the documentation.
    """

    default: int
    meaning: str


MOST_SEED = 2**32 - 1
"""Of random methods: what every library takes."""

PREFIX = "TOOLKIT_MAX_"
LIMITS = {
    "YAML_BYTES": Limit(2 << 20, "size of a YAML file"),
    "YAML_NODES": Limit(200_000, "values of a YAML file, each alias counted as what it stands for"),
    "NESTING": Limit(100, "depth of a YAML or JSON file, in lists and mappings"),
    "JSON_BYTES": Limit(512 << 20, "size of a JSON file that is read whole, as tokenizer.json"),
    "LINE_BYTES": Limit(256 << 20, "length of one line of a data file"),
    "DOCUMENT_BYTES": Limit(1 << 30, "size of a data file that is read whole (text, HTML)"),
    "PAGED_SECONDS": Limit(300, "time in which a PDF or Office file is read"),
    "PAGED_BYTES": Limit(4 << 30, "memory that reading a PDF or Office file takes"),
    "UNPACKED_RATIO": Limit(250, "how many times its packed size a file unpacks to, over 64 MiB"),
    "XZ_BYTES": Limit(512 << 20, "memory that unpacking an xz file takes (its dictionary)"),
    "TEMPLATE_SECONDS": Limit(10, "time in which a chat template renders one conversation"),
    "TEMPLATE_BYTES": Limit(1 << 30, "memory that rendering one conversation takes"),
    "TOKENIZER_SECONDS": Limit(20, "time in which a tokenizer encodes a short text, tried once"),
    "TOKENIZER_GROWTH": Limit(1000, "times a tokenizer's normalizers lengthen a text at most"),
    "COUNT": Limit(1_000_000, "counts of a recipe, such as epochs, ranks and resamples"),
    "CANDIDATES": Limit(10_000, "merges that a search tries, its grids included"),
    "WORKERS": Limit(1024, "processes that a search starts"),
    "TOKENS": Limit(1 << 24, "length of a block, window or answer of a recipe, in tokens"),
    "PADDED_ROWS": Limit(1 << 16, "pad_to_multiple_of of a merge"),
}
"""All bounds by name; the environment variable is `TOOLKIT_MAX_` and the name."""


def refuse_beyond_memory(num_bytes: float, what: str) -> None:
    """Refuse what can never fit into this machine's memory, before any of it is taken.

    Raises:
        ConfigError: it is more than the whole memory.
    """
    memory_bytes = _memory_bytes()
    if num_bytes > memory_bytes:
        raise ConfigError(
            f"{what} would take {size_words(num_bytes)} of memory, and this machine has "
            f"{size_words(memory_bytes)}. Make it smaller, or run it on a machine with more."
        )


def _memory_bytes() -> float:
    """Memory and swap of this machine, or of the container where that has less."""
    import psutil

    whole = float(psutil.virtual_memory().total + psutil.swap_memory().total)
    try:
        return min(whole, float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such bound: not Linux, or "max"
        return whole


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def limit(name: str) -> int:
    """The bound of this name, as set in the environment.

    Raises:
        ConfigError: what is set is no positive number.
    """
    text = os.environ.get(PREFIX + name)
    if not text:
        return LIMITS[name].default
    number_match = re.fullmatch(r"(\d{1,15})\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if number_match is None or not int(number_match[1]):
        raise ConfigError(
            f"{PREFIX}{name}: must be a positive whole number, such as 500000 or 2G (got {text!r})."
        )
    return int(number_match[1]) * _UNITS[number_match[2]]


def raise_hint(name: str) -> str:
    """The end of a sentence about something over a bound: what it is, and how to raise it."""
    return f"at most {limit(name):,} are taken; set {PREFIX}{name} to raise this"


def size_words(num_bytes: float) -> str:
    """
    >>> size_words(3 << 30), size_words(700)
    ('3.0 GiB', '700 bytes')
    """
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if num_bytes >= 1 << power:
            return f"{num_bytes / (1 << power):.1f} {unit}"
    return f"{num_bytes:.0f} bytes"
