"""Object files into memory: what is known is run, all else is refused and left to llvmlite."""

from __future__ import annotations

import ctypes
import platform
import struct

import numpy as np
import pytest

from toolkit.merge.kernels import native
from toolkit.merge.kernels.loader import UnknownFormatError, load_function

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.system() != "Linux", reason="ELF for x86-64 only"
)

SIGNATURE = (("rows", 2, "uint16"), ("float32",), ("float32",), ("array", 1, "uint16"))
ROWS = (np.full(40, 0x3F80, np.uint16), np.full(40, 0x4000, np.uint16))  # of ones and of twos
HALF = struct.unpack("<I", struct.pack("<f", 0.5))[0]


@pytest.fixture(scope="module")
def code() -> bytes:
    from toolkit.merge.kernels.source.build import build_object

    return build_object("sums", "arc", SIGNATURE, "arc_here")


def call(address: int) -> list[int]:
    """`2 * 0.5 + 1 * 0.5`, bfloat16."""
    out = np.zeros(40, np.uint16)
    words = [array.ctypes.data for array in ROWS]
    packed = (ctypes.c_uint64 * 7)(*words, 40, HALF, HALF, out.ctypes.data, 40)
    result, raised = ctypes.c_uint32(0), ctypes.c_void_p()
    function = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3)(address)
    assert function(ctypes.addressof(result), ctypes.addressof(raised), packed) == 0
    assert result.value == 0x40000000  # the largest magnitude, two
    return sorted(set(out.tolist()))


def test_a_kernel_is_loaded_and_runs(code: bytes):
    assert call(load_function(code, "arc_here")) == [0x3FC0]


def test_llvmlite_gives_the_same(code: bytes):
    assert call(native._Library()._load_by_llvm(code, "arc_here")) == [0x3FC0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda code: code[:40],
        lambda code: b"MZ" + code[2:],
        lambda code: code[:18] + struct.pack("<H", 183) + code[20:],  # another processor
        lambda code: code[: len(code) // 2],  # the list of sections is at the end
        lambda code: code.replace(b"arc_here", b"arc_gone"),
    ],
    ids=["empty", "cut header", "another format", "another processor", "cut", "another name"],
)
def test_what_is_unknown_is_refused(code: bytes, damage):
    with pytest.raises(UnknownFormatError):
        load_function(damage(code), "arc_here")


def test_references_of_another_kind_are_refused(code: bytes):
    sections, count = struct.unpack_from("<Q", code, 40)[0], struct.unpack_from("<H", code, 60)[0]
    changed = bytearray(code)
    for number in range(count):
        at = sections + 64 * number
        if struct.unpack_from("<I", code, at + 4)[0] == 4:  # a table of references
            (where,) = struct.unpack_from("<Q", code, at + 24)
            struct.pack_into("<I", changed, where + 8, 2)  # relative to the place
    assert changed != code
    with pytest.raises(UnknownFormatError, match="whole address"):
        load_function(bytes(changed), "arc_here")


def test_the_library_falls_back_on_llvmlite(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> int:
        raise UnknownFormatError("not here")

    monkeypatch.setattr(native, "load_function", refuse)
    monkeypatch.setattr(native, "_LIBRARY", native._Library())
    out = np.empty(40, np.uint16)
    native.Entry("sums", "arc")(ROWS, np.float32(0.5), np.float32(0.5), out)
    assert (out == 0x3FC0).all()
