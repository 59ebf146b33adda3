"""Opening a checkpoint, whatever format its weights are stored in."""

from __future__ import annotations

from pathlib import Path

from toolkit.checkpoint.read import (
    INDEX_FILE,
    Checkpoint,
    TensorInfo,
    check_index,
    list_safetensors,
    read_header,
)
from toolkit.checkpoint.usable import refuse_unusable
from toolkit.errors import CheckpointError


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the weights of a model folder, sharded or not, and check every header.

    Safetensors where there are any, else `pytorch_model.bin` (see `pickled`).

    Raises:
        CheckpointError: files are missing, cut short, or contradict their headers or the index, or
            hold what nothing can be computed with (see `usable`).
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder.")
    files, weight_map = list_safetensors(folder)
    if not files:
        from toolkit.checkpoint.pickled import open_pickled  # it needs what is defined here

        if pickled_model := open_pickled(folder):
            return pickled_model
        if (folder / "adapter_config.json").is_file():
            raise CheckpointError(
                f"{folder}: is an adapter, not a model; merge adapters with each other by toolkit "
                f"adapter merge, or write the model before it (MODEL+{folder})."
            )
        raise CheckpointError(
            f"{folder}: holds neither safetensors nor pytorch_model.bin; convert the model with "
            "save_pretrained, or give another folder."
        )
    tensors: dict[str, TensorInfo] = {}
    for weight_file in files:
        for tensor_name, info in read_header(weight_file).items():
            if tensor_name in tensors:
                raise CheckpointError(
                    f"{weight_file}: {tensor_name} stands in {tensors[tensor_name].file.name} too, "
                    "and which of them is meant nothing says; move one of the files away."
                )
            tensors[tensor_name] = info
    refuse_unusable(folder, tensors)
    return Checkpoint(folder, tensors, check_index(folder / INDEX_FILE, weight_map, tensors))
