# ruff: noqa: RUF005  (numba knows no unpacking into tuples)
"""One entry of every model at a time: what fused loops are made of.

A loop that reads all models, computes and writes in one go keeps its numbers in registers, and
reads several streams side by side, which memory serves best. LLVM makes vector instructions of it
where nothing in it depends on the number of models at run time. So tuples are taken apart while
compiling: a function does its work for `rows[0]` and calls itself with `rows[1:]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from toolkit.merge.kernels.source.primitives import fma

_I32 = ir.IntType(32)
VECTOR = 64
"""Entries that `masks` compares at a time."""


def by_type(stub: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Mark what chooses, by types, the function that numba compiles in place of `stub`."""
    decorated: Callable[[Callable[..., Any]], Any] = overload(stub, strict=False)
    return decorated


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def bits_of(typing_context: Any, value: Any) -> Any:  # noqa: ARG001
    """The bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return types.uint32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def float_of(typing_context: Any, bits: Any) -> Any:  # noqa: ARG001
    """The float32 of these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return types.float32(types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def masks(typing_context: Any, words: Any, place: Any, least: Any, width: Any) -> Any:  # noqa: ARG001
    """Of 64 words from `place` on, one bit each: which are below `least`, and which are among the
    `width` ones from there on. Two uint64, the first word lowest."""
    pair = types.UniTuple(types.uint64, 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, place, least, width = arguments
        data = context.make_array(signature.args[0])(context, builder, words).data
        vector, mask = ir.VectorType(ir.IntType(32), VECTOR), ir.IntType(VECTOR)
        address = builder.bitcast(builder.gep(data, [place]), vector.as_pointer())
        found = builder.load(address, align=4)

        def spread(value: Any) -> Any:
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
            lanes = ir.Constant(ir.VectorType(_I32, VECTOR), [0] * VECTOR)
            return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), lanes)

        below = builder.icmp_unsigned("<", found, spread(least))
        # One comparison for both ends: what is below `least` wraps around to large numbers.
        within = builder.icmp_unsigned("<", builder.sub(found, spread(least)), spread(width))
        both = [builder.bitcast(flags, mask) for flags in (below, within)]
        return context.make_tuple(builder, pair, both)

    return pair(words, types.intp, types.uint32, types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def keep(typing_context: Any, words: Any, place: Any, mask: Any, kept: Any) -> Any:  # noqa: ARG001
    """Of 64 words (uint32) from `place` on, those whose bit is set in `mask` to the same places of
    `kept`, and zeros for the others."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, flags = ir.VectorType(_I32, VECTOR), ir.VectorType(ir.IntType(1), VECTOR)
        source, target = (
            builder.bitcast(
                builder.gep(context.make_array(kind)(context, builder, array).data, [arguments[1]]),
                vector.as_pointer(),
            )
            for kind, array in ((signature.args[i], arguments[i]) for i in (0, 3))
        )
        chosen = builder.bitcast(arguments[2], flags)
        zeros = ir.Constant(vector, [0] * VECTOR)
        builder.store(builder.select(chosen, builder.load(source, align=4), zeros), target, align=4)
        return context.get_dummy_value()

    return types.void(words, types.intp, types.uint64, kept), generate


@intrinsic  # type: ignore[untyped-decorator]
def count_bits(typing_context: Any, mask: Any) -> Any:  # noqa: ARG001
    """How many bits of a uint64 are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(typing_context: Any, mask: Any) -> Any:  # noqa: ARG001
    """Place of the lowest bit that is set in a uint64, which is not zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        # The flag: the answer for zero may be anything, which saves a test.
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def size_of(typing_context: Any, value: Any) -> Any:  # noqa: ARG001
    """The bits of a float32's magnitude."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], context.get_value_type(signature.return_type))
        return builder.and_(bits, ir.Constant(_I32, 0x7FFFFFFF))

    return types.uint32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def larger_size(typing_context: Any, top: Any, bits: Any) -> Any:  # noqa: ARG001
    """The larger of `top` and the bits of a magnitude, in 32 bits: numba would take 64, and halve
    the entries that go into a register."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        top, bits = arguments
        size = builder.and_(bits, ir.Constant(_I32, 0x7FFFFFFF))
        return builder.select(builder.icmp_unsigned(">", size, top), size, top)

    return types.uint32(types.uint32, types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def running_sums(typing_context: Any, counts: Any, sums: Any, place: Any, before: Any) -> Any:  # noqa: ARG001
    """What comes before each of 16 counts from `place` on, into `sums`; all int32.

    Returns:
        What comes before the next 16.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(_I32, 16)
        zeros = ir.Constant(vector, [0] * 16)
        source, target = (
            builder.bitcast(
                builder.gep(context.make_array(kind)(context, builder, array).data, [arguments[2]]),
                vector.as_pointer(),
            )
            for kind, array in zip(signature.args[:2], arguments[:2], strict=True)
        )
        own = builder.load(source, align=4)
        total = own
        # Hillis and Steele 1986: after each step a lane holds the sum of twice as many counts, its
        # own the last of them; four steps make it the sum of all up to there.
        for distance in (1, 2, 4, 8):
            lanes = [16 + i - distance if i >= distance else i for i in range(16)]
            # Lanes from 16 on are those of `total`; the others take zeros.
            moved = builder.shuffle_vector(zeros, total, ir.Constant(vector, lanes))
            total = builder.add(total, moved)
        first = builder.insert_element(zeros, arguments[3], _I32(0))
        everywhere = builder.shuffle_vector(first, zeros, zeros)
        builder.store(builder.add(builder.sub(total, own), everywhere), target, align=4)
        return builder.add(arguments[3], builder.extract_element(total, _I32(15)))

    return types.int32(counts, sums, types.intp, types.int32), generate


def word(array: Any, i: Any) -> Any:
    """Entry `i` as the bits of a float32."""
    raise NotImplementedError


@by_type(word)
def _word(array: Any, i: Any) -> Any:  # noqa: ARG001
    if array.dtype == types.uint16:
        return lambda array, i: np.uint32(np.uint32(array[i]) << np.uint32(16))
    return lambda array, i: bits_of(array[i])


def put(value: Any, out: Any, i: Any) -> None:
    """A float32 to entry `i`: one cast, to the nearest, ties to even."""
    raise NotImplementedError


@by_type(put)
def _put(value: Any, out: Any, i: Any) -> Any:  # noqa: ARG001
    if out.dtype != types.uint16:

        def to_f32(value: Any, out: Any, i: Any) -> None:
            out[i] = value

        return to_f32

    def to_bf16(value: Any, out: Any, i: Any) -> None:
        bits = bits_of(value)
        # Half a step less one, and the lowest bit that stays: a tie rounds up only from an odd one.
        lowest = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
        rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + lowest) >> np.uint32(16))
        # A carry would turn some NaN into infinity, or into the other sign's zero.
        is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        out[i] = np.uint16(np.uint32(0x7FC0) if is_nan else rounded)

    return to_bf16


def scalars(rows: Any, values: Any, m: Any) -> Any:
    """`values[m:]` as a tuple, one a row: numbers that stay in registers."""
    raise NotImplementedError


@by_type(scalars)
def _scalars(rows: Any, values: Any, m: Any) -> Any:  # noqa: ARG001
    if len(rows) == 1:
        return lambda rows, values, m: (values[m],)  # noqa: ARG005
    return lambda rows, values, m: (values[m],) + scalars(rows[1:], values, m + 1)


def cut(rows: Any, start: Any, stop: Any) -> Any:
    """Entries `start` to `stop` of every row. (An index with a sum in it is checked at every
    entry.)"""
    raise NotImplementedError


@by_type(cut)
def _cut(rows: Any, start: Any, stop: Any) -> Any:  # noqa: ARG001
    if len(rows) == 1:
        return lambda rows, start, stop: (rows[0][start:stop],)
    return lambda rows, start, stop: (rows[0][start:stop],) + cut(rows[1:], start, stop)


def deltas(rows: Any, base: Any, i: Any) -> Any:
    """Entry `i` of every row less the number `base`, as a tuple of float32."""
    raise NotImplementedError


@by_type(deltas)
def _deltas(rows: Any, base: Any, i: Any) -> Any:  # noqa: ARG001
    if len(rows) == 1:
        return lambda rows, base, i: (float_of(word(rows[0], i)) - base,)
    return lambda rows, base, i: (float_of(word(rows[0], i)) - base,) + deltas(rows[1:], base, i)


def larger(rows: Any, i: Any, top: Any) -> Any:
    """The largest of `top` and the bits of the magnitudes of every row's entry `i`."""
    raise NotImplementedError


@by_type(larger)
def _larger(rows: Any, i: Any, top: Any) -> Any:  # noqa: ARG001
    if len(rows) == 1:
        return lambda rows, i, top: larger_size(top, word(rows[0], i))
    return lambda rows, i, top: larger(rows[1:], i, larger_size(top, word(rows[0], i)))


def fused_sum(values: Any, factors: Any, total: Any) -> Any:
    """`total + sum(value_m * factor_m)`, each step rounded once."""
    raise NotImplementedError


@by_type(fused_sum)
def _fused_sum(values: Any, factors: Any, total: Any) -> Any:  # noqa: ARG001
    if len(values) == 1:
        return lambda values, factors, total: fma(values[0], factors[0], total)
    return lambda values, factors, total: fused_sum(
        values[1:], factors[1:], fma(values[0], factors[0], total)
    )


def products(values: Any, factors: Any) -> Any:
    """`value_m * factor_m`, as a tuple."""
    raise NotImplementedError


@by_type(products)
def _products(values: Any, factors: Any) -> Any:  # noqa: ARG001
    if len(values) == 1:
        return lambda values, factors: (values[0] * factors[0],)
    return lambda values, factors: (values[0] * factors[0],) + products(values[1:], factors[1:])


def plain_sum(values: Any, total: Any) -> Any:
    """`total + sum(value_m)`, in order."""
    raise NotImplementedError


@by_type(plain_sum)
def _plain_sum(values: Any, total: Any) -> Any:  # noqa: ARG001
    if len(values) == 1:
        return lambda values, total: total + values[0]
    return lambda values, total: plain_sum(values[1:], total + values[0])


def divided(value: Any, divisor: Any) -> Any:
    """`value / divisor`, or the value itself where the divisor is None."""
    raise NotImplementedError


@by_type(divided)
def _divided(value: Any, divisor: Any) -> Any:  # noqa: ARG001
    if isinstance(divisor, types.NoneType):
        return lambda value, divisor: value  # noqa: ARG005
    return lambda value, divisor: value / divisor
