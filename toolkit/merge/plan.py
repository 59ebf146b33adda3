"""From a configuration to tasks: which tensor of which model goes where, with which parameters.

Tensors are matched by name, so an architecture that nobody listed merges where names and shapes
agree. The first number in a name is its layer (`model.layers.3.mlp.up_proj.weight`).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import ConfigError, MergeError
from toolkit.merge.config import MergeConfig, OutputSlice, SliceSource
from toolkit.merge.parameters import Scopes, check_known, resolve
from toolkit.merge.registry import Method, Place, get_method

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor of one model, by name."""

_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.)")
_BEFORE_LAYERS = re.compile(r"embed|wte|wpe|word_embeddings")


@dataclass(frozen=True)
class Source:
    """One tensor of one model."""

    model: str
    tensor: str


@dataclass(frozen=True)
class TensorTask:
    """One tensor to be made.

    Attributes:
        name: of the merged tensor.
        shape: of it and of all its sources.
        sources: tuned tensors, in file order.
        base: of the base model, for methods that take one.
        parameters: keyword arguments of the method, per-model ones as tuples in source order.
        place: where in the merged network it stands.
        thresholds: magnitudes found over whole models, for methods that trim by them.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    base: Source | None
    parameters: Mapping[str, Any]
    place: Place
    thresholds: tuple[float, ...] | None = None

    @property
    def inputs(self) -> tuple[Source, ...]:
        """All that is read: the tuned tensors, then the base where there is one."""
        return self.sources if self.base is None else (*self.sources, self.base)

    @property
    def size(self) -> int:
        """Entries of the merged tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class MergePlan:
    """All tensors of the merged model, in order."""

    method: Method
    tasks: tuple[TensorTask, ...]
    num_layers: int


@functools.cache
def layer_of(name: str) -> int | None:
    """Index of the layer that a tensor belongs to, or None.

    >>> layer_of("model.layers.3.block_sparse_moe.experts.7.w1.weight"), layer_of("lm_head.weight")
    (3, None)
    """
    match = _LAYER.search(name)
    return int(match[1]) if match else None


@functools.cache
def _with_layer(name: str, layer: int) -> str:
    match = _LAYER.search(name)
    return name if match is None else f"{name[: match.start(1)]}{layer}{name[match.end(1) :]}"


def count_layers(shapes: Shapes) -> int:
    """Layers of a model: one more than the highest index."""
    return max((layer for name in shapes if (layer := layer_of(name)) is not None), default=-1) + 1


def plan_merge(config: MergeConfig, shapes: Callable[[str], Shapes]) -> MergePlan:
    """Plan every tensor of a merge; reads nothing but names and shapes.

    Args:
        config: the merge configuration.
        shapes: names and shapes of a model's tensors, by the model's name in the configuration.

    Raises:
        ConfigError: parameters are unknown, missing or of a wrong type.
        MergeError: models differ in names or shapes, or do not suit the method.
    """
    method = get_method(config.merge_method)
    _check_parameters(config, method)
    slices = _slices(config, shapes)
    num_layers = sum(
        item.sources[0].layer_range[1] - item.sources[0].layer_range[0] for item in slices
    )
    tasks: list[TensorTask] = []
    first = _Slice(config, method, slices[0], num_layers, shapes)
    last = _Slice(config, method, slices[-1], num_layers, shapes)
    outside = [name for name in first.reference if layer_of(name) is None]
    for name in outside:
        if _BEFORE_LAYERS.search(name):
            tasks += first.plan(name, name, None, 0.0)
    begin = 0
    for item in slices:
        part = _Slice(config, method, item, num_layers, shapes)
        by_layer: dict[int, list[str]] = {}
        for name in part.reference:
            if (layer := layer_of(name)) is not None:
                by_layer.setdefault(layer, []).append(name)
        start, stop = item.sources[0].layer_range
        for offset in range(stop - start):
            t = offset / (stop - start - 1) if stop - start > 1 else 1.0
            for name in by_layer.get(part.first_layer + offset, ()):
                out = _with_layer(name, begin + offset)
                tasks += part.plan(out, name, begin + offset, t)
        begin += stop - start
    for name in outside:
        if not _BEFORE_LAYERS.search(name):
            tasks += last.plan(name, name, None, 0.0)
    return MergePlan(method, tuple(tasks), num_layers)


class _Slice:
    """Plans the tensors of one slice: the same models, base and settings for all of them."""

    def __init__(
        self,
        config: MergeConfig,
        method: Method,
        item: OutputSlice,
        num_layers: int,
        shapes: Callable[[str], Shapes],
    ) -> None:
        self.config, self.method, self.item = config, method, item
        self.num_layers = num_layers
        self.base = item.base_model or config.base_model
        if method.needs_base and self.base is None:
            raise ConfigError(
                f"base_model: is needed by {method.name}; name the model to start from."
            )
        if not method.accepts_base:  # then a base model is only one of the models, if listed
            self.base = None
        self.tuned = [s for s in item.sources if s.model != self.base]
        base_range = next(
            (s.layer_range for s in item.sources if s.model == self.base),
            item.sources[0].layer_range,
        )
        self.base_source = (
            SliceSource(model=self.base, layer_range=base_range) if self.base is not None else None
        )
        everyone = self.tuned + ([self.base_source] if self.base_source is not None else [])
        if not self.tuned:
            raise ConfigError(
                "models: none but the base model is given; there is nothing to merge."
            )
        self.shapes = {source.model: shapes(source.model) for source in everyone}
        leader = self.base_source or self.tuned[0]
        self.reference = self.shapes[leader.model]
        self.first_layer = leader.layer_range[0]
        _check_same_names(everyone, self.shapes)

    def plan(self, out: str, name: str, layer: int | None, t: float) -> list[TensorTask]:
        """The task of one tensor; `name` is its name in the reference model of the slice."""
        sources = [self._source(source, name) for source in self.tuned]
        base = self._source(self.base_source, name) if self.base_source is not None else None
        shape = self.reference[name]
        for other in sources:
            found = self.shapes[other.model][other.tensor]
            if found != shape:
                leader = base.model if base is not None else sources[0].model
                raise MergeError(
                    f"{out}: {leader} is {list(shape)} but {other.model} is {list(found)}; "
                    "models must share an architecture."
                )
        values: dict[str, Any] = {}
        for key, parameter in self.method.parameters.items():
            keyword = _keyword(key)
            if parameter.per_model:
                values[keyword] = tuple(
                    resolve(parameter, self._scopes(definition), source.tensor, t)
                    for definition, source in zip(self.tuned, sources, strict=True)
                )
            else:
                values[keyword] = resolve(parameter, self._scopes(None), out, t)
        place = Place(out, layer, self.num_layers)
        return [TensorTask(out, shape, tuple(sources), base, values, place)]

    def _source(self, source: SliceSource, name: str) -> Source:
        layer = layer_of(name)
        if layer is not None:
            name = _with_layer(name, layer - self.first_layer + source.layer_range[0])
        if name not in self.shapes[source.model]:
            raise MergeError(
                f"{name}: {source.model} has no such tensor; models must share an architecture."
            )
        return Source(source.model, name)

    def _scopes(self, definition: SliceSource | None) -> Scopes:
        own = [definition.parameters] if definition is not None else []
        return [*own, self.item.parameters, self.config.parameters]


def _keyword(key: str) -> str:
    return "lambda_" if key == "lambda" else key


def _slices(config: MergeConfig, shapes: Callable[[str], Shapes]) -> list[OutputSlice]:
    """The slices form of a configuration; `models` is one slice of all layers."""
    if config.modules is not None:
        raise MergeError(
            "modules: merging module by module is not supported yet; give models or slices."
        )
    if config.slices is not None:
        for item in config.slices:
            for source in item.sources:
                layers = count_layers(shapes(source.model))
                if source.layer_range[1] > layers:
                    raise MergeError(
                        f"layer_range: {list(source.layer_range)} goes beyond {source.model}, "
                        f"which has {layers} layers."
                    )
        return list(config.slices)
    models = config.models or ()
    counts = {item.model: count_layers(shapes(item.model)) for item in models}
    if len(set(counts.values())) > 1:
        raise MergeError(f"models: differ in their number of layers: {counts}.")
    layers = max(1, next(iter(counts.values())))
    sources = [
        SliceSource(model=item.model, layer_range=(0, layers), parameters=item.parameters)
        for item in models
    ]
    return [OutputSlice(sources=tuple(sources))]


def _check_same_names(sources: Sequence[SliceSource], shapes: Mapping[str, Shapes]) -> None:
    """Whole models must have the same tensors; of slices only the layers used are looked at."""

    def relevant(source: SliceSource) -> set[str]:
        start, stop = source.layer_range
        return {
            name if layer is None else _with_layer(name, layer - start)
            for name in shapes[source.model]
            if (layer := layer_of(name)) is None or start <= layer < stop
        }

    first = relevant(sources[0])
    for source in sources[1:]:
        if difference := sorted(first ^ relevant(source)):
            name = difference[0]
            has, lacks = (sources[0], source) if name in first else (source, sources[0])
            raise MergeError(
                f"{name}: {has.model} has it and {lacks.model} has not (and {len(difference) - 1} "
                "more differ); models must share an architecture."
            )


def _check_parameters(config: MergeConfig, method: Method) -> None:
    check_known(method, config.parameters, "parameters")
    for number, item in enumerate(config.models or ()):
        check_known(method, item.parameters, f"models.{number}.parameters")
    for number, piece in enumerate(config.slices or ()):
        check_known(method, piece.parameters, f"slices.{number}.parameters")
        for index, source in enumerate(piece.sources):
            where = f"slices.{number}.sources.{index}.parameters"
            check_known(method, source.parameters, where)
