"""From a configuration to tasks: which tensor of which model goes where, with which parameters.

Tensors are matched by name, so an architecture that nobody listed merges where names and shapes
agree (see `layers`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import ConfigError, MergeError
from toolkit.merge.config import MergeConfig
from toolkit.merge.layers import ModelView, Shapes, is_buffer, is_vocabulary
from toolkit.merge.parameters import Scopes, check_parameters, resolve
from toolkit.merge.registry import Method, Place, get_method
from toolkit.merge.slices import Module, Piece, Slice, View, plan_modules

Origin = tuple[tuple[str, int], ...]
"""Where each layer of a merged stack comes from: the slice's leading model, and its layer there."""

Configs = Callable[[str], Mapping[str, Any]]
"""The config.json of a model, by the model's name in the configuration."""


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
        is_copied: never trained, so taken as it is from the base or the first model.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    base: Source | None
    parameters: Mapping[str, Any]
    place: Place
    thresholds: tuple[float, ...] | None = None
    is_copied: bool = False

    @property
    def inputs(self) -> tuple[Source, ...]:
        """All that is read: the tuned tensors, then the base where there is one."""
        return self.sources if self.base is None else (*self.sources, self.base)

    @property
    def leader(self) -> Source:
        """The base where there is one, else the first model: its type and config count."""
        return self.base or self.sources[0]

    @property
    def size(self) -> int:
        """Entries of the merged tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class MergePlan:
    """All tensors of the merged model, in order.

    Attributes:
        method: how they are merged.
        tasks: one a tensor.
        stacks: layers of the merged model, by stack.
        has_own_head: models with tied and untied heads are merged, so the result's is untied.
    """

    method: Method
    tasks: tuple[TensorTask, ...]
    stacks: Mapping[str, Origin]
    has_own_head: bool = False

    @property
    def num_layers(self) -> int:
        """Layers of the deepest stack."""
        return max(map(len, self.stacks.values()), default=0)


def plan_merge(
    config: MergeConfig, shapes: Callable[[str], Shapes], configs: Configs = lambda _: {}
) -> MergePlan:
    """Plan every tensor of a merge; reads nothing but names, shapes and configs.

    Args:
        config: the merge configuration.
        shapes: names and shapes of a model's tensors, by the model's name in the configuration.
        configs: what the models' config.json say, by the same names.

    Raises:
        ConfigError: parameters are unknown, missing or of a wrong type.
        MergeError: models differ in names or shapes, or do not suit the method.
    """
    method = get_method(config.merge_method)
    check_parameters(config, method)
    view = functools.cache(lambda name: ModelView(name, shapes(name), configs(name)))
    leader = view(config.leader())
    planner = _Planner(config, method, view)
    modules = plan_modules(config, view, leader, adds_base=not method.accepts_base)
    tasks = [task for module in modules for task in planner.plan(module)]
    tasks += planner.plan_rest(modules)
    return MergePlan(method, tuple(tasks), planner.stacks, planner.has_own_head)


class _Planner:
    """Plans the tensors of every slice; knows what was found on the way."""

    def __init__(self, config: MergeConfig, method: Method, view: View) -> None:
        self.config, self.method, self.view = config, method, view
        self.stacks: dict[str, Origin] = {}
        self.has_own_head = False

    def plan(self, module: Module) -> Iterator[TensorTask]:
        first, last = (self._join(edge, module) for edge in module.edges)
        yield from self._outside(first, module.before)
        for stack, slices in module.stacks.items():
            yield from self._stack(stack, slices, module)
        yield from self._outside(last, module.after)

    def plan_rest(self, modules: Sequence[Module]) -> Iterator[TensorTask]:
        """What other models have outside the layers and the leading one has not, such as a head."""
        known = [name for module in modules for name in module.outside]
        owner = next((m for m in modules if any(map(is_vocabulary, m.outside))), modules[-1])
        last = self._join(owner.edges[1], owner)
        others = dict.fromkeys(name for piece in last.everyone for name in last.outside(piece))
        yield from self._outside(last, [name for name in others if name not in set(known)])

    def _outside(self, joined: _Joined, names: Sequence[str]) -> Iterator[TensorTask]:
        for name in joined.names(None, names):
            yield joined.task(name, name, Place(name, None, joined.num_layers), 0.0)
        self.has_own_head |= joined.has_own_head

    def _stack(self, stack: str, slices: Sequence[Slice], module: Module) -> Iterator[TensorTask]:
        total = sum(item.num_layers for item in slices)
        origin: list[tuple[str, int]] = []
        for item in slices:
            joined = self._join(item, module, total)
            by_layer: dict[int, list[str]] = {}
            for name in joined.names(stack):
                found = joined.layout.find(name)
                by_layer.setdefault(found[1] if found else 0, []).append(name)
            for offset in range(item.num_layers):
                t = offset / (item.num_layers - 1) if item.num_layers > 1 else 1.0
                layer = joined.leader.start + offset
                for name in by_layer.get(layer, ()):
                    out = joined.layout.renumber(name, len(origin))
                    yield joined.task(out, name, Place(out, len(origin), total), t)
                origin.append((joined.leader.model, layer))
        self.stacks[stack] = tuple(origin)

    def _join(self, item: Slice, module: Module, num_layers: int | None = None) -> _Joined:
        if num_layers is None:
            depths = (sum(part.num_layers for part in cut) for cut in module.stacks.values())
            num_layers = max(depths, default=0)
        return _Joined(self.config, self.method, item, module.parameters, num_layers, self.view)


class _Joined:
    """The models of one slice side by side: the same tuned models, base and settings for all of
    its tensors."""

    def __init__(
        self,
        config: MergeConfig,
        method: Method,
        item: Slice,
        module_parameters: Mapping[str, Any] | None,
        num_layers: int,
        view: View,
    ) -> None:
        self.method, self.num_layers, self.view = method, num_layers, view
        self.settings = (item.parameters, module_parameters, config.parameters)
        base = item.base_model or config.base_model if method.accepts_base else None
        if method.needs_base and base is None:
            raise ConfigError(
                f"base_model: is needed by {method.name}; name the model to start from."
            )
        self.tuned = [piece for piece in item.pieces if piece.model != base]
        if not self.tuned:
            raise ConfigError(
                "models: none but the base model is given; there is nothing to merge."
            )
        self.base = _base_piece(item, base) if base is not None else None
        self.leader = self.base or self.tuned[0]
        self.everyone = self.tuned + ([self.base] if self.base is not None else [])
        self.layout = view(self.leader.model).layout
        self.has_own_head = False

    def outside(self, piece: Piece) -> list[str]:
        """One model's tensors outside the layers."""
        view = self.view(piece.model)
        return [name for name in view.shapes if view.layout.find(name) is None]

    def names(self, stack: str | None, wanted: Sequence[str] = ()) -> list[str]:
        """Tensors of the slice by their names in the leading model, in file order.

        Args:
            stack: of layers; None for those `wanted` outside of layers.
            wanted: names outside of layers.

        Raises:
            MergeError: a model lacks one, and none of its own stands for it.
        """
        if stack is None:
            own = [
                {name: name for name in wanted if name in self.view(piece.model).shapes}
                for piece in self.everyone
            ]
            names = {name: name for name in wanted}
        else:
            own = [self._relative_names(piece, stack) for piece in self.everyone]
            names = dict(self._relative_names(self.leader, stack))
        for other in own:
            names |= {key: name for key, name in other.items() if key not in names}
        return [name for key, name in names.items() if self._is_merged(key, name, own)]

    def _relative_names(self, piece: Piece, stack: str) -> dict[str, str]:
        """Names of one model's tensors, by what they are in a slice that begins at layer 0."""
        view = self.view(piece.model)
        found: dict[str, str] = {}
        for name in view.shapes:
            place = view.layout.find(name)
            if place is not None and place[0] == stack and piece.start <= place[1] < piece.stop:
                found[view.layout.renumber(name, place[1] - piece.start)] = name
        return found

    def _is_merged(self, key: str, name: str, own: Sequence[Mapping[str, str]]) -> bool:
        pairs = list(zip(self.everyone, own, strict=True))
        owner = next((piece for piece, found in pairs if key in found), None)
        if owner is None:
            named = ", ".join(piece.model for piece in self.everyone)
            raise MergeError(f"{name}: none of {named} has it; models must share an architecture.")
        shape = self.view(owner.model).shapes[name]
        lacking = [piece for piece, names in pairs if key not in names]
        if not lacking:
            return True
        if is_buffer(name, shape):
            return False
        for piece in lacking:
            if self.view(piece.model).tied_name(name, shape) is None:
                raise MergeError(
                    f"{name}: {owner.model} has it and {piece.model} has not; models must share an "
                    "architecture."
                )
        if all(self.view(piece.model).is_tied for piece in self.everyone):
            return False  # what one of them stores besides is the embedding once more
        self.has_own_head = True
        return True

    def task(self, out: str, name: str, place: Place, t: float) -> TensorTask:
        """The task of one tensor; `name` is its name in the leading model."""
        sources = [self._source(piece, name) for piece in self.tuned]
        base = self._source(self.base, name) if self.base is not None else None
        leader = base or sources[0]
        shape = self.view(leader.model).shapes[leader.tensor]
        for other in sources:
            found = self.view(other.model).shapes[other.tensor]
            if found != shape:
                raise MergeError(
                    f"{out}: {leader.model} is {list(shape)} but {other.model} is {list(found)}; "
                    "models must share an architecture."
                )
        values: dict[str, Any] = {}
        for key, parameter in self.method.parameters.items():
            keyword = "lambda_" if key == "lambda" else key
            if parameter.per_model:
                values[keyword] = tuple(
                    resolve(parameter, self._scopes(p), self._own_name(p, name), t, p.model)
                    for p in self.tuned
                )
            else:
                values[keyword] = resolve(parameter, self._scopes(None), out, t)
        copied = is_buffer(name, shape)
        return TensorTask(out, shape, tuple(sources), base, values, place, is_copied=copied)

    def _own_name(self, piece: Piece, name: str) -> str:
        place = self.layout.find(name)
        if place is None or piece.start == self.leader.start:
            return name
        return self.layout.renumber(name, place[1] - self.leader.start + piece.start)

    def _source(self, piece: Piece, name: str) -> Source:
        view, own = self.view(piece.model), self._own_name(piece, name)
        if own not in view.shapes:  # _is_merged has made sure of it
            everyone = (self.view(other.model).shapes.get(name) for other in self.everyone)
            own = view.tied_name(own, next(s for s in everyone if s is not None)) or own
        return Source(piece.model, own)

    def _scopes(self, piece: Piece | None) -> Scopes:
        return [piece.parameters, *self.settings] if piece is not None else self.settings


def _base_piece(item: Slice, base: str) -> Piece:
    for piece in item.pieces:
        if piece.model == base:
            return piece
    ranges = {(piece.start, piece.stop) for piece in item.pieces}
    if len(ranges) > 1:
        raise ConfigError(
            f"base_model: {base} is not among the sources of a slice whose sources take different "
            f"layers ({sorted(ranges)}), so its own are not known; add it to the sources."
        )
    return Piece(base, *ranges.pop())
