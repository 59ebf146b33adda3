"""GGUF files to safetensors folders that load, train and chat."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from toolkit.checkpoint.gguf.header import check_gguf
from toolkit.checkpoint.load import silence_libraries
from toolkit.errors import CheckpointError
from toolkit.library_errors import reading

_CONVERSION_KEYS = ("quantization_config", "_name_or_path", "_model_name_or_path")
"""What the conversion leaves in the config: the first forbids saving, the others are only names."""


def convert_gguf(path: Path, folder: Path, dtype: torch.dtype) -> dict[str, object]:
    """Dequantize a GGUF model and write it as safetensors with tokenizer and chat template.

    Args:
        path: the `.gguf` file.
        folder: where the model is written.
        dtype: of the weights on disk.

    Returns:
        Figures worth keeping: parameters, vocabulary, positions.

    Raises:
        CheckpointError: the file cannot be read, or its architecture is unknown to transformers.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer

    silence_libraries()
    header = check_gguf(path)
    gguf_source: dict[str, object] = {
        "pretrained_model_name_or_path": path.parent,
        "gguf_file": path.name,
    }
    # The conversion draws a bar of its own, which no setting turns off.
    with (
        reading(path.name, CheckpointError, "cannot be read as GGUF", "fetch it again"),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        loaded: Any = AutoModelForCausalLM.from_pretrained(**gguf_source, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(**gguf_source)
    # A model loaded from GGUF refuses to be saved; one built from its cleaned config does not.
    config_values = {k: v for k, v in loaded.config.to_dict().items() if k not in _CONVERSION_KEYS}
    with init_empty_weights():  # random ones would only be replaced
        model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(config_values))
    model.load_state_dict(loaded.state_dict(), assign=True)
    # `assign` exchanges the parameters themselves, which parts a head from its embedding.
    model.tie_weights()
    model.to(dtype).save_pretrained(folder)
    match_pre_tokenizer(tokenizer, header)
    tokenizer.save_pretrained(folder)
    return {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "max_positions": model.config.max_position_embeddings,
    }


def match_pre_tokenizer(tokenizer: Any, header: Mapping[str, object]) -> None:
    """Restore what transformers' conversion drops: SmolLM splits digits before anything else.

    Args:
        tokenizer: as converted, changed.
        header: values of the file, by name.
    """
    from tokenizers import pre_tokenizers

    if header.get("tokenizer.ggml.pre") == "smollm":
        backend = tokenizer.backend_tokenizer
        digit_splitter = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digit_splitter, backend.pre_tokenizer])
