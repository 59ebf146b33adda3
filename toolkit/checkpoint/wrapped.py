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
from weakref import WeakKeyDictionary

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from toolkit.checkpoint.forward import without_cache
from toolkit.checkpoint.probe_documents import probe_documents
from toolkit.errors import CheckpointError

_WRAPPERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""The wrapper that a text model was taken out of; what is not text is on the meta device."""


def wrapper_class(config: Any) -> Any:
    """The class of a wrapper around a causal language model, or None for a plain model.

    Args:
        config: of transformers, as its folder has it.
    """
    import transformers
    from transformers import AutoModelForCausalLM

    text = config.get_text_config()
    if text is config or type(text) not in AutoModelForCausalLM._model_mapping:
        return None
    for name in getattr(config, "architectures", None) or ():
        made = getattr(transformers, name, None)
        if made is not None and made.config_class is type(config) and hasattr(made, "generate"):
            return made
    return None


def load_text_side(made: Any, folder: str | Path, dtype: torch.dtype) -> Any:
    """Load a wrapper and take the causal language model out of it.

    Args:
        made: class of the wrapper.
        folder: of the model.
        dtype: of its tensors.

    Raises:
        CheckpointError: the text side is not what transformers knows as a causal language model.
    """
    full = made.from_pretrained(folder, dtype=dtype)
    text = _text_model(full)
    if text is None or not _same_logits(full, text):
        raise CheckpointError(
            f"{folder}: the text side of a {type(full).__name__} is not the causal language model "
            "that transformers has for it, so it cannot be adapted by itself."
        )
    _release_all_but(full, text)
    _WRAPPERS[text] = full
    _stored_of(text, Path(folder))  # what cannot be written back is known before it is trained
    return text


def wrapper_of(model: Any) -> Any:
    """The wrapper that a model was taken out of, or None."""
    return _WRAPPERS.get(model)


def _text_model(full: Any) -> Any:
    from transformers import AutoModelForCausalLM

    config = full.config.get_text_config()
    decoder, head = full.get_decoder(), full.get_output_embeddings()
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config)
    kinds = {type(child): name for name, child in text.named_children()}
    if type(decoder) is type(text):  # the causal language model itself stands in the wrapper
        head = decoder.get_output_embeddings()
        decoder = decoder.get_decoder()
    inner = kinds.get(type(decoder))
    if inner is None or head is None or _shapes(getattr(text, inner)) != _shapes(decoder):
        return None
    setattr(text, inner, decoder)
    text.set_output_embeddings(head)
    text.generation_config = full.generation_config
    if any(parameter.is_meta for parameter in text.parameters()):
        return None
    return text.eval()


def _shapes(module: nn.Module) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(tensor.shape)) for name, tensor in module.named_parameters()}


@torch.no_grad()
def _same_logits(full: Any, text: Any) -> bool:
    """Whether both compute the same of a text; asked in evaluation mode."""
    tokens = probe_documents(text, 16)[0][None]
    one, other = (
        model(**without_cache(model, {"input_ids": tokens})).logits.float()
        for model in (full.eval(), text.eval())
    )
    tolerance = 1e-4 if next(text.parameters()).dtype == torch.float32 else 0.05
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def _release_all_but(full: Any, text: Any) -> None:
    """Move what is not of the text side to the meta device."""
    stays = {id(tensor) for tensor in (*text.parameters(), *text.buffers())}
    for module in full.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None and id(tensor) not in stays:
                    gone = tensor.detach().to("meta")
                    own = isinstance(tensor, nn.Parameter)
                    table[name] = nn.Parameter(gone, requires_grad=False) if own else gone


def write_with_text_side(model: Any, folder: Path, like: Path) -> None:
    """Write a wrapper's folder with another text side, file by file.

    Args:
        model: the text side, from `load_text_side`.
        folder: to write to.
        like: folder of the wrapper that it came from.

    Raises:
        CheckpointError: a tensor of the text side has no place in the files.
    """
    from toolkit.checkpoint.folder import weight_files

    stored = _stored_of(model, like)
    stored.read()
    for path in weight_files(like):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        for name, tensor in tensors.items():
            if name in stored.targets:
                own = stored.targets[name].detach().to("cpu", tensor.dtype)
                tensors[name] = own.contiguous().clone()
        save_file(tensors, folder / path.name, metadata=metadata or {"format": "pt"})
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        if (like / name).is_file():
            shutil.copyfile(like / name, folder / name)


def _stored_of(model: Any, folder: Path) -> Any:
    from toolkit.checkpoint.folder import weight_files
    from toolkit.checkpoint.stored_names import StoredTensors

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            shapes |= {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
    stored = StoredTensors(model, shapes)
    written = {tensor.data_ptr() for tensor in stored.targets.values()}
    lacking = [name for name, p in model.named_parameters() if p.data_ptr() not in written]
    if lacking and not stored.converts:
        raise CheckpointError(
            f"{folder}: its files have no tensor for {lacking[0]}, so the model cannot be written "
            "back as what it was."
        )
    return stored
