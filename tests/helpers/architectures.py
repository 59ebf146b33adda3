"""Every causal language model of transformers, small enough to be computed in milliseconds.

Sizes are found by the names of configuration keys, in nested configurations as well, so that a new
architecture needs no entry here; what no rule can guess stands in `_SETTINGS`.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from toolkit.checkpoint.forward import without_cache
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.head import can_pad
from toolkit.evaluate.likelihood import ItemSet, score_documents
from toolkit.evaluate.prompted import Prompted, can_share, score_continuations
from toolkit.merge.in_memory_proof import why_not_live
from toolkit.train.layout import packed
from toolkit.train.model import NextTokenLoss
from toolkit.train.packing_probe import choose_packing

VOCABULARY = 320
WINDOW = 16
"""Tokens of sliding windows and chunks: fewer than the documents of tests have."""

LARGEST = 4_000_000
"""Parameters; a model with more was not made small."""

_SIZES = {
    1: "first_k_dense_replace",
    256: "max_position_embeddings n_positions n_ctx max_sequence_length max_seq_len seq_length "
    "context_length max_target_positions max_source_positions original_max_position_embeddings",
    VOCABULARY: "vocab_size src_vocab_size n_vocab decoder_vocab_size vocab_size_per_layer_input "
    "output_vocab_size unpadded_vocab_size",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers depth "
    "num_decoder_layers num_encoder_layers num_experts_per_tok num_experts_per_token moe_k "
    "top_k_experts moe_topk num_key_value_heads n_kv_heads num_kv_heads linear_num_key_heads "
    "swa_num_key_value_heads num_global_key_value_heads num_mem_blocks n_group num_expert_group "
    "topk_group "
    "mamba_expand expand patch_size",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads "
    "encoder_attention_heads linear_num_value_heads num_linear_heads swa_num_attention_heads "
    "num_local_experts num_experts n_routed_experts moe_num_experts zero_expert_num "
    "attention_heads",
    8: "head_dim linear_head_dim "
    "linear_key_head_dim linear_value_head_dim attention_hidden_size_per_head "
    "query_pre_attn_scalar state_size mamba_d_state ssm_state_size d_state qk_nope_head_dim "
    "v_head_dim qk_rope_head_dim global_head_dim swa_head_dim swa_v_head_dim index_head_dim "
    "hidden_size_per_layer_input rotary_dim kv_lora_rank q_lora_rank o_lora_rank altup_dim "
    "laurel_rank kv_channels attention_head_size time_step_rank",
    WINDOW: "index_n_heads "
    "sliding_window attention_window_size window_size local_window_size chunk_size "
    "attention_chunk_size index_topk mamba_chunk_size",
    32: "hidden_size d_model n_embd dim embedding_size attention_hidden_size lru_width dim_model "
    "emb_dim d_embed word_embed_proj_dim embed_dim hidden_dim num_mamba_heads_dim "
    "expert_hidden_size projection_dim output_dim",
    64: "intermediate_size d_ff ffn_dim n_inner ffn_hidden_size dim_ff feed_forward_proj_dim dff "
    "decoder_ffn_dim encoder_ffn_dim shared_intermediate_size intermediate_size_mlp "
    "moe_intermediate_size shared_expert_intermediate_size block_ff_dim",
}
_SIZE_OF = {name: size for size, names in _SIZES.items() for name in names.split()}
# Positions that an indexer's heads all pass over tie, and which of them are attended to is then
# chance: with many heads none is, as in real models.
_HYBRID = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {**_HYBRID, "attn_layer_indices": [1]},
    "blt": {
        **{"encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_size": [3, 4]},
        "encoder_config": {"hidden_size_global": 64},
        "decoder_config": {"hidden_size_global": 64},
        "global_config": {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8},
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {
        **{"num_key_value_heads": 4, "head_dim": 16, "num_hidden_layers": 2},
        **{"layer_types": ["indexed_attention", "sliding_attention"], "swa_head_dim": 16},
        **{"mlp_layer_types": ["dense", "sparse"], "shared_experts_intermediate_size": 64},
        **{"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 8},
        **{"swa_kv_lora_rank": 8, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8},
    },
    "falcon_h1": {**_HYBRID, "mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "got_ocr2": {"vision_config": {"image_size": 32}},
    "granitemoehybrid": {**_HYBRID, "layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": _GROUPED,
    "hunyuan_v1_moe": _GROUPED,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "ministral": {**_GROUPED, "layer_types": ["sliding_attention", "full_attention"]},
    "nemotron": _GROUPED,
    "phi4_multimodal": {
        "vision_config": {"image_size": 28, "crop_size": 28},
        "audio_config": {
            **{"num_blocks": 2, "nemo_conv_channels": 16, "ext_pw_out_channel": 16},
            **{"depthwise_separable_out_channel": 32, "input_size": 16},
        },
    },
    "qwen4_exp_text": {
        **{"num_hidden_layers": 2, "layer_types": ["linear_attention", "indexed_attention"]},
        **{"indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 8},
        **{"indexer_budget": 16, "indexer_compress_ratio": 4, "hc_lowrank": 8},
        **{"ple_layer_ids": [1], "ple_embed_dim": 32, "heads_per_ngram": 2, "eos_token_id": 1},
        **{"ngram_vocab_size_base": 64, "make_ngram_vocab_size_divisible_by": 8},
        "split_ngram_parts": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "num_buckets": 2},
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "shape_vocab_size": 64},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "chunk_size": 64, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 5,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid", "hybrid"],
        **{"use_mamba_kernels": False, "attention_hidden_size": 64, "attention_head_dim": 16},
    },
    "zamba2": {
        "num_hidden_layers": 5,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid", "hybrid"],
        "hybrid_layer_ids": [1, 3, 4],
        **{"attention_hidden_size": 64, "attention_head_dim": 16, "kv_channels": 8},
        **{"num_key_value_heads": 4, "n_mamba_heads": 8, "mamba_headdim": 8},
    },
}
_SETTINGS["dots3_note"] = {
    "text_config": _SETTINGS["dots3_note_text"],
    "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
}
_SETTINGS["qwen4_exp"] = {"text_config": _SETTINGS["qwen4_exp_text"]}
"""Beyond the rules, by model type; nested configurations are joined."""

_LAYERS = re.compile(r"num_hidden_layers|n_layers?|num_layers|decoder_layers")


def causal_model_types() -> list[str]:
    """All model types that transformers opens as a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_values(defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings in place of a configuration's defaults, nested as they are."""
    small: dict[str, Any] = {}
    for name, value in defaults.items():
        if name == "per_layer_config":
            continue  # of layers that are not there
        if isinstance(value, dict) and name.endswith("_config"):
            small[name] = small_values(value)
        elif name.endswith("_token_id") and isinstance(value, int):
            small[name] = min(value, 1)
        elif isinstance(value, int) and not isinstance(value, bool) and name in _SIZE_OF:
            small[name] = min(value, _SIZE_OF[name])
    if "is_decoder" in defaults:
        small["is_decoder"] = True
    if defaults.get("kv_lora_rank") and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]  # latent: no head is shared
    return small | _small_layers(defaults, small)


def _small_layers(defaults: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """One layer of each combination of kinds, at least two, where kinds are listed by layer."""
    number = next((v for name, v in defaults.items() if _LAYERS.fullmatch(name)), None)
    lists = {
        name: value
        for name, value in defaults.items()
        if isinstance(value, list) and len(value) == number and name.endswith(("_types", "_type"))
    }
    if not lists:
        return {}
    kinds = list(dict.fromkeys(zip(*lists.values(), strict=True)))
    kinds = kinds if len(kinds) > 1 else kinds * 2
    layers: dict[str, Any] = {
        name: list(own) for name, own in zip(lists, zip(*kinds, strict=True), strict=True)
    }
    return layers | {name: len(kinds) for name in small if _LAYERS.fullmatch(name)}


def small_config(model_type: str) -> Any:
    """A small configuration of a model type."""
    make = CONFIG_MAPPING[model_type]
    try:
        defaults = make().to_dict()
    except Exception:  # some have no defaults
        defaults = {}
    return make(**joined(small_values(defaults), _SETTINGS.get(model_type, {})))


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Settings with others in their place; nested configurations are joined as well."""
    out = dict(one)
    for name, value in other.items():
        is_nested = isinstance(value, dict) and name.endswith("_config")
        out[name] = joined(out.get(name) or {}, value) if is_nested else value
    return out


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


def random_documents(lengths: tuple[int, ...] = (40, 9, 23, 31)) -> list[torch.Tensor]:
    """Documents of random tokens, longer and shorter than `WINDOW`."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, 256, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def nats_alone(model: Any, tokens: torch.Tensor, first: int = 1) -> float:
    """Loss of a text from token `first` on, by transformers alone."""
    given = without_cache(model, {"input_ids": tokens[:-1][None]})
    logits = model(**given).logits[0].double()
    own = slice(first - 1, None)
    return float(torch.nn.functional.cross_entropy(logits[own], tokens[first:], reduction="sum"))


def packed_error(model: Any) -> tuple[str, float]:
    """The layout that a probe chooses for training, and how far the loss of packed documents is
    then from that of each alone, relative.

    Raises:
        ConfigError: training refuses the model.
    """
    module = NextTokenLoss(model, torch.float32)
    module.layout = choose_packing(module, 60, contextlib.nullcontext).layout
    module.eval()
    documents = random_documents()
    with torch.no_grad():
        found = float(module(*packed(documents)))
    expected = sum(nats_alone(model, tokens) for tokens in documents)
    return module.layout, abs(found - expected) / abs(expected)


def scored_error(model: Any) -> tuple[str, float]:
    """How a model is scored, and the largest relative error of documents and of continuations."""
    documents = random_documents()
    items = ItemSet(
        ids=[str(number) for number in range(len(documents))],
        roles=["domain"] * len(documents),
        num_bytes=[1] * len(documents),
        tokens=[tokens.tolist() for tokens in documents],
    )
    found = score_documents(model, items, EvaluateSection())
    expected = [nats_alone(model, tokens) for tokens in documents]
    shared, *rests = documents
    prompts = [torch.cat([shared, rest[:6]]) for rest in rests]
    asked = [
        Prompted(p.tolist(), [r[6:7].tolist(), r[6:9].tolist()])
        for p, r in zip(prompts, rests, strict=True)
    ]
    for row in score_continuations(model, asked, 512):
        found += [-score.log_likelihood for score in row]
    for prompt, rest in zip(prompts, rests, strict=True):
        for stop in (7, 9):
            expected.append(nats_alone(model, torch.cat([prompt, rest[6:stop]]), len(prompt)))
    ways = [
        name for name, is_so in (("batched", can_pad(model)), ("cached", can_share(model))) if is_so
    ]
    worst = max(abs(a - b) / max(abs(b), 1e-3) for a, b in zip(found, expected, strict=True))
    return " ".join(ways) or "alone", worst


def live_fault(model: Any, folder: Path) -> str:
    """Why a model cannot be merged in memory, or nothing."""
    model.save_pretrained(folder)
    return why_not_live(folder)
