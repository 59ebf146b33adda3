"""Which layout a model computes packed documents in as it would compute each alone: it is tried.

No list of architectures can say: windows, chunks, recurrent states, convolutions and positions each
have their own ways of passing over what they are told. Two documents are computed together and
alone, and what does not give the same loss is not used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.checkpoint.probe_documents import probe_documents
from toolkit.errors import ConfigError
from toolkit.progress import say
from toolkit.train.fuse import unfuse
from toolkit.train.layout import IGNORED, Layout, packed, takes_lengths
from toolkit.train.model import NextTokenLoss, call_on_model
from toolkit.train.processes import from_first
from toolkit.train.trainable import plain_model

_TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 5e-3}
"""Of a loss, relative, by the type of products: a leak is a hundred times as much in float32."""

_LOOKS_AHEAD = 1e-2
"""Change of a loss, relative, by tokens that only follow: more than rounding or routing gives."""


@dataclass(frozen=True)
class Packing:
    """What a probe found.

    Attributes:
        layout: the first that keeps documents apart.
        fused: whether fused blocks do.
        message: what a user should know, or nothing.
    """

    layout: Layout
    fused: bool
    message: str = ""


def settle_packing(
    loss_module: Any, plain_loss: NextTokenLoss, longest_document: int, accelerator: Any
) -> None:
    """Let a probe say how packed documents are kept apart, and whether fused blocks do it.

    Args:
        loss_module: as accelerate prepared it.
        plain_loss: the module inside.
        longest_document: tokens of a document of the probe at most.
        accelerator: of accelerate.
    """

    def probe(_model: Any) -> Any:
        # A module of its own: accelerate lets the other's forward pass run under autocast always.
        module = NextTokenLoss(plain_loss.model, plain_loss.dtype, fused=plain_loss.fused)
        # FSDP gathers parameters in the type of the products, so there is no float32 to probe in.
        sharded = hasattr(loss_module, "reshard")
        return choose_packing(module, longest_document, accelerator.autocast, sharded=sharded)

    packing = from_first(call_on_model(probe, loss_module, plain_loss))
    if plain_loss.fused and not packing.fused:
        unfuse(plain_model(plain_loss.model))
    plain_loss.layout, plain_loss.fused = packing.layout, packing.fused
    if packing.message and accelerator.is_main_process:
        say(packing.message)


def choose_packing(
    module: NextTokenLoss, longest: int, autocast: Callable[[], Any], *, sharded: bool = False
) -> Packing:
    """Try layouts from the quickest to the surest.

    Args:
        module: of the model to train, on its device; its mode is kept.
        longest: tokens of a document at most.
        autocast: the context that training computes in; plain layouts are probed outside of it,
            in float32, where a small leak is seen.
        sharded: under FSDP, where the model computes in the type of the products in any context.

    Raises:
        ConfigError: the model computes not even a document alone, or looks at later tokens.
    """
    model = plain_model(module.model)
    documents = probe_documents(model, longest)
    uses_lengths = takes_lengths(model.config._attn_implementation)
    with _as_it_was(module):
        fused_agrees = module.fused and _fused_agrees(module, documents, autocast)
        context = autocast if uses_lengths else contextlib.nullcontext
        if uses_lengths:
            dtype = torch.bfloat16
        else:  # the output head too: rounded to bfloat16, its losses differ more than a leak does
            dtype = module.dtype if sharded else torch.float32
            module.dtype = dtype
        with torch.no_grad(), context():
            return _choose(module, documents, dtype, fused_agrees)


def _choose(
    module: NextTokenLoss, documents: tuple[Tensor, Tensor], dtype: torch.dtype, fused: bool
) -> Packing:
    module.eval()
    model_type = plain_model(module.model).config.model_type
    # A short document behind a long one has most padding in a row of its own.
    document_pairs = (documents, (documents[0], documents[1][:6]))
    try:
        losses_alone = [_losses(module, "alone", pair) for pair in document_pairs]
        _refuse_looking_ahead(module, documents, model_type)
    # Its own refusal of a model that looks ahead, which says more than the next clause would.
    except ConfigError:
        raise
    except Exception as error:  # whatever an architecture's own code raises
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"model.path: a {model_type} cannot be trained on plain text; transformers computes no "
            f"loss of it ({type(error).__name__}: {first_line})."
        ) from error
    first_reason = ""
    layouts: tuple[Layout, ...] = ("positions", "rows")
    for layout in layouts:
        # Two ways to say the same: by positions, which costs nothing, then by rows, which costs
        # padding.
        try:
            losses_together = [_losses(module, layout, pair) for pair in document_pairs]
        except Exception as error:  # it does not take what it was told
            first_reason = first_reason or f"{type(error).__name__} where documents are packed"
            continue
        tolerance = _TOLERANCES[dtype]
        if all(
            _agree(*both, tolerance) for both in zip(losses_together, losses_alone, strict=True)
        ):
            return Packing(layout, fused, _message(model_type, layout, first_reason))
        # Of all that differ, the farthest is told: it shows whether it is a leak or rounding.
        loss_pairs = [
            values
            for pair, other in zip(losses_together, losses_alone, strict=True)
            for values in zip(pair, other, strict=True)
        ]
        worst_pair = max(loss_pairs, key=lambda values: abs(values[0] - values[1]))
        first_reason = first_reason or f"loss {worst_pair[0]:.5g} packed, {worst_pair[1]:.5g} alone"
    return Packing("alone", fused, _message(model_type, "alone", first_reason))


def _message(model_type: str, layout: str, reason: str) -> str:
    if not reason:
        return ""
    where_computed = "in a row of its own" if layout == "rows" else "by itself"
    return (
        f"  packing: a {model_type} does not keep documents apart ({reason}); each is computed "
        f"{where_computed}"
    )


def _losses(
    module: NextTokenLoss, layout: Layout, documents: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """Mean loss of each of two documents in one block, in nats per token."""
    device = next(module.parameters()).device
    # Room behind them, as blocks have it: without it rows of their own would not share a pass.
    inputs, labels, segments = (
        torch.cat([row, torch.full_like(row, filler)], dim=1).to(device)
        for row, filler in zip(packed(documents), (0, IGNORED, -1), strict=True)
    )
    module.layout = layout
    mean_losses = []
    for number in range(2):
        own_labels = torch.where(segments == number, labels, IGNORED)
        mean_losses.append(
            float(module(inputs, own_labels, segments)) / int((own_labels != IGNORED).sum())
        )
    return mean_losses[0], mean_losses[1]


def _agree(one: tuple[float, float], other: tuple[float, float], tolerance: float) -> bool:
    """Whether losses are the same; those that are no numbers agree with nothing to be seen."""
    return all(
        # Equality first, as infinity less infinity is no number.
        a == b or abs(a - b) <= tolerance * max(1.0, abs(b)) or (a != a and b != b)
        for a, b in zip(one, other, strict=True)
    )


def _refuse_looking_ahead(
    module: NextTokenLoss, documents: tuple[Tensor, Tensor], name: str
) -> None:
    """The loss of a text must not change with what follows it."""
    first_document, second_document = documents
    device = next(module.parameters()).device
    tokens = torch.cat([first_document, second_document]).to(device)
    inputs, labels = tokens[:-1][None], tokens[1:][None].clone()
    labels[:, len(first_document) - 1 :] = IGNORED
    module.layout = "alone"
    segments = torch.zeros_like(inputs)
    loss_continued = float(module(inputs, labels, segments))
    first_positions = slice(0, len(first_document) - 1)
    loss_alone = float(
        module(inputs[:, first_positions], labels[:, first_positions], segments[:, first_positions])
    )
    if abs(loss_continued - loss_alone) > _LOOKS_AHEAD * abs(loss_alone):
        raise ConfigError(
            f"model.path: this {name} looks at the tokens behind the one it predicts (loss "
            f"{loss_alone:.5g} of a text, {loss_continued:.5g} where more text follows), so it "
            "cannot learn to continue text; where its config.json has is_decoder, that must be "
            "true."
        )


def _fused_agrees(
    module: NextTokenLoss, documents: tuple[Tensor, Tensor], autocast: Callable[[], Any]
) -> bool:
    """Fused blocks compute in training mode only; without dropout, so that two passes compare."""
    module.train()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    device = next(module.parameters()).device
    inputs, labels, segments = (row.to(device) for row in packed(documents))
    losses_together, losses_alone = [], []
    with autocast():
        # The loss of each document alone is compared, as a leak from one may hide in the sum of
        # both.
        for number in range(2):
            is_own = segments == number
            own_labels = torch.where(is_own, labels, IGNORED)
            losses_together.append(float(module(inputs, own_labels, segments).detach()))
            own_parts = (inputs[is_own][None], labels[is_own][None], segments[is_own][None])
            losses_alone.append(float(module(*own_parts).detach()))
    return _agree(
        (losses_together[0], losses_together[1]),
        (losses_alone[0], losses_alone[1]),
        _TOLERANCES[module.dtype],
    )


@contextlib.contextmanager
def _as_it_was(module: NextTokenLoss) -> Any:
    """Modes, layout, type and counts of experts are put back; nothing is compiled on the way."""
    modes_before = {part: part.training for part in module.modules()}
    layout, counts, dtype = module.layout, module.expert_counts, module.dtype
    is_compiled = any(part._compiled_call_impl is not None for part in modes_before)
    without_compiling = (
        # Compiling takes minutes, and shapes like the probe's never come again.
        torch.compiler.set_stance("force_eager") if is_compiled else contextlib.nullcontext()
    )
    try:
        with without_compiling:
            yield
    finally:
        for part, mode in modes_before.items():
            part.training = mode
        module.layout, module.expert_counts, module.dtype = layout, counts, dtype
