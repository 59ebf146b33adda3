"""Differences between the models' config.json: what their tensors mean, beyond their shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.errors import Fault, Severity
from toolkit.load_yaml import JsonObject, JsonView
from toolkit.merge.check.survey import Model, Survey

_KEYS: Mapping[str, tuple[Severity, str]] = {
    "model_type": (
        "warning",
        "merge models of one architecture, or make sure that both compute alike",
    ),
    "architectures": ("warning", "merge models of one class; heads of different tasks do not mix"),
    "hidden_size": ("error", "models of different width cannot be merged; choose others"),
    "num_hidden_layers": ("warning", "say with slices which layers to merge"),
    "num_attention_heads": (
        "error",
        "the same tensor is cut into other heads; choose models with equal heads",
    ),
    "num_key_value_heads": (
        "error",
        "the same tensor is cut into other heads; choose models with equal heads",
    ),
    "head_dim": (
        "error",
        "the same tensor is cut into other heads; choose models with equal heads",
    ),
    "intermediate_size": ("error", "models of different width cannot be merged; choose others"),
    "num_local_experts": ("error", "models with other experts cannot be merged; choose others"),
    "hidden_act": ("warning", "tensors trained under another activation do not mix"),
    "rope_theta": (
        "warning",
        "positions are turned at other speeds; the merge may fail on long text",
    ),
    "rope_local_base_freq": (
        "warning",
        "positions are turned at other speeds; the merge may fail on long text",
    ),
    "rope_scaling": ("warning", "positions are scaled otherwise; the merge may fail on long text"),
    "partial_rotary_factor": ("error", "positions turn another share of each head"),
    "sliding_window": ("warning", "attention reaches otherwise far; check the merge on long text"),
    "attention_bias": ("warning", "one has biases where the other has none"),
    "tie_word_embeddings": ("note", "the head is written out, and the merge is untied"),
    "max_position_embeddings": ("note", "do not rely on the longer context without a test"),
    "rms_norm_eps": ("note", "a small difference; nothing to do where the merge is good"),
    "logit_scale": ("warning", "logits are scaled otherwise; check the merge's losses"),
    "final_logit_softcapping": ("warning", "logits are capped otherwise; check the merge's losses"),
}
"""Keys that are compared; what their difference means, and what to do."""

_DEFAULTS = {"rope_theta": 10000.0, "rope_scaling": None}
_SAME_EPS = 1e-3
"""Relative difference below which two numbers are one: configs print float32 in many ways."""


def check_configs(survey: Survey) -> Iterator[Fault]:
    """Compare every model's config with that of the leading one."""
    for model in survey.models:
        if not model.config:
            yield Fault(
                model.name,
                "has no config.json",
                "give a whole model folder",
                "error" if model is survey.leader else "warning",
            )
        yield from _stale_quantization(model)
    leader = survey.leader
    if leader is None:
        return
    is_sliced = survey.config is not None and survey.config.models is None
    for model in survey.others:
        if not (model.config and leader.config):
            continue
        own_values, leader_values = plain_values(model.config), plain_values(leader.config)
        for config_key, (severity, advice) in _KEYS.items():
            if config_key == "num_hidden_layers" and is_sliced:
                continue
            leader_value, own_value = leader_values.get(config_key), own_values.get(config_key)
            # A key that one config leaves out says nothing, unless its default is known.
            is_known = config_key in _DEFAULTS or None not in (leader_value, own_value)
            if is_known and not _equal(leader_value, own_value):
                what = (
                    f"{config_key} is {_short(own_value)}, in {leader.name} {_short(leader_value)}"
                )
                yield Fault(model.name, what, advice, severity)


def _stale_quantization(model: Model) -> Iterator[Fault]:
    """Packed weights do not open, so a model that did has plain ones, whatever its config says."""
    quantization = model.config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        yield Fault(
            model.name,
            f"its config.json says that it is quantized ({method}), and its weights are plain",
            "the merge is written without quantization_config; remove it there too",
            "note",
        )


def plain_values(config: JsonView) -> JsonObject:
    """A config in one form: the text model's values on top, rope settings by their old names.

    >>> values = plain_values({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})
    >>> values["rope_theta"], values["rope_scaling"]
    (500000.0, None)
    """
    values = dict(config)
    text = config.get("text_config")
    if isinstance(text, Mapping):
        # The whole model's class and type stay: they say more than the text part's.
        values = {**text, **{k: v for k, v in config.items() if k not in text or k in _WHOLE}}
    rope_part = values.get("rope_parameters") or values.get("rope_scaling")
    rope_theta = values.get("rope_theta")
    if isinstance(rope_part, Mapping) and all(isinstance(v, Mapping) for v in rope_part.values()):
        # By kind of layer; older configs have the sliding ones' speed under a key of its own.
        by_kind: Mapping[str, JsonView] = rope_part
        rope_part = by_kind.get("full_attention", next(iter(by_kind.values())))
        if (local_theta := by_kind.get("sliding_attention", {}).get("rope_theta")) is not None:
            values["rope_local_base_freq"] = local_theta
    if isinstance(rope_part, Mapping):
        rope_theta = rope_part.get("rope_theta", rope_theta)
        scaling_values = {key: value for key, value in rope_part.items() if key != "rope_theta"}
        rope_type = scaling_values.get("rope_type", scaling_values.get("type", "default"))
        values["rope_scaling"] = None if rope_type in (None, "default") else scaling_values
    values["rope_theta"] = _DEFAULTS["rope_theta"] if rope_theta is None else rope_theta
    hidden_size, num_heads = values.get("hidden_size"), values.get("num_attention_heads")
    if isinstance(hidden_size, int) and isinstance(num_heads, int) and num_heads:
        if values.get("head_dim") is None:
            values["head_dim"] = hidden_size // num_heads
        if values.get("num_key_value_heads") is None:
            values["num_key_value_heads"] = num_heads
    return values


_WHOLE = {"model_type", "architectures"}


def _equal(a: Any, b: Any) -> bool:
    are_numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    if are_numbers and float in (type(a), type(b)):
        return math.isclose(a, b, rel_tol=_SAME_EPS)
    return bool(a == b)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
