"""What a parameter is for one model and one tensor: precedence, filters and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from toolkit.errors import ConfigError, did_you_mean
from toolkit.merge.registry import Method, Parameter

Scopes = Iterable[Mapping[str, Any] | None]


def evaluate_setting(setting: Any, tensor_name: str, t: float) -> Any:
    """The value of one setting for one tensor.

    Args:
        setting: a scalar, a gradient, a `{filter, value}`, or a list of those.
        tensor_name: filters match where they are contained in it; `*` and no filter always match.
        t: depth in [0, 1]; tensors outside the layers have 0, as in mergekit.

    Returns:
        A scalar, or None where no filter matches. Numbers in a gradient are interpolated, other
        values stand for equal parts of the depth.

    >>> evaluate_setting([0.0, 1.0, 0.0], "model.layers.1.mlp", 0.25)
    0.5
    >>> evaluate_setting([{"filter": "mlp", "value": 0.3}, {"value": 1.0}], "x.self_attn", 0.0)
    1.0
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, Sequence) or isinstance(setting, str):
        return setting
    if isinstance(setting[0], Mapping):
        for case in setting:
            wanted = case.get("filter")
            if wanted is None or wanted == "*" or wanted in tensor_name:
                return evaluate_setting(case["value"], tensor_name, t)
        return None
    if any(isinstance(value, (bool, str)) for value in setting):
        return setting[int(t * (len(setting) - 1))]
    scaled = t * (len(setting) - 1)
    left = int(scaled)
    right = min(len(setting) - 1, left + 1)
    share = scaled - left
    return (1 - share) * setting[left] + share * setting[right]


def resolve(parameter: Parameter, scopes: Scopes, tensor_name: str, t: float) -> Any:
    """The value of a parameter from the first scope that has one for this tensor.

    Args:
        parameter: which, with its type and default.
        scopes: settings by name, from highest to lowest precedence.
        tensor_name: see `evaluate_setting`.
        t: see `evaluate_setting`.

    Raises:
        ConfigError: it is required and nowhere given, or is of another type.
    """
    for scope in scopes:
        if scope is not None and parameter.name in scope:
            value = evaluate_setting(scope[parameter.name], tensor_name, t)
            if value is not None:
                return _typed(parameter, value)
    if parameter.required:
        raise ConfigError(
            f"{parameter.name}: is needed for {tensor_name}, but is neither given for the model "
            "nor under parameters."
        )
    default = parameter.default
    return default[0] if parameter.per_model else default


def _typed(parameter: Parameter, value: Any) -> Any:
    kind = parameter.type
    try:
        if kind is float:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        if kind is bool:
            if value in (0, 1):  # true and false are among them
                return bool(value)
            raise ValueError
        if kind is int:
            if int(value) != float(value):
                raise ValueError
            return int(value)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{parameter.name}: must be of type {kind.__name__} (got {value!r})."
        ) from None
    return value


def check_known(method: Method, settings: Mapping[str, Any] | None, where: str) -> None:
    """Refuse parameters that the method does not have; mergekit passes over them.

    Raises:
        ConfigError: names the key and the nearest known one.
    """
    for name in settings or {}:
        if name not in method.parameters:
            known = ", ".join(method.parameters) or "none"
            raise ConfigError(
                f"{where}.{name}: {method.name} has no such parameter"
                f"{did_you_mean(name, method.parameters)} Its parameters: {known}."
            )
