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
    whole: Any = load_causal_model(folder, torch.float32)
    again = _load(path, whole.config)
    tokenizer: Any = load_tokenizer(folder)
    _compare_tokens(path, tokenizer)
    theirs = again.state_dict()
    largest = total = norm = 0.0
    worst = (0.0, "")
    for name, own in whole.state_dict().items():
        if name not in theirs or theirs[name].shape != own.shape:
            raise CheckpointError(f"{path.name}: {name} is not in it as the model has it.")
        difference = (theirs[name] - own).double()
        squared, size = float(difference.square().sum()), float(own.double().square().sum())
        largest = max(largest, float(difference.abs().max()))
        total, norm = total + squared, norm + size
        worst = max(worst, ((squared / size) ** 0.5 if size else 0.0, name))
    divergence, same = _compare_logits(whole, again, tokenizer)
    relative = (total / norm) ** 0.5 if norm else 0.0
    return GgufComparison(largest, relative, worst[1], worst[0], divergence, same)


def _load(path: Path, config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    silence_libraries()
    # transformers reads no scaling of rotary frequencies out of a GGUF file; llama.cpp does.
    rope = dict(getattr(config, "rope_parameters", None) or {})
    own = {} if rope.get("rope_type", "default") == "default" else {"config": config}
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, **own
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path.name}: cannot be loaded again ({error}).") from error


def _compare_tokens(path: Path, tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    match_pre_tokenizer(theirs, check_gguf(path))
    own = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    found = theirs(TEXT, add_special_tokens=False)["input_ids"]
    if own != found:
        at = next(
            n for n, (a, b) in enumerate(zip([*own, -1], [*found, -2], strict=False)) if a != b
        )
        raise CheckpointError(
            f"{path.name}: its tokenizer cuts a text otherwise than the model's, from token {at} "
            f"on ({tokenizer.convert_ids_to_tokens(own[at : at + 3])} became "
            f"{theirs.convert_ids_to_tokens(found[at : at + 3])})."
        )


def _compare_logits(whole: Any, again: Any, tokenizer: Any) -> tuple[float, float]:
    tokens: Tensor = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        one = whole(tokens).logits[0].float().log_softmax(-1)
        two = again(tokens).logits[0].float().log_softmax(-1)
    divergence = float((one.exp() * (one - two)).sum(-1).mean())
    same = float((one.argmax(-1) == two.argmax(-1)).float().mean())
    return max(divergence, 0.0), same
