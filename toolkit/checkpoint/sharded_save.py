"""A trained model that processes hold parts of, written as the folder that one process would write.

The files are laid out first. Then layer after layer is gathered, brought into the form that files
have, and every process writes its share of the bytes into their places: no process ever holds more
than a layer, and no second copy is put together on the disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from toolkit.checkpoint.sharded_load import EmptyModel, places_of
from toolkit.checkpoint.write import PlannedTensor, ShardWriter, dtype_name, tensor_bytes
from toolkit.errors import CheckpointError

_FILE_BYTES = 50_000_000_000
"""Size above which a new file begins, as transformers has it."""

_LAYER = re.compile(r"(.*?\.\d+)\.")
"""Up to the first number in a parameter's name: the layer that it belongs to."""

_BUFFERS = ""
"""In place of a layer's name: tensors that are stored and are no parameters."""


class ModelWriter:
    """Writes a model whose parameters are shared out; all processes make one, and call it alike.

    Args:
        empty: a second model without memory, made from the same folder as the one in training.
        prepared: what training makes of `empty` (adapters, new blocks), without memory too.
        trained: the model in training.
        dtype: type of the stored floating-point tensors.
    """

    def __init__(self, empty: EmptyModel, prepared: Any, trained: Any, dtype: torch.dtype) -> None:
        self._model, self._prepared, self._dtype = empty.model, prepared, dtype
        self._class_name = empty.model_class.__name__
        self._values: dict[str, Any] = {**dict(trained.named_parameters())}
        self._values |= dict(trained.named_buffers())
        # With adapters the modules that hold a model's own tensors are deeper, and were known by
        # their names before; new blocks are known by the names that they have.
        has_adapters = prepared is not empty.model
        plain_places = empty.places if has_adapters else places_of(prepared)
        self._plain_names = {
            (id(module), attribute): name for name, (module, attribute) in plain_places.items()
        }
        self._places = places_of(prepared)
        self._names_by_layer: dict[str, list[str]] = {}
        for name, _ in prepared.named_parameters():
            match = _LAYER.match(name)
            self._names_by_layer.setdefault(match[1] if match else name, []).append(name)
        self._names_by_layer[_BUFFERS] = [
            name
            for name, (module, attribute) in self._places.items()
            if attribute in module._buffers and attribute not in module._non_persistent_buffers_set
        ]
        self._planned = {
            name: tensor
            for layer in self._names_by_layer
            for name, tensor in self._stored_of(layer, _without_memory).items()
        }

    def fault(self) -> str:
        """Why the model cannot be written layer by layer, or nothing."""
        state = {
            self._plain_names[id(module), attribute]: _without_memory(self._values[name])
            for names in self._names_by_layer.values()
            for name in names
            for module, attribute in [self._places[name]]
            if (id(module), attribute) in self._plain_names
        }
        shapes = {name: tensor.shape for name, tensor in self._to_stored(state).items()}
        if shapes != {name: tensor.shape for name, tensor in self._planned.items()}:
            return "its layers cannot be brought into the form of its files one by one"
        return ""

    def vocabulary_names(self) -> set[str]:
        """Stored tensors that have a row for every token."""
        modules = (self._model.get_input_embeddings(), self._model.get_output_embeddings())
        names = {
            name
            for name, (module, attribute) in self._places.items()
            if attribute == "weight" and any(module is embedding for embedding in modules)
        }
        return {
            stored_name
            for layer, layer_names in self._names_by_layer.items()
            if names & set(layer_names)
            for stored_name in self._stored_of(layer, _without_memory)
        }

    @torch.no_grad()
    def write(self, folder: Path, change: Callable[[str, Tensor], Tensor]) -> None:
        """Write the files of tensors.

        Args:
            folder: an existing folder, without files of a model.
            change: given a stored tensor by its name before it is cast, returns what is stored.

        Raises:
            CheckpointError: not all bytes were written, or the disk has too little room.
        """
        rank, count = dist.get_rank(), dist.get_world_size()
        plan = [
            PlannedTensor(name, dtype_name(self._stored_dtype(tensor)), tuple(tensor.shape))
            for name, tensor in self._planned.items()
        ]
        # The order in which safetensors itself writes: wider types first, then by name.
        plan.sort(
            key=lambda tensor: (
                -torch.empty(
                    0, dtype=self._stored_dtype(self._planned[tensor.name])
                ).element_size(),
                tensor.name,
            )
        )
        # The first process makes the files; the others wait for them to stand.
        writer = ShardWriter(folder, plan, _FILE_BYTES) if rank == 0 else None
        dist.barrier()
        writer = writer or ShardWriter(folder, plan, _FILE_BYTES, joins=True)
        num_written = 0
        try:
            # To gather is a collective: every process must ask for every layer, in the same order,
            # though it writes only its share of each tensor.
            for layer in self._names_by_layer:
                for name, tensor in self._stored_of(layer, _gathered).items():
                    changed = change(name, tensor)
                    view = tensor_bytes(changed.to(self._stored_dtype(changed)))
                    begin, end = (len(view) * number // count for number in (rank, rank + 1))
                    writer.write(name, begin, view[begin:end])
                    num_written += end - begin
        finally:
            writer.release()
        # No process sees more than its own share; only the sum tells whether every byte was
        # written.
        counts: list[int] = [0] * count
        dist.all_gather_object(counts, num_written)
        if sum(counts) != writer.total_bytes:
            raise CheckpointError(
                f"{folder}: {sum(counts)} bytes were written, and {writer.total_bytes} are due; "
                "run the same command again."
            )

    def write_settings(self, folder: Path) -> None:
        """Write the configuration beside the tensors; one process does."""
        self._model.config.dtype = str(self._dtype).removeprefix("torch.")
        # FSDP gives the class another name, by which nobody could load the folder.
        self._model.config.architectures = [self._class_name]
        self._model.config.save_pretrained(folder)
        if self._model.can_generate() and self._model.generation_config is not None:
            self._model.generation_config.save_pretrained(folder)

    @torch.no_grad()
    def gather(self, part: str) -> dict[str, Tensor]:
        """Whole parameters whose names hold a word, such as those of adapters; all processes."""
        return {name: _gathered(value) for name, value in self._values.items() if part in name}

    def _stored_dtype(self, tensor: Tensor) -> torch.dtype:
        return self._dtype if tensor.is_floating_point() else tensor.dtype

    @torch.no_grad()
    def _stored_of(self, layer: str, get: Callable[[Any], Tensor]) -> dict[str, Tensor]:
        """Tensors of a layer as files have them.

        Args:
            layer: name of the layer.
            get: gives the values of a parameter in training.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        # The layer's values stand in the model without memory for as long as adapters are merged
        # into them and the names of the files are found.
        places = [(name, *self._places[name]) for name in self._names_by_layer[layer]]
        emptied: list[tuple[dict[str, Any], str, Any]] = []
        for name, module, attribute in places:
            is_parameter = attribute in module._parameters
            table: dict[str, Any] = vars(module)["_parameters" if is_parameter else "_buffers"]
            emptied.append((table, attribute, table[attribute]))
            value = get(self._values[name])
            table[attribute] = nn.Parameter(value, requires_grad=False) if is_parameter else value
        adapted = [
            module
            for name, module in self._prepared.named_modules()
            if isinstance(module, BaseTunerLayer) and layer and f"{name}.".startswith(f"{layer}.")
        ]
        for adapted_module in adapted:
            adapted_module.merge()
        state = {
            self._plain_names[id(module), attribute]: getattr(module, attribute).detach()
            for _, module, attribute in places
            if (id(module), attribute) in self._plain_names
        }
        # What was merged is a stand-in that goes away; nothing is to be taken out of it again.
        for adapted_module in adapted:
            adapted_module.merged_adapters.clear()
        for table, attribute, empty_tensor in emptied:
            table[attribute] = empty_tensor
        return self._to_stored(state)

    def _to_stored(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the model as files have them; each of tied ones once."""
        from transformers.core_model_loading import revert_weight_conversion

        left_out = set(self._model._keys_to_ignore_on_save or ())
        left_out |= set(getattr(self._model, "all_tied_weights_keys", None) or ())
        state = {name: tensor for name, tensor in state.items() if name not in left_out}
        return dict(revert_weight_conversion(self._model, state)) if state else {}


def _gathered(value: Any) -> Tensor:
    whole: Tensor = value.detach()
    return (whole.full_tensor() if hasattr(whole, "full_tensor") else whole).cpu()


def _without_memory(value: Any) -> Tensor:
    return torch.empty(tuple(value.shape), dtype=value.dtype, device="meta")
