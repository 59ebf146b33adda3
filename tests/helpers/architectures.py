"""Every causal language model of transformers, small enough to be computed in milliseconds.

Sizes are found by the names of configuration keys, in nested configurations as well, so that a new
architecture needs no entry here; what no rule can guess stands in `_SETTINGS`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 320
WINDOW = 16
"""Tokens of sliding windows and chunks: fewer than the documents of tests have."""

LARGEST = 3_000_000
"""Parameters; a model with more was not made small."""

_SIZES = {
    256: "max_position_embeddings n_positions n_ctx max_sequence_length max_seq_len seq_length "
    "context_length max_target_positions max_source_positions original_max_position_embeddings",
    VOCABULARY: "vocab_size src_vocab_size n_vocab decoder_vocab_size vocab_size_per_layer_input "
    "output_vocab_size unpadded_vocab_size",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers depth "
    "num_decoder_layers num_encoder_layers num_experts_per_tok num_experts_per_token moe_k "
    "top_k_experts moe_topk num_key_value_heads n_kv_heads num_kv_heads linear_num_key_heads "
    "swa_num_key_value_heads num_global_key_value_heads num_mem_blocks n_group topk_group "
    "mamba_expand expand patch_size",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads index_n_heads "
    "encoder_attention_heads linear_num_value_heads num_linear_heads swa_num_attention_heads "
    "num_local_experts num_experts n_routed_experts moe_num_experts zero_expert_num "
    "attention_heads",
    8: "head_dim linear_key_head_dim linear_value_head_dim attention_hidden_size_per_head "
    "query_pre_attn_scalar state_size mamba_d_state ssm_state_size d_state qk_nope_head_dim "
    "v_head_dim qk_rope_head_dim global_head_dim swa_head_dim swa_v_head_dim index_head_dim "
    "hidden_size_per_layer_input rotary_dim kv_lora_rank q_lora_rank o_lora_rank altup_dim "
    "laurel_rank kv_channels attention_head_size time_step_rank",
    WINDOW: "sliding_window attention_window_size window_size local_window_size chunk_size "
    "attention_chunk_size index_topk mamba_chunk_size",
    32: "hidden_size d_model n_embd dim embedding_size attention_hidden_size lru_width dim_model "
    "emb_dim d_embed word_embed_proj_dim embed_dim hidden_dim num_mamba_heads_dim "
    "expert_hidden_size projection_dim output_dim",
    64: "intermediate_size d_ff ffn_dim n_inner ffn_hidden_size dim_ff feed_forward_proj_dim dff "
    "decoder_ffn_dim encoder_ffn_dim shared_intermediate_size intermediate_size_mlp "
    "moe_intermediate_size shared_expert_intermediate_size block_ff_dim",
}
_SIZE_OF = {name: size for size, names in _SIZES.items() for name in names.split()}
_HYBRID = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {**_HYBRID, "attn_layer_indices": [1]},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {**_HYBRID, "mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**_HYBRID, "layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": _GROUPED,
    "hunyuan_v1_moe": _GROUPED,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "ministral": {**_GROUPED, "layer_types": ["sliding_attention", "full_attention"]},
    "nemotron": _GROUPED,
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "num_buckets": 2},
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "shape_vocab_size": 64},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "mamba", "hybrid"],
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "mamba", "hybrid"],
        "num_key_value_heads": 4,
        "n_mamba_heads": 8,
    },
}
"""Beyond the rules, by model type."""

_LAYERS = re.compile(r"num_hidden_layers|n_layers?|num_layers|decoder_layers")


def causal_model_types() -> list[str]:
    """All model types that transformers opens as a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_values(defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings in place of a configuration's defaults, nested as they are."""
    small: dict[str, Any] = {}
    for name, value in defaults.items():
        if isinstance(value, dict) and name.endswith("_config"):
            small[name] = small_values(value)
        elif name.endswith("_token_id") and isinstance(value, int):
            small[name] = min(value, 1)
        elif isinstance(value, int) and not isinstance(value, bool) and name in _SIZE_OF:
            small[name] = min(value, _SIZE_OF[name])
    if "is_decoder" in defaults:
        small["is_decoder"] = True
    kinds = defaults.get("layer_types")
    if kinds:
        some = list(dict.fromkeys(kinds))
        small["layer_types"] = some if len(some) > 1 else some * 2
        small |= {name: len(small["layer_types"]) for name in small if _LAYERS.fullmatch(name)}
    return small


def small_config(model_type: str) -> Any:
    """A small configuration of a model type."""
    make = CONFIG_MAPPING[model_type]
    try:
        defaults = make().to_dict()
    except Exception:  # some have no defaults
        defaults = {}
    return make(**{**small_values(defaults), **_SETTINGS.get(model_type, {})})


def small_model(model_type: str, *, seed: int = 0, scale: float = 4.0) -> Any:
    """A random model in evaluation mode whose matrices are large enough for attention to matter.

    Raises:
        ValueError: it stayed too large.
    """
    config = small_config(model_type)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{model_type}: has {size} parameters")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model
