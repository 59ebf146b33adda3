"""Every vision-language wrapper of transformers, small: text sides as in `architectures`, towers of
a few thousand parameters where settings allow it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.helpers.architectures import joined, small_values

LARGEST = 30_000_000
"""Parameters; some have towers whose sizes are no setting."""

_SIZES = {
    "image_size": 32,
    "out_hidden_size": 32,
    "text_hidden_size": 32,
    "vision_output_dim": 64,
    "projector_input_dim": 64,
    "projector_output_dim": 64,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_SECTIONS = {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}}}
_PARTIAL = {**_ROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
_TABLE = {"<image>": 5, "<|extra_200|>": 6, **{f"IMGIMG{c}Z": 10 + n for n, c in enumerate("ABC")}}
_SETTINGS: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": _TABLE},
    "cosmos3_edge": _SECTIONS,
    "cosmos3_omni": _SECTIONS,
    "emu3": {"vocabulary_map": _TABLE},
    "glm46v": _SECTIONS,
    "glm4v": _SECTIONS,
    "glm4v_moe": {"text_config": {"rope_parameters": _PARTIAL}},
    "glm5_next": _SECTIONS,
    "glm_ocr": {"text_config": {"rope_parameters": _PARTIAL}},
    "glmga": _SECTIONS,
    "paddleocr_vl": _SECTIONS,
    "qwen2_5_omni_thinker": _SECTIONS,
    "qwen2_5_vl": _SECTIONS,
    "qwen2_vl": _SECTIONS,
    "qwen3_omni_moe_thinker": _SECTIONS,
    "qwen3_vl": _SECTIONS,
    "qwen3_vl_moe": _SECTIONS,
    "mllama": {"vision_config": {"image_size": 8}},
}
"""Beyond the rules, by model type; nested ones are joined."""


def wrapper_model_types() -> list[str]:
    """All model types that transformers opens as a model of images and text."""
    return sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def small_wrapper_config(model_type: str) -> Any:
    """A small configuration of a vision-language model."""
    make = CONFIG_MAPPING[model_type]
    try:
        defaults = make().to_dict()
    except Exception:  # some have no defaults
        defaults = {}
    values = joined(_shrunk(small_values(defaults), defaults), _SETTINGS.get(model_type, {}))
    return make(**values)


def small_wrapper(model_type: str, *, seed: int = 0, scale: float = 4.0) -> Any:
    """A random vision-language model in evaluation mode whose matrices are large enough for
    attention to matter.

    Raises:
        ValueError: it stayed too large.
    """
    config = small_wrapper_config(model_type)
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(config)
    if (size := sum(p.numel() for p in whole.parameters())) > LARGEST:
        raise ValueError(f"{model_type}: has {size} parameters")
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model


def _shrunk(small: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings with sizes of towers beside those of `small_values`, nested as they are."""
    out = dict(small)
    for name, value in defaults.items():
        if isinstance(value, dict) and name.endswith("_config"):
            out[name] = _shrunk(small.get(name, {}), value)
            if "model_type" in value:
                out[name]["model_type"] = value["model_type"]
        elif name in _SIZES and isinstance(value, int):
            out[name] = min(value, _SIZES[name])
    return out
