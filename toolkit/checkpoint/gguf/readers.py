"""GGUF files by others' readers: transformers' own, and llama.cpp where its package is installed.

What is written here is read by them; a reader of our own would share our mistakes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.gguf.header import check_gguf
from toolkit.checkpoint.gguf.read import match_pre_tokenizer
from toolkit.checkpoint.load import silence_libraries
from toolkit.errors import CheckpointError


def load_by_transformers(path: Path, config: Any) -> Any | None:
    """The model in a file by transformers' reader; None where it does not know the family.

    Args:
        path: the file.
        config: of the model that it was made from; the reader makes out less than the file says
            (scaled rotary frequencies, windows), and what it does make out is compared.

    Raises:
        CheckpointError: the file cannot be read, or says otherwise than the config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    silence_libraries()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting turns off
            stated = load_gguf_checkpoint(path)["config"]
    except ValueError as error:
        # The library has no class of error of its own for an architecture that it does not know.
        if "not supported" in str(error):
            return None
        raise CheckpointError(f"{path.name}: cannot be loaded again ({error}).") from error
    _check_settings(path, stated, config)
    if config.model_type == "mistral":  # a Llama under another name, which the reader takes it for
        values = {key: value for key, value in config.to_dict().items() if key != "model_type"}
        config = AutoConfig.for_model("llama", **values)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, config=config
            )
    except NotImplementedError:  # it knows llama.cpp's name, but not transformers' (Mixtral)
        return None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path.name}: cannot be loaded again ({error}).") from error


def _check_settings(path: Path, stated: dict[str, Any], config: Any) -> None:
    own_values = config.to_dict() | {"rope_theta": _theta(config)}
    for key, value in stated.items():
        # Numbers alone: names and the model type are the reader's own.
        if isinstance(value, bool) or not isinstance(value, int | float) or key.endswith("_id"):
            continue
        own_value = own_values.get(key)
        # GGUF stores float32, config.json decimals: an epsilon of 1e-5 comes back a little smaller.
        is_same = own_value is None or abs(value - own_value) <= 1e-6 * abs(own_value)
        if not is_same:
            raise CheckpointError(
                f"{path.name}: transformers reads {key} as {value}, but config.json has "
                f"{own_value}."
            )


def _theta(config: Any) -> float | None:
    from toolkit.checkpoint.gguf.families import rope_values

    return rope_values(config).get("rope_theta")


def tokenizer_by_transformers(path: Path) -> Any:
    """The tokenizer in a file by transformers' reader.

    Raises:
        CheckpointError: it cannot be read.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    # Not by AutoTokenizer, which knows fewer families than there are kinds of tokenizers.
    try:
        architecture, values, _ = get_gguf_tokenizer(str(path))
        backend, _ = convert_gguf_tokenizer(architecture, values)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path.name}: its tokenizer cannot be read ({error}).") from error
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    match_pre_tokenizer(tokenizer, check_gguf(path))
    return tokenizer


def has_llama_cpp() -> bool:
    """Whether llama.cpp's own package for Python is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


@contextlib.contextmanager
def opened_by_llama_cpp(path: Path, num_positions: int) -> Iterator[Any]:
    """The model in a file, opened by llama.cpp.

    Args:
        path: the file.
        num_positions: tokens that it must have room for.

    Raises:
        CheckpointError: llama.cpp does not take the file.
    """
    from llama_cpp import Llama

    with _quiet():
        try:
            model = Llama(
                model_path=str(path),
                n_ctx=num_positions,
                n_batch=num_positions,
                n_ubatch=num_positions,
                n_threads=torch.get_num_threads(),
                n_threads_batch=torch.get_num_threads(),
                n_gpu_layers=0,
                logits_all=True,
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path.name}: llama.cpp cannot load it ({error}).") from error
    try:
        yield model
    finally:
        model.close()


def logits_by_llama_cpp(path: Path, token_ids: Sequence[int]) -> Tensor:
    """Logits of a text's tokens, `[tokens, vocabulary]`, by llama.cpp.

    Raises:
        CheckpointError: llama.cpp does not take the file.
    """
    with opened_by_llama_cpp(path, max(len(token_ids), 32)) as model, _quiet():
        model.eval(list(token_ids))
        # Copied: the array is the model's own, which is closed on the way out.
        return torch.from_numpy(model.scores[: len(token_ids)].copy())


def tokens_by_llama_cpp(path: Path, text: str) -> list[int]:
    """Tokens that llama.cpp cuts a text into, without what it puts around.

    Raises:
        CheckpointError: llama.cpp does not take the file.
    """
    from llama_cpp import Llama

    with _quiet():
        vocabulary = Llama(model_path=str(path), vocab_only=True, verbose=False)
    try:
        tokens: list[int] = vocabulary.tokenize(text.encode(), add_bos=False, special=True)
        return tokens
    finally:
        vocabulary.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """llama.cpp writes to the file descriptor itself, whatever Python's streams are."""
    # The descriptor is exchanged, and put back by a copy: closing 2 itself would let the next file
    # that is opened take its number, and be written to by whoever reports an error.
    saved = os.dup(2)
    silent = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silent, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(silent)
