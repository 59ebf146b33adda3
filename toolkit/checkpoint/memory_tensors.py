"""The tensors of a checkpoint as transformers holds them in memory, one at a time.

transformers stores some models under other names than it computes with (a language model within a
vision-language one, the router of a mixture). Files may also store in several tensors what memory
has in one (the experts of a layer), and in one what memory has in several (query, key and value of
HRM). Adapters speak of memory. The library's own conversion is asked, on a model without memory,
and carried out for one tensor when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.checkpoint.read import TORCH_NAMES, Checkpoint, Entries, TensorInfo, item_bytes
from toolkit.checkpoint.stored_names import (
    Conversion,
    convert_stored,
    in_loading_order,
    read_renaming,
)
from toolkit.checkpoint.write import dtype_name, tensor_bytes
from toolkit.errors import CheckpointError
from toolkit.library_errors import first_line


class MemoryTensors(Checkpoint):
    """A checkpoint seen by the names that its model has in memory.

    Args:
        model: of transformers, on the meta device.
        checkpoint: with such a model's tensors.

    Attributes:
        model: that model.
        sources: stored tensors that each tensor in memory is made of, by its name; a stored tensor
            that the model has no place for stands by its own name.
        tied: names in memory of tensors that are another one, by the name of that one.
        shapes: of the tensors in memory.

    Raises:
        CheckpointError: the files do not hold what the library would make the model of.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.folder, {}, checkpoint.unheld)
        self.model, self._checkpoint = model, checkpoint
        self.sources: dict[str, tuple[str, ...]] = {}
        self.tied: Mapping[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._conversions: dict[str, Conversion] = {}
        self._held: tuple[str, Mapping[str, Tensor]] = ("", {})
        rename, converters = read_renaming(model)
        model_state = model.state_dict()
        members_by_key: dict[str, list[tuple[str, str]]] = {}
        for stored_name in in_loading_order(checkpoint.names):
            memory_key, pattern = rename(stored_name)
            if pattern is not None:
                members_by_key.setdefault(memory_key, []).append((pattern, stored_name))
                continue
            stored_info = checkpoint.info(stored_name)
            self._note(
                memory_key if memory_key in model_state else stored_name,
                (stored_name,),
                stored_info,
            )
        for memory_key, key_members in members_by_key.items():
            conversion = Conversion(memory_key, converters[key_members[0][0]], tuple(key_members))
            source_names = tuple(stored_name for _, stored_name in key_members)
            try:
                converted = self._convert(conversion, on_meta=True)
            except Exception as error:  # whatever a converter of transformers raises
                raise CheckpointError(
                    f"{self.folder}: transformers cannot make {memory_key} of {source_names[0]} "
                    f"and what goes with it ({first_line(error)}); give a whole model."
                ) from error
            for memory_name, tensor in converted.items():
                self._conversions[memory_name] = conversion
                # On the meta device: only shapes and types are wanted until a tensor is asked for.
                stored_info = _info_of(tensor, checkpoint.info(source_names[0]))
                self._note(memory_name, source_names, stored_info)

    def is_converted(self, name: str) -> bool:
        """Whether files store a tensor otherwise than memory holds it."""
        return name in self._conversions

    def made_with(self, name: str) -> list[str]:
        """Names of all tensors in memory that are made of the same stored ones, that one too."""
        if name not in self._conversions:
            return [name]
        conversion = self._conversions[name]
        return [other for other, own in self._conversions.items() if own is conversion]

    def stored_name(self, name: str) -> str:
        """The name that the files have for one tensor, where they store it as it is."""
        return name if name in self._conversions else self.sources[name][0]

    @property
    def stored_names(self) -> list[str]:
        """Names of the stored tensors."""
        return self._checkpoint.names

    def stored_info(self, stored_name: str) -> TensorInfo:
        """Where a stored tensor lies."""
        return self._checkpoint.info(stored_name)

    def stored_bytes(self, stored_name: str) -> NDArray[np.uint8]:
        """The bytes of a stored tensor."""
        return self._checkpoint.raw(stored_name)

    def take_apart(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors in memory as the files store them, by their names there."""
        from transformers.core_model_loading import revert_weight_conversion

        stored_parts: dict[str, Tensor] = revert_weight_conversion(self.model, dict(tensors))
        return stored_parts

    def tensor(self, name: str) -> Tensor:
        """One tensor in its stored type; it must not be written to."""
        if name not in self._conversions:
            return self._checkpoint.tensor(self.sources[name][0])
        conversion = self._conversions[name]
        if self._held[0] != conversion.key:
            # Of the last group only: its tensors are asked for one after the other, and the experts
            # of two layers are more than memory may hold.
            self._held = (conversion.key, self._convert(conversion))
        return self._held[1][name]

    def raw(self, name: str) -> NDArray[np.uint8]:
        if name not in self._conversions:
            return self._checkpoint.raw(self.sources[name][0])
        return np.frombuffer(tensor_bytes(self.tensor(name)), np.uint8)

    def array(self, name: str) -> Entries | None:
        is_stored = name not in self._conversions
        return self._checkpoint.array(self.sources[name][0]) if is_stored else super().array(name)

    def give_back(self, name: str) -> None:
        if name in self._conversions and self._held[0] == self._conversions[name].key:
            self._held = ("", {})
        for source in self.sources.get(name, ()):
            self._checkpoint.give_back(source)

    def _note(self, name: str, sources: tuple[str, ...], info: TensorInfo) -> None:
        self.sources[name], self.shapes[name] = sources, info.shape
        self._tensors[name] = info

    def _convert(self, conversion: Conversion, *, on_meta: bool = False) -> dict[str, Tensor]:
        def without_memory(stored_name: str) -> Tensor:
            stored_info = self._checkpoint.info(stored_name)
            dtype: torch.dtype = getattr(torch, TORCH_NAMES[stored_info.dtype])
            return torch.empty(stored_info.shape, dtype=dtype, device="meta")

        read_stored = without_memory if on_meta else self._checkpoint.tensor
        return convert_stored(conversion, self.model, read_stored)


def _info_of(tensor: Tensor, first: TensorInfo) -> TensorInfo:
    """Of a tensor made of stored ones; messages blame the file of the first."""
    dtype, shape = dtype_name(tensor.dtype), tuple(tensor.shape)
    return replace(first, dtype=dtype, shape=shape, num_bytes=math.prod(shape) * item_bytes(dtype))
