"""A model's config.json as plain values: read once, in one way, and of the types it must have.

Only what the toolkit computes with is looked at; what else a class needs, it says itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit.errors import CheckpointError, ToolkitError
from toolkit.load_yaml import JsonObject, JsonView, read_object

_MOST = 1 << 31
_MOST_OF = dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 10_000)
_COUNTS = frozenset(
    {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
    | {"num_key_value_heads", "head_dim", "max_position_embeddings", "num_experts", "n_layer"}
    | {"num_local_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"}
    | {"n_embd", "n_head", "n_positions", "n_inner", "num_layers", "d_model", "sliding_window"}
    | {"shared_expert_intermediate_size", "first_k_dense_replace", "n_shared_experts"}
    | {"num_nextn_predict_layers", "decoder_sparse_step", "state_size"}
)
_NAMES = frozenset({"model_type", "hidden_act"})
_LISTS = frozenset({"architectures", "layer_types", "mlp_only_layers"})
_MAPPINGS = frozenset({"quantization_config", "rope_scaling", "auto_map", "id2label", "label2id"})
_SWITCHES = frozenset({"tie_word_embeddings", "use_cache"})


def read_model_values(
    folder: Path, kind: type[ToolkitError] = CheckpointError, *, may_lack: bool = False
) -> JsonObject:
    """The config.json of a model folder.

    Args:
        folder: of the model.
        kind: of the error.
        may_lack: whether there may be none; then there are no values.

    Raises:
        kind: it cannot be read, or a value that is computed with is of another type.
    """
    config_path = folder / "config.json"
    if may_lack and not config_path.is_file():
        return {}
    values = read_object(config_path, kind, "download or copy the file again")
    for key, value_fault in model_value_faults(values):
        raise kind(f"{config_path}: {key} {value_fault}; download or copy the file again.")
    return values


def oversize_fault(values: JsonView, num_tensors: int, num_bytes: int | None = None) -> str | None:
    """What of a config is more than the stored tensors can be, or None.

    Args:
        values: of the config.json.
        num_tensors: how many are stored; every layer has at least one.
        num_bytes: of all of them, where known; an entry of a matrix takes at least a bit.
    """
    text_part = values.get("text_config")
    own = {**values, **text_part} if isinstance(text_part, Mapping) else values
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        num_layers = own.get(key)
        if isinstance(num_layers, int) and num_layers > max(num_tensors, 1):
            return f"{key} is {num_layers:,}, but its files hold {num_tensors:,} tensors"
    if num_bytes is None:
        return None
    width = next((own[key] for key in ("hidden_size", "n_embd", "d_model") if own.get(key)), 1)
    wide = ("vocab_size", "intermediate_size", "n_positions", "n_inner", "moe_intermediate_size")
    for key in wide:
        size = own.get(key)
        # A matrix of that many rows at one bit an entry (the densest packing there is) must fit
        # into the files.
        if isinstance(size, int) and isinstance(width, int) and size * width > 8 * num_bytes:
            return (
                f"{key} is {size:,} at a width of {width:,}, but its files hold {num_bytes:,} bytes"
            )
    return None


def model_value_faults(values: JsonView, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Keys whose values are of another type than transformers writes, and what is wrong."""
    for key, value in values.items():
        if value is None:
            continue
        key_path = f"{prefix}{key}"
        if key in _COUNTS:
            # Some classes (OpenELM, DeciLM) have a list, one for each layer.
            value_items = value if isinstance(value, list) else [value]
            upper_bound = _MOST_OF.get(key, _MOST)
            for item in value_items:
                if isinstance(item, (list, dict)) or item is None:
                    continue
                if isinstance(item, bool) or not isinstance(item, int):
                    yield key_path, f"must be a whole number (got {item!r:.60})"
                elif not -1 <= item < upper_bound:
                    yield key_path, f"must be between 0 and {upper_bound:,} (got {item!r:.60})"
        elif key in _NAMES and not isinstance(value, str):
            yield key_path, f"must be a text (got {value!r:.60})"
        elif key in _LISTS and not isinstance(value, list):
            yield key_path, f"must be a list (got {value!r:.60})"
        elif key in _MAPPINGS and not isinstance(value, dict):
            yield key_path, f"must hold keys and values (got {value!r:.60})"
        elif key in _SWITCHES and not isinstance(value, bool):
            yield key_path, f"must be true or false (got {value!r:.60})"
        elif key.endswith("_config") and isinstance(value, dict):
            yield from model_value_faults(value, f"{key_path}.")
    class_names = values.get("architectures")
    if isinstance(class_names, list) and not all(isinstance(item, str) for item in class_names):
        yield f"{prefix}architectures", f"must be a list of texts (got {class_names!r:.60})"


def tie_setting(config: JsonView) -> object:
    """What a config says of its head: whether it is the embedding; None where it says nothing."""
    text_part = config.get("text_config")
    nested_value = text_part.get("tie_word_embeddings") if isinstance(text_part, Mapping) else None
    return config.get("tie_word_embeddings", nested_value)


def untie(values: JsonObject) -> None:
    """Let a config say that the head has rows of its own."""
    for part, _ in config_parts(values):
        if "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = False
    values["tie_word_embeddings"] = False


def config_parts(values: JsonObject, path: str = "") -> Iterator[tuple[JsonObject, str]]:
    """A config and the configs within it, each with the key it stands under."""
    yield values, path
    for key, value in list(values.items()):
        if key.endswith("_config") and isinstance(value, dict):
            yield from config_parts(value, f"{path}.{key}".lstrip("."))
