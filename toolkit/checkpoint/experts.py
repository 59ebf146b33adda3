"""Experts of a loaded model under the names that its files have.

transformers holds the experts of a layer in two tensors, and stores them one by one.
Legend: E experts, I width of an expert, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_IN, _OUT = ".experts.gate_up_proj", ".experts.down_proj"
_NAMES = {
    # block in files: names of gate, up and down projections
    ".mlp": ("gate_proj", "up_proj", "down_proj"),
    ".block_sparse_moe": ("w1", "w3", "w2"),
}


def with_stored_names(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters by every name a file may use: of experts, views into the tensors of all of them.

    Args:
        parameters: of a loaded model, by name; experts are `[E, 2 I, D]` (gate, then up) and
            `[E, D, I]`. Other mixtures, and dense models, come back as they are.
    """
    names = dict(parameters)
    for name, tensor in parameters.items():
        block = next((name.removesuffix(end) for end in (_IN, _OUT) if name.endswith(end)), None)
        if block is None or tensor.dim() != 3 or not block.endswith(".mlp"):
            continue
        is_in = name.endswith(_IN)
        for stored, (gate, up, down) in _NAMES.items():
            prefix = f"{block.removesuffix('.mlp')}{stored}.experts"
            for number, expert in enumerate(tensor):
                if is_in:
                    width = expert.shape[0] // 2
                    names[f"{prefix}.{number}.{gate}.weight"] = expert[:width]
                    names[f"{prefix}.{number}.{up}.weight"] = expert[width:]
                else:
                    names[f"{prefix}.{number}.{down}.weight"] = expert
        if (router := parameters.get(f"{block}.gate.weight")) is not None:
            names[f"{block.removesuffix('.mlp')}.block_sparse_moe.gate.weight"] = router
    return names
