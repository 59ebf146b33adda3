"""Kernels as functions: numba compiles them at their first call, once per machine.

numba takes about half a second to import, so it is imported with the first kernel that is asked
for; a merge that needs none, and `--help`, do without.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from toolkit.errors import warn
from toolkit.merge.kernels.cache import clear_cache, locked_cache


class KernelError(Exception):
    """A kernel cannot be had here: numba cannot be imported, or cannot compile it."""


class CompiledKernel:
    """A kernel as a function: `kernel(*arguments)`.

    Arguments are C-contiguous arrays of one or two dimensions, tuples of read-only rows (see
    `rows.RowReader`), numpy's float32 and uint64, bool, int, and None. The result is an int.

    Args:
        module: in `kernels.source`, without the package.
        name: of the function there.
    """

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name
        self._compiled: set[tuple[Any, ...]] = set()

    def __call__(self, *arguments: Any) -> int:
        """Run the kernel.

        Raises:
            KernelError: there is none here; nothing was computed.
        """
        try:
            function = _import_kernel(self.module, self.name)
            # numba takes longer to name the types of a few arrays than to sum up a small block.
            kinds = (id(function), *map(_kind, arguments))
            if kinds not in self._compiled:
                signature = tuple(map(_typeof(), arguments))
                if signature not in function.overloads:
                    _compile(function, signature)
                self._compiled.add(kinds)
        except Exception as error:  # whatever it is, the definition can do without
            raise KernelError(f"kernel {self.name}: {type(error).__name__}: {error}") from error
        # Outside of `try`: what fails here has been compiled, and may have begun to write.
        return int(function(*arguments))


def _kind(argument: Any) -> Any:
    """What decides an argument's type in numba's eyes."""
    if isinstance(argument, np.ndarray):
        # Order, alignment and permission to write are parts of an array's type for numba.
        return argument.dtype, argument.ndim, argument.flags.num
    if isinstance(argument, tuple):
        return tuple(map(_kind, argument))
    return type(argument)


@functools.cache
def can_import_kernels() -> bool:
    """Whether numba is here and reads the kernels' text; says so, once, where it does not."""
    try:
        importlib.import_module(f"{__package__}.source.packing")
    except Exception as error:  # ImportError too of a numba that does not know this numpy yet
        announce_fallback(f"numba cannot be used here ({type(error).__name__}: {error})")
        return False
    return True


def announce_fallback(reason: str) -> None:
    """Say, once per process, why merges take longer than they could."""
    warn(f"{reason.rstrip('.')}; computing without compiled kernels, which is slower.")


@functools.cache
def _import_kernel(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"{__package__}.source.{module}"), name)


@functools.cache
def _typeof() -> Any:
    from numba import typeof

    return typeof


def _compile(function: Any, signature: tuple[Any, ...]) -> None:
    """Take a kernel from the cache, or compile it and put it there."""
    from numba.core.errors import NumbaError

    with locked_cache(), _without_scipy_linalg():
        try:
            function.compile(signature)
        # What numba cannot compile it cannot compile without a cache either.
        except NumbaError:
            raise
        except Exception:  # of reading the cache, which has a damaged file; compile without it
            clear_cache()
            function.compile(signature)


@contextlib.contextmanager
def _without_scipy_linalg() -> Iterator[None]:
    """Spare numba the import of scipy.linalg, a quarter of a second of a short merge.

    The first function that numba compiles or loads makes it look for BLAS there, for numpy's
    linear algebra, which no kernel uses. A name that stands as None in `sys.modules` cannot be
    imported, and numba goes on without. Another thread that imports scipy in that moment would
    fail, so nothing is done where there is one; nor where scipy.linalg is imported already.
    """
    name = "scipy.linalg"
    if name in sys.modules or threading.active_count() > 1:
        yield
        return
    blocked: dict[str, Any] = {name: None}
    sys.modules.update(blocked)
    try:
        yield
    finally:
        if sys.modules.get(name, blocked) is None:
            del sys.modules[name]


combine_models = CompiledKernel("sums", "combine_models")
add_task_vectors = CompiledKernel("sums", "add_task_vectors")
combine_task_vectors = CompiledKernel("sums", "combine_task_vectors")
arc = CompiledKernel("sums", "arc")
inner_products = CompiledKernel("sums", "inner_products")
upper_histogram = CompiledKernel("ranks", "upper_histogram")
lower_histogram = CompiledKernel("ranks", "lower_histogram")
collect_windows = CompiledKernel("ranks", "collect_windows")
kth_word = CompiledKernel("ranks", "kth_word")
join_trimmed = CompiledKernel("trimmed", "join_trimmed")
sizes_trimmed = CompiledKernel("trimmed", "sizes_trimmed")
thin_at_random = CompiledKernel("random", "thin_at_random")
join_masked = CompiledKernel("random", "join_masked")
thin_by_rank = CompiledKernel("ranked", "thin_by_rank")
scatter_halves = CompiledKernel("table", "scatter_halves")
distinct = CompiledKernel("table", "distinct")
compare_models = CompiledKernel("compare", "compare_models")
round_at_random = CompiledKernel("rounding", "round_at_random")
