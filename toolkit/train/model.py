"""From a causal language model to a module whose forward pass is the training loss.

Legend: B blocks, T tokens of a block, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from toolkit.checkpoint.forward import without_cache
from toolkit.errors import ConfigError
from toolkit.library_errors import first_line
from toolkit.train.balance import (
    balance_coefficient,
    balancing_loss,
    expert_counts,
    experts_per_token,
    with_routers,
)
from toolkit.train.layout import (
    IGNORED,
    ForwardPass,
    Layout,
    even_out,
    forward_passes,
    takes_lengths,
    without_mask,
)
from toolkit.train.loss import (
    TeacherDistributions,
    divergence_of_logits,
    linear_cross_entropy,
    linear_divergence,
)
from toolkit.train.tied import shared_gradient
from toolkit.train.trainable import plain_model

Result = TypeVar("Result")

_PLAIN_HEADS: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Models that were asked already: later their attention may want what the question lacks."""


class NextTokenLoss(nn.Module):
    """Wraps a model: packed blocks in, summed loss in nats out.

    One module with one forward pass, so that DDP and FSDP see all of the computation.

    Attributes:
        layout: how pieces of documents are kept apart; `positions` until a probe says otherwise.
        expert_counts: of a mixture of experts in training, how often each expert was chosen since
            this was last set to None, `[L, E]`.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, fused: bool = False) -> None:
        super().__init__()
        self.model = model
        self.fused = fused
        self.dtype = dtype
        self.layout: Layout = "positions"
        self.fused_head = has_plain_head(plain_model(model))
        self.expert_counts: Tensor | None = None
        # What FSDP shards one by one, unless its configuration names other modules.
        self._no_split_modules = getattr(plain_model(model), "_no_split_modules", None)

    def get_input_embeddings(self) -> Any:
        """The embeddings, which FSDP then gathers for their own part of a pass alone; None where
        they are the output's matrix too, which is needed until the end."""
        model = plain_model(self.model)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        is_tied = head is None or head.weight is embedding.weight
        return None if is_tied or type(embedding) is not nn.Embedding else embedding

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        segments: Tensor,
        call: Callable[[Any], Any] | None = None,
        teacher: TeacherDistributions | None = None,
        reverse: bool = False,
    ) -> Any:
        """Sum of the losses of all targets; see `call_on_model` for the other use.

        Args:
            input_ids: `[B, T]` int64.
            labels: `[B, T]` int64, the next token, or -100 where there is none.
            segments: `[B, T]`, equal within a piece of a document, -1 in padding.
            call: function of the model to call instead; the other arguments then do not matter.
            teacher: distributions that the model is to keep. The loss is then the divergence from
                them, and `labels` say which of them stands at each position: so they go with their
                tokens whatever the layout.
            reverse: whether that divergence is KL(model || teacher), not KL(teacher || model).
        """
        if call is not None:
            return call(self.model)
        fused = self.fused and self.training and torch.is_grad_enabled()
        layout: Layout = "lengths" if fused else self.layout
        attention = plain_model(self.model).config._attn_implementation
        if layout == "positions" and takes_lengths(attention):
            layout = "lengths"
        layout = without_mask(layout, attention, input_ids.device.type, input_ids.shape[1])
        passes = forward_passes(layout, input_ids, labels, segments)
        if fused:  # transformers would make a mask for sdpa, unless it is given one
            passes[0].given["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        if layout in ("rows", "alone"):
            passes = even_out(passes, input_ids)
        loss = self._loss_of(passes[0], teacher, reverse)
        for further_pass in passes[1:]:
            loss = loss + self._loss_of(further_pass, teacher, reverse)
        return loss

    def _loss_of(
        self, forward_pass: ForwardPass, teacher: TeacherDistributions | None, reverse: bool
    ) -> Tensor:
        """Sum of the losses of the targets of a forward pass."""
        model, labels = plain_model(self.model), forward_pass.labels
        model_arguments = without_cache(model, forward_pass.given)
        is_target = labels != IGNORED
        is_balanced = self.training and torch.is_grad_enabled() and teacher is None
        k = experts_per_token(model.config) if is_balanced else 0
        if self.fused_head:
            with shared_gradient(model) as shared:
                output = model.base_model(
                    **model_arguments, **({"output_router_logits": True} if k else {})
                )
            router_logits = getattr(output, "router_logits", None)
            hidden_states = output.last_hidden_state[is_target]
            head_weight = model.get_output_embeddings().weight
            # The loss is told the type of its products; what lies between stays float32.
            with torch.autocast(labels.device.type, enabled=False):
                if teacher is not None:
                    loss = linear_divergence(
                        hidden_states,
                        head_weight,
                        teacher.at(labels[is_target]),
                        dtype=self.dtype,
                        shared=shared,
                        reverse=reverse,
                    )
                else:
                    loss = linear_cross_entropy(
                        hidden_states,
                        head_weight,
                        labels[is_target],
                        dtype=self.dtype,
                        shared=shared,
                    )
        else:
            if k:
                output, router_logits = with_routers(model, model_arguments)
            else:
                output, router_logits = model(**model_arguments), None
            # Chosen before the cast: of a conversation few positions are targets, and a row is as
            # long as the vocabulary.
            logits = output.logits[is_target].float()
            if teacher is not None:
                return divergence_of_logits(logits, teacher.at(labels[is_target]), reverse=reverse)
            loss = nn.functional.cross_entropy(logits, labels[is_target], reduction="sum")
        if not k or not router_logits:
            return loss
        return self._balanced(loss, router_logits, is_target, forward_pass.is_real, k)

    def _balanced(
        self, loss: Tensor, routers: Any, targets: Tensor, is_real: Tensor, k: int
    ) -> Tensor:
        """The same loss, with the gradient of the routers' balancing loss as well.

        That counts once for every target, so that over micro-batches and processes it is divided as
        the loss is, by the targets of the step; what is reported stays nats.
        """
        is_real = is_real.reshape(-1) & targets.any()  # a process without blocks only takes part
        step_counts = expert_counts(routers, is_real, k)
        self.expert_counts = step_counts + (0 if self.expert_counts is None else self.expert_counts)
        coefficient = balance_coefficient(plain_model(self.model).config)
        if not coefficient or not bool(is_real.any()):
            return loss
        # The value is taken away again: the gradient stays, and what is reported is nats.
        balance_loss = coefficient * balancing_loss(routers, is_real, k) * targets.sum()
        return loss + (balance_loss - balance_loss.detach())


def call_on_model(
    function: Callable[[Any], Result], loss_module: Any, plain_loss: NextTokenLoss
) -> Result:
    """What a function says of the model in a module that accelerate prepared.

    Where processes share the parameters (FSDP), they are whole only within the module's forward
    pass, so the call goes through that.

    Args:
        function: given the model.
        loss_module: module as accelerate prepared it.
        plain_loss: the module inside.
    """
    # FSDP's modules alone have it; DDP leaves parameters whole.
    if not hasattr(loss_module, "reshard"):
        return function(plain_loss.model)
    device = next(plain_loss.parameters()).device
    nothing = torch.zeros(1, 1, dtype=torch.int64, device=device)
    result: Result = loss_module(nothing, nothing, nothing, call=function)
    loss_module.reshard()  # else only a backward pass does
    return result


@torch.no_grad()
def answer_loss(model: Any, tokens: Sequence[int], targets: Sequence[bool]) -> float:
    """Nats of the tokens of one conversation that are targets, given all before them."""
    device = next(model.parameters()).device
    token_row = torch.tensor(tokens, device=device)
    is_target = torch.tensor(targets, device=device)
    labels = torch.where(is_target, token_row, IGNORED)[1:][None]
    model.eval()
    is_bf16 = torch.is_autocast_enabled(device.type)
    loss_module = NextTokenLoss(model, torch.bfloat16 if is_bf16 else torch.float32)
    loss_module.layout = "alone"
    inputs = token_row[:-1][None]
    return float(loss_module(inputs, labels, torch.zeros_like(inputs)))


def choose_attention(model: Any, wanted: str, device: str, precision: str) -> None:
    """Set how a model computes attention.

    Args:
        model: a causal language model.
        wanted: `auto`, or what transformers calls it.
        device: kind of device to train on.
        precision: `bf16` or `fp32`, for which flash-attention has no kernels.

    Raises:
        ConfigError: it is not to be had here.
    """
    # Not so for anything that is named: then what is missing is said, not passed over.
    if wanted == "auto":
        from transformers.utils import is_flash_attn_2_available

        if device != "cuda" or precision != "bf16" or not is_flash_attn_2_available():
            return
        wanted = "flash_attention_2"
    if takes_lengths(wanted) and precision != "bf16":
        raise ConfigError(
            f"train.attn_implementation: {wanted} needs precision bf16 (got {precision})."
        )
    try:
        model.set_attn_implementation(wanted)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"train.attn_implementation: {wanted} cannot be used here ({first_line(error)}); "
            "give auto."
        ) from error


_LARGE_LOGIT = 1000.0
"""Beyond any cap that a model puts on its logits (Gemma 2 and Grok: 30)."""


@torch.no_grad()
def has_plain_head(model: Any) -> bool:
    """Whether logits are just hidden states times the output embedding.

    Some models scale or cap their logits; asking the model itself is safer than a list of them.
    """
    output_head = model.get_output_embeddings()
    if (
        not isinstance(output_head, nn.Linear)
        or output_head.bias is not None
        or not hasattr(model, "base_model")
    ):
        return False
    # There are no numbers to ask with yet; it is asked once they are read (`set_up_training`).
    if output_head.weight.is_meta:
        return True
    if model in _PLAIN_HEADS:
        return _PLAIN_HEADS[model]
    # Dropout would make the two answers differ.
    was_training = model.training
    model.eval()
    probe_tokens = (
        torch.arange(1, 9, device=output_head.weight.device)[None] % output_head.weight.shape[0]
    )
    try:
        model_arguments = without_cache(model, {"input_ids": probe_tokens})
        hidden_states = model.base_model(**model_arguments).last_hidden_state
        # A cap hardly changes small logits: the head says both times so much more that it shows.
        largest = float(output_head(hidden_states).abs().max())
        louder = max(1.0, _LARGE_LOGIT / max(largest, _LARGE_LOGIT * 1e-6))
        hook = output_head.register_forward_hook(lambda _head, _given, found: found * louder)
        try:
            logits = model(**model_arguments).logits
            is_plain = torch.allclose(output_head(hidden_states), logits, rtol=1e-3, atol=1e-3)
        finally:
            hook.remove()
    except Exception:  # its inner model is called, or answers, in another way
        is_plain = False
    model.train(was_training)
    _PLAIN_HEADS[model] = is_plain
    return is_plain
