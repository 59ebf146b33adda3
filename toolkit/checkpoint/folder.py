"""What belongs to a model folder beside its weights, and how a folder is written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from toolkit.checkpoint.read import weight_files
from toolkit.checkpoint.side_files import copy_side_files, copy_tokenizer_files
from toolkit.checkpoint.wrapped import write_with_text_side
from toolkit.checkpoint.wrappers import wrapper_of
from toolkit.errors import CheckpointError
from toolkit.leftovers import appearing_file
from toolkit.library_errors import reading


def save_model(
    model: Any, folder: Path, *, dtype: torch.dtype, like: Path, only_tokenizer: bool = False
) -> None:
    """Write a model with one cast to `dtype`, and the side files of the model it came from; what
    was taken out of a wrapper goes back into it, in the types that it has.

    The same weights give the same bytes.

    Args:
        model: of transformers.
        folder: where it goes.
        dtype: of its floating-point weights.
        like: the folder whose side files it gets.
        only_tokenizer: whether `like` is another kind of model, whose tokenizer alone is taken.
    """
    if wrapper_of(model) is not None:
        write_with_text_side(model, folder, like)
    else:
        model.to(dtype).save_pretrained(folder)
    (copy_tokenizer_files if only_tokenizer else copy_side_files)(like, folder)


def stored_dtype(folder: Path) -> torch.dtype:
    """The floating-point type that most of a checkpoint's entries are stored in."""
    entries_by_dtype: dict[torch.dtype, int] = {}
    for weight_file in weight_files(folder):
        with reading(weight_file, CheckpointError), safe_open(weight_file, framework="pt") as file:
            for tensor_name in file.keys():  # noqa: SIM118  (a safe_open is no mapping)
                tensor_slice = file.get_slice(tensor_name)
                dtype = _DTYPES.get(tensor_slice.get_dtype())
                if dtype is not None:
                    num_entries = math.prod(tensor_slice.get_shape())
                    entries_by_dtype[dtype] = entries_by_dtype.get(dtype, 0) + num_entries
    if not entries_by_dtype:
        raise CheckpointError(f"{folder}: its weights are in no floating-point type known here.")
    return max(entries_by_dtype, key=lambda dtype: entries_by_dtype[dtype])


_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load one safetensors file whole.

    Raises:
        CheckpointError: it is missing, cut short or damaged.
    """
    with reading(path, CheckpointError), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file that is whole or absent."""
    with appearing_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
