"""What must hold of the weights: finite, as the config says, and a model that speaks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.bounded import bounded_template
from toolkit.checkpoint.gguf.unpack import unpacked_gguf
from toolkit.checkpoint.load import (
    load_causal_model,
    load_model_config,
    merge_adapter,
    scoring_dtype,
    silence_libraries,
)
from toolkit.checkpoint.loadable import folder_faults
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.read import Checkpoint, is_float
from toolkit.checkpoint.wrappers import wrapper_of
from toolkit.errors import CheckpointError
from toolkit.publish.config import Format
from toolkit.tokenizer_files import load_tokenizer

_TEXTS = (
    "Net revenue rose by 4.7% to $12,345 million in 2023.",
    "naïve façade, Ελλάδα, 漢字, 🙂",
    "def f(x):\n\treturn x  # two  spaces\n",
)
_PROMPT = "The company reported"
_NEW_TOKENS = 8
_BLOCK = 1 << 24


def weight_faults(folder: Path, kind: Format) -> tuple[list[str], str]:
    """Faults of the stored tensors, and what was seen.

    Args:
        folder: the bundle.
        kind: of bundle.
    """
    if kind == "gguf":
        return _gguf_faults(folder)
    if kind == "adapter":
        checkpoint = Checkpoint(folder, _adapter_tensors(folder))
        return list(_not_finite(checkpoint)), f"{len(checkpoint.names)} tensors, finite"
    checkpoint = open_checkpoint(folder)
    faults = [*_shape_faults(folder), *_not_finite(checkpoint)]
    entries = sum(math.prod(checkpoint.info(name).shape) for name in checkpoint.names)
    seen_text = f"{len(checkpoint.names)} tensors, {entries:,} entries, finite, as config.json says"
    return faults, seen_text


def generation_faults(folder: Path, kind: Format, base: Path) -> tuple[list[str], str]:
    """Load what is published as its user will, and let it write a few tokens.

    Args:
        folder: the bundle.
        kind: of bundle.
        base: the model that an adapter belongs to, or that GGUF files were made from.
    """
    silence_libraries()
    tokenizer = load_tokenizer(folder)
    prompt_ids = tokenizer(_PROMPT, return_tensors="pt")["input_ids"]
    shown_texts, faults = [], []
    for model_name, model in _models(folder, kind, base):
        generated_ids = model.generate(prompt_ids, max_new_tokens=_NEW_TOKENS, do_sample=False)
        with torch.no_grad():
            is_finite = bool(torch.isfinite(model(generated_ids).logits).all())
        if not is_finite:
            faults.append(f"{model_name}: its output for a short text is not finite")
        new_ids = generated_ids[0, prompt_ids.shape[1] :].tolist()
        if not new_ids or max(new_ids) >= model.config.get_text_config().vocab_size:
            faults.append(f"{model_name}: it generates nothing that its vocabulary has")
        shown_texts.append(repr(tokenizer.decode(new_ids, skip_special_tokens=True)))
    return faults, f"{_PROMPT!r} goes on {' and '.join(shown_texts)}"


def _models(folder: Path, kind: Format, base: Path) -> Iterator[tuple[str, Any]]:
    if kind == "safetensors":
        yield folder.name, load_causal_model(folder, _dtype(folder))
        return
    if kind == "adapter":
        # peft is slow to import, and only adapters need it.
        from peft import PeftModel

        base_model = load_causal_model(base, _dtype(base))
        if wrapper_of(base_model) is not None:  # whose names the adapter has
            yield folder.name, merge_adapter(base_model, folder)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's own use of transformers
            yield folder.name, PeftModel.from_pretrained(base_model, str(folder))
        return
    for gguf_path in sorted(folder.glob("*.gguf")):
        with unpacked_gguf(gguf_path, base) as unpacked:
            yield gguf_path.name, load_causal_model(unpacked, torch.float32)


def _dtype(folder: Path) -> Any:
    from toolkit.checkpoint.folder import stored_dtype

    open_checkpoint(folder)  # says in plain words what is damaged
    stored_dtype(folder)  # as does this
    return scoring_dtype(folder)


def tokenizer_faults(folder: Path) -> tuple[list[str], str]:
    """Texts must come back from their tokens, and every token must have a row in the embedding."""
    tokenizer = load_tokenizer(folder)
    faults = []
    for text in _TEXTS:
        token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        # By default transformers may take out spaces before punctuation that the text had.
        decoded_text = tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
        if decoded_text != text:
            faults.append(f"{text!r} comes back from its tokens as {decoded_text!r}")
    seen_text = f"{len(_TEXTS)} texts come back from their tokens"
    if (folder / "config.json").is_file():
        num_rows = int(load_model_config(folder).get_text_config().vocab_size)
        # More rows than tokens are common (padded to a multiple); a token without a row is not.
        if len(tokenizer) > num_rows:
            faults.append(f"it has {len(tokenizer)} tokens, but the model has rows for {num_rows}")
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": "Hello"}]
        with bounded_template(f"{folder}: the chat template"):
            templated_text = tokenizer.apply_chat_template(messages, tokenize=False)
        if "Hello" not in templated_text:
            faults.append("its chat template loses what a user says")
        seen_text += "; the chat template works"
    return faults, seen_text


def _shape_faults(folder: Path) -> list[str]:
    """Compare names and shapes with the model that the config describes, built without memory."""
    load_model_config(folder)  # a bundle is of a causal language model
    return [f"{name}: {words}" for name, words in (folder_faults(folder) or {}).items()]


def _not_finite(checkpoint: Checkpoint) -> Iterator[str]:
    for tensor_name in checkpoint.names:
        if not is_float(checkpoint.info(tensor_name).dtype):
            continue
        flat_tensor: Tensor = checkpoint.tensor(tensor_name).reshape(-1)
        # In blocks: the float32 copy of a whole embedding would take gigabytes.
        for start in range(0, flat_tensor.numel(), _BLOCK):
            if not bool(torch.isfinite(flat_tensor[start : start + _BLOCK].float()).all()):
                yield f"{tensor_name}: holds NaN or infinity"
                break
        checkpoint.give_back(tensor_name)


def _adapter_tensors(folder: Path) -> Any:
    from toolkit.checkpoint.lora import WEIGHTS_FILE
    from toolkit.checkpoint.read import read_header

    weights_path = folder / WEIGHTS_FILE
    if not weights_path.is_file():
        raise CheckpointError(f"{folder}: holds no {WEIGHTS_FILE}.")
    return read_header(weights_path)


def _gguf_faults(folder: Path) -> tuple[list[str], str]:
    """Every tensor of every file, as the numbers that are computed with."""
    import gguf
    import numpy as np

    faults, num_tensors = [], 0
    gguf_paths = sorted(folder.glob("*.gguf"))
    for gguf_path in gguf_paths:
        for tensor in gguf.GGUFReader(gguf_path).tensors:
            num_tensors += 1
            # As stored, quantized blocks look finite; it is their scales that may be NaN.
            tensor_values = gguf.dequantize(tensor.data, tensor.tensor_type)
            if not np.isfinite(tensor_values).all():
                faults.append(f"{gguf_path.name}: {tensor.name} holds NaN or infinity")
    if not gguf_paths:
        faults.append("there is no .gguf file")
    return faults, f"{num_tensors} tensors in {len(gguf_paths)} files, finite"
