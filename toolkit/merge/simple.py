"""Simple merge configurations, read without pydantic, which takes longer to load than merging a
small model takes.

Simple is what has `models` with `parameters` and the keys of `_KEYS`, and no fault. All else goes
through `config`, which knows every fault's line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from toolkit.merge.config import MergeConfig

_DTYPES = ("float32", "float16", "bfloat16", "float64")
_KEYS = ("merge_method", "models", "base_model", "parameters", "dtype", "out_dtype")


@dataclass(frozen=True)
class _Model:
    model: str
    parameters: dict[str, Any] | None


@dataclass(frozen=True)
class _Simple:
    """The attributes and methods of a `MergeConfig` that merging asks for."""

    merge_method: str
    models: tuple[_Model, ...]
    base_model: str | None
    parameters: dict[str, Any] | None
    dtype: str | None
    out_dtype: str | None
    slices: None = None
    modules: None = None
    tokenizer_source: None = None
    tokenizer: None = None
    chat_template: None = None

    def model_names(self) -> list[str]:
        named = [item.model for item in self.models]
        return list(dict.fromkeys([*named, *([self.base_model] if self.base_model else [])]))

    def leader(self) -> str:
        return self.base_model or self.models[0].model

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Plain values, without those that are not given."""
        del options  # those that the callers give change nothing in simple configurations
        models = [_given({"model": m.model, "parameters": m.parameters}) for m in self.models]
        return _given({key: getattr(self, key) for key in _KEYS} | {"models": models})


def simple_config(data: Mapping[str, Any]) -> MergeConfig | None:
    """A configuration that is simple and has no fault; None for any other.

    Args:
        data: plain values, as from YAML.

    Returns:
        What answers as the `MergeConfig` of the same values would.
    """
    models, method = data.get("models"), data.get("merge_method")
    if not (set(data) <= set(_KEYS) and isinstance(method, str) and isinstance(models, list)):
        return None
    is_simple = (
        models
        and all(isinstance(item, dict) and set(item) <= {"model", "parameters"} for item in models)
        and all(_is_name(item.get("model")) for item in models)
        and all(_are_settings(item.get("parameters")) for item in [data, *models])
        and (data.get("base_model") is None or _is_name(data["base_model"]))
        and all(_is_dtype(data.get(key)) for key in ("dtype", "out_dtype"))
    )
    if not is_simple:
        return None
    found = _Simple(
        merge_method=method,
        models=tuple(_Model(item["model"], item.get("parameters")) for item in models),
        base_model=data.get("base_model"),
        parameters=data.get("parameters"),
        dtype=_dtype(data.get("dtype")),
        out_dtype=_dtype(data.get("out_dtype")),
    )
    return cast("MergeConfig", found)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_dtype(value: object) -> bool:
    return value is None or (isinstance(value, str) and _dtype(value) in _DTYPES)


def _dtype(value: str | None) -> str | None:
    return value.removeprefix("torch.") if value is not None else None


def _are_settings(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, dict) and all(
        isinstance(name, str) and _is_setting(setting) for name, setting in value.items()
    )


def _is_setting(setting: object) -> bool:
    if fault_of_setting(setting) is not None:
        return False
    return _has_texts_as_filters(setting)


def _has_texts_as_filters(setting: object) -> bool:
    if isinstance(setting, list):
        return all(map(_has_texts_as_filters, setting))
    if not isinstance(setting, dict):
        return True
    return isinstance(setting.get("filter", ""), str) and _has_texts_as_filters(setting["value"])


def fault_of_setting(setting: object) -> str | None:
    """What is wrong with a setting: a scalar, a gradient, or filtered settings; None if nothing."""
    if isinstance(setting, float) and not math.isfinite(setting):
        return "must be a finite number"
    if isinstance(setting, (bool, int, float, str)):
        return None
    if isinstance(setting, dict):
        if unknown := set(setting) - {"filter", "value"}:
            return f"unknown key {sorted(map(str, unknown))[0]!r}; a setting has filter and value"
        if "value" not in setting:
            return "a filtered setting needs a value"
        return fault_of_setting(setting["value"])
    if isinstance(setting, list) and setting:
        faults = (fault_of_setting(item) for item in setting)
        if any(isinstance(item, list) for item in setting):
            return "must be a list over depth, not a list of lists"
        kinds = {isinstance(item, dict) for item in setting}
        if len(kinds) > 1:
            return "mixes numbers and filters"
        return next((fault for fault in faults if fault), None)
    return "must be a value, a list over depth, or a list of {filter, value}"
