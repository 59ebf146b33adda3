"""How much each entry of a matrix matters: the mean square of what is multiplied with it.

ggml's quantizer weighs its errors with these, as llama.cpp's importance matrices do. They are
measured on text that the user names; the output matrix and the embedding have none, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.checkpoint.gguf.tensors import Array, GgufTensor

_MODULES = (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj"))
"""Mixtral's names of the parts of an expert, and everybody's."""


class _MeanSquares:
    """Sums of squares by name, `[experts, row]`, and how many rows each is of."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(self, name: str, inputs: Tensor, expert: int = 0, num_experts: int = 1) -> None:
        # Float64: in float32 a sum over millions of tokens stops growing.
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).double()
        if name not in self.sums:
            self.sums[name] = torch.zeros(num_experts, rows.shape[-1], dtype=torch.float64)
            self.counts[name] = torch.zeros(num_experts, dtype=torch.float64)
        self.sums[name][expert] += rows.square().sum(0)
        self.counts[name][expert] += len(rows)

    def mean(self, name: str) -> Array:
        """The means; experts that no token was sent to weigh all entries alike."""
        counts = self.counts[name][:, None]
        means = torch.where(counts > 0, self.sums[name] / counts.clamp(min=1), 1.0)
        return means.numpy().astype(np.float32)


@torch.no_grad()
def measure_importance(
    model: Any, texts: Iterable[Sequence[int]], tensors: Sequence[GgufTensor]
) -> Mapping[str, Array]:
    """Mean squares by name of the tensor in the file: `[row]`, or `[experts, row]`.

    Args:
        model: of transformers, loaded.
        texts: tokens of each text.
        tensors: those of the file.
    """
    squares = _MeanSquares()
    handles = [
        module.register_forward_pre_hook(_watch(squares, name, module))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or _holds_experts(module)
    ]
    try:
        for text in texts:
            model(torch.tensor([list(text)], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, Array] = {}
    for tensor in tensors:
        name = _module_name(tensor)
        # llama.cpp's imatrix holds nothing of the embedding and the output either.
        if tensor.name.startswith("blk.") and name in squares.sums:
            means = squares.mean(name)
            found[tensor.name] = means if len(tensor.sources) > 1 else means[0]
    return found


def _holds_experts(module: Any) -> bool:
    return isinstance(getattr(module, "gate_up_proj", None), nn.Parameter)


def _watch(squares: _MeanSquares, name: str, module: Any) -> Callable[..., None]:
    if isinstance(module, nn.Linear):
        return lambda _, inputs: squares.add(name, inputs[0])

    def watch_experts(_: Any, inputs: tuple[Tensor, ...]) -> None:
        """Experts lie in one tensor; what each is given follows from where tokens are sent."""
        hidden, chosen = inputs[0].reshape(-1, inputs[0].shape[-1]), inputs[1]
        num_experts = module.gate_up_proj.shape[0]
        for expert in range(num_experts):
            rows = hidden[(chosen == expert).any(-1)]
            if not len(rows):
                continue
            # What the down projection multiplies is no module's input here, so it is computed once
            # more.
            gate, up = nn.functional.linear(rows, module.gate_up_proj[expert]).chunk(2, -1)
            for part in ("gate_proj", "up_proj"):
                squares.add(f"{name}.{part}", rows, expert, num_experts)
            squares.add(f"{name}.down_proj", module.act_fn(gate) * up, expert, num_experts)

    return watch_experts


def _module_name(tensor: GgufTensor) -> str:
    """The module that a tensor's first source is the weight of, as transformers names it."""
    name = tensor.sources[0].removesuffix(".weight") if tensor.sources else ""
    if ".experts." not in name:
        return name
    start, _, part = name.partition(".experts.")
    part = part.split(".")[-1]
    for mixtral_name, plain_name in _MODULES:
        part = plain_name if part == mixtral_name else part
    return f"{start.replace('block_sparse_moe', 'mlp')}.experts.{part}"
