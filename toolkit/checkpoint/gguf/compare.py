"""A GGUF file loaded again through transformers and compared with the model it was made from."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.gguf.header import check_gguf
from toolkit.checkpoint.gguf.read import match_pre_tokenizer
from toolkit.checkpoint.load import load_causal_model, silence_libraries
from toolkit.errors import CheckpointError
from toolkit.tokenizer_files import load_tokenizer

TEXT = (
    "Net revenue was $12,345 million in 2023, 4.7% above the year before. The company doesn't "
    "expect naïve façades — or  double spaces —\n\tto change that: 1 + 1 = 2."
)
"""What is scored: numbers, accents, punctuation and white space."""


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
    """

    largest: float
    relative: float
    worst: str
    worst_relative: float
    divergence: float
    same_tokens: float

    @property
    def is_exact(self) -> bool:
        return self.largest == 0.0


def compare_gguf(folder: Path, path: Path) -> GgufComparison:
    """Compare tensor by tensor, by the tokenizer, and by what both make of a text.

    Args:
        folder: of the model.
        path: the GGUF file made from it.

    Raises:
        CheckpointError: it cannot be loaded, lacks a tensor, or cuts a text into other tokens.
    """
    original: Any = load_causal_model(folder, torch.float32)
    reloaded = _load(path, original.config)
    tokenizer: Any = load_tokenizer(folder)
    _compare_tokens(path, tokenizer)
    reloaded_state = reloaded.state_dict()
    largest_error = squared_total = squared_norm = 0.0
    worst_tensor = (0.0, "")
    for name, own in original.state_dict().items():
        if name not in reloaded_state or reloaded_state[name].shape != own.shape:
            raise CheckpointError(f"{path.name}: {name} is not in it as the model has it.")
        # Double: sums of squares over hundreds of millions of entries lose digits in float32.
        difference = (reloaded_state[name] - own).double()
        squared_error, size = float(difference.square().sum()), float(own.double().square().sum())
        largest_error = max(largest_error, float(difference.abs().max()))
        squared_total, squared_norm = squared_total + squared_error, squared_norm + size
        worst_tensor = max(worst_tensor, ((squared_error / size) ** 0.5 if size else 0.0, name))
    divergence, same = _compare_logits(original, reloaded, tokenizer)
    relative_error = (squared_total / squared_norm) ** 0.5 if squared_norm else 0.0
    return GgufComparison(
        largest_error, relative_error, worst_tensor[1], worst_tensor[0], divergence, same
    )


def _load(path: Path, config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    silence_libraries()
    # transformers reads no scaling of rotary frequencies out of a GGUF file; llama.cpp does.
    rope_values = dict(getattr(config, "rope_parameters", None) or {})
    own = {} if rope_values.get("rope_type", "default") == "default" else {"config": config}
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, **own
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path.name}: cannot be loaded again ({error}).") from error


def _compare_tokens(path: Path, tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    gguf_tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    match_pre_tokenizer(gguf_tokenizer, check_gguf(path))
    own_ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    found = gguf_tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    if own_ids != found:
        first_other = next(
            n for n, (a, b) in enumerate(zip([*own_ids, -1], [*found, -2], strict=False)) if a != b
        )
        raise CheckpointError(
            f"{path.name}: its tokenizer cuts a text otherwise than the model's, from token "
            f"{first_other} on "
            f"({tokenizer.convert_ids_to_tokens(own_ids[first_other : first_other + 3])} became "
            f"{gguf_tokenizer.convert_ids_to_tokens(found[first_other : first_other + 3])})."
        )


def _compare_logits(whole: Any, again: Any, tokenizer: Any) -> tuple[float, float]:
    token_ids: Tensor = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        own_logits = whole(token_ids).logits[0].float().log_softmax(-1)
        gguf_logits = again(token_ids).logits[0].float().log_softmax(-1)
    divergence = float((own_logits.exp() * (own_logits - gguf_logits)).sum(-1).mean())
    same_share = float((own_logits.argmax(-1) == gguf_logits.argmax(-1)).float().mean())
    return max(divergence, 0.0), same_share
