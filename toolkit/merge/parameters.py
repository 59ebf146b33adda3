"""What a parameter is for one model and one tensor: precedence, filters and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from toolkit.checkpoint.tensor_names import contains
from toolkit.errors import ConfigError, did_you_mean, sentence_end
from toolkit.merge.registry import (
    LARGEST,
    OVERSIZE,
    Method,
    Parameter,
    ParameterValues,
    Settings,
    all_methods,
    get_method,
)
from toolkit.section import Section

Scopes = Iterable[Settings | None]


def evaluate_setting(
    setting: Any, tensor_name: str, t: float, convert: Callable[[Any], Any] = lambda value: value
) -> Any:
    """The value of one setting for one tensor.

    Args:
        setting: a scalar, a gradient, a `{filter, value}`, or a list of those.
        tensor_name: filters match where they are contained in it; `*` and no filter always match.
        t: depth in [0, 1]; tensors outside the layers have 0, as in mergekit.
        convert: to the parameter's type; YAML reads 1e-3 as text.

    Returns:
        A scalar, or None where no filter matches. Numbers in a gradient are interpolated; of
        other values each holds from its place in the list to the next, as in mergekit.

    >>> evaluate_setting([0.0, 1.0, 0.0], "model.layers.1.mlp", 0.25)
    0.5
    >>> evaluate_setting([{"filter": "mlp", "value": 0.3}, {"value": 1.0}], "x.self_attn", 0.0)
    1.0
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, Sequence) or isinstance(setting, str):
        return convert(setting)
    if not setting:
        return None
    if isinstance(setting[0], Mapping):
        for case in setting:
            filter_text = case.get("filter")
            if filter_text is None or filter_text == "*" or contains(tensor_name, filter_text):
                return evaluate_setting(case["value"], tensor_name, t, convert)
        return None
    list_values = [convert(value) for value in setting]
    # As mergekit: the first value at the first layer, the last at the last, those between spread
    # evenly.
    scaled_depth = t * (len(list_values) - 1)
    left_index = int(scaled_depth)
    # Words and switches have nothing between them.
    if any(isinstance(value, (bool, str)) for value in list_values):
        return list_values[left_index]
    right_index = min(len(list_values) - 1, left_index + 1)
    share = scaled_depth - left_index
    return convert((1 - share) * list_values[left_index] + share * list_values[right_index])


def resolve(
    parameter: Parameter, scopes: Scopes, tensor_name: str, t: float, model: str | None = None
) -> Any:
    """The value of a parameter from the first scope that has one for this tensor.

    Args:
        parameter: which, with its type and default.
        scopes: settings by name, from highest to lowest precedence.
        tensor_name: see `evaluate_setting`.
        t: see `evaluate_setting`.
        model: whose value it is, for the message.

    Raises:
        ConfigError: it is required and nowhere given, or is of another type.
    """

    def convert(value: Any) -> Any:
        return _typed(parameter, value)

    scopes = list(scopes)
    for scope in scopes:
        if scope is not None and parameter.name in scope:
            value = evaluate_setting(scope[parameter.name], tensor_name, t, convert)
            if value is not None:
                return value
    if parameter.required:
        owner_text = f" of {model}" if model is not None else ""
        # Given, but for no such tensor: another mistake than not given, with another remedy.
        if any(scope is not None and parameter.name in scope for scope in scopes):
            raise ConfigError(
                f"{parameter.name}: none of its filters matches {tensor_name}{owner_text}; end the "
                "list with a value without a filter, such as {value: 1.0}."
            )
        raise ConfigError(
            f"{parameter.name}: is needed for {tensor_name}{owner_text}, but is neither given for "
            "the model nor under parameters."
        )
    default_value = parameter.default
    return default_value[0] if parameter.per_model else default_value


def resolve_all(
    method: Method,
    models: Sequence[tuple[str, Scopes, str]],
    scopes: Scopes,
    tensor_name: str,
    t: float,
) -> ParameterValues:
    """All parameters of a method for one tensor, as its function's keyword arguments.

    Args:
        method: whose they are.
        models: of each tuned model its name, its scopes and its own name of the tensor.
        scopes: of what is no model's; see `resolve`.
        tensor_name: of the merged tensor; see `evaluate_setting`.
        t: see `evaluate_setting`.

    Raises:
        ConfigError: as `resolve`.
    """
    values_by_keyword: dict[str, object] = {}
    for key, parameter in method.parameters.items():
        keyword_name = "lambda_" if key == "lambda" else key
        if parameter.per_model:
            values_by_keyword[keyword_name] = tuple(
                resolve(parameter, own_scopes, own_name, t, model)
                for model, own_scopes, own_name in models
            )
        else:
            values_by_keyword[keyword_name] = resolve(parameter, scopes, tensor_name, t)
    return values_by_keyword


def _typed(parameter: Parameter, value: Any) -> Any:
    parameter_type = parameter.type
    try:
        if parameter_type is float:
            # `float` takes true for 1.0, and reads "inf" and "nan" out of text.
            if isinstance(value, bool) or not math.isfinite(number := float(value)):
                raise ValueError
            if abs(number) > LARGEST:  # of text, which the dialect itself does not read as a number
                raise ConfigError(f"{parameter.name}: {OVERSIZE} (got {value!r}).")
            return number
        if parameter_type is bool:
            if isinstance(value, str):  # a switch in quotes
                return _SWITCHES[value.strip().lower()]
            if value in (0, 1):  # true and false are among them
                return bool(value)
            raise ValueError
        if parameter_type is int:
            # 2.0 is a whole number, which gradients give as a float; 2.5 is none.
            if int(value) != float(value):
                raise ValueError
            return int(value)
    except (KeyError, OverflowError, TypeError, ValueError):
        raise ConfigError(
            f"{parameter.name}: must be of type {parameter_type.__name__} (got {value!r})."
        ) from None
    return value


_SWITCHES = {
    **dict.fromkeys(("true", "yes", "on", "1", "t", "y"), True),
    **dict.fromkeys(("false", "no", "off", "0", "f", "n"), False),
}
"""Words for switches, as mergekit (by pydantic) takes them."""

_OF_PEERS = ("int8_mask", "rescale", "embed_slerp", "nuslerp_flatten", "nuslerp_row_wise")
"""Parameters that files for mergekit's older versions have, whatever their method."""


def parameter_faults(data: object) -> list[str]:
    """A line for each method or parameter that cannot be, in plain values of a configuration that
    is faulty elsewhere: all that has to be mended is said at once."""
    name = data.get("merge_method") if isinstance(data, Mapping) else None
    if not isinstance(name, str):
        return []
    if name not in (known := all_methods()):
        try:  # what resembles none may be a method of mergekit's plugins
            get_method(name)
        except ConfigError as error:
            return [str(error)] if did_you_mean(name, known) else []
    places = list(parameter_places(data))
    return [*unknown_parameters(places, known[name]), *mistyped_parameters(places, known[name])]


def check_parameters(config: Section, method: Method) -> None:
    """Refuse parameters that no method has, wherever they stand, and values of another type.

    Raises:
        ConfigError: a line for each, with the nearest known one or the value.
    """
    places = list(parameter_places(config.model_dump(exclude_none=True)))
    if faults := [*unknown_parameters(places, method), *mistyped_parameters(places, method)]:
        raise ConfigError("\n  ".join(faults))


def ignored_parameters(places: Places, method: Method) -> Iterator[str]:
    """A line for every parameter that other methods have and this one has not: it changes nothing,
    here as under mergekit."""
    own_names = ", ".join(method.parameters) or "none"
    known_elsewhere = _known_anywhere()
    for where, settings in places:
        for setting_name in settings:
            if setting_name not in method.parameters and setting_name in known_elsewhere:
                yield (
                    f"{where}.{setting_name}: means nothing to {method.name}, whose parameters "
                    f"are: {own_names}; it is passed over."
                )


def _known_anywhere() -> set[str]:
    return {name for other in all_methods().values() for name in other.parameters} | {*_OF_PEERS}


Places = Iterable[tuple[str, Settings]]
"""Groups of parameters, each with the key it stands at."""


def unknown_parameters(places: Places, method: Method) -> Iterator[str]:
    """A line for every parameter that neither this method has nor any other."""
    own_names = ", ".join(method.parameters) or "none"
    known_elsewhere = _known_anywhere()
    for where, settings in places:
        for setting_name in settings:
            if setting_name not in method.parameters and setting_name not in known_elsewhere:
                yield (
                    f"{where}.{setting_name}: {method.name} has no such parameter"
                    f"{sentence_end(setting_name, method.parameters)} Its parameters: {own_names}."
                )


def mistyped_parameters(places: Places, method: Method) -> Iterator[str]:
    """A line for every value that is not of its parameter's type."""
    for where, settings in places:
        for name, setting in settings.items():
            if name not in method.parameters or setting is None:  # said by the dialect itself
                continue
            for value in setting_values(setting):
                try:
                    _typed(method.parameters[name], value)
                except ConfigError as error:
                    yield f"{where}.{error}"


def parameter_places(node: Any, where: str = "") -> Iterator[tuple[str, Settings]]:
    """Every group of parameters in a configuration's plain values, with the key it stands at.

    >>> list(parameter_places({"models": [{"model": "a", "parameters": {"weight": 1}}]}))
    [('models.0.parameters', {'weight': 1})]
    """
    if isinstance(node, Mapping):
        if isinstance(settings := node.get("parameters"), Mapping):
            yield f"{where}parameters", settings
        items: Iterable[tuple[Any, Any]] = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    else:
        return
    for key, item in items:
        if key != "parameters":
            yield from parameter_places(item, f"{where}{key}.")


def setting_values(setting: Any) -> Iterator[Any]:
    """Every single value in a setting.

    >>> list(setting_values([{"filter": "mlp", "value": [0.1, 0.2]}, {"value": 1}]))
    [0.1, 0.2, 1]
    """
    if isinstance(setting, Mapping):
        yield from setting_values(setting.get("value"))
    elif isinstance(setting, Sequence) and not isinstance(setting, str):
        for item in setting:
            yield from setting_values(item)
    else:
        yield setting


def setting_filters(setting: Any) -> Iterator[str]:
    """Every filter in a setting.

    >>> list(setting_filters([{"filter": "mlp", "value": 0.1}, {"value": 1}]))
    ['mlp']
    """
    for case in [setting] if isinstance(setting, Mapping) else setting:
        if isinstance(case, Mapping) and case.get("filter") is not None:
            yield str(case["filter"])
