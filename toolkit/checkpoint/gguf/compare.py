"""A GGUF file loaded again and compared with the model it was made from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.gguf.families import family_of
from toolkit.checkpoint.gguf.readers import (
    has_llama_cpp,
    load_by_transformers,
    logits_by_llama_cpp,
    tokenizer_by_transformers,
    tokens_by_llama_cpp,
)
from toolkit.checkpoint.gguf.unpack import unpacked_gguf
from toolkit.checkpoint.load import load_causal_model, load_model_config
from toolkit.errors import CheckpointError
from toolkit.tokenizer_files import load_tokenizer

TEXT = (
    "Net revenue was $12,345 million in 2023, 4.7% above the year before. The company doesn't "
    "expect naïve façades — or  double spaces —\n\tto change that: 1 + 1 = 2."
)
"""What is scored: numbers, accents, punctuation and white space."""

_MOST_NATS = {False: 0.001, True: 0.05}
"""Mean divergence of llama.cpp's predictions from transformers' on the same file, in nats a token,
above which they are not of the same model; of quantized files more, as llama.cpp rounds what is
multiplied with them to eight bits. A wrong order of rows or a wrong frequency costs far more."""


@dataclass(frozen=True)
class GgufComparison:
    """How far a file is from its model.

    Attributes:
        largest: largest difference of any entry.
        relative: Frobenius norm of all differences, relative to that of the model.
        worst: name of the tensor that differs most, relative to its own norm.
        worst_relative: how much that is.
        divergence: mean Kullback-Leibler divergence of the next-token distributions, in nats a
            token, from the model's on `TEXT`.
        same_tokens: share of positions of `TEXT` at which both find the same token likeliest.
        readers: others' readers that make the same of the file.
        llama_cpp_divergence: of llama.cpp's predictions from transformers' on the same file; None
            where llama.cpp's package is not installed.
    """

    largest: float
    relative: float
    worst: str
    worst_relative: float
    divergence: float
    same_tokens: float
    readers: tuple[str, ...] = ()
    llama_cpp_divergence: float | None = None

    @property
    def is_exact(self) -> bool:
        return self.largest == 0.0


def compare_gguf(folder: Path, path: Path) -> GgufComparison:
    """Compare tensor by tensor, by the tokenizer, and by what is made of a text.

    Args:
        folder: of the model.
        path: the GGUF file made from it.

    Raises:
        CheckpointError: it cannot be loaded, lacks a tensor, cuts a text into other tokens, or
            another reader computes otherwise from it.
    """
    # Both in float32: every type that is stored in fewer bits fits into it without a rounding.
    config = load_model_config(folder)
    original: Any = load_causal_model(folder, torch.float32)
    with unpacked_gguf(path, folder) as unpacked:
        reloaded: Any = load_causal_model(unpacked, torch.float32)
    tokenizer: Any = load_tokenizer(folder)
    _compare_tokens(path, tokenizer, tokenizer_by_transformers(path))
    # Others' readers first: what they make of the file decides whether our own figures mean
    # anything.
    readers, llama_cpp_divergence = _ask_other_readers(folder, path, config, reloaded, tokenizer)
    largest, relative, worst_relative, worst = _compare_entries(
        path, original.state_dict(), reloaded.state_dict()
    )
    divergence, same = _compare_logits(_logits(original, tokenizer), _logits(reloaded, tokenizer))
    return GgufComparison(
        largest, relative, worst, worst_relative, divergence, same, readers, llama_cpp_divergence
    )


def _ask_other_readers(
    folder: Path, path: Path, config: Any, reloaded: Any, tokenizer: Any
) -> tuple[tuple[str, ...], float | None]:
    """The readers that make the same of the file, and llama.cpp's divergence where it is here."""
    readers, llama_cpp_divergence = [], None
    if (by_transformers := load_by_transformers(path, config)) is not None:
        _compare_states(path, by_transformers.state_dict(), reloaded.state_dict())
        del by_transformers  # a third model in float32
        readers.append("transformers")
    if has_llama_cpp():
        llama_cpp_divergence = _compare_with_llama_cpp(path, reloaded, tokenizer)
        readers.append("llama.cpp")
    elif not family_of(config, folder).is_known:
        raise CheckpointError(
            f"{folder}: is a {config.model_type!r} model, which is not known here; only llama.cpp "
            "itself could tell whether its file is right. Install it (pip install "
            "'cpt-toolkit[llama]'), or publish the model as safetensors."
        )
    return tuple(readers), llama_cpp_divergence


def _compare_entries(
    path: Path, own_state: dict[str, Tensor], reloaded_state: dict[str, Tensor]
) -> tuple[float, float, float, str]:
    """Largest and relative difference of all entries, and of the tensor that differs most the
    relative one and its name."""
    largest_error = squared_total = squared_norm = 0.0
    worst_tensor = (0.0, "")
    for name, own in own_state.items():
        if name not in reloaded_state or reloaded_state[name].shape != own.shape:
            raise CheckpointError(f"{path.name}: {name} is not in it as the model has it.")
        # Double: sums of squares over hundreds of millions of entries lose digits in float32.
        difference = (reloaded_state[name] - own).double()
        squared_error, size = float(difference.square().sum()), float(own.double().square().sum())
        # No comparison with NaN holds, so that it would count as no difference at all.
        if not math.isfinite(squared_error):
            raise CheckpointError(
                f"{path.name}: {name} holds NaN or infinity in it or in the model, so that they "
                "cannot be compared; mend the model, or write the file again."
            )
        largest_error = max(largest_error, float(difference.abs().max()))
        squared_total, squared_norm = squared_total + squared_error, squared_norm + size
        worst_tensor = max(worst_tensor, ((squared_error / size) ** 0.5 if size else 0.0, name))
    relative_error = (squared_total / squared_norm) ** 0.5 if squared_norm else 0.0
    return largest_error, relative_error, *worst_tensor


def _compare_states(path: Path, theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    """What transformers reads out of a file must be what is scored of it."""
    for name, tensor in ours.items():
        read = theirs.get(name)
        # A norm that is stored with one added comes back within a rounding of one.
        if read is None or not torch.allclose(read, tensor, rtol=0.0, atol=1e-6):
            raise CheckpointError(f"{path.name}: transformers reads another {name} out of it.")


def _compare_tokens(path: Path, tokenizer: Any, gguf_tokenizer: Any) -> None:
    found = gguf_tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    _refuse_other_tokens(path, tokenizer, found, "transformers")


def _refuse_other_tokens(path: Path, tokenizer: Any, found: list[int], reader: str) -> None:
    own_ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    if own_ids != found:
        # Ends that are no ids: where one list is only longer, the place behind the shorter one
        # counts.
        first_other = next(
            n for n, (a, b) in enumerate(zip([*own_ids, -1], [*found, -2], strict=False)) if a != b
        )
        raise CheckpointError(
            f"{path.name}: its tokenizer, read by {reader}, cuts a text otherwise than the "
            f"model's, from token {first_other} on "
            f"({tokenizer.convert_ids_to_tokens(own_ids[first_other : first_other + 3])} became "
            f"{tokenizer.convert_ids_to_tokens(found[first_other : first_other + 3])})."
        )


def _compare_with_llama_cpp(path: Path, reloaded: Any, tokenizer: Any) -> float:
    _refuse_other_tokens(path, tokenizer, tokens_by_llama_cpp(path, TEXT), "llama.cpp")
    # Both are given the same ids: a difference in cutting has had its own error already.
    token_ids = tokenizer(TEXT)["input_ids"]
    divergence, _ = _compare_logits(
        _logits(reloaded, tokenizer), logits_by_llama_cpp(path, token_ids).log_softmax(-1)
    )
    # `not <`, so that NaN is refused too.
    if not divergence < _MOST_NATS[_is_quantized(path)]:
        raise CheckpointError(
            f"{path.name}: llama.cpp computes another model from it than transformers "
            f"({divergence:.2g} nats a token apart); publish the model as safetensors."
        )
    return divergence


def _is_quantized(path: Path) -> bool:
    import gguf

    plain = {"F32", "F16", "BF16"}
    return any(tensor.tensor_type.name not in plain for tensor in gguf.GGUFReader(path).tensors)


def _logits(model: Any, tokenizer: Any) -> Tensor:
    token_ids: Tensor = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        logits: Tensor = model(token_ids).logits[0].float().log_softmax(-1)
    return logits


def _compare_logits(own_logits: Tensor, gguf_logits: Tensor) -> tuple[float, float]:
    divergence = float((own_logits.exp() * (own_logits - gguf_logits)).sum(-1).mean())
    same_share = float((own_logits.argmax(-1) == gguf_logits.argmax(-1)).float().mean())
    # Of equal models rounding may leave the sum a little below zero.
    return max(divergence, 0.0), same_share
