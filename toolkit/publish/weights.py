"""What must hold of the weights: finite, as the config says, and a model that speaks."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.bounded import bounded_template
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
    entries = sum(_entries(checkpoint, name) for name in checkpoint.names)
    words = f"{len(checkpoint.names)} tensors, {entries:,} entries, finite, as config.json says"
    return faults, words


def generation_faults(folder: Path, kind: Format, base: Path) -> tuple[list[str], str]:
    """Load what is published as its user will, and let it write a few tokens."""
    silence_libraries()
    tokenizer = _load_tokenizer(folder)
    tokens = tokenizer(_PROMPT, return_tensors="pt")["input_ids"]
    notes, faults = [], []
    for name, model in _models(folder, kind, base):
        made = model.generate(tokens, max_new_tokens=_NEW_TOKENS, do_sample=False)
        with torch.no_grad():
            finite = bool(torch.isfinite(model(made).logits).all())
        if not finite:
            faults.append(f"{name}: its output for a short text is not finite")
        new = made[0, tokens.shape[1] :].tolist()
        if not new or max(new) >= model.config.get_text_config().vocab_size:
            faults.append(f"{name}: it generates nothing that its vocabulary has")
        notes.append(repr(tokenizer.decode(new, skip_special_tokens=True)))
    return faults, f"{_PROMPT!r} goes on {' and '.join(notes)}"


def _models(folder: Path, kind: Format, base: Path) -> Iterator[tuple[str, Any]]:
    if kind == "safetensors":
        yield folder.name, load_causal_model(folder, _dtype(folder))
        return
    if kind == "adapter":
        from peft import PeftModel

        whole = load_causal_model(base, _dtype(base))
        if wrapper_of(whole) is not None:  # whose names the adapter has
            yield folder.name, merge_adapter(whole, folder)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's own use of transformers
            yield folder.name, PeftModel.from_pretrained(whole, str(folder))
        return
    from transformers import AutoModelForCausalLM

    for path in sorted(folder.glob("*.gguf")):
        with contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting turns off
            model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=path.name, dtype=torch.float32
            )
        yield path.name, model


def _dtype(folder: Path) -> Any:
    from toolkit.checkpoint.folder import stored_dtype

    open_checkpoint(folder)  # says in plain words what is damaged
    stored_dtype(folder)  # as does this
    return scoring_dtype(folder)


def tokenizer_faults(folder: Path) -> tuple[list[str], str]:
    """Texts must come back from their tokens, and every token must have a row in the embedding."""
    tokenizer = _load_tokenizer(folder)
    faults = []
    for text in _TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if back != text:
            faults.append(f"{text!r} comes back from its tokens as {back!r}")
    note = f"{len(_TEXTS)} texts come back from their tokens"
    if (folder / "config.json").is_file():
        size = int(load_model_config(folder).get_text_config().vocab_size)
        if len(tokenizer) > size:
            faults.append(f"it has {len(tokenizer)} tokens, but the model has rows for {size}")
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": "Hello"}]
        with bounded_template(f"{folder}: the chat template"):
            shown = tokenizer.apply_chat_template(messages, tokenize=False)
        if "Hello" not in shown:
            faults.append("its chat template loses what a user says")
        note += "; the chat template works"
    return faults, note


def _load_tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


def _shape_faults(folder: Path) -> list[str]:
    """Compare names and shapes with the model that the config describes, built without memory."""
    load_model_config(folder)  # a bundle is of a causal language model
    return [f"{name}: {words}" for name, words in (folder_faults(folder) or {}).items()]


def _not_finite(checkpoint: Checkpoint) -> Iterator[str]:
    for name in checkpoint.names:
        if not is_float(checkpoint.info(name).dtype):
            continue
        flat: Tensor = checkpoint.tensor(name).reshape(-1)
        for start in range(0, flat.numel(), _BLOCK):
            if not bool(torch.isfinite(flat[start : start + _BLOCK].float()).all()):
                yield f"{name}: holds NaN or infinity"
                break
        checkpoint.give_back(name)


def _entries(checkpoint: Checkpoint, name: str) -> int:
    count = 1
    for size in checkpoint.info(name).shape:
        count *= size
    return count


def _adapter_tensors(folder: Path) -> Any:
    from toolkit.checkpoint.lora import WEIGHTS_FILE
    from toolkit.checkpoint.read import read_header

    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: holds no {WEIGHTS_FILE}.")
    return read_header(path)


def _gguf_faults(folder: Path) -> tuple[list[str], str]:
    """Every tensor of every file, as the numbers that are computed with."""
    import gguf
    import numpy as np

    faults, count = [], 0
    paths = sorted(folder.glob("*.gguf"))
    for path in paths:
        for tensor in gguf.GGUFReader(path).tensors:
            count += 1
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            if not np.isfinite(values).all():
                faults.append(f"{path.name}: {tensor.name} holds NaN or infinity")
    if not paths:
        faults.append("there is no .gguf file")
    return faults, f"{count} tensors in {len(paths)} files, finite"
