"""Candidates of a search, and the bytes that their merges must have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.stored_names import parameters_by_name


def candidate(method: str, share: float, **more: Any) -> dict[str, Any]:
    """A configuration as a search asks for it, with a weight (or t) and parameters of the model."""
    if method in {"linear", "nuslerp"}:
        weights = {"general": 1.0 - share, "specialist": share}
        models = [{"model": n, "parameters": {"weight": w}} for n, w in weights.items()]
        return {"merge_method": method, "models": models}
    by_t = method in {"slerp", "nearswap"}
    own = {} if by_t else {"parameters": {"weight": share, **more}}
    return {
        "merge_method": method,
        "base_model": "general",
        "models": [{"model": "specialist", **own}],
        **({"parameters": {"t": share}} if by_t else {}),
    }


def patterns(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def assert_same_bytes(model: Any, expected: dict[str, Tensor]) -> None:
    named = parameters_by_name(model)
    for name, tensor in expected.items():
        assert torch.equal(patterns(named[name]), patterns(tensor)), name
