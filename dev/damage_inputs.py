"""Damaged files for `dev/damage.py`: seeded changes of bytes, of text and of values, and bombs."""

from __future__ import annotations

import copy
import gzip
import json
import math
import random
import re
from collections.abc import Callable
from typing import Any

import yaml

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 10**9, 10**15, -(10**9), 0.5, 1e308, math.nan, math.inf),
    *("", "x", "../../x", "/", "\u0000", "a" * 5000, "{{ 1 / 0 }}", "1e999", "\ud800", "{"),
    *([], {}, [None], [[]], {"x": None}, {"": {}}, ["x"] * 3, [0, -1], {"a": [1, {"b": 2}]}),
)
"""Values that stand where others are meant."""


def damage_bytes(data: bytes, chance: random.Random) -> bytes:
    """One change of the bytes of any file."""
    size = len(data)
    at = (
        chance.randrange(size + 1) if chance.random() < 0.6 else chance.randrange(min(size, 64) + 1)
    )
    length = chance.choice((1, 2, 8, 64, 1000))
    some = bytes(chance.randrange(256) for _ in range(length))
    kind = chance.randrange(9)
    if kind == 0:
        return data[:at]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(chance.choice((1, 1, 3, 20))):
            if size:
                flipped[chance.randrange(size)] ^= 1 << chance.randrange(8)
        return bytes(flipped)
    if kind == 2:
        return data[:at] + some + data[at:]
    if kind == 3:
        return data[:at] + data[at + length :]
    if kind == 4:
        return data[:at] + bytes(length) + data[at + length :]
    if kind == 5:
        return data[:at] + some + data[at + length :]
    if kind == 6:
        return data[:at] + data[at : at + length] * 2 + data[at + length :]
    if kind == 7:
        return b"" if chance.random() < 0.5 else some
    return chance.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0")) + data


def damage_text(data: bytes, chance: random.Random) -> bytes:
    """A number, a word or a line of a text file put to something else."""
    text = data.decode("utf-8", "replace")
    kind = chance.randrange(4)
    pattern = r"-?\d+(?:\.\d+)?" if kind == 0 else r"[A-Za-z_]{3,}" if kind == 1 else r"[^\n]*\n"
    found = list(re.finditer(pattern, text))
    if not found:
        return damage_bytes(data, chance)
    match = chance.choice(found)
    if kind == 0:
        new = chance.choice(("0", "-1", "1e400", "99999999999", "NaN", "0.1.2", "9" * 5000, "''"))
    elif kind == 1:
        new = chance.choice(("", "x", match[0] + "s", match[0].upper(), "\u2028", "null", "*a"))
    else:
        new = chance.choice(("", match[0] * 2, "\t" + match[0], "[[[[\n", "? \n", "- x\n"))
    return (text[: match.start()] + new + text[match.end() :]).encode("utf-8", "surrogatepass")


def damage_values(values: Any, chance: random.Random) -> Any:
    """One value of a nested one put to a hostile one, left out, wrapped, or doubled."""
    values = copy.deepcopy(values)
    places: list[tuple[Any, Any]] = []
    waiting = [values]
    while waiting:
        item = waiting.pop()
        keys = list(item) if isinstance(item, dict) else range(min(len(item), 50))
        for key in keys:
            places.append((item, key))
            if isinstance(item[key], (dict, list)):
                waiting.append(item[key])
    if not places or chance.random() < 0.02:
        return chance.choice(HOSTILE)
    # What stands high decides more, and what stands deep (a vocabulary) is many.
    holder, key = chance.choice(places[: 40 if chance.random() < 0.7 else len(places)])
    kind = chance.randrange(10)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[f"{key}s"] = holder.pop(key)
    elif kind == 2:
        holder[key] = [holder[key]]
    elif kind == 3 and isinstance(holder, dict):
        other = chance.choice(places)
        holder[key] = copy.deepcopy(other[0].get(other[1]) if isinstance(other[0], dict) else 7)
    else:
        holder[key] = copy.deepcopy(chance.choice(HOSTILE))
    return values


def damage_json(data: bytes, chance: random.Random) -> bytes:
    """A JSON file with another value in it, or with its text damaged."""
    if chance.random() < 0.25:
        return chance.choice((damage_bytes, damage_text))(data, chance)
    return json.dumps(damage_values(json.loads(data), chance)).encode()


def damage_lines(data: bytes, chance: random.Random) -> bytes:
    """The same in one line of a file of JSON lines."""
    lines = data.split(b"\n")
    full = [number for number, line in enumerate(lines) if line.strip()]
    if not full or chance.random() < 0.3:
        return damage_bytes(data, chance)
    at = chance.choice(full)
    lines[at] = damage_json(lines[at], chance)
    return b"\n".join(lines)


HUGE: tuple[Any, ...] = (
    *(10**4, 10**6, 10**9, 2**31, 2**63, 10**12, 10**18, 10**30, -(10**9), 1e30, 1e308, 1e-308),
    *(0, -1, 0.5, 2, 65, 1000),
)
"""Numbers that stand where small ones are meant."""


def damage_numbers(data: bytes, chance: random.Random) -> bytes:
    """Numbers of a YAML file put to huge ones, most often one."""
    values = yaml.safe_load(data)
    places: list[tuple[Any, Any]] = []
    waiting = [values]
    while waiting:
        item = waiting.pop()
        for key in item if isinstance(item, dict) else range(len(item)):
            if isinstance(item[key], (dict, list)):
                waiting.append(item[key])
            elif isinstance(item[key], (int, float)) and not isinstance(item[key], bool):
                places.append((item, key))
    for _ in range(chance.choice((1, 1, 1, 2))):
        holder, key = chance.choice(places)
        holder[key] = chance.choice(HUGE)
    return yaml.safe_dump(values, sort_keys=False).encode()


def damage_yaml(data: bytes, chance: random.Random) -> bytes:
    """A YAML file with another value in it, or with its text damaged."""
    if chance.random() < 0.35:
        return chance.choice((damage_bytes, damage_text))(data, chance)
    values = damage_values(yaml.safe_load(data), chance)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode("utf-8", "replace")


def damage_packed(data: bytes, chance: random.Random) -> bytes:
    """A gzip file that is damaged itself, or holds a damaged one."""
    if chance.random() < 0.5:
        return damage_bytes(data, chance)
    return gzip.compress(damage_lines(gzip.decompress(data), chance), 1)


def damage_safetensors(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file with another header, or with its bytes damaged."""
    size = int.from_bytes(data[:8], "little")
    if chance.random() < 0.3:
        length = chance.choice((0, 1, size - 1, size + 1, 1 << 40, (1 << 64) - 1))
        return length.to_bytes(8, "little") + data[8:]
    if chance.random() < 0.4:
        return damage_bytes(data, chance)
    header = damage_json(data[8 : 8 + size], chance)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _laughs() -> bytes:
    lines = ["a: &a [1,2,3,4,5,6,7,8,9]"]
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines).encode()


YAML_BOMBS = (
    _laughs(),
    b"m0: &m0 {x: 1}\n"
    + b"".join(b"m%d: &m%d {<<: [*m%d, *m%d]}\n" % (n, n, n - 1, n - 1) for n in range(1, 50)),
    b"a: " + b"[" * 20000 + b"]" * 20000,
    b"a: " + b"{b: " * 3000 + b"}" * 3000,
    b"a: &a [*a]\n",
    b"a: &a {b: *a}\n",
    b"? " * 3000 + b"a",
    b"- " * 20000 + b"a",
    b"a: !!python/object/apply:os.system ['true']\n",
    b"a: !!int ''\nb: !!timestamp x\n",
    b"a: 2001-99-99\n",
)
JSON_BOMBS = (
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"vocab_size": ' + b"9" * 5000 + b"}",
    b'{"num_hidden_layers": 1000000000, "model_type": "llama"}',
    b"null",
    b"[]",
    b'"x"',
    b"{}",
)
TEMPLATE_BOMBS = (
    b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    b"{{ 'a' * 10 ** 11 }}",
    b"{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
    b"{% endfor %}{{ n.x }}",
    b"{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    b"{{ ''.__class__.__mro__[1].__subclasses__() }}",
    b"{{ messages[99].content }}",
    b"{{ raise_exception('no') }}",
    b"{{ messages | map('x') }}",
    b"{% include '/etc/passwd' %}",
    b"{{ '%99999999999d' % 1 }}",
    b"{% if %}",
    b"\xff\xfe",
    b"",
)


def tokenizer_bombs(data: bytes) -> tuple[bytes, ...]:
    """Tokenizers that lengthen a text without end, take for ever, or claim ids."""
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    changes: list[dict[str, Any]] = [
        {"normalizer": {"type": "Sequence", "normalizers": [step] * 12}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100_000}},
        {"normalizer": {**step, "pattern": {"Regex": "(a*)*b"}}},
        {"normalizer": {**step, "pattern": {"String": ""}}},
        {"pre_tokenizer": {**split, "pattern": {"Regex": "(a|aa)+$"}}},
        {"pre_tokenizer": {**split, "pattern": {"Regex": "((("}}},
        {"padding": {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_id": 0}},
        {"added_tokens": [{"id": 2**31, "content": "<x>", "special": True}]},
        {"model": {"type": "BPE", "vocab": {"a": 4_000_000_000}, "merges": []}},
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 99}},
        {"model": None},
    ]
    return tuple(json.dumps({**json.loads(data), **change}).encode() for change in changes)


Damage = Callable[[bytes, random.Random], bytes]
