"""What a recipe says about the measures of a model. No torch here, and nothing slow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from toolkit.checkpoint.model_values import read_model_values
from toolkit.errors import ConfigError
from toolkit.load_yaml import JsonObject
from toolkit.section import PositiveInt, Section, parse_section

Width = Annotated[int, Field(gt=0, lt=1 << 31)]


class ShapeSection(Section):
    """Measures of a decoder-only model, named as in transformers' `config.json`.

    They let a recipe be checked, and its cost be planned, before its model is fetched.
    """

    hidden_size: Width
    num_hidden_layers: Annotated[int, Field(gt=0, le=10_000)]
    num_attention_heads: Width
    intermediate_size: Width
    """Width of the feed-forward layer; of those layers without experts where there are some."""

    vocab_size: Width
    max_position_embeddings: Width
    """Longest sequence the model was made for, in tokens."""

    num_key_value_heads: Width | None = None
    """By default as many as attention heads."""

    head_dim: Width | None = None
    """By default `hidden_size` / `num_attention_heads`."""

    tie_word_embeddings: bool = False
    """Whether the output head is the input embedding."""

    num_experts: Width | None = None
    """Experts of a layer, for a mixture of experts."""

    num_experts_per_tok: Width | None = None
    """Experts that a token goes through."""

    moe_intermediate_size: Width | None = None
    """Width of one expert; by default `intermediate_size`."""

    num_shared_experts: Annotated[int, Field(ge=0)] = 0
    """Experts that every token goes through, besides."""

    num_dense_layers: Annotated[int, Field(ge=0)] = 0
    """First layers that have no experts."""

    rope_theta: Annotated[float, Field(gt=0.0)] = 10_000.0
    """Base of the rotary positions."""

    num_parameters: PositiveInt | None = None
    """Published total, where the measures above do not give it (attention of another kind)."""

    num_active_parameters: PositiveInt | None = None
    """Published number that one token uses, likewise."""

    @model_validator(mode="after")
    def _experts(self) -> Self:
        if (self.num_experts is None) != (self.num_experts_per_tok is None):
            raise ValueError("give num_experts and num_experts_per_tok together")
        if self.num_experts is not None and (self.num_experts_per_tok or 0) > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok: {self.num_experts_per_tok} of {self.num_experts} experts"
            )
        return self


def _mapping(values: JsonObject, key: str, path: Path) -> JsonObject:
    mapping_value = values.get(key) or {}
    if not isinstance(mapping_value, dict):
        raise ConfigError(f"{path}: {key}: must hold keys and values (got {mapping_value!r:.60}).")
    return mapping_value


def _values_by_class(values: JsonObject) -> JsonObject:
    """Measures as transformers' class of the model knows them, which calls them otherwise in its
    files (`n_embd`) and has defaults; none where it has no such class."""
    # Only here, as it takes seconds: most files say all there is to know.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        config = CONFIG_MAPPING[str(values.get("model_type"))].from_dict(dict(values))
    except Exception:  # whatever the class makes of them: what is missing is named by the caller
        return {}
    known = {name: getattr(config, name, None) for name in ShapeSection.model_fields}
    width = known["hidden_size"]
    for name in ("intermediate_size", "n_inner"):
        # What GPT-2 and its like leave at None is four times the width, by their modeling code.
        if known["intermediate_size"] is None and hasattr(config, name) and isinstance(width, int):
            known["intermediate_size"] = getattr(config, name) or 4 * width
    return {name: value for name, value in known.items() if value is not None}


def shape_of_folder(folder: Path) -> ShapeSection:
    """Measures of a model folder, from its `config.json`.

    Raises:
        ConfigError: it cannot be read, or lacks a measure.
    """
    config_path = folder / "config.json"
    values: JsonObject = dict(read_model_values(folder, ConfigError))
    values |= _mapping(values, "text_config", config_path)
    rope_values = _mapping(values, "rope_parameters", config_path)
    # What Mixtral, Qwen and DeepSeek call the same things.
    names_elsewhere = {
        "num_experts": ("num_local_experts", "n_routed_experts"),
        "num_shared_experts": ("n_shared_experts",),
        "num_dense_layers": ("first_k_dense_replace",),
    }
    # A key that stands there as null says nothing, as where it is missing.
    for own_name, other_names in names_elsewhere.items():
        given_values = (values.get(name) for name in (own_name, *other_names))
        values[own_name] = next((value for value in given_values if value is not None), None)
    if values.get("rope_theta") is None:
        values["rope_theta"] = rope_values.get("rope_theta")
    required = [name for name, one in ShapeSection.model_fields.items() if one.is_required()]
    if any(values.get(name) is None for name in required):
        by_class = _values_by_class(values).items()
        values |= {name: value for name, value in by_class if values.get(name) is None}
    # Qwen2-MoE says the width of its shared experts together, not how many there are.
    width = values.get("moe_intermediate_size") or values.get("intermediate_size")
    shared_width = values.get("shared_expert_intermediate_size")
    has_count = values["num_shared_experts"] is not None
    # A width that is missing, or a list, is named below.
    if not has_count and isinstance(width, int) and isinstance(shared_width, int) and shared_width:
        values["num_shared_experts"] = shared_width // max(1, width)
    known = {
        own_name: values[own_name]
        for own_name in ShapeSection.model_fields
        if values.get(own_name) is not None
    }
    # The section takes both or neither, and a dense model's config may still name the second.
    if "num_experts" not in known:
        known.pop("num_experts_per_tok", None)
    return parse_section(ShapeSection, known, where=str(config_path), what="model configuration")
