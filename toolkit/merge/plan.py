"""From a configuration to tasks: which tensor of which model goes where, with which parameters.

Tensors are matched by name, so an architecture that nobody listed merges where names and shapes
agree (see `layers`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.checkpoint.models import Shapes
from toolkit.checkpoint.tensor_names import is_vocabulary
from toolkit.load_yaml import JsonView
from toolkit.merge.align import Joined
from toolkit.merge.layer_stacks import ModelView
from toolkit.merge.parameters import check_parameters
from toolkit.merge.registry import Method, Place, get_method
from toolkit.merge.slices import Module, Slice, View, plan_modules
from toolkit.merge.task import TensorTask

if TYPE_CHECKING:
    from toolkit.merge.config import MergeConfig

Origin = tuple[tuple[str, int], ...]
"""Where each layer of a merged stack comes from: the slice's leading model, and its layer there."""

Configs = Callable[[str], JsonView]
"""The config.json of a model, by the model's name in the configuration."""


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
    config: MergeConfig,
    shapes: Callable[[str], Shapes],
    configs: Configs = lambda _: {},
    files: Callable[[str, str], str] = lambda model, _: model,
) -> MergePlan:
    """Plan every tensor of a merge; reads nothing but names, shapes and configs.

    Args:
        config: the merge configuration.
        shapes: names and shapes of a model's tensors, by the model's name in the configuration.
        configs: what the models' config.json say, by the same names.
        files: the file of a model's tensor, for messages, by the model's and the tensor's name.

    Raises:
        ConfigError: parameters are unknown, missing or of a wrong type.
        MergeError: models differ in names or shapes, or do not suit the method.
    """
    method = get_method(config.merge_method)
    check_parameters(config, method)
    # A view takes all names of a model apart, and every slice asks for it.
    view = functools.cache(
        lambda name: ModelView(name, shapes(name), configs(name), functools.partial(files, name))
    )
    lead_view = view(config.leader())
    planner = _Planner(config, method, view)
    merged_modules = plan_modules(config, view, lead_view, adds_base=not method.accepts_base)
    all_tasks = [task for module in merged_modules for task in planner.plan(module)]
    # Last: only now is it known which names the modules have taken.
    all_tasks += planner.plan_rest(merged_modules)
    return MergePlan(method, tuple(all_tasks), planner.stacks, planner.has_own_head)


class _Planner:
    """Plans the tensors of every slice; knows what was found on the way."""

    def __init__(self, config: MergeConfig, method: Method, view: View) -> None:
        self.config, self.method, self.view = config, method, view
        self.stacks: dict[str, Origin] = {}
        self.has_own_head = False

    def plan(self, module: Module) -> Iterator[TensorTask]:
        # As in mergekit: embeddings are merged as the first slice says, the last norm and the head
        # as the last one.
        first_joined, last_joined = (self._join(edge, module) for edge in module.edges)
        yield from self._outside(first_joined, module.before)
        for stack, slices in module.stacks.items():
            yield from self._stack(stack, slices, module)
        yield from self._outside(last_joined, module.after)

    def plan_rest(self, modules: Sequence[Module]) -> Iterator[TensorTask]:
        """What other models have outside the layers and the leading one has not, such as a head."""
        known_names = [name for module in modules for name in module.outside]
        owner = next((m for m in modules if any(map(is_vocabulary, m.outside))), modules[-1])
        last = self._join(owner.edges[1], owner)
        # A dict, as a set would lose the order of the files.
        others = dict.fromkeys(name for piece in last.everyone for name in last.outside(piece))
        yield from self._outside(last, [name for name in others if name not in set(known_names)])

    def _outside(self, joined: Joined, names: Sequence[str]) -> Iterator[TensorTask]:
        for name in joined.names(None, names):
            yield joined.task(name, name, Place(name, None, joined.num_layers), 0.0)
        self.has_own_head |= joined.has_own_head

    def _stack(self, stack: str, slices: Sequence[Slice], module: Module) -> Iterator[TensorTask]:
        num_layers = sum(item.num_layers for item in slices)
        layer_origin: list[tuple[str, int]] = []
        for item in slices:
            # The depth of the whole stack, not of the slice: `lines` scales by the place in the
            # merge.
            joined = self._join(item, module, num_layers)
            # Sorted by layer once: a search through all names for each layer would be quadratic.
            names_by_layer: dict[int, list[str]] = {}
            for name in joined.names(stack):
                stack_place = joined.layout.find(name)
                names_by_layer.setdefault(stack_place[1] if stack_place else 0, []).append(name)
            for offset in range(item.num_layers):
                # Depth counts within the slice, and a slice of one layer is at its end, as in
                # mergekit.
                t = offset / (item.num_layers - 1) if item.num_layers > 1 else 1.0
                layer = joined.leader.start + offset
                for name in names_by_layer.get(layer, ()):
                    out = joined.layout.renumber(name, len(layer_origin))
                    yield joined.task(out, name, Place(out, len(layer_origin), num_layers), t)
                layer_origin.append((joined.leader.model, layer))
        self.stacks[stack] = tuple(layer_origin)

    def _join(self, item: Slice, module: Module, num_layers: int | None = None) -> Joined:
        if num_layers is None:
            stack_depths = (sum(part.num_layers for part in cut) for cut in module.stacks.values())
            num_layers = max(stack_depths, default=0)
        return Joined(self.config, self.method, item, module.parameters, num_layers, self.view)
