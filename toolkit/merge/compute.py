"""One tensor of a merge: float32 in, the method, one cast out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.merge.plan import TensorTask
from toolkit.merge.registry import Method


def compute_tensor(
    method: Method,
    task: TensorTask,
    tensors: Sequence[Tensor],
    base: Tensor | None,
    *,
    seed: int,
    dtype: torch.dtype,
) -> Tensor:
    """Merge one tensor by the method's own definition.

    Args:
        method: how.
        task: parameters and place.
        tensors: tuned tensors in their stored type, in file order.
        base: base tensor in its stored type, where the method takes one.
        seed: of random methods; the tensor's name enters too, so that order cannot matter.
        dtype: of the result.

    Returns:
        The merged tensor, cast once from float32. Integers and booleans are not merged: the base's
        (or the first model's) are kept.
    """
    reference = base if base is not None else tensors[0]
    if not reference.is_floating_point():
        return reference.clone()
    extra: dict[str, object] = {}
    if base is not None:
        extra["base"] = base.float()
    if method.is_random:
        extra["generator"] = seeded_generator(seed, task.name)
    if method.needs_place:
        extra["place"] = task.place
    merged = method.function([t.float() for t in tensors], **extra, **task.parameters)
    return merged.to(dtype)


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A generator that depends on seed and name alone."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return generator
