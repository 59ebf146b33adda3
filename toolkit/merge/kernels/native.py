"""Kernels as machine code: compiled once for this processor, kept, and loaded without a compiler.

Loading numba takes about as long as merging half a gigabyte. So it is loaded only for a kernel
that was never called on this machine with arguments of these types; the object file it makes is
kept in the user's cache folder, from where `loader` takes it the next time.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.merge.kernels.loader import UnknownFormatError, load_function

Signature = tuple[tuple[Any, ...], ...]
"""Of each argument its kind and type: `("rows", 3, "uint16")`, `("array", 1, "float32")`,
`("float32",)`, `("int64",)`, `("uint64",)`; of a bool its value too, `("bool", 1)`."""

_PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
)  # result, exception, arguments; releases the interpreter lock


class Entry:
    """A kernel as a function: `entry(*arguments)`.

    Arguments are C-contiguous arrays of one or two dimensions, tuples of one-dimensional arrays of
    one type and length, numpy's float32 and uint64, bool and int. The result is an int.

    Args:
        module: in `kernels.source`, without the package.
        name: of the function there.
    """

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name
        self._compiled: dict[Signature, Any] = {}

    def __call__(self, *arguments: Any) -> int:
        words: list[int] = []
        signature = tuple(_pack(argument, words) for argument in arguments)
        function = self._compiled.get(signature)
        if function is None:
            function = self._compiled[signature] = _LIBRARY.function(self, signature)
        packed = (ctypes.c_uint64 * len(words))(*words)
        result = ctypes.c_uint32(0)
        raised = ctypes.c_void_p()
        status = function(ctypes.addressof(result), ctypes.addressof(raised), packed)
        if status != 0:
            raise RuntimeError(f"kernel {self.name} failed with status {status}")
        return result.value


def _pack(argument: Any, words: list[int]) -> tuple[Any, ...]:
    if isinstance(argument, np.ndarray):
        words.append(_address(argument))
        words.extend(argument.shape)
        return ("array", argument.ndim, argument.dtype.name)
    if isinstance(argument, tuple):
        words.extend(_address(array) for array in argument)
        words.append(argument[0].size)
        kinds = {(array.dtype.name, array.size) for array in argument}
        if len(kinds) != 1:
            raise TypeError(f"rows differ in type or length: {kinds}")
        return ("rows", len(argument), argument[0].dtype.name)
    if isinstance(argument, np.float32):
        words.append(int(argument.view(np.uint32)))
        return ("float32",)
    if isinstance(argument, bool | np.bool_):
        return ("bool", int(argument))  # compiled in, so that loops need not ask
    words.append(int(argument) & 0xFFFFFFFFFFFFFFFF)
    return ("uint64",) if isinstance(argument, np.uint64) else ("int64",)


def _address(array: NDArray[Any]) -> int:
    if not array.flags.c_contiguous:
        raise TypeError("kernels read C-contiguous arrays")
    return int(array.__array_interface__["data"][0])


class _Library:
    """All loaded kernels of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: Any = None
        self._folder: Path | None = None
        self._is_open = False

    def function(self, entry: Entry, signature: Signature) -> Any:
        """The machine code of a kernel for arguments of these types."""
        with self._lock:
            if not self._is_open:
                self._folder, self._is_open = _cache_folder(), True
            symbol = "_".join([entry.name, *("".join(map(str, part)) for part in signature)])
            code = self._find(symbol)
            if code is None:
                from toolkit.merge.kernels.source.build import build_object

                code = build_object(entry.module, entry.name, signature, symbol)
                self._keep(symbol, code)
            try:
                return _PROTOTYPE(load_function(code, symbol))
            except UnknownFormatError:
                return _PROTOTYPE(self._load_by_llvm(code, symbol))

    def _load_by_llvm(self, code: bytes, symbol: str) -> int:
        import llvmlite.binding as llvm

        if self._engine is None:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
            self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        return int(self._engine.get_function_address(symbol))

    def _find(self, symbol: str) -> bytes | None:
        """Kept machine code; None where there is none, or not all of it."""
        if self._folder is None:
            return None
        try:
            digest, code = (self._folder / f"{symbol}.o").read_bytes().split(b"\n", 1)
        except (OSError, ValueError):
            return None
        return code if hashlib.sha256(code).hexdigest().encode() == digest else None

    def _keep(self, symbol: str, code: bytes) -> None:
        if self._folder is None:
            return
        import tempfile  # takes long to load

        with contextlib.suppress(OSError):  # a full disk or a read-only home: compile again
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(hashlib.sha256(code).hexdigest().encode() + b"\n" + code)
            Path(file.name).replace(self._folder / f"{symbol}.o")


_LIBRARY = _Library()


def _cache_folder() -> Path | None:
    """Where machine code is kept: named after what it was made from and for. None where a folder of
    the user's own cannot be made."""
    known = hashlib.sha256()
    here = Path(__file__).parent
    for path in (*sorted((here / "source").glob("*.py")), here / "sizes.py"):
        known.update(path.read_bytes())
    known.update(_compiler() + _processor())
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = Path(base) / "cpt-toolkit" / "kernels" / known.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):  # no home, or one that is read-only
        return None
    return folder if os.access(folder, os.W_OK) else None


def _compiler() -> bytes:
    """What tells one version of numba from another, without loading any."""
    found = importlib.util.find_spec("numba")
    if found is None or found.origin is None:
        return b""
    try:
        return Path(found.origin).with_name("_version.py").read_bytes()
    except OSError:
        return found.origin.encode()


def _processor() -> bytes:
    """What tells one kind of processor from another."""
    try:
        with Path("/proc/cpuinfo").open("rb") as file:
            lines = file.read(8192).split(b"\n\n")[0].splitlines()  # the first one's are enough
        kept = (b"vendor_id", b"cpu family", b"model", b"stepping", b"flags")
        if found := b"\n".join(line for line in lines if line.startswith(kept)):
            return found
    except OSError:
        pass
    import llvmlite.binding as llvm

    return f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}".encode()


combine_models = Entry("sums", "combine_models")
add_task_vectors = Entry("sums", "add_task_vectors")
combine_task_vectors = Entry("sums", "combine_task_vectors")
arc = Entry("sums", "arc")
inner_products = Entry("sums", "inner_products")
upper_histogram = Entry("ranks", "upper_histogram")
lower_histogram = Entry("ranks", "lower_histogram")
collect_windows = Entry("ranks", "collect_windows")
kth_word = Entry("ranks", "kth_word")
join_trimmed = Entry("trimmed", "join_trimmed")
sizes_trimmed = Entry("trimmed", "sizes_trimmed")
thin_at_random = Entry("random", "thin_at_random")
join_masked = Entry("random", "join_masked")
thin_by_rank = Entry("ranked", "thin_by_rank")
scatter_halves = Entry("table", "scatter_halves")
distinct = Entry("table", "distinct")
compare_models = Entry("compare", "compare_models")
