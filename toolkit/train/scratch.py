"""A model with random weights: `runs/<recipe>/general/` for a recipe that pre-trains one itself."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.config import ShapeSection
from toolkit.checkpoint.folder import save_model
from toolkit.errors import ConfigError
from toolkit.limits import refuse_beyond_memory
from toolkit.stage import Stage
from toolkit.tokenizer_files import load_tokenizer

_SPREAD = 0.02
"""Standard deviation of the first weights, as GPT-2's and Llama's."""


def run_scratch(shape: ShapeSection, stage: Stage, tokenizer_folder: Path) -> None:
    """Write a Llama of a shape with random weights in float32, and a tokenizer.

    Args:
        shape: measures of the model.
        stage: where to write; its seed decides the weights, tensor by tensor.
        tokenizer_folder: model folder whose tokenizer it takes.

    Raises:
        ConfigError: the tokenizer has more tokens than the shape has room for, or heads do not
            divide the width.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    if len(tokenizer) > shape.vocab_size:
        raise ConfigError(
            f"model.scratch.shape.vocab_size: {shape.vocab_size} is too small for the tokenizer's "
            f"{len(tokenizer)} tokens."
        )
    model = random_llama(shape, stage.seed, tokenizer)
    with stage.running() as work:
        save_model(model, work, dtype=torch.float32, like=tokenizer_folder, only_tokenizer=True)
        stage.finish({"num_parameters": sum(p.numel() for p in model.parameters())})


def random_llama(shape: ShapeSection, seed: int, tokenizer: Any) -> Any:
    """A Llama of a shape: matrices normal, those that write into the residual stream smaller by
    the root of their number, norms 1.

    Args:
        shape: its measures.
        seed: each tensor draws its own numbers from it and its name, so order does not matter.
        tokenizer: for the ids of special tokens.

    Raises:
        ConfigError: heads do not divide the width, or memory cannot hold it.

    Reference:
        Radford et al. 2019, Language models are unsupervised multitask learners, section 2.3.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    num_heads = shape.num_attention_heads
    num_groups = shape.num_key_value_heads or num_heads
    if (shape.head_dim is None and shape.hidden_size % num_heads) or num_heads % num_groups:
        raise ConfigError(
            f"model.scratch.shape: {num_heads} heads with {num_groups} of keys and values do not "
            f"divide a width of {shape.hidden_size}."
        )
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_groups,
        head_dim=shape.head_dim or shape.hidden_size // num_heads,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=shape.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=_SPREAD,
    )
    # Counted without memory first: a wrong digit in a shape would be found by the machine running
    # out of it.
    with torch.device("meta"):
        num_entries = sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters())
    refuse_beyond_memory(4 * num_entries, f"model.scratch.shape: {num_entries:,} parameters")
    with torch.random.fork_rng(devices=[]):  # its own first weights, all replaced below
        model = LlamaForCausalLM(config)
    # Two matrices in each block write to the residual stream, so its variance grows with twice the
    # depth.
    residual_spread = _SPREAD / math.sqrt(2.0 * shape.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            parameter.copy_(
                _normal(parameter.shape, seed, name)
                * (residual_spread if writes_residual else _SPREAD)
            )
    return model


def _normal(shape: torch.Size, seed: int, name: str) -> Tensor:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator)
