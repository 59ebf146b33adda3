"""Whether tensors are the model that a config describes, asked of transformers itself.

The model is built on torch's meta device and loaded with tensors that have shapes and no memory, by
`from_pretrained`: so the library's own rules decide, which rename and join stored tensors, tie
them, and leave some out. It takes a few hundredths of a second once transformers is imported, and
what is found is what a user would find on loading the folder: weights that are made up at random,
and weights that are never read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.checkpoint.model_values import oversize_fault, read_model_values
from toolkit.checkpoint.open import open_checkpoint
from toolkit.errors import CheckpointError, warn
from toolkit.library_errors import first_line
from toolkit.load_yaml import JsonView

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor, by its name on disk."""

Faults = dict[str, str]
"""What is wrong with a tensor, by its name in the model."""

_CONFIG = "config.json"


def folder_faults(folder: Path) -> Faults | None:
    """What transformers would complain of on loading a folder; see `loading_faults`.

    Raises:
        CheckpointError: the folder has no weights or no config that can be read.
    """
    checkpoint = open_checkpoint(folder)
    values = read_model_values(folder)
    return loading_faults(values, {name: checkpoint.info(name).shape for name in checkpoint.names})


def refuse_unloadable(folder: Path, like: Path) -> None:
    """Refuse to finish a folder with faults that the model it was made from has not.

    Args:
        folder: with weights and config.json, not shown to anybody yet.
        like: the model whose faults are not ours.

    Raises:
        CheckpointError: names the first such tensor.
    """
    if not (found_faults := folder_faults(folder)):
        return
    new_faults, shared_faults = split_faults(found_faults, folder_faults(like) or {})
    if shared_faults:
        warn(shared_message(str(like), shared_faults))
    if new_faults:
        raise CheckpointError(unloadable_message(str(like), new_faults))


def split_faults(found: Faults, known: Mapping[str, str]) -> tuple[Faults, Faults]:
    """Faults that are new, and those that a model it was made of has too."""
    shared_faults = {name: words for name, words in found.items() if name in known}
    return {name: words for name, words in found.items() if name not in known}, shared_faults


def shared_message(what: str, faults: Mapping[str, str]) -> str:
    """One line on what a model lacks, or has too much, and the result with it."""
    name, words = next(iter(faults.items()))
    rest_text = f", and {len(faults) - 1} more tensors" if len(faults) > 1 else ""
    return f"{what}: {name} {words}{rest_text}; so it is in the result."


def unloadable_message(what: str, faults: Mapping[str, str]) -> str:
    """One line on what keeps a model from being loaded."""
    name, words = next(iter(faults.items()))
    rest_text = f", and {len(faults) - 1} more tensors" if len(faults) > 1 else ""
    return (
        f"{what}: the result would not load as its config.json says: {name} {words}{rest_text}. "
        "Nothing is written; make sure that the models are of one architecture and whole."
    )


def loading_faults(values: JsonView, shapes: Shapes) -> Faults | None:
    """What transformers would complain of on loading a model.

    Args:
        values: of its config.json. A `quantization_config` is passed over.
        shapes: of its tensors as they are stored.

    Returns:
        Tensors that are missing (and would be random), of another shape, or that no part of the
        model is made of; none where all is well. None where transformers does not know the model:
        code that comes with one is never run.
    """
    # Even without memory each layer takes Python's objects: a damaged count would make millions.
    if (size_fault := oversize_fault(values, len(shapes))) is not None:
        return {_CONFIG: size_fault}
    with _quiet() as log_lines:
        if (config := read_plain_config(values)) is None:
            return None
        try:
            model, loading_info = _load_without_memory(config, shapes)
        except ImportError:
            return None  # a part of the model needs what is not installed here
        except Exception as error:  # classes check their configs in their own ways
            return _conversion_faults(error, log_lines)
    return _describe_loading(model, loading_info)


def read_plain_config(values: JsonView) -> Any | None:
    """transformers' configuration of some values; None where it does not know them."""
    import transformers

    plain_values = {key: value for key, value in values.items() if key != "quantization_config"}
    with tempfile.TemporaryDirectory() as config_folder:
        (Path(config_folder) / _CONFIG).write_text(json.dumps(plain_values), encoding="utf-8")
        try:
            return transformers.AutoConfig.from_pretrained(config_folder, trust_remote_code=False)
        except Exception:  # classes check their configs in their own ways
            return None


def _load_without_memory(config: Any, shapes: Shapes) -> tuple[Any, Mapping[str, Any]]:
    """A model loaded with tensors that have no entries, and what transformers says of it."""
    import torch

    # Types are left out: only names and shapes are compared.
    meta_tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    loaded: tuple[Any, Mapping[str, Any]] = class_of(config).from_pretrained(
        None,
        config=config,
        state_dict=meta_tensors,
        device_map={"": "meta"},
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    return loaded


def _describe_loading(model: Any, loading_info: Mapping[str, Any]) -> Faults:
    model_shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    missing_keys = {
        name: f"is missing; the config asks for {model_shapes.get(name, 'it')}"
        for name in sorted(loading_info["missing_keys"])
    }
    unread_keys = dict.fromkeys(
        sorted(loading_info["unexpected_keys"]), "is no tensor of the model in config.json"
    )
    mismatched_keys = {
        name: f"is {list(stored)}, but the config asks for {list(asked)}"
        for name, stored, asked in sorted(loading_info["mismatched_keys"])
    }
    return missing_keys | unread_keys | mismatched_keys


def build_on_meta(folder: Path) -> Any | None:
    """A model of a folder's config on torch's meta device: no memory, no weights.

    Returns:
        None where transformers does not know it, or cannot build it; its own code is never run.
    """
    import torch

    try:
        # Without `quantization_config`, with which a class may ask for libraries that are not here.
        config = read_plain_config(json.loads((folder / _CONFIG).read_text(encoding="utf-8")))
        with torch.device("meta"):
            return class_of(config)._from_config(config, dtype=torch.float32)
    except Exception:  # classes check their configs in their own ways
        return None


def class_of(config: Any) -> Any:
    """The class that a config names, else the one for language models, else the plain one."""
    import torch
    import transformers

    for class_name in getattr(config, "architectures", None) or ():
        if (model_class := getattr(transformers, class_name, None)) is not None:
            return model_class
    for auto_class in (transformers.AutoModelForCausalLM, transformers.AutoModel):
        with contextlib.suppress(ValueError), torch.device("meta"):
            return type(auto_class.from_config(config))
    raise ImportError(config.model_type)


def _conversion_faults(error: Exception, log: list[str]) -> Faults:
    """What could not be joined is in the library's log alone; else the model cannot be built."""
    joined_match = re.search(r"tensors destined for (\S+?)\.?\s", "\n".join(log))
    if joined_match:
        return {joined_match[1]: "cannot be made of what is stored"}
    return {_CONFIG: f"describes no model that can be built ({first_line(error)})"}


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep transformers' report on loading off the terminal; what it says is collected."""
    from transformers.utils import logging as theirs

    log_lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: log_lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    # The library warns of what is collected here as faults; other handlers would print it twice.
    handlers, level, shown = logger.handlers[:], logger.level, theirs.is_progress_bar_enabled()
    propagates = logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)
    theirs.disable_progress_bar()
    try:
        yield log_lines
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        logger.setLevel(level)
        if shown:
            theirs.enable_progress_bar()
