"""One tensor of a merge by the method's own definition, in torch: float32 in, one cast out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from toolkit.checkpoint.write import tensor_bytes
from toolkit.merge.kernels.stream import EntryStream
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.moments import read_moments
from toolkit.merge.registry import Method
from toolkit.merge.task import TensorTask, name_in_step

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def merge_by_definition(
    method: Method,
    task: TensorTask,
    tensors: Sequence[Tensor],
    base: Tensor | None,
    put: Callable[[int, memoryview], None],
    *,
    seed: int,
    step: str,
    dtype: torch.dtype,
    device: str,
    workers: WorkerThreads,
) -> None:
    """Merge one tensor: in blocks where each entry stands for itself, else whole.

    Args:
        method: how.
        task: parameters and place.
        tensors: tuned tensors in their stored type, in file order.
        base: base tensor in its stored type, where the method takes one.
        put: `put(start, data)` takes merged entries from entry `start` on, from any thread.
        seed: of random methods; the tensor's name enters too, so that order cannot matter.
        step: name of an intermediate merge, which enters as well.
        dtype: of the result.
        device: where torch computes.
        workers: threads for blocks.
    """
    shown_tensor = base if base is not None else tensors[0]
    if not (method.elementwise and shown_tensor.is_floating_point()):
        merged = compute_tensor(
            method, task, tensors, base, seed=seed, step=step, dtype=dtype, device=device
        )
        put(0, tensor_bytes(merged))
        return
    # In blocks, float32 copies of the inputs take megabytes instead of several whole tensors.
    flat_tensors = [tensor.reshape(-1) for tensor in tensors]
    flat_base = base.reshape(-1) if base is not None else None

    def block(start: int, stop: int) -> None:
        parts = [tensor[start:stop] for tensor in flat_tensors]
        last = flat_base[start:stop] if flat_base is not None else None
        merged = compute_tensor(
            method, task, parts, last, seed=seed, step=step, dtype=dtype, device=device
        )
        put(start, tensor_bytes(merged))

    workers.each(shown_tensor.numel(), block)


def compute_tensor(
    method: Method,
    task: TensorTask,
    tensors: Sequence[Tensor],
    base: Tensor | None,
    *,
    seed: int,
    dtype: torch.dtype,
    step: str = "",
    device: str = "cpu",
    moments: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Merge one tensor whole; see `merge_by_definition`.

    Args:
        moments: for methods that need some, in place of those in the files that `task` names.

    Returns:
        The merged tensor on the CPU, cast once from float32. Integers and booleans are not merged:
        the base's (or the first model's) are kept.
    """
    typed_tensor = base if base is not None else tensors[0]
    if not typed_tensor.is_floating_point():
        return typed_tensor.clone()
    extra_arguments: dict[str, object] = {}
    if base is not None:
        # To the device as it is stored, and widened there: 16 bits cross the bus in half the time.
        extra_arguments["base"] = base.to(device).float()
    if method.is_random:
        extra_arguments["generator"] = EntryStream(seed, name_in_step(step, task.name))
    if method.needs_place:
        extra_arguments["place"] = task.place
    if task.thresholds is not None:
        extra_arguments["thresholds"] = task.thresholds
    if method.needs_moments:
        extra_arguments["moments"] = moments or read_moments(method.name, task)
    merged = method.function(
        [tensor.to(device).float() for tensor in tensors], **extra_arguments, **task.parameters
    )
    return merged.to(dtype).cpu()
