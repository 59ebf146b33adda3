"""The tensors of a checkpoint as transformers holds them in memory, one at a time.

Files may name them otherwise, and store in several what memory has in one (the experts of a layer).
The library's own conversion is asked, on a model without memory, and carried out for one tensor
when it is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.read import TORCH_NAMES, Checkpoint
from toolkit.checkpoint.stored_names import in_loading_order, read_renaming


class MemoryTensors:
    """A checkpoint seen by the names that its model has in memory.

    Args:
        model: of transformers, on the meta device.
        checkpoint: with such a model's tensors.

    Attributes:
        folder: of the checkpoint.
        sources: stored tensors that each tensor in memory is made of, by its name; a stored tensor
            that the model has no place for stands by its own name.
        shapes: of the tensors in memory.
        dtypes: their types, by torch's own; of several stored ones that of the first.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint) -> None:
        self.folder = checkpoint.folder
        self._model, self._checkpoint = model, checkpoint
        self.sources: dict[str, tuple[str, ...]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._conversions: dict[str, tuple[str, Any, list[tuple[str, str]]]] = {}
        self._held: tuple[str, Mapping[str, Tensor]] = ("", {})
        rename, converters = read_renaming(model)
        state = model.state_dict()
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in in_loading_order(checkpoint.names):
            key, pattern = rename(name)
            if pattern is not None:
                groups.setdefault(key, []).append((pattern, name))
            else:
                own = key if key in state else name
                self._note(own, (name,), checkpoint.info(name).shape)
        for key, members in groups.items():
            conversion = (key, converters[members[0][0]], members)
            for own, tensor in self._convert(conversion, on_meta=True).items():
                self._conversions[own] = conversion
                self._note(own, tuple(name for _, name in members), tuple(tensor.shape))

    def tensor(self, name: str) -> Tensor:
        """One tensor in its stored type; it must not be written to."""
        if name not in self._conversions:
            return self._checkpoint.tensor(self.sources[name][0])
        key = self._conversions[name][0]
        if self._held[0] != key:
            self._held = (key, self._convert(self._conversions[name]))
        return self._held[1][name]

    def give_back(self, name: str) -> None:
        """Let go of the memory of one tensor."""
        if name in self._conversions and self._held[0] == self._conversions[name][0]:
            self._held = ("", {})
        for source in self.sources.get(name, ()):
            self._checkpoint.give_back(source)

    def stored_name(self, name: str) -> str:
        """The name that the files have for one tensor, where they store it as it is."""
        return name if name in self._conversions else self.sources[name][0]

    def _note(self, own: str, sources: tuple[str, ...], shape: tuple[int, ...]) -> None:
        self.sources[own], self.shapes[own] = sources, shape
        self.dtypes[own] = _dtype(self._checkpoint, sources[0])

    def _convert(
        self, conversion: tuple[str, Any, list[tuple[str, str]]], *, on_meta: bool = False
    ) -> dict[str, Tensor]:
        key, converter, members = conversion
        converter = copy.deepcopy(converter)
        for pattern, name in members:
            if on_meta:
                shape, dtype = self._checkpoint.info(name).shape, _dtype(self._checkpoint, name)
                tensor = torch.empty(shape, dtype=dtype, device="meta")
            else:
                tensor = self._checkpoint.tensor(name)
            converter.add_tensor(key, name, pattern, tensor)
        made = converter.convert(key, model=self._model, config=self._model.config)
        return {n: value[0] if isinstance(value, list) else value for n, value in made.items()}


def _dtype(checkpoint: Checkpoint, name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, TORCH_NAMES[checkpoint.info(name).dtype])
    return dtype
