"""One tensor merged by a kernel, from files, and by the torch definition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from toolkit.checkpoint.models import Models, Source
from toolkit.checkpoint.write import dtype_name
from toolkit.merge.compute import ComputeSettings, Destination, engine_of, run_task
from toolkit.merge.kernels.workers import WorkerThreads
from toolkit.merge.registry import Place, get_method
from toolkit.merge.task import TensorTask
from toolkit.merge.torch_engine import compute_tensor


def inputs(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Tuned tensors near a base, with zeros, signed zeros, denormals and large values among them;
    in bfloat16 many entries tie at any threshold."""
    size = math.prod(shape)
    torch.manual_seed(size)
    base = torch.randn(size) * 0.02
    large = 6e4 if dtype == torch.float16 else 3e38
    tuned = [base + torch.randn(size) * 0.003 for _ in range(count)]
    for number, tensor in enumerate([base, *tuned]):
        odd = torch.tensor([0.0, -0.0, large, 1e-41, -1e-41, 1.0, 0.125])
        tensor[number : number + odd.numel()] = odd[: max(0, size - number)][
            : tensor[number:].numel()
        ]
    return [tensor.to(dtype).reshape(shape) for tensor in tuned], base.to(dtype).reshape(shape)


def merge_both_ways(
    name: str,
    parameters: dict[str, Any],
    tuned: list[Tensor],
    base: Tensor | None,
    out: torch.dtype,
    folder: Path,
    *,
    threads: int = 2,
) -> tuple[Tensor, Tensor]:
    """Merge by the kernel, from files, and by the definition.

    Args:
        name: of the method.
        parameters: as tuples where they are per model; what is left out has its default.
        tuned: tensors as stored.
        base: tensor as stored, or None.
        out: type of the results.
        folder: for the files.
        threads: of the kernel.
    """
    method = get_method(name)
    named = {str(n): tensor for n, tensor in enumerate(tuned)}
    if base is not None:
        named["base"] = base
    for key, tensor in named.items():
        (folder / key).mkdir(exist_ok=True)
        save_file({"x": tensor.contiguous()}, folder / key / "model.safetensors")
    models = Models({key: folder / key for key in named})
    defaults = {
        p.name.replace("lambda", "lambda_"): (p.default * len(tuned) if p.per_model else p.default)
        for p in method.parameters.values()
        if not p.required
    }
    task = TensorTask(
        name="x",
        shape=tuple(tuned[0].shape),
        sources=tuple(Source(str(n), "x") for n in range(len(tuned))),
        base=None if base is None else Source("base", "x"),
        parameters={**defaults, **parameters},
        place=Place("x", None, 1),
    )
    assert engine_of(task, method, models, dtype_name(out), "cpu") == "kernel"
    merged = torch.empty(tuned[0].numel(), dtype=out)

    def put(start: int, data: memoryview) -> None:
        block = torch.frombuffer(bytearray(data), dtype=out)
        merged[start : start + block.numel()] = block

    workers = WorkerThreads(threads)
    destination = Destination(dtype_name(out), put)
    run_task(method, task, models, destination, ComputeSettings(3, workers))
    assert engine_of(task, method, models, dtype_name(out), "cpu") == "kernel"  # was not forgone
    expected = compute_tensor(method, task, tuned, base, seed=3, dtype=out)
    return merged.reshape(tuned[0].shape), expected


def bits(tensor: Tensor) -> np.ndarray:
    """The patterns of a tensor's entries, so that signed zeros and NaN compare."""
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16).numpy()
