"""The causal language model inside a wrapper: transformers' own class where it computes the same,
else the wrapper's decoder with its head.

Some wrappers have no class for their text side alone (Qwen2.5-VL), and some compute otherwise than
the class that there is (Cohere's vision models do not scale logits). Which one it is is not known
here: each is asked for the logits of a text, and the first that agrees with the wrapper is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from toolkit.checkpoint.forward import without_cache
from toolkit.checkpoint.probe_documents import probe_documents


def take_text_side(full: Any) -> Any | None:
    """The causal language model in a wrapper, which shares the wrapper's tensors.

    Args:
        full: the loaded wrapper.

    Returns:
        A model in evaluation mode; None where no part of the wrapper computes what it does of a
        text.
    """
    for text_model in _candidates(full):
        if _same_logits(full, text_model):
            return text_model
    return None


def _candidates(full: Any) -> Iterator[Any]:
    decoder, head = full.get_decoder(), full.get_output_embeddings()
    if decoder is None or decoder is full:
        return
    has_own_head = getattr(decoder, "get_output_embeddings", lambda: None)() is not None
    if has_own_head and hasattr(decoder, "generate"):
        decoder.generation_config = full.generation_config
        yield decoder.eval()  # a causal language model as it is (Llama 4, BLIP-2)
        return
    if head is None:
        return
    if (text_model := _own_class(full, decoder, head)) is not None:
        yield text_model
    yield _with_head(full, decoder, head)


def _own_class(full: Any, decoder: Any, head: nn.Module) -> Any | None:
    """The causal language model that transformers has for the text side, of the wrapper's parts."""
    text_config = full.config.get_text_config()
    if type(text_config) not in AutoModelForCausalLM._model_mapping:
        return None
    # Only the shell is wanted: the wrapper's own modules take the place of what is in it.
    with torch.device("meta"):
        text_model = AutoModelForCausalLM.from_config(text_config)
    name_of_class = {type(child): name for name, child in text_model.named_children()}
    decoder_name = name_of_class.get(type(decoder))
    if decoder_name is None or _shapes(getattr(text_model, decoder_name)) != _shapes(decoder):
        return None
    setattr(text_model, decoder_name, decoder)
    text_model.set_output_embeddings(head)
    text_model.generation_config = full.generation_config
    # The class holds more than decoder and head: what is still without memory is made up, not
    # loaded.
    if any(parameter.is_meta for parameter in text_model.parameters()):
        return None
    return text_model.eval()


def _shapes(module: nn.Module) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(tensor.shape)) for name, tensor in module.named_parameters()}


class _DecoderWithHead:
    """Logits of a decoder and the head beside it; a base of classes made by `_with_head`."""

    base_model_prefix = "model"
    main_input_name = "input_ids"
    model: Any
    lm_head: Any

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **more,
        )
        hidden_states = output.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(
            logits=self.lm_head(hidden_states[:, kept, :]),
            past_key_values=output.get("past_key_values"),
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def set_output_embeddings(self, head: Any) -> None:
        self.lm_head = head


def _with_head(full: Any, decoder: Any, head: nn.Module) -> Any:
    # What an architecture supports (kinds of attention, checkpointing) stands on its own base.
    base = next(
        (kind for kind in type(decoder).__mro__ if kind.__name__.endswith("PreTrainedModel")),
        PreTrainedModel,
    )
    own = {"__module__": type(decoder).__module__}  # transformers looks there for what it supports
    kind = type(f"{type(decoder).__name__}WithHead", (_DecoderWithHead, base, GenerationMixin), own)
    with torch.device("meta"):
        text_model: Any = kind(decoder.config)
    text_model.model, text_model.lm_head = decoder, head
    text_model.post_init()
    text_model.generation_config = full.generation_config
    return text_model.eval()


@torch.no_grad()
def _same_logits(full: Any, text: Any) -> bool:
    """Whether both compute the same of a text; asked in evaluation mode."""
    probe_tokens = probe_documents(text, 16)[0][None]
    try:
        full_logits, text_logits = (
            model(**without_cache(model, {"input_ids": probe_tokens})).logits.float()
            for model in (full.eval(), text.eval())
        )
    except Exception:  # a wrapper that takes no text alone, or a decoder that is no whole one
        return False
    if full_logits.shape != text_logits.shape:
        return False
    # Room for rounding alone: what computes otherwise differs by far more.
    tolerance = 1e-4 if next(text.parameters()).dtype == torch.float32 else 0.05
    allowed = tolerance * float(full_logits.nan_to_num().abs().max())
    return torch.allclose(full_logits, text_logits, rtol=tolerance, atol=allowed, equal_nan=True)
