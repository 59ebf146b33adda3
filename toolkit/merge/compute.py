"""One tensor of a merge: by a kernel where there is one, else by the method's own definition.

A merge that only kernels run never loads torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.read import TORCH_NAMES, has_array, is_float
from toolkit.checkpoint.write import tensor_bytes
from toolkit.errors import MergeError
from toolkit.library_errors import first_line
from toolkit.merge.kernels.compiled import KernelError
from toolkit.merge.kernels.fast import Kernel, find_kernel, forgo_kernel
from toolkit.merge.kernels.job import Job, JobMemory
from toolkit.merge.kernels.rows import RowReader, read_entries
from toolkit.merge.kernels.sizes import NON_FINITE
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.registry import Method, ParameterValues
from toolkit.merge.rounding import StochasticRounding, TensorRounding
from toolkit.merge.task import TensorTask, name_in_step
from toolkit.merge.torch_engine import merge_by_definition

if TYPE_CHECKING:
    from torch import Tensor

Put = Callable[[int, memoryview], None]
"""`put(start, data)`: takes merged entries, from entry `start` on; called from several threads."""

_OUT: dict[str, type[np.generic]] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


class NonFiniteError(Exception):
    """An input holds NaN or infinity; which one is the caller's to find out and to say."""


def blame_input(task: TensorTask, models: Models) -> str:
    """Which input of a tensor is not finite: kernels only tell that one is."""
    for source in task.inputs:
        # As float32, which merging computes in: float64 may hold more.
        if not is_finite(models.read(source).float()):
            file = models.checkpoint(source.model).damaged_file(source.tensor)
            return f"{source.tensor}: holds NaN or infinity in {file}; the model is damaged."
    return f"{task.name}: an input holds NaN or infinity; a model is damaged."


def _overflowed(task: TensorTask, dtype: str) -> MergeError:
    return MergeError(
        f"{task.name}: the merged values do not fit into {TORCH_NAMES[dtype]}, though those of the "
        "models are finite; write a wider type (out_dtype: bfloat16 or float32), or give smaller "
        "weights."
    )


def check_device(device: str) -> None:
    """Refuse a device that torch does not have here; the CPU needs no torch.

    Raises:
        MergeError: names it.
    """
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise MergeError(
            f"device {device}: torch cannot compute there ({first_line(error)}); leave "
            "--device out to merge on the CPU."
        ) from error


def engine_of(task: TensorTask, method: Method, models: Models, dtype: str, device: str) -> str:
    """What will run a task: `kernel`, `torch`, or `copy` for what is not merged but kept."""
    stored = {models.dtype(source) for source in task.inputs}
    if task.is_copied or not all(is_float(name) for name in stored):
        return "copy"
    found = find_kernel(method.name, task.parameters, task.shape) if device == "cpu" else None
    fits = dtype in _OUT and all(has_array(name) for name in stored)
    return "kernel" if found is not None and fits else "torch"


@dataclass(frozen=True)
class ComputeSettings:
    """How tensors are merged, whichever they are.

    Attributes:
        seed: of random methods.
        workers: threads that compute.
        device: where torch computes; kernels run on the CPU.
        allow_non_finite: merge inputs with NaN or infinity, by the definition.
        refuse_overflow: refuse results that do not fit into the type written where the inputs are
            finite, in place of infinities.
        rounding: how float32 becomes a 16-bit type; None rounds to the nearest.
        step: name of an intermediate merge, whose random methods draw for themselves: with the same
            draws in every step, what one dropped all others would drop.
    """

    seed: int
    workers: WorkerThreads
    device: str = "cpu"
    allow_non_finite: bool = False
    refuse_overflow: bool = False
    rounding: StochasticRounding | None = None
    step: str = ""

    def rounding_of(self, task: TensorTask, dtype: str) -> TensorRounding | None:
        """The rounding of a tensor written in a type; None where it is to the nearest."""
        return None if self.rounding is None else self.rounding.of_tensor(task.name, dtype)


@dataclass(frozen=True)
class Destination:
    """Where the entries of one merged tensor go.

    Attributes:
        dtype: type of the result, by the format's name.
        put: takes blocks of entries.
        target: flat array that a kernel writes into, instead of calling `put`.
    """

    dtype: str
    put: Put
    target: NDArray[Any] | None = None


def run_task(
    method: Method,
    task: TensorTask,
    models: Models,
    destination: Destination,
    settings: ComputeSettings,
    memory: JobMemory | None = None,
) -> None:
    """Merge one tensor and hand it on in blocks.

    Args:
        method: how.
        task: which tensors, with which parameters.
        models: what they are read from.
        destination: where merged entries go, and in which type.
        settings: what holds for all tensors.
        memory: keeps what depends on the inputs alone from one call to the next.

    Raises:
        NonFiniteError: an input holds NaN or infinity.
        MergeError: no input does, and the result does not fit into its type.
    """
    engine = engine_of(task, method, models, destination.dtype, settings.device)
    kernel = find_kernel(method.name, task.parameters, task.shape)
    # Another thread may have given the kernel up since `engine_of` looked, so both are asked.
    if engine == "kernel" and kernel is not None and task.size and not settings.allow_non_finite:
        rows = RowReader([read_entries(models.checkpoint(s.model), s.tensor) for s in task.inputs])
        kept = {} if memory is None else memory
        name = name_in_step(settings.step, task.name)
        job = Job(rows, task.shape, task.parameters, settings.workers, kept, settings.seed, name)
        try:
            rounding = settings.rounding_of(task, destination.dtype)
            _run_kernel(kernel, job, destination, settings.refuse_overflow, rounding)
            return
        except FloatingPointError:
            raise _overflowed(task, destination.dtype) from None
        except KernelError as error:  # the definition overwrites blocks that are written already
            forgo_kernel(method.name, error)
    if engine == "copy":
        _check_equal(task, models)
        destination.put(0, tensor_bytes(models.read(task.leader)))
        return
    _run_definition(method, task, models, destination, settings)


def _run_definition(
    method: Method,
    task: TensorTask,
    models: Models,
    destination: Destination,
    settings: ComputeSettings,
) -> None:
    tensors = [models.read(source) for source in task.sources]
    base = models.read(task.base) if task.base is not None else None
    inputs = tensors if base is None else [*tensors, base]
    if not settings.allow_non_finite and not all(is_finite(tensor) for tensor in inputs):
        raise NonFiniteError
    import torch

    dtype: torch.dtype = getattr(torch, TORCH_NAMES[destination.dtype])
    rounding = settings.rounding_of(task, destination.dtype)
    looks_for_overflow = settings.refuse_overflow and not settings.allow_non_finite

    def put_finite(start: int, data: memoryview) -> None:
        if data.nbytes and rounding is not None:
            rounded: Any = rounding(np.frombuffer(data, np.float32), start)
            data = memoryview(rounded)
        if data.nbytes and looks_for_overflow:
            block = torch.frombuffer(data, dtype=dtype)
            if block.is_floating_point() and not is_finite(block):
                raise _overflowed(task, destination.dtype)
        destination.put(start, data)

    merge_by_definition(
        method,
        task,
        tensors,
        base,
        put_finite,
        seed=settings.seed,
        step=settings.step,
        # Stochastic rounding does the one cast itself, from float32.
        dtype=dtype if rounding is None else torch.float32,
        device=settings.device,
        workers=settings.workers,
    )


def _run_kernel(
    kernel: Kernel,
    job: Job,
    destination: Destination,
    refuse_overflow: bool,
    rounding: TensorRounding | None,
) -> None:
    prepared = kernel.prepare(job)
    kind, target = _OUT[destination.dtype], destination.target
    # Looking a block over for infinities costs a pass. A kernel tells the bits of the largest input
    # of a block: where that and the settings are ordinary, the result cannot leave float32.
    last_tame = _TAME_BITS if _is_tame(job.parameters) else 0

    def merge(start: int, stop: int) -> int:
        rows = job.read(start, stop)
        block: Any = np.empty(stop - start, kind) if target is None else target[start:stop]
        least_wild = last_tame
        if rounding is not None or kind is np.float16:
            # Kernels write neither; from float32 it is still one cast.
            single = np.empty(stop - start, np.float32)
            largest_bits = kernel.apply(rows, prepared, start, single)
            if rounding is not None:
                # float16 ends at 65504, which ordinary values may pass, so its blocks are always
                # looked over.
                block.view(np.uint16)[:] = rounding(single, start)
                least_wild = 0 if kind is np.float16 else last_tame
            else:
                # The cast itself tells of an overflow, without another pass; errstate is this
                # thread's alone.
                with np.errstate(over="raise" if refuse_overflow else "ignore"):
                    block[:] = single
        else:
            largest_bits = kernel.apply(rows, prepared, start, block)
        # Infinite inputs are named below, by the caller; here only finite ones are to blame.
        if refuse_overflow and least_wild <= largest_bits < NON_FINITE and not _is_finite(block):
            raise FloatingPointError
        if target is None:
            destination.put(start, memoryview(block))
        return largest_bits

    # As bits NaN is larger than infinity, so that one comparison finds both.
    if max(job.workers.each(job.size, merge, kernel.unit(job))) >= NON_FINITE:
        raise NonFiniteError


_TAME = 2.0**20
_TAME_BITS = 0x53800000
"""Bits of float32 2**40. Inputs below it, times a few settings between 2**-20 and 2**20, stay far
below 2**127."""


def _is_tame(parameters: ParameterValues) -> bool:
    """Whether no setting of a method can carry an ordinary value beyond float32."""
    for value in parameters.values():
        for number in value if isinstance(value, (tuple, list)) else (value,):
            # Zero is below the range and yet harmless: nothing grows by it.
            is_number = isinstance(number, (int, float)) and bool(number)
            if is_number and not 1.0 / _TAME <= abs(number) <= _TAME:
                return False
    return True


def _is_finite(entries: NDArray[Any]) -> bool:
    """Whether merged entries are finite; bfloat16 comes as its bits."""
    if entries.dtype == np.uint16:
        # All eight bits of the exponent: infinity or NaN.
        return not bool(((entries & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(entries).all())


def _check_equal(task: TensorTask, models: Models) -> None:
    """Refuse integers that differ: they are no weights, and whose are right cannot be known."""
    if task.is_copied:
        return
    import torch

    kept = models.read(task.leader)
    for source in task.inputs:
        if not torch.equal(models.read(source), kept):
            raise MergeError(
                f"{task.name}: holds {models.dtype(source)} values that differ between "
                f"{task.leader.model} and {source.model}; only floating-point tensors can be "
                "merged. Is the model quantized?"
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite; torch asks this of no 8-bit type itself."""
    import torch

    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())
