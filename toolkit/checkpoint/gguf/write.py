"""Models as GGUF files, for llama.cpp and what builds on it.

What is written is what llama.cpp's own converter writes: rows of queries and keys in the order that
its rotary embedding turns, norms as it multiplies with them, one-dimensional tensors in float32,
the tokenizer in the metadata, and the scaling of long-context rotary frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.gguf.families import (
    GgufFamily,
    family_of,
    head_dim,
    longrope_attention_factor,
    original_positions,
    rope_values,
    window_rope_values,
)
from toolkit.checkpoint.gguf.quantize import (
    K_TYPES,
    TensorShape,
    check_quantizer,
    choose_types,
    is_quantized,
    quantize_tensor,
)
from toolkit.checkpoint.gguf.tensors import Array, GgufTensor, plan_tensors
from toolkit.checkpoint.gguf.vocabulary import GgufVocabulary, read_vocabulary
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.read import Checkpoint
from toolkit.errors import CheckpointError
from toolkit.leftovers import appearing_file


def export_gguf(
    folder: Path,
    path: Path,
    kind: str,
    *,
    name: str,
    facts: Mapping[str, Any] | None = None,
    importance: Mapping[str, Array] | None = None,
) -> list[str]:
    """Write a model folder as one GGUF file. The same folder gives the same bytes.

    Args:
        folder: of the model, in the transformers layout.
        path: the file to write.
        kind: type of the matrices: F32, F16, BF16, Q8_0 or one of `K_TYPES`.
        name: of the model, for its metadata.
        facts: `license`, `license_link`, `languages` and `base_models` for the metadata.
        importance: of the entries of a row, by name of the tensor in the file; for K-quants.

    Returns:
        Tensors whose rows the type does not fit, each with what it has instead.

    Raises:
        CheckpointError: llama.cpp does not know the model's family, or computes this one otherwise.
    """
    import gguf

    from toolkit.checkpoint.load import load_model_config

    config = load_model_config(folder)
    family = family_of(config, folder)
    vocabulary = read_vocabulary(folder, int(config.vocab_size))
    checkpoint = open_checkpoint(folder)
    tensors = plan_tensors(checkpoint, config, family)
    shapes = [_shape(tensor, checkpoint) for tensor in tensors]
    types = _types(kind, shapes, config)
    with appearing_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, family.architecture)
        _write_settings(writer, config, family, kind)
        _write_facts(writer, name, facts or {})
        _write_vocabulary(writer, vocabulary)
        # The header has the place of every tensor, so the writer holds all encoded ones in memory
        # until it is written: as much as the file will have.
        for tensor in tensors:
            weights = (importance or {}).get(tensor.name)
            data = _encode(tensor.read(checkpoint), types[tensor.name], tensor.name, weights)
            raw_type = gguf.GGMLQuantizationType[types[tensor.name]]
            writer.add_tensor(tensor.name, data, raw_dtype=raw_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    block = 256 if kind in K_TYPES else gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
    rows = {shape.name: shape.shape[-1] for shape in shapes if is_quantized(shape)}
    return [f"{name}: {types[name]}" for name, size in rows.items() if size % block]


def _shape(tensor: GgufTensor, checkpoint: Checkpoint) -> TensorShape:
    if tensor.values is not None:
        return TensorShape(tensor.name, tensor.values.shape)
    shape = checkpoint.info(tensor.sources[0]).shape
    num_experts = len(tensor.sources)
    return TensorShape(tensor.name, (num_experts, *shape) if num_experts > 1 else shape)


def _types(kind: str, shapes: Sequence[TensorShape], config: Any) -> dict[str, str]:
    """ggml's type of each tensor: as it was asked for, where its shape allows that."""
    if kind in K_TYPES:
        check_quantizer()
        return choose_types(kind, shapes, config)
    # llama.cpp falls back to F16 where a row is no whole number of blocks.
    types = {s.name: "F16" if kind == "Q8_0" and s.shape[-1] % 32 else kind for s in shapes}
    return {s.name: types[s.name] if is_quantized(s) else "F32" for s in shapes}


def _write_settings(writer: Any, config: Any, family: GgufFamily, kind: str) -> None:
    import gguf

    writer.add_type("model")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    _write_rope(writer, config)
    _write_attention(writer, config, family)
    for key, write in (
        ("num_local_experts", writer.add_expert_count),
        ("num_experts_per_tok", writer.add_expert_used_count),
        ("moe_intermediate_size", writer.add_expert_feed_forward_length),
    ):
        if (value := getattr(config, key, None)) is not None:
            write(value)
    file_type = "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"
    writer.add_file_type(int(gguf.LlamaFileType[file_type]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write_rope(writer: Any, config: Any) -> None:
    import gguf

    rope, window_rope = rope_values(config), window_rope_values(config)
    rope_type = rope.get("rope_type", "default")
    fraction = float(rope.get("partial_rotary_factor") or 1.0)
    writer.add_rope_dimension_count(int(fraction * head_dim(config)))
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    if "rope_theta" in window_rope:
        writer.add_rope_freq_base_swa(float(window_rope["rope_theta"]))
    if rope_type in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType[rope_type.upper()])
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope_type == "yarn":
        writer.add_rope_scaling_orig_ctx_len(original_positions(config))
        for key, write in (
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(key) is not None:
                write(float(rope[key]))
    if config.model_type == "phi3":
        writer.add_rope_scaling_orig_ctx_len(original_positions(config))
    if rope_type == "longrope":
        writer.add_rope_scaling_attn_factors(longrope_attention_factor(config))


def _write_attention(writer: Any, config: Any, family: GgufFamily) -> None:
    """Windows and caps, where the family has them."""
    window = getattr(config, "sliding_window", None)
    if family.has_window and window:
        writer.add_sliding_window(window)
    if config.model_type == "phi3":  # 0 is how llama.cpp tells Phi-4 from Phi-3
        writer.add_sliding_window(window or 0)
    if config.model_type == "olmo3":
        kinds = config.layer_types
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _write_facts(writer: Any, name: str, facts: Mapping[str, Any]) -> None:
    writer.add_name(name)
    if facts.get("license"):
        writer.add_license(facts["license"])
    if facts.get("license_link"):
        writer.add_license_link(facts["license_link"])
    if facts.get("languages"):
        writer.add_languages(list(facts["languages"]))
    base_models: Sequence[str] = facts.get("base_models", ())
    if base_models:
        writer.add_base_model_count(len(base_models))
    for number, base_name in enumerate(base_models):
        writer.add_base_model_name(number, base_name.rsplit("/", 1)[-1])
        if "/" in base_name:
            writer.add_base_model_organization(number, base_name.split("/")[0])


def _write_vocabulary(writer: Any, vocabulary: GgufVocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for role, token_id in vocabulary.special.items():
        getattr(writer, f"add_{role}_token_id")(token_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _encode(array: Array, kind: str, name: str, importance: Array | None) -> NDArray[Any]:
    """The stored form of a tensor."""
    import gguf

    if kind == "F32":
        return array
    # gguf's own quantizer, in numpy, does for these three; an importance it cannot be given.
    if kind not in ("F16", "BF16", "Q8_0") or importance is not None:
        return quantize_tensor(array, kind, name, importance)
    if kind == "F16" and np.abs(array).max() > np.finfo(np.float16).max:
        raise CheckpointError(f"{name}: has entries beyond float16's range; write BF16 instead.")
    encoded: NDArray[Any] = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
    return encoded
