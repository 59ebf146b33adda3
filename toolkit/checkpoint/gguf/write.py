"""Models of the Llama family as GGUF files, for llama.cpp and what builds on it.

What is written is what llama.cpp's own converter writes: rows of the query and key projections
permuted from halves to pairs (its rotary embedding turns neighboring entries), one-dimensional
tensors in float32, the tokenizer in the metadata, and the scaling of long-context rotary
frequencies as a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.checkpoint.gguf.vocabulary import GgufVocabulary, read_vocabulary
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.own_head import own_head
from toolkit.checkpoint.read import Checkpoint
from toolkit.errors import CheckpointError
from toolkit.leftovers import appearing_file

_MODEL_TYPES = ("llama", "mistral")
_ROPE = ("default", "linear", "llama3")


def export_gguf(
    folder: Path, path: Path, kind: str, *, name: str, facts: Mapping[str, Any] | None = None
) -> None:
    """Write a model folder as one GGUF file. The same folder gives the same bytes.

    Args:
        folder: of the model, in the transformers layout.
        path: the file to write.
        kind: type of the matrices, one of `GGUF_TYPES`.
        name: of the model, for its metadata.
        facts: `license`, `license_link`, `languages` and `base_models` for the metadata.

    Raises:
        CheckpointError: the model is not of the Llama family, or has what GGUF's Llama has not.
    """
    import gguf

    config = _config(folder)
    vocabulary = read_vocabulary(folder, int(config.vocab_size))
    with appearing_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        _write_settings(writer, config, kind)
        _write_facts(writer, name, facts or {})
        _write_vocabulary(writer, vocabulary)
        _add_tensors(writer, folder, config, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_tensors(writer: Any, folder: Path, config: Any, kind: str) -> None:
    import gguf

    checkpoint = open_checkpoint(folder)
    gguf_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    frequency_factors = _rope_factors(config)
    if frequency_factors is not None:
        writer.add_tensor("rope_freqs.weight", frequency_factors)
    for name in checkpoint.names:
        if name == "lm_head.weight" and own_head(checkpoint) is None and config.tie_word_embeddings:
            continue  # the embedding's copy: llama.cpp takes that where there is no output
        gguf_name = gguf_names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise CheckpointError(f"{folder}: {name} has no place in a GGUF file of a Llama.")
        data, raw_type = _encode(_permuted(_array(checkpoint, name), name, config), kind, name)
        writer.add_tensor(gguf_name, data, raw_dtype=raw_type)


def _config(folder: Path) -> Any:
    """The configuration, refused where a GGUF Llama could not say it."""
    from toolkit.checkpoint.load import load_model_config

    config = load_model_config(folder)
    if config.model_type not in _MODEL_TYPES:
        raise CheckpointError(
            f"{folder}: is a {config.model_type!r} model; GGUF files are written of the Llama "
            f"family ({', '.join(_MODEL_TYPES)}) only. llama.cpp's own converter knows others."
        )
    for config_key in ("attention_bias", "mlp_bias", "sliding_window"):
        if config_value := getattr(config, config_key, None):
            raise CheckpointError(
                f"{folder}: config.json has {config_key}: {config_value}, which would be lost in a "
                "GGUF file; publish the model as safetensors."
            )
    rope_type = _rope(config).get("rope_type", "default")
    if rope_type not in _ROPE:
        raise CheckpointError(
            f"{folder}: its rotary embedding is {rope_type!r}; GGUF files are written with "
            f"{', '.join(_ROPE)} only. Publish the model as safetensors."
        )
    return config


def _rope(config: Any) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def head_dim(config: Any) -> int:
    """Entries of one attention head."""
    own_dim = getattr(config, "head_dim", None)
    return int(own_dim or config.hidden_size // config.num_attention_heads)


def _write_settings(writer: Any, config: Any, kind: str) -> None:
    import gguf

    rope_values = _rope(config)
    writer.add_type("model")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(float(rope_values.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    if rope_values.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope_values["factor"]))
    types = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(int(gguf.LlamaFileType[types[kind]]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


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


def _array(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    float_array: NDArray[np.float32] = checkpoint.tensor(name).to(torch.float32).numpy()
    return float_array


def _permuted(array: NDArray[np.float32], name: str, config: Any) -> NDArray[np.float32]:
    """Query and key rows from transformers' order (halves) to ggml's (pairs)."""
    head_counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for projection_name, num_heads in head_counts.items():
        if f".{projection_name}." in name:
            return permute_rows(array, num_heads)
    return array


def permute_rows(array: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Bring entry i and entry i + half of each head next to each other.

    >>> permute_rows(np.arange(4, dtype=np.float32).reshape(4, 1), 1).ravel().tolist()
    [0.0, 2.0, 1.0, 3.0]
    """
    half_rows = array.shape[0] // num_heads // 2
    split_heads = array.reshape(num_heads, 2, half_rows, *array.shape[1:])
    return np.ascontiguousarray(split_heads.swapaxes(1, 2).reshape(array.shape))


def _encode(array: NDArray[np.float32], kind: str, name: str) -> tuple[NDArray[Any], Any]:
    """The stored form; vectors stay float32, as in llama.cpp's own files."""
    import gguf

    if array.ndim == 1 or kind == "F32":
        return array, None
    wanted = gguf.GGMLQuantizationType[kind]
    block_size = gguf.GGML_QUANT_SIZES[wanted][0]
    if array.shape[-1] % block_size:
        # llama.cpp falls back to F16 where a row is no whole number of blocks.
        wanted = gguf.GGMLQuantizationType.F16
    if wanted == gguf.GGMLQuantizationType.F16 and np.abs(array).max() > np.finfo(np.float16).max:
        raise CheckpointError(f"{name}: has entries beyond float16's range; write BF16 instead.")
    return gguf.quants.quantize(array, wanted), wanted


def _rope_factors(config: Any) -> NDArray[np.float32] | None:
    """By what llama.cpp divides each rotary frequency, where Llama 3's scaling is on."""
    if _rope(config).get("rope_type") != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled_frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = head_dim(config)
    rope_theta = float(_rope(config)["rope_theta"])
    # As transformers computes them, in float32: the quotient must not differ in its last bit.
    plain = 1.0 / rope_theta ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    factors: NDArray[np.float32] = (plain / scaled_frequencies.float()).numpy().astype(np.float32)
    return factors
