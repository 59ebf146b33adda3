"""What every answer's next token is taken from: a model's logits, once they are known to be sound.

Legend: B prompts, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from toolkit.errors import EvaluationError


def check_logits(logits: Tensor) -> Tensor:
    """The logits themselves, `[B, V]`. Some may be minus infinity, as of tokens that are masked.

    Raises:
        EvaluationError: the largest of a prompt is none, or infinite: any choice would be made up.
    """
    if not bool(logits.amax(-1).isfinite().all()):
        raise EvaluationError(
            "the model's logits are not numbers, or infinite; its weights are damaged, or it "
            "computes in a type that is too small for them (float16)."
        )
    return logits


def temper_logits(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities of tokens at a temperature above 0, `[B, V]`."""
    scaled_logits = logits / temperature
    probabilities = scaled_logits.softmax(-1)
    # Near 0 the quotients leave the type: what is left is the likeliest token.
    is_beyond = ~scaled_logits.amax(-1, keepdim=True).isfinite()
    likeliest = logits == logits.amax(-1, keepdim=True)
    return probabilities.masked_fill(is_beyond, 0.0).masked_fill(is_beyond & likeliest, 1.0)
