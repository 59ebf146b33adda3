"""What the losses of a merge and its parents on a short text say. Pure numbers; who scores is
above.

A plain sentence about something that is off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LOSS_MARGIN = 0.01
"""Bits per byte by which a merge's loss must exceed every parent's to be called worse. All models
read the same text, so a smaller difference is rounding; a recipe tolerates as much by default."""

GIBBERISH = 0.75
"""Share of `log2(vocabulary)`, the bits per token of blind guessing, from which on a model says
nothing. Knowing no more than how frequent each token is takes English to about two thirds of it."""


@dataclass(frozen=True)
class Loss:
    """How well one model predicts the text.

    Attributes:
        label: of the model.
        bits_per_byte: comparable between tokenizers; None where it could not be scored.
        bits_per_token: the same by token of its own tokenizer.
        vocabulary: tokens that its head chooses among.
        problem: why it could not be scored.
    """

    label: str
    bits_per_byte: float | None = None
    bits_per_token: float | None = None
    vocabulary: int = 0
    problem: str | None = None


def remarks_on_losses(losses: Sequence[Loss]) -> Iterator[Remark]:
    """Sentences on the losses; the merge comes first, its parents after it."""
    for loss in losses:
        if loss.problem is not None:
            yield Remark("unscored", f"{loss.label} could not be scored: {loss.problem}")
    scored = [loss for loss in losses if loss.bits_per_byte is not None]
    for loss in scored:
        uniform = math.log2(loss.vocabulary) if loss.vocabulary > 1 else math.inf
        if (loss.bits_per_token or 0.0) >= GIBBERISH * uniform:
            yield Remark(
                "gibberish",
                f"{loss.label} speaks gibberish: {loss.bits_per_token:.1f} bits per token, and "
                f"guessing blindly among {loss.vocabulary} tokens takes {uniform:.1f}.",
            )
    parents = [loss for loss in scored if loss is not losses[0]]
    merge = losses[0].bits_per_byte if losses else None
    if merge is None or not parents:
        return
    worst = max(parents, key=lambda loss: loss.bits_per_byte or 0.0)
    if merge > (worst.bits_per_byte or 0.0) + LOSS_MARGIN:
        shown = ", ".join(f"{loss.label} {loss.bits_per_byte:.4f}" for loss in parents)
        above = "all parents" if len(parents) > 2 else "both parents" if len(parents) == 2 else ""
        yield Remark(
            "loss",
            f"The merge's loss is above {above or parents[0].label}: {merge:.4f} bits per byte "
            f"({shown}). Lower the weights, or look at the layers that moved furthest.",
        )


@dataclass(frozen=True)
class Remark:
    """One sentence or two.

    Attributes:
        kind: what it is about, for programs.
        text: for people, with the values.
    """

    kind: str
    text: str
