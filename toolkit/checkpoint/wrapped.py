"""Language models inside others: vision-language and other wrappers, the form of new releases.

The text side is taken out and is an ordinary causal language model, which shares its tensors with
the wrapper; towers for images and sounds leave memory. A folder is written by putting the text
side's tensors in the place of the original's, so that everything else stays byte for byte, and the
folder loads as what it was.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from toolkit.checkpoint.wrappers import set_wrapper
from toolkit.errors import CheckpointError


def wrapper_class(config: Any) -> Any:
    """The class of a wrapper around a causal language model, or None for a plain model.

    Args:
        config: of transformers, as its folder has it.
    """
    import transformers

    try:
        text_config = config.get_text_config()
    except ValueError:  # it has several (text to speech, music)
        return None
    if text_config is config or config.is_encoder_decoder or text_config.is_encoder_decoder:
        return None
    for class_name in getattr(config, "architectures", None) or ():
        made = getattr(transformers, class_name, None)
        if made is not None and hasattr(made, "generate") and _is_of(made, config):
            return made
    return None


def _is_of(made: Any, config: Any) -> bool:
    return _is_listed(made, config) or made.config_class is type(config)


def _is_listed(made: Any, config: Any) -> bool:
    """Whether `AutoModelForImageTextToText` opens folders of a configuration by this class."""
    from transformers import AutoModelForImageTextToText

    class_mapping = AutoModelForImageTextToText._model_mapping
    return type(config) in class_mapping and class_mapping[type(config)] is made


def opened_by(folder: Path) -> str:
    """Name of the class of transformers with which a user opens a model folder."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError):  # said where it is loaded
        return "AutoModelForCausalLM"
    if (made := wrapper_class(config)) is None:
        return "AutoModelForCausalLM"
    return "AutoModelForImageTextToText" if _is_listed(made, config) else str(made.__name__)


def load_text_side(made: Any, folder: str | Path, dtype: torch.dtype) -> Any:
    """Load a wrapper and take the causal language model out of it.

    Args:
        made: class of the wrapper.
        folder: of the model.
        dtype: of its tensors.

    Raises:
        CheckpointError: no part of it is a causal language model, or it cannot be written back.
    """
    from transformers import AutoConfig

    from toolkit.checkpoint.text_side import take_text_side

    # Some classes are of several kinds of configuration.
    full = made.from_pretrained(folder, config=AutoConfig.from_pretrained(folder), dtype=dtype)
    if (text := take_text_side(full)) is None:
        raise CheckpointError(
            f"{folder}: no part of a {type(full).__name__} computes what it does of a text alone, "
            "so there is no text side that could be adapted by itself."
        )
    # Towers may be larger than the text side; training that reads text alone has no use for them.
    _release_all_but(full, text)
    set_wrapper(text, full)
    _stored_of(text, Path(folder))  # what cannot be written back is known before it is trained
    return text


def _release_all_but(full: Any, text: Any) -> None:
    """Move what is not of the text side to the meta device."""
    kept_ids = {id(tensor) for tensor in (*text.parameters(), *text.buffers())}
    for module in full.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None and id(tensor) not in kept_ids:
                    gone = tensor.detach().to("meta")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    table[name] = nn.Parameter(gone, requires_grad=False) if is_parameter else gone


def write_with_text_side(model: Any, folder: Path, like: Path) -> None:
    """Write a wrapper's folder with another text side, file by file.

    Args:
        model: the text side, from `load_text_side`.
        folder: to write to.
        like: folder of the wrapper that it came from.

    Raises:
        CheckpointError: a tensor of the text side has no place in the files.
    """
    from toolkit.checkpoint.read import INDEX_FILE, list_safetensors, weight_files

    stored_tensors = _stored_of(model, like)
    stored_tensors.read()
    for weight_path in weight_files(like):
        with safe_open(weight_path, framework="pt") as file:
            file_tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        for tensor_name, tensor in file_tensors.items():
            if tensor_name in stored_tensors.targets:
                text_tensor = stored_tensors.targets[tensor_name].detach().to("cpu", tensor.dtype)
                # Cloned: safetensors refuses tensors that share memory, as experts of one parameter
                # do.
                file_tensors[tensor_name] = text_tensor.contiguous().clone()
        save_file(file_tensors, folder / weight_path.name, metadata=metadata or {"format": "pt"})
    weight_map = list_safetensors(like)[1]
    for file_name in (
        "config.json",
        "generation_config.json",
        *([INDEX_FILE] if weight_map else []),
    ):
        if (like / file_name).is_file():
            shutil.copyfile(like / file_name, folder / file_name)


def _stored_of(model: Any, folder: Path) -> Any:
    from toolkit.checkpoint.read import weight_files
    from toolkit.checkpoint.stored_names import StoredTensors

    shapes_by_name: dict[str, tuple[int, ...]] = {}
    for weight_path in weight_files(folder):
        with safe_open(weight_path, framework="pt") as file:
            shapes_by_name |= {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
    stored_tensors = StoredTensors(model, shapes_by_name)
    if stored_fault := stored_tensors.fault(model.named_parameters()):
        raise CheckpointError(
            f"{folder}: {stored_fault}, so the text side cannot be written back into what it was."
        )
    return stored_tensors
