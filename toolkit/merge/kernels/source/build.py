"""From a kernel's text to an object file: numba makes the LLVM code, llvmlite the machine code."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import carray, types

from toolkit.merge.kernels.source.primitives import pointer

_FROM_C = ("memset", "memcpy", "memmove", "llvm.")
"""What machine code may call: these are in every process."""


def build_object(
    module: str, name: str, signature: tuple[tuple[Any, ...], ...], symbol: str
) -> bytes:
    """Compile a kernel for arguments of given types.

    Args:
        module: in this package, where the kernel stands.
        name: of the kernel.
        signature: kind and type of each argument; see `native.Signature`.
        symbol: what the function is called in the object file:
            `int32 symbol(uint32 *result, void **exception, uint64 *words)`.

    Raises:
        RuntimeError: the kernel needs what is in no process but one that has loaded numba.
    """
    function = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    compiled = numba.njit(types.uint32(types.CPointer(types.uint64)), nogil=True)(
        _unpacker(function, signature)
    )
    (found,) = compiled.overloads.values()
    parsed = llvm.parse_assembly(found.library.get_llvm_str())
    main = parsed.get_function(found.fndesc.llvm_func_name)
    for item in (*parsed.functions, *parsed.global_variables):
        if not item.is_declaration:
            item.linkage = "internal"  # so that what is not called is dropped
            if item.is_function and item.name != main.name:
                item.add_function_attribute("alwaysinline")  # arrays never leave their function,
                # so that the code which would count references to them vanishes
    main.name = symbol
    main.linkage = "external"
    machine = _machine()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    needed = [f.name for f in parsed.functions if f.is_declaration]
    if foreign := [f for f in needed if not f.startswith(_FROM_C)]:
        raise RuntimeError(f"kernel {name} calls {', '.join(foreign)}")
    return bytes(machine.emit_object(parsed))


def _machine() -> llvm.TargetMachine:
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="static",  # no offset table: the parts of a process may lie far apart
        codemodel="jitdefault",
        jit=True,
    )


def _unpacker(function: Any, signature: tuple[tuple[Any, ...], ...]) -> Callable[..., Any]:
    """A function of words that calls the kernel with what they stand for.

    Numba compiles text, so the text is put together here: one expression an argument.
    """
    expressions, place = [], 0
    for kind, *rest in signature:
        word = f"words[{place}]"
        if kind == "rows":
            count, dtype = rest
            size = f"np.intp(words[{place + count}])"
            rows = [_array(f"words[{place + m}]", dtype, size) for m in range(count)]
            expressions.append(f"({', '.join(rows)},)")
            place += count + 1
        elif kind == "array":
            ndim, dtype = rest
            sizes = (f"np.intp(words[{place + 1 + d}])" for d in range(ndim))
            expressions.append(_array(word, dtype, ", ".join(sizes)))
            place += ndim + 1
        elif kind == "bool":
            expressions.append(str(bool(rest[0])))
        else:
            single = "as_float32(np.uint32({}))" if kind == "float32" else f"np.{kind}({{}})"
            expressions.append(single.format(word))
            place += 1
    text = (
        "def unpack(address):\n"
        f"    words = carray(address, ({place},))\n"
        f"    return function({', '.join(expressions)})\n"
    )
    names = {"np": np, "carray": carray, "pointer": pointer, "as_float32": _as_float32}
    scope: dict[str, Callable[..., Any]] = {}
    exec(text, names | {"function": function}, scope)  # noqa: S102  (text of our own)
    return scope["unpack"]


def _array(address: str, dtype: str, sizes: str) -> str:
    return f"carray(pointer({address}, np.{dtype}), ({sizes},))"


@numba.njit(inline="never")  # type: ignore[untyped-decorator]
def _as_float32(bits: Any) -> Any:
    return np.uint32(bits).view(np.float32)
