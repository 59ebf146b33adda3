"""Small random models of the families that GGUF files are written of, with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.helpers.architectures import small_config

_WINDOWS = ["sliding_attention", "full_attention"] * 2
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
_PHI_FACTORS = [1.0, 1.5, 2.0, 4.0]
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": _PHI_FACTORS,
    "long_factor": [2 * factor for factor in _PHI_FACTORS],
    "original_max_position_embeddings": 256,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-3": ("llama", {"rope_parameters": LLAMA_3}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", {}),
    "smollm3": (
        "smollm3",
        {
            **{"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4},
            "no_rope_layers": [1, 1, 1, 0],
        },
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 16, "rope_parameters": YARN}),
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": True}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"num_hidden_layers": 4, "layer_types": _WINDOWS}),
    "gemma3": (
        "gemma3_text",
        {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    ),
    "phi3": ("phi3", {}),
    "phi3-long": (
        "phi3",
        {"rope_parameters": LONG, "max_position_embeddings": 1024},
    ),
    "olmo2": ("olmo2", {}),
    "olmo3": (
        "olmo3",
        {"num_hidden_layers": 4, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    ),
}
"""By name: transformers' model type, and settings beside the small ones."""


def make_family(
    name: str, folder: Path, tokenizer: PreTrainedTokenizerFast, **changes: Any
) -> Path:
    """Write a random model of a family; its norms and biases are no ones and zeros."""
    model_type, settings = FAMILIES[name]
    values = small_config(model_type).to_dict() | settings | changes
    values |= {f"{role}_token_id": 0 for role in ("bos", "eos", "pad")}
    config = type(small_config(model_type))(**values)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
