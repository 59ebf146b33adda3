"""One tensor of a merge: by a kernel where there is one, else by the method's own definition.

Either way: float32 arithmetic, one cast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.merge.kernels.fast import Kernel, ReadRows, Rows, Workers, find_kernel
from toolkit.merge.kernels.primitives import NON_FINITE
from toolkit.merge.plan import TensorTask
from toolkit.merge.registry import Method

Sink = Callable[[int, Tensor], None]
"""`sink(start, block)`: takes merged entries, from entry `start` on, in any order of blocks."""

_KERNEL_DTYPES = (torch.bfloat16, torch.float32)


class NonFiniteError(Exception):
    """An input holds NaN or infinity; which one is the caller's to find out and to say."""


def kernel_of(task: TensorTask, method: Method, dtype: torch.dtype, device: str) -> Kernel | None:
    """The kernel that will run a task, or None where the torch definition does."""
    if dtype not in _KERNEL_DTYPES or device != "cpu":
        return None
    return find_kernel(method.name, task.parameters)


def run_task(
    method: Method,
    task: TensorTask,
    tensors: Sequence[Tensor],
    base: Tensor | None,
    sink: Sink,
    *,
    seed: int,
    dtype: torch.dtype,
    workers: Workers,
    target: Tensor | None = None,
    memory: dict[Any, Any] | None = None,
    device: str = "cpu",
    allow_non_finite: bool = False,
) -> None:
    """Merge one tensor and hand it on in blocks.

    Args:
        method: how.
        task: parameters and place.
        tensors: tuned tensors in their stored type, in file order.
        base: base tensor in its stored type, where the method takes one.
        sink: where blocks go; it is called from several threads.
        seed: of random methods.
        dtype: of the result.
        workers: threads.
        target: flat tensor of type `dtype` that a kernel writes into, instead of calling `sink`.
        memory: keeps what depends on the inputs alone from one call to the next.
        device: where torch computes; kernels run on the CPU.
        allow_non_finite: merge inputs with NaN or infinity by the definition.

    Raises:
        NonFiniteError: an input holds NaN or infinity.
    """
    inputs = [*tensors, *([base] if base is not None else [])]
    is_float = inputs[-1].is_floating_point()
    kernel = kernel_of(task, method, dtype, device) if is_float and inputs[-1].numel() else None
    if kernel is not None and not allow_non_finite:
        kept = {} if memory is None else memory
        _run_kernel(kernel, task, inputs, sink, dtype, workers, target, kept)
        return
    if is_float and not allow_non_finite and not all(torch.isfinite(t).all() for t in inputs):
        raise NonFiniteError
    if is_float and method.elementwise and not method.is_random:
        flat = [tensor.reshape(-1) for tensor in inputs]

        def block(start: int, stop: int) -> None:
            parts = [tensor[start:stop] for tensor in flat]
            last = parts.pop() if base is not None else None
            merged = compute_tensor(
                method, task, parts, last, seed=seed, dtype=dtype, device=device
            )
            sink(start, merged)

        workers.each(flat[0].numel(), block)
        return
    merged = compute_tensor(method, task, tensors, base, seed=seed, dtype=dtype, device=device)
    sink(0, merged.reshape(-1))


def _run_kernel(
    kernel: Kernel,
    task: TensorTask,
    inputs: Sequence[Tensor],
    sink: Sink,
    dtype: torch.dtype,
    workers: Workers,
    target: Tensor | None,
    memory: dict[Any, Any],
) -> None:
    flat = [tensor.reshape(-1) for tensor in inputs]
    size = flat[0].numel()
    read = row_reader(flat)
    settings = kernel.prepare(read, size, task.parameters, workers, memory)
    narrow = dtype == torch.bfloat16
    place = None
    if target is not None:
        place = _bits(target) if narrow else target.detach().numpy()

    def merge(start: int, stop: int) -> int:
        if place is not None:
            return int(kernel.apply(read(start, stop), settings, place[start:stop]))
        out = np.empty(stop - start, np.uint16 if narrow else np.float32)
        top = int(kernel.apply(read(start, stop), settings, out))
        block = torch.from_numpy(out)
        sink(start, block.view(torch.bfloat16) if narrow else block)
        return top

    if max(workers.each(size, merge)) >= NON_FINITE:
        raise NonFiniteError


def row_reader(flat: Sequence[Tensor]) -> ReadRows:
    """Blocks of every input as arrays: bfloat16 as its bits, any other mixture as float32."""
    if all(tensor.dtype == torch.bfloat16 for tensor in flat):
        arrays = [_bits(tensor) for tensor in flat]
        return lambda start, stop: tuple(array[start:stop] for array in arrays)

    def read(start: int, stop: int) -> Rows:
        return tuple(tensor[start:stop].float().contiguous().numpy() for tensor in flat)

    return read


def _bits(tensor: Tensor) -> NDArray[np.uint16]:
    array: NDArray[np.uint16] = tensor.detach().view(torch.int16).numpy().view(np.uint16)
    return array


def compute_tensor(
    method: Method,
    task: TensorTask,
    tensors: Sequence[Tensor],
    base: Tensor | None,
    *,
    seed: int,
    dtype: torch.dtype,
    device: str = "cpu",
) -> Tensor:
    """Merge one tensor by the method's own definition.

    Returns:
        The merged tensor on the CPU, cast once from float32. Integers and booleans are not merged:
        the base's (or the first model's) are kept.
    """
    reference = base if base is not None else tensors[0]
    if not reference.is_floating_point():
        return reference.clone()
    extra: dict[str, object] = {}
    if base is not None:
        extra["base"] = base.to(device).float()
    if method.is_random:
        extra["generator"] = seeded_generator(seed, task.name)
    if method.needs_place:
        extra["place"] = task.place
    if task.thresholds is not None:
        extra["thresholds"] = task.thresholds
    merged = method.function(
        [tensor.to(device).float() for tensor in tensors], **extra, **task.parameters
    )
    return merged.to(dtype).cpu()


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A generator that depends on seed and name alone."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return generator
