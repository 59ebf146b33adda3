"""One form for all configurations: modules, each of slices, each of pieces of models.

`models` is one module of everything, a slice a stack of layers; `slices` divides the one stack;
`modules` says so of each part of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.errors import MergeError
from toolkit.merge.layer_stacks import ModelView, is_before_layers
from toolkit.merge.registry import Settings

if TYPE_CHECKING:
    from toolkit.merge.config import InputModel, MergeConfig, OutputModule, OutputSlice

View = Callable[[str], ModelView]

_WORDS: Mapping[str, tuple[str, ...]] = {
    "vision_tower": ("vision_tower", "vision_model", "visual"),
    "vision_model": ("vision_model", "vision_tower", "visual"),
    "multi_modal_projector": (
        "multi_modal_projector",
        "visual.merger",
        "visual.deepstack_merger_list",
    ),
}
"""Parts of names by which mergekit's modules are known; other modules are known by their own."""


@dataclass(frozen=True)
class Piece:
    """Layers `start` to `stop` of one model."""

    model: str
    start: int
    stop: int
    parameters: Settings | None = None


@dataclass(frozen=True)
class Slice:
    """Layers of the merged model: as many of each piece."""

    pieces: tuple[Piece, ...]
    base_model: str | None = None
    parameters: Settings | None = None

    @property
    def num_layers(self) -> int:
        return self.pieces[0].stop - self.pieces[0].start


@dataclass(frozen=True)
class _Whole:
    """All of the merged model, as a module without parameters of its own."""

    models: tuple[InputModel, ...] | None
    slices: tuple[OutputSlice, ...] | None
    parameters: None = None


@dataclass(frozen=True)
class Module:
    """A part of the merged model.

    Attributes:
        stacks: slices of each stack of layers, by the stack's prefix.
        before: tensors outside the layers that come first, merged as the first slice says.
        after: those that come last, merged as the last slice says.
        edges: that first and that last slice.
        parameters: of the module.
    """

    stacks: Mapping[str, tuple[Slice, ...]]
    before: tuple[str, ...]
    after: tuple[str, ...]
    edges: tuple[Slice, Slice]
    parameters: Settings | None = None

    @property
    def outside(self) -> tuple[str, ...]:
        """All its tensors outside the layers."""
        return (*self.before, *self.after)


def plan_modules(
    config: MergeConfig, view: View, leader: ModelView, *, adds_base: bool
) -> list[Module]:
    """Bring a configuration into the one form.

    Args:
        config: the merge configuration.
        view: any of its models, by name.
        leader: the model whose names divide into modules: the base, or the first.
        adds_base: whether a base model that is not among `models` is one of them, the last.

    Raises:
        MergeError: layers are asked for that are not there, or tensors belong to no module.
    """
    loose = [name for name in leader.shapes if leader.layout.find(name) is None]
    if config.modules is None:
        whole = _Whole(config.models, config.slices)
        return [_module(config, whole, list(leader.layout.stacks), loose, view, leader, adds_base)]
    owner_modules = _owners([*leader.layout.stacks, *loose], list(config.modules))
    return [
        _module(
            config,
            module,
            [stack for stack in leader.layout.stacks if owner_modules[stack] == module_name],
            [tensor for tensor in loose if owner_modules[tensor] == module_name],
            view,
            leader,
            adds_base,
        )
        for module_name, module in config.modules.items()
    ]


def _module(
    config: MergeConfig,
    module: OutputModule | _Whole,
    stacks: Sequence[str],
    loose: Sequence[str],
    view: View,
    leader: ModelView,
    adds_base: bool,
) -> Module:
    if module.slices is not None:
        sliced = [stack for stack in stacks if stack in leader.layout.main]
        if len(sliced) != 1:
            several = f"several stacks of layers ({', '.join(sliced)})" if sliced else "no layers"
            raise MergeError(
                f"slices: {leader.name} has {several} here; give models, or say with modules which "
                "part is meant."
            )
        cut_slices = tuple(_slice(item) for item in module.slices)
        slices_by_stack = dict.fromkeys(sliced, cut_slices)
        edge_slice = _same_models(cut_slices[0])
        # Numbers of layers mean the one stack; others, such as a vision tower's, are merged whole.
        slices_by_stack |= {
            stack: _whole_stack(edge_slice, stack, view) for stack in stacks if stack not in sliced
        }
        _check_ranges(slices_by_stack, view)
        if not any(item.num_layers for item in cut_slices):
            raise MergeError("slices: have no layers, and a model needs some; give layer_range.")
        edges = (cut_slices[0], cut_slices[-1])
    else:
        # Numbers of layers follow for each stack, in `_whole_stack`.
        named_pieces = [Piece(item.model, 0, 0, item.parameters) for item in module.models or ()]
        edge_slice = Slice((*named_pieces, *_added_base(config, named_pieces, adds_base)))
        slices_by_stack = {stack: _whole_stack(edge_slice, stack, view) for stack in stacks}
        edges = (edge_slice, edge_slice)
    before_layers = tuple(name for name in loose if is_before_layers(name))
    after_layers = tuple(name for name in loose if not is_before_layers(name))
    return Module(slices_by_stack, before_layers, after_layers, edges, module.parameters)


def _slice(item: OutputSlice) -> Slice:
    pieces = tuple(Piece(s.model, *s.layer_range, s.parameters) for s in item.sources)
    return Slice(pieces, item.base_model, item.parameters)


def _same_models(item: Slice) -> Slice:
    pieces = tuple(Piece(piece.model, 0, 0, piece.parameters) for piece in item.pieces)
    return Slice(pieces, item.base_model, item.parameters)


def _added_base(config: MergeConfig, named: Sequence[Piece], adds_base: bool) -> list[Piece]:
    named_models = {piece.model for piece in named}
    if not adds_base or config.base_model is None or config.base_model in named_models:
        return []
    return [Piece(config.base_model, 0, 0)]


def _whole_stack(edge: Slice, stack: str, view: View) -> tuple[Slice, ...]:
    counts = {piece.model: view(piece.model).layout.stacks.get(stack, 0) for piece in edge.pieces}
    for model in (name for name, count in counts.items() if count == 0):
        if like := next((s for s in view(model).layout.stacks if s.endswith(f".{stack}")), None):
            raise MergeError(
                f"{stack}: {model} has {like} instead; save it again under the names that the "
                "others have (of a compiled model its _orig_mod)."
            )
    if len(set(counts.values())) > 1:
        raise MergeError(
            f"{stack}: models differ in their number of layers ({counts}); say which layers to "
            "merge with slices."
        )
    pieces = tuple(
        Piece(piece.model, 0, counts[piece.model], piece.parameters) for piece in edge.pieces
    )
    return (Slice(pieces, edge.base_model, edge.parameters),)


def _check_ranges(divided: Mapping[str, Sequence[Slice]], view: View) -> None:
    for stack, slices in divided.items():
        for piece in (piece for item in slices for piece in item.pieces):
            # Those stored beyond the config's depth (multi-token prediction) are no layers to
            # slice.
            num_layers = view(piece.model).layout.depths.get(stack, 0)
            if piece.stop > num_layers:
                raise MergeError(
                    f"layer_range: [{piece.start}, {piece.stop}] goes beyond {piece.model}, which "
                    f"has {num_layers} layers in {stack}."
                )


def _owners(items: Sequence[str], modules: Sequence[str]) -> dict[str, str]:
    """Which module each stack, and each tensor outside the stacks, belongs to."""
    owner_modules: dict[str, str] = {}
    for item in items:
        best_length = 0
        for module in modules:
            for module_words in _WORDS.get(module, (module,)):
                # The longest name wins: visual.merger goes before visual, whatever their order in
                # the file.
                if f".{module_words}." in f".{item}." and len(module_words) > best_length:
                    owner_modules[item], best_length = module, len(module_words)
    idle = [module for module in modules if module not in owner_modules.values()]
    # mergekit's `text_decoder` is a part of no tensor's name: what no name fits goes there, if it
    # is the only module left.
    rest_module = "default" if "default" in modules else idle[0] if len(idle) == 1 else None
    for item in items:
        if item not in owner_modules and rest_module is None:
            raise MergeError(
                f"modules: {item} belongs to none of {', '.join(modules)}; add a module `default` "
                "for what no other has."
            )
        owner_modules.setdefault(item, rest_module or "")
    return owner_modules
