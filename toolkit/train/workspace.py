"""Memory of training that is used again and again: it never goes through the heap.

What comes and goes between results that stay leaves holes in a heap that nothing fits into: a tenth
of the memory of training SmolLM2 in float32 (dev/LOG.md). What is used again is in the cache, too.
"""

from __future__ import annotations

import threading
from math import prod

import torch
from torch import Tensor

_Key = tuple[str, torch.dtype, torch.device]


class Workspace(threading.local):
    """Places by name: one that is used from call to call, or many that are lent and given back.

    >>> workspace = Workspace()
    >>> workspace.tensor("y", (2, 3), torch.float32).shape
    torch.Size([2, 3])
    """

    def __init__(self) -> None:
        self._places: dict[_Key, Tensor] = {}
        self._free: dict[_Key, list[Tensor]] = {}

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """A contiguous tensor with whatever is in it, which holds what is written to it until the
        name is used again: for what lives within one function."""
        place_key = name, dtype, torch.device(device)
        self._places[place_key] = place = _large_enough(
            self._places.get(place_key), shape, dtype, device
        )
        return place[: prod(shape)].view(shape)

    def lend(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """A contiguous tensor that nobody else uses until it is given back. One that is not given
        back is freed as any tensor is: where a block is computed again for its backward pass, what
        its first pass was lent must not be held by anything else than what autograd keeps."""
        place_key = name, dtype, torch.device(device)
        free_places = self._free.get(place_key)
        # The last one given back is the warmest in the cache.
        place = _large_enough(free_places.pop() if free_places else None, shape, dtype, device)
        return place[: prod(shape)].view(shape)

    def give_back(self, name: str, lent: Tensor) -> None:
        """Let others use it; the tensor, or a view of it, is not to be looked at any more."""
        all_entries = lent.untyped_storage().nbytes() // lent.element_size()
        place = lent.detach().as_strided((all_entries,), (1,), 0)
        self._free.setdefault((name, lent.dtype, lent.device), []).append(place)

    def clear(self) -> None:
        """Free all that is not lent."""
        self._places.clear()
        self._free.clear()


def _large_enough(
    place: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    if place is None or len(place) < prod(shape):
        return torch.empty(prod(shape), dtype=dtype, device=device)
    return place


WORKSPACE = Workspace()
"""Of training, in this thread."""
