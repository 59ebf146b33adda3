"""Object files into memory, so that kept machine code needs no linker and no compiler library.

What LLVM makes of a kernel is one function, its constants, and calls of a few C functions, all
referred to by whole addresses. So loading is: lay the sections out, write the addresses in, make
the memory executable. Anything else (another format, another processor, another kind of reference)
is left to llvmlite, which takes longer to load than a small model takes to merge.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import struct
from typing import Any

_HEADER, _SECTION = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ")
_SYMBOL, _REFERENCE = struct.Struct("<IBBHQQ"), struct.Struct("<QQq")
_MAGIC, _X86_64, _RELOCATABLE = b"\x7fELF\x02\x01", 62, 1
_SYMBOLS, _REFERENCES, _ZEROS = 2, 4, 8
_ALLOCATED, _WRITABLE = 2, 1
_WHOLE_ADDRESS = 1
_UNDEFINED = 0
_READ, _EXECUTE = 1, 4

_held: list[mmap.mmap] = []
"""Loaded code stays for as long as the process."""


class UnknownFormatError(Exception):
    """The object file has what this loader does not know."""


def load_function(code: bytes, name: str) -> int:
    """Load an object file and return the address of one of its functions.

    Args:
        code: an ELF object file for x86-64.
        name: of the function.

    Raises:
        UnknownFormatError: it is none, or refers to things in another way.
    """
    try:
        return _load(code, name)
    except (struct.error, IndexError, ValueError, OSError) as error:
        raise UnknownFormatError(str(error)) from error


def _load(code: bytes, name: str) -> int:
    magic, kind, machine, *_, at = _HEADER.unpack_from(code)[:7]
    if (magic[:6], kind, machine) != (_MAGIC, _RELOCATABLE, _X86_64):
        raise UnknownFormatError("no object file for x86-64")
    count = _HEADER.unpack_from(code)[12]
    sections = [_SECTION.unpack_from(code, at + _SECTION.size * i) for i in range(count)]
    places, size = _lay_out(sections)
    memory = mmap.mmap(-1, size)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for index, place in places.items():
        _, kind, _, _, offset, length, *_ = sections[index]
        if kind != _ZEROS:
            memory[place : place + length] = code[offset : offset + length]
    found = 0
    symbols: dict[int, int] = {}
    for _, kind, _, _, offset, length, link, *_ in sections:
        if kind != _SYMBOLS:
            continue
        names = sections[link][4]
        for number in range(length // _SYMBOL.size):
            text, _, _, section, value, _ = _SYMBOL.unpack_from(
                code, offset + number * _SYMBOL.size
            )
            known = code[names + text : code.index(b"\0", names + text)].decode()
            if section == _UNDEFINED and known:
                symbols[number] = _from_c(known)
            elif section in places:
                symbols[number] = start + places[section] + value
                found = symbols[number] if known == name else found
    for _, kind, _, _, offset, length, _, target, *_ in sections:
        if kind == _REFERENCES and target in places:
            for at in range(offset, offset + length, _REFERENCE.size):
                where, what, addend = _REFERENCE.unpack_from(code, at)
                if what & 0xFFFFFFFF != _WHOLE_ADDRESS or what >> 32 not in symbols:
                    raise UnknownFormatError("a reference that is no whole address")
                value = (symbols[what >> 32] + addend) & 0xFFFFFFFFFFFFFFFF
                struct.pack_into("<Q", memory, places[target] + where, value)
    if not found:
        raise UnknownFormatError(f"no function {name}")
    if _c_library().mprotect(ctypes.c_void_p(start), ctypes.c_size_t(size), _READ | _EXECUTE):
        raise UnknownFormatError("memory cannot be made executable")
    _held.append(memory)
    return found


def _lay_out(sections: list[tuple[Any, ...]]) -> tuple[dict[int, int], int]:
    """Where each section that is needed at run time begins, and the size of all."""
    places: dict[int, int] = {}
    size = 0
    for index, (_, _, flags, _, _, length, _, _, alignment, _) in enumerate(sections):
        if not flags & _ALLOCATED:
            continue
        if flags & _WRITABLE:
            raise UnknownFormatError("code with variables")
        size = -(-size // max(1, alignment)) * max(1, alignment)
        places[index] = size
        size += length
    return places, -(-max(1, size) // mmap.PAGESIZE) * mmap.PAGESIZE


@functools.cache
def _c_library() -> Any:
    return ctypes.CDLL(None)


def _from_c(name: str) -> int:
    if name not in {"memset", "memcpy", "memmove"}:
        raise UnknownFormatError(f"calls {name}")
    return ctypes.cast(getattr(_c_library(), name), ctypes.c_void_p).value or 0
