"""Entries picked by a mask, put side by side, and put back in their places: 64 at a time.

Some processors do this in a few instructions (AVX-512 with VBMI2); for others there is a loop over
the bits that are set. What numba compiles for decides, which need not be the processor that is
here: `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` tell it another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from toolkit.merge.kernels.source.entries import VECTOR, count_bits, lowest_bit, masks
from toolkit.merge.kernels.source.primitives import kernel

_INSTRUCTIONS = {"+avx512f", "+avx512vbmi2"}
_LANES = 16
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_ONE = np.uint64(1)


@kernel
def pack_by_bits(words: Any, place: int, mask: Any, room: Any, held: int) -> Any:
    while mask != np.uint64(0):
        room[held] = words[place + lowest_bit(mask)]
        held += 1
        # Clears the lowest bit that is set.
        mask &= mask - _ONE
    return held


@kernel
def unpack_by_bits(flags: Any, taken: int, mask: Any) -> Any:
    found = np.uint64(0)
    while mask != np.uint64(0):
        if flags[taken] != np.uint8(0):
            # A number and its negative share their lowest set bit alone.
            found |= mask & (~mask + _ONE)
        taken += 1
        mask &= mask - _ONE
    return found


def has_instructions(context: Any) -> bool:
    """Whether the processor that a numba context compiles for packs by itself."""
    _, _, features = context.codegen().magic_tuple()
    return set(features.split(",")) >= _INSTRUCTIONS


@intrinsic  # type: ignore[untyped-decorator]
def pack(typing_context: Any, words: Any, place: Any, mask: Any, room: Any, held: Any) -> Any:  # noqa: ARG001
    """Of 64 words (uint32) from `place` on, those whose bit is set in `mask` into `room` from
    `held` on; up to 15 words behind them are written over. `room` may be `words` itself, if `held`
    is not beyond `place`. Returns how many are held now."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not has_instructions(context):
            return context.compile_internal(builder, pack_by_bits.py_func, signature, arguments)
        words, place, mask, room, held = arguments
        data, target = (
            context.make_array(signature.args[at])(context, builder, array).data
            for at, array in ((0, words), (3, room))
        )
        vector, flags = ir.VectorType(_I32, _LANES), ir.VectorType(ir.IntType(1), _LANES)
        compress = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [vector, flags, vector]),
            f"llvm.experimental.vector.compress.v{_LANES}i32",
        )
        # Sixteen words at a time. All lanes are stored, and those beyond the chosen are written
        # over by the next store, which begins at `held`.
        for lane in range(0, VECTOR, _LANES):
            own = builder.trunc(builder.lshr(mask, _I64(lane)), ir.IntType(_LANES))
            at = builder.gep(data, [builder.add(place, _I64(lane))])
            found = builder.load(builder.bitcast(at, vector.as_pointer()), align=4)
            chosen = builder.bitcast(own, flags)
            packed = builder.call(compress, [found, chosen, ir.Constant(vector, ir.Undefined)])
            into = builder.bitcast(builder.gep(target, [held]), vector.as_pointer())
            builder.store(packed, into, align=4)
            held = builder.add(held, builder.zext(builder.ctpop(own), _I64))
        return held

    return types.int64(words, types.int64, types.uint64, room, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def unpack(typing_context: Any, flags: Any, taken: Any, mask: Any) -> Any:  # noqa: ARG001
    """A mask with the bits of `mask` whose flags (uint8), one after the other from `taken` on, are
    not zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not has_instructions(context):
            return context.compile_internal(builder, unpack_by_bits.py_func, signature, arguments)
        flags, taken, mask = arguments
        data = context.make_array(signature.args[0])(context, builder, flags).data
        vector, chosen = ir.VectorType(_I8, VECTOR), ir.VectorType(ir.IntType(1), VECTOR)
        expand = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [_I8.as_pointer(), chosen, vector]),
            f"llvm.masked.expandload.v{VECTOR}i8",
        )
        zeros = ir.Constant(vector, [0] * VECTOR)
        at = builder.gep(data, [taken])
        found = builder.call(expand, [at, builder.bitcast(mask, chosen), zeros])
        return builder.bitcast(builder.icmp_unsigned("!=", found, zeros), _I64)

    return types.uint64(flags, types.int64, types.uint64), generate


@kernel
def collect(words: Any, place: int, least: Any, width: Any, room: Any, held: int) -> Any:
    """Pack those of 64 words that are among the `width` ones from `least` on; see `pack`.

    Returns:
        How many are below `least`, and how many are held now.
    """
    below, within = masks(words, place, least, width)
    return count_bits(below), pack(words, place, within, room, held)
