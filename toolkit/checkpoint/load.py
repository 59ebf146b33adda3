"""Loading a causal language model, and saying clearly when a folder holds none."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from toolkit.checkpoint.folder import stored_dtype
from toolkit.checkpoint.model_values import oversize_fault, read_model_values
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.read import list_safetensors
from toolkit.checkpoint.references import name_siblings
from toolkit.checkpoint.wrapped import load_text_side, wrapper_class
from toolkit.checkpoint.wrappers import wrapper_of
from toolkit.errors import CheckpointError
from toolkit.library_errors import reading
from toolkit.machine import choose_scoring_precision, dtype_of

_CONFIG = "config.json"


def load_model_config(folder: str | Path) -> Any:
    """The configuration of a causal language model; cheap, so it can be checked first of all.

    Raises:
        CheckpointError: the folder holds no such model; code that comes with a model is never run.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if isinstance(folder, Path) and not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such model folder.{name_siblings(folder)}")
    if (Path(folder) / _CONFIG).is_file():
        read_model_values(Path(folder))
    what = "has no model configuration that transformers can read"
    with reading(folder, CheckpointError, what, "give the folder of a causal language model"):
        config = AutoConfig.from_pretrained(folder)
    if wrapper_class(config) is not None:
        return config
    # _model_mapping: transformers has no public way to ask whether a config has a causal model.
    is_known = type(config) in AutoModelForCausalLM._model_mapping or _own_class(config) is not None
    if not is_known or _has_several_texts(config):
        raise CheckpointError(
            f"{folder}: a {config.model_type!r} model is not a causal language model; "
            "continued pre-training needs one that predicts the next token."
        )
    architectures = list(getattr(config, "architectures", None) or [])
    if architectures and not any(_is_causal(name, config) for name in architectures):
        raise CheckpointError(
            f"{folder}: holds {', '.join(architectures)}, which is not a causal language model; "
            "its head would be made up at random."
        )
    return config


def silence_libraries() -> None:
    """Keep the libraries' own progress bars off the terminal; ours say what is being done."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_causal_model(folder: str | Path, dtype: torch.dtype) -> Any:
    """Load a causal language model for training or scoring.

    Raises:
        CheckpointError: the folder holds none, or its weights cannot be read.
    """
    from transformers import AutoModelForCausalLM

    config = load_model_config(folder)
    silence_libraries()
    refuse_oversize(Path(folder))
    text_class = wrapper_class(config)
    with reading(folder, CheckpointError, "the weights cannot be loaded"):
        if text_class is not None:
            return load_text_side(text_class, folder, dtype)
        model_class = _own_class(config) or AutoModelForCausalLM
        return model_class.from_pretrained(folder, dtype=dtype)


def merge_adapter(model: Any, folder: Path) -> Any:
    """A loaded model with a peft adapter merged into it.

    Where the adapter brings embeddings of more (or fewer) tokens, the model's are resized first.
    An adapter of a wrapper has the wrapper's names: its changes are written where the text side's
    tensors come from.

    Raises:
        CheckpointError: the adapter is damaged, or was trained on another model.
    """
    import warnings

    from peft import PeftModel

    from toolkit.checkpoint.lora import open_adapter
    from toolkit.checkpoint.tensor_names import is_vocabulary

    if wrapper_of(model) is not None:
        return _with_wrapper_s_adapter(model, folder)
    row_counts: set[int] = set()
    with contextlib.suppress(CheckpointError):  # of another kind, which peft may know
        adapter = open_adapter(folder)
        saved_names = (own_name for name, own_name in adapter.saved.items() if is_vocabulary(name))
        row_counts = {adapter.tensors.info(own_name).shape[0] for own_name in saved_names}
    if row_counts and row_counts != {model.get_input_embeddings().weight.shape[0]}:
        model.resize_token_embeddings(max(row_counts), mean_resizing=False)
    problem_text = "the adapter cannot be loaded onto the model"
    with (
        reading(folder, CheckpointError, problem_text, "give the model that it was trained on"),
        warnings.catch_warnings(),
    ):
        # peft resizes nothing by itself, and would refuse embeddings of another height.
        warnings.simplefilter("ignore", FutureWarning)  # peft's own use of transformers
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


@torch.no_grad()
def _with_wrapper_s_adapter(model: Any, folder: Path) -> Any:
    from toolkit.checkpoint.adapted import open_adapted
    from toolkit.checkpoint.stored_names import StoredTensors

    checkpoint = open_checkpoint(Path(wrapper_of(model).config.name_or_path))
    adapted = open_adapted(checkpoint, folder)
    shapes_by_name = {tensor_name: adapted.info(tensor_name).shape for tensor_name in adapted.names}
    stored_tensors = StoredTensors(model, shapes_by_name)
    reached_names = [
        tensor_name for tensor_name in adapted.changed if tensor_name in stored_tensors.targets
    ]
    if adapted.heads or not reached_names:
        raise CheckpointError(
            f"{folder}: what it changes is not in the text side of {checkpoint.folder}, or of "
            "another size; merge it with `toolkit merge run` (path+adapter) first."
        )
    # Tensors that memory holds otherwise are written beside the model and converted into it, so
    # that those that the adapter leaves alone must be there too.
    stored_tensors.read()
    for tensor_name in reached_names:
        stored_tensors.targets[tensor_name].copy_(adapted.tensor(tensor_name))
        adapted.give_back(tensor_name)
    stored_tensors.finish()
    return model


def scoring_dtype(folder: str | Path, wish: str = "auto") -> torch.dtype:
    """The type to load a model in, to score it or to let it answer.

    Args:
        folder: of the model.
        wish: of the recipe's `evaluate.precision`.

    Returns:
        The type it is stored in where this machine is fast in it, else float32; float32 too where
        its files do not tell (`pytorch_model.bin`).
    """
    try:
        stored_type = stored_dtype(Path(folder))
    except CheckpointError:
        stored_type = torch.float32
    return dtype_of(choose_scoring_precision(wish, stored_type))


def _has_several_texts(config: Any) -> bool:
    """Whether a model writes something else than the text that it reads (music, speech)."""
    try:
        config.get_text_config()
    except ValueError:
        return True
    return False


def _own_class(config: Any) -> Any | None:
    """The causal language model that a config names, where transformers' list has none for it."""
    import transformers
    from transformers import AutoModelForCausalLM

    if type(config) in AutoModelForCausalLM._model_mapping:
        return None
    for name in getattr(config, "architectures", None) or ():
        kind = getattr(transformers, name, None) if name.endswith("ForCausalLM") else None
        if kind is not None and kind.config_class is type(config) and hasattr(kind, "generate"):
            return kind
    return None


def causal_class(config: Any) -> Any:
    """The class of transformers that holds the causal language model of a configuration."""
    from transformers import AutoModelForCausalLM

    found = _own_class(config) or AutoModelForCausalLM._model_mapping[type(config)]
    if not isinstance(found, (list, tuple)):
        return found
    # A configuration may have several such classes; the one that config.json names is meant.
    named = list(getattr(config, "architectures", None) or ())
    return next((kind for kind in found if kind.__name__ in named), found[0])


def _is_causal(architecture: str, config: Any) -> bool:
    """Whether a class has a head that predicts the next token: by its name, or by transformers."""
    from transformers import AutoModelForCausalLM

    if architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return True
    mapping = AutoModelForCausalLM._model_mapping
    return type(config) in mapping and mapping[type(config)].__name__ == architecture


def refuse_oversize(folder: Path) -> None:
    """Refuse a config that asks for more than the files hold, before memory is taken for it."""
    if not (folder / _CONFIG).is_file() or not list_safetensors(folder)[0]:
        return
    checkpoint = open_checkpoint(folder)
    num_bytes = sum(checkpoint.info(name).num_bytes for name in checkpoint.names)
    fault = oversize_fault(read_model_values(folder), len(checkpoint.names), num_bytes)
    if fault is not None:
        raise CheckpointError(f"{folder / _CONFIG}: {fault}; download or copy the files again.")
