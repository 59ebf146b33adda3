"""The mergekit dialect: what a merge configuration may say. No torch here.

Unknown keys are faults, where mergekit passes over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from toolkit.errors import ConfigError, warn
from toolkit.limits import limit, raise_hint
from toolkit.load_yaml import load_yaml
from toolkit.merge.registry import LARGEST, OVERSIZE
from toolkit.section import PositiveInt, Section, check_section

Settings = dict[str, object]
"""Parameter name to setting: a scalar, a gradient (list over depth), or filtered settings."""


def _check_settings(value: object) -> object:
    if isinstance(value, dict):
        for setting_name, setting in value.items():
            if setting_fault := _fault_of_setting(setting):
                raise ValueError(f"{setting_name}: {setting_fault} (got {setting!r:.200})")
    return value


def _fault_of_setting(setting: object) -> str | None:
    """What is wrong with a setting: a scalar, a gradient, or filtered settings; None if nothing."""
    # YAML has words for NaN and infinity: .nan and .inf.
    if isinstance(setting, float) and not math.isfinite(setting):
        return "must be a finite number"
    if isinstance(setting, (int, float)) and abs(setting) > LARGEST:
        return OVERSIZE
    # Text too: YAML 1.1 reads 1e-3 (no dot) as text, and the method's parameter converts it.
    if isinstance(setting, (bool, int, float, str)):
        return None
    if isinstance(setting, dict):
        filter_text = setting.get("filter")
        if filter_text is not None and not isinstance(filter_text, str):
            return f"a filter is a part of tensors' names (got {filter_text!r:.60})"
        if unknown := set(setting) - {"filter", "value"}:
            return f"unknown key {sorted(map(str, unknown))[0]!r}; a setting has filter and value"
        if "value" not in setting:
            return "a filtered setting needs a value"
        return _fault_of_setting(setting["value"])
    if isinstance(setting, list) and setting:
        item_faults = (_fault_of_setting(item) for item in setting)
        if any(isinstance(item, list) for item in setting):
            return "must be a list over depth, not a list of lists"
        item_kinds = {isinstance(item, dict) for item in setting}
        if len(item_kinds) > 1:
            return "mixes numbers and filters"
        return next((fault for fault in item_faults if fault), None)
    return "must be a value, a list over depth, or a list of {filter, value}"


ParameterSettings = Annotated[Settings, BeforeValidator(_check_settings)]


def _reference(value: object) -> object:
    """A model reference is `path[@revision][+adapter]`; the long form is written as the short."""
    if not isinstance(value, dict):
        return value
    if unknown_keys := set(value) - {"model", "lora", "override_architecture"}:
        raise ValueError(f"unknown key {sorted(map(str, unknown_keys))[0]!r} in a model reference")
    path_text = _path_and_revision(value.get("model"))
    return f"{path_text}+{_path_and_revision(value['lora'])}" if value.get("lora") else path_text


def _path_and_revision(value: object) -> str:
    if isinstance(value, dict):
        revision = f"@{value['revision']}" if value.get("revision") else ""
        return f"{value.get('path')}{revision}"
    return str(value)


ModelName = Annotated[str, BeforeValidator(_reference), Field(min_length=1)]
VocabularySource = Annotated[
    ModelName,
    # mergekit's older form for a model's tokenizer
    BeforeValidator(lambda name: name.removeprefix("model:") if isinstance(name, str) else name),
]
DtypeName = Annotated[
    Literal["float32", "float16", "bfloat16", "float64"],
    # As torch prints its types.
    BeforeValidator(lambda name: name.removeprefix("torch.") if isinstance(name, str) else name),
]


Rounding = Literal["nearest", "stochastic"]


def _check_range(value: object) -> object:
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    # `type`, as isinstance would take true and false for numbers of layers.
    if not is_pair or any(type(layer) is not int for layer in value):  # type: ignore[attr-defined]
        raise ValueError(f"must be [first, end], two whole numbers (got {value!r:.60})")
    return value


LayerRange = Annotated[tuple[Annotated[int, Field(ge=0)], int], BeforeValidator(_check_range)]


class InputModel(Section):
    """One model of a merge."""

    model: ModelName
    parameters: ParameterSettings | None = None


class SliceSource(Section):
    """Layers of one model in a slice."""

    model: ModelName
    layer_range: LayerRange
    parameters: ParameterSettings | None = None

    @model_validator(mode="after")
    def _not_backward(self) -> Self:
        # No layers at all are a way to say whose embedding or head the merge has.
        if self.layer_range[1] < self.layer_range[0]:
            raise ValueError(f"layer_range: must not end before it begins (got {self.layer_range})")
        return self


class OutputSlice(Section):
    """Layers of the merged model, and what they are merged from."""

    sources: tuple[SliceSource, ...]
    base_model: ModelName | None = None
    residual_weight: float | None = None
    parameters: ParameterSettings | None = None

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        if not self.sources:
            raise ValueError("sources: is empty; name at least one model")
        layer_ranges = [source.layer_range for source in self.sources]
        if len({stop - start for start, stop in layer_ranges}) > 1:
            raise ValueError(f"sources: must all have as many layers (got {layer_ranges})")
        return self


class OutputModule(Section):
    """One module of a model that has several, such as a text decoder beside a vision tower."""

    slices: tuple[OutputSlice, ...] | None = None
    models: tuple[InputModel, ...] | None = None
    parameters: ParameterSettings | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.slices is None) == (self.models is None):
            raise ValueError("give exactly one of slices and models")
        if not (self.slices or self.models):
            raise ValueError("names no model")
        return self


class TokenSource(Section):
    """Another token of a model, or zeros, as the embedding of a token."""

    kind: Literal["model_token", "zero"]
    model: ModelName | None = None
    token_id: int | None = None
    token: str | None = None

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.kind == "zero":
            return self
        if self.model is None or (self.token is None) == (self.token_id is None):
            raise ValueError("a model_token needs model, and exactly one of token and token_id")
        return self


class TokenEmbedding(Section):
    """Where the embedding of one token of the merged vocabulary comes from."""

    source: TokenSource | ModelName | None = None
    force: bool = False


class MergeTokenizerSection(Section):
    """Which vocabulary the merged model has."""

    source: VocabularySource = "union"
    """`base`, `union`, or a model whose vocabulary is taken."""

    tokens: dict[str, TokenEmbedding] | None = None
    pad_to_multiple_of: PositiveInt | None = None

    @model_validator(mode="after")
    def _few_rows(self) -> Self:
        if (self.pad_to_multiple_of or 0) > limit("PADDED_ROWS"):
            raise ValueError(f"pad_to_multiple_of: {raise_hint('PADDED_ROWS')}")
        return self


class MergeConfig(Section):
    """A whole merge configuration."""

    merge_method: str
    models: tuple[InputModel, ...] | None = None
    slices: tuple[OutputSlice, ...] | None = None
    modules: dict[str, OutputModule] | None = None
    base_model: ModelName | None = None
    parameters: ParameterSettings | None = None
    dtype: DtypeName | None = None
    """mergekit computes in this type; here arithmetic is float32 and this is the type written,
    unless `out_dtype` says another."""

    out_dtype: DtypeName | None = None
    rounding: Rounding | None = None
    """How float32 becomes a 16-bit type: to the `nearest` number, as everywhere, or to one of the
    two neighbors at random (`stochastic`), so that what is asked is stored on average. mergekit
    does not know the key; without it the bytes are mergekit's."""

    tokenizer_source: VocabularySource | None = None
    tokenizer: MergeTokenizerSection | None = None
    chat_template: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given_forms = [n for n in ("models", "slices", "modules") if getattr(self, n) is not None]
        if len(given_forms) != 1:
            raise ValueError(
                "give exactly one of models, slices and modules (got "
                f"{', '.join(given_forms) or 'none'})"
            )
        if not getattr(self, given_forms[0]):
            raise ValueError(f"{given_forms[0]} is empty; name at least one model")
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError("give tokenizer_source or tokenizer, not both")
        return self

    @model_serializer(mode="wrap")
    def _without_unsaid_rounding(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        values: dict[str, object] = dump(self)
        if self.rounding is None:  # so that hashes of merges from before there was the key hold
            values.pop("rounding", None)
        return values

    def model_names(self) -> list[str]:
        """Every model that is named, in file order, the base model last where only named there."""
        return list(dict.fromkeys(self._all_names()))

    def leader(self) -> str:
        """The model whose config and tokenizer the merged model has: the base, or the first."""
        return self.base_model or self.model_names()[0]

    def _all_names(self) -> Iterator[str]:
        model_groups: list[MergeConfig | OutputModule] = [self, *(self.modules or {}).values()]
        for group in model_groups:
            yield from (item.model for item in group.models or ())
            for item in group.slices or ():
                yield from (source.model for source in item.sources)
                if item.base_model is not None:
                    yield item.base_model
        if self.base_model is not None:
            yield self.base_model


_PASSED_OVER = {
    "random_seed": "is no part of a merge, here as under mergekit; give --seed",
    "name": "is passed over; it names one merge of several for mergekit-multi",
}
"""Keys that files for mergekit have, and that change nothing."""

_OF_OTHERS = {
    "experts": "is of a mixture of experts; run it with toolkit merge moe",
    "gate_mode": "is of a mixture of experts; run it with toolkit merge moe",
}
"""Keys of other files for mergekit, which say nothing about how models are merged."""


def parse_merge_config(data: object, *, where: str) -> MergeConfig:
    """Check plain values against the dialect.

    Raises:
        ConfigError: one line for each fault, each at its key.
    """
    if isinstance(data, Mapping):
        for key in [key for key in _PASSED_OVER if key in data]:
            warn(f"{where}: {key}: {_PASSED_OVER[key]}.")
        data = {key: value for key, value in data.items() if key not in _PASSED_OVER}
    config, faults = check_section(MergeConfig, data)
    if config is None:
        hinted = [replace(fault, what=_OF_OTHERS.get(fault.where, fault.what)) for fault in faults]
        raise ConfigError.listing(f"{where} is not a valid merge configuration:", hinted)
    return config


def load_merge_config(path: Path) -> MergeConfig:
    """Read a merge configuration.

    Raises:
        ConfigError: the file cannot be read, or has faults: all of them are named, those of
            parameters too.
    """
    data = load_yaml(path)
    try:
        return parse_merge_config(data, where=str(path))
    except ConfigError as error:
        from toolkit.merge.parameters import parameter_faults  # it loads the methods

        raise ConfigError("\n  ".join([str(error), *parameter_faults(data)])) from error
