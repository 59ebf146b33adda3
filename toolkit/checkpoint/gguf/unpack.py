"""A GGUF file as the folder of the model it was made from: each tensor dequantized, under the
model's own names. What is scored of a file is scored of this."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from toolkit.checkpoint.gguf.families import family_of
from toolkit.checkpoint.gguf.header import check_gguf
from toolkit.checkpoint.gguf.tensors import plan_tensors
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.side_files import copy_tokenizer_files
from toolkit.checkpoint.wrapped import wrapper_class
from toolkit.errors import CheckpointError
from toolkit.leftovers import scratch_folder


@contextlib.contextmanager
def unpacked_gguf(path: Path, folder: Path) -> Iterator[Path]:
    """A folder, for as long as the block lasts, of what the file holds, in float32.

    Args:
        path: the file.
        folder: of the model that it was made from, whose names and settings it has.

    Raises:
        CheckpointError: the file lacks a tensor of the model, or has it in another shape.
    """
    import gguf

    from toolkit.checkpoint.load import load_model_config

    check_gguf(path)
    config = load_model_config(folder)
    checkpoint = open_checkpoint(folder)
    family = family_of(config, folder)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    state: dict[str, torch.Tensor] = {}
    for planned in plan_tensors(checkpoint, config, family):
        if planned.values is not None:
            continue  # made of the config, which is kept
        if planned.name not in stored:
            raise CheckpointError(f"{path.name}: {planned.name} is not in it.")
        tensor = stored[planned.name]
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        for name, values in planned.undo(array):
            if values.shape != checkpoint.info(name).shape:
                raise CheckpointError(
                    f"{path.name}: {planned.name} is {list(values.shape)}, but {name} is "
                    f"{list(checkpoint.info(name).shape)}."
                )
            # Copied: arrays are views of the file, and of one another where experts lie in one.
            state[name] = torch.from_numpy(values.astype("float32", copy=True))
    with scratch_folder(path) as unpacked:
        save_file(state, unpacked / "model.safetensors", metadata={"format": "pt"})
        shutil.copyfile(folder / "config.json", unpacked / "config.json")
        copy_tokenizer_files(folder, unpacked)
        yield unpacked


@contextlib.contextmanager
def text_model(folder: Path, beside: Path) -> Iterator[Path]:
    """The folder of a model; of a vision-language model one of its text side, as long as the block
    lasts: GGUF files hold that alone.

    Args:
        folder: of the model.
        beside: path on whose disk a folder may be made.
    """
    from toolkit.checkpoint.folder import stored_dtype
    from toolkit.checkpoint.load import load_causal_model, load_model_config

    if wrapper_class(load_model_config(folder)) is None:
        yield folder
        return
    with scratch_folder(beside) as text_folder:
        # In the type that it is stored in, so that the file is made of the same values.
        load_causal_model(folder, stored_dtype(folder)).save_pretrained(text_folder)
        copy_tokenizer_files(folder, text_folder)
        yield text_folder
