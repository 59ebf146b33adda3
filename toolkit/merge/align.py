"""The models of one slice side by side: which of their tensors belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from toolkit.checkpoint.models import Source
from toolkit.checkpoint.tensor_names import is_buffer, is_vocabulary
from toolkit.errors import ConfigError, MergeError
from toolkit.merge.parameters import Scopes, resolve_all
from toolkit.merge.registry import Method, Place, Settings
from toolkit.merge.slices import Piece, Slice, View
from toolkit.merge.task import TensorTask

if TYPE_CHECKING:
    from toolkit.merge.config import MergeConfig


class Joined:
    """The models of one slice side by side: the same tuned models, base and settings for all of
    its tensors."""

    def __init__(
        self,
        config: MergeConfig,
        method: Method,
        item: Slice,
        module_parameters: Settings | None,
        num_layers: int,
        view: View,
    ) -> None:
        self.method, self.num_layers, self.view = method, num_layers, view
        self.settings = (item.parameters, module_parameters, config.parameters)
        base_name = item.base_model or config.base_model if method.accepts_base else None
        if method.needs_base and base_name is None:
            raise ConfigError(
                f"base_model: is needed by {method.name}; name the model to start from."
            )
        # A base that is listed among the models has a task vector of zeros, and none is made of it.
        self.tuned = [piece for piece in item.pieces if piece.model != base_name]
        self.base = _base_piece(item, base_name) if base_name is not None else None
        self.is_base_alone = not self.tuned
        if self.is_base_alone:
            if self.base is None or not (method.needs_base and "weight" in method.parameters):
                raise ConfigError(
                    "models: none but the base model is given; there is nothing to merge."
                )
            # A sum of no task vectors: the base itself, as under mergekit, with its adapter where
            # it has one. One task vector of zeros is the same, and every engine can add it.
            self.tuned = [self.base]
        self.leader = self.base or self.tuned[0]
        base_beside = [] if self.is_base_alone or self.base is None else [self.base]
        self.everyone = [*self.tuned, *base_beside]
        self.layout = view(self.leader.model).layout
        self.has_own_head = False

    def outside(self, piece: Piece) -> list[str]:
        """One model's tensors outside the layers."""
        view = self.view(piece.model)
        return [tensor_name for tensor_name in view.shapes if view.layout.find(tensor_name) is None]

    def names(self, stack: str | None, wanted: Sequence[str] = ()) -> list[str]:
        """Tensors of the slice by their names in the leading model, in file order.

        Args:
            stack: of layers; None for those `wanted` outside of layers.
            wanted: names outside of layers.

        Raises:
            MergeError: a model lacks one, and none of its own stands for it.
        """
        if stack is None:
            names_by_key = {name: name for name in wanted}
            keys_by_piece = [
                {name: name for name in wanted if name in self.view(piece.model).shapes}
                for piece in self.everyone
            ]
        else:
            names_by_key = dict(self._relative_names(self.leader, stack))
            keys_by_piece = [self._relative_names(piece, stack) for piece in self.everyone]
        # The leader's order first; what only others have follows, so that no tensor is dropped
        # without a word: `_is_merged` asks of each that it can stand in every model.
        for own_names in keys_by_piece:
            names_by_key |= {k: name for k, name in own_names.items() if k not in names_by_key}
        return [
            name for key, name in names_by_key.items() if self._is_merged(key, name, keys_by_piece)
        ]

    def _relative_names(self, piece: Piece, stack: str) -> dict[str, str]:
        """Names of one model's tensors, by what they are in a slice that begins at layer 0."""
        view = self.view(piece.model)
        relative_names: dict[str, str] = {}
        for name in view.shapes:
            place = view.layout.find(name)
            if place is not None and place[0] == stack and piece.start <= place[1] < piece.stop:
                relative_names[view.layout.renumber(name, place[1] - piece.start)] = name
        return relative_names

    def _is_merged(self, key: str, name: str, own: Sequence[Mapping[str, str]]) -> bool:
        # Three things may be missing without harm: a buffer, a tied head, and a head that repeats a
        # tied embedding. All else would be a tensor passed over without a word.
        names_by_piece = list(zip(self.everyone, own, strict=True))
        owners = [(piece, names[key]) for piece, names in names_by_piece if key in names]
        if not owners:
            named = ", ".join(piece.model for piece in self.everyone)
            raise MergeError(f"{name}: none of {named} has it; models must share an architecture.")
        owner_piece, owner_name = owners[0]
        # In a slice, each model calls it by the number of its own layer.
        shape = self.view(owner_piece.model).shapes[owner_name]
        lacking_pieces = [piece for piece, own_names in names_by_piece if key not in own_names]
        if not lacking_pieces:
            return True
        # Frequencies and masks that one version of transformers stores, another computes.
        if is_buffer(name, shape):
            return False
        for piece in lacking_pieces:
            if self.view(piece.model).tied_name(name, shape) is None:
                raise MergeError(
                    f"{owner_name}: {owner_piece.model} has it and {piece.model} has not"
                    f"{self._nearest(owner_name, owner_piece, piece)}; models must share an "
                    "architecture."
                )
        if all(self.view(piece.model).is_tied for piece in self.everyone):
            return False  # what one of them stores besides is the embedding once more
        self.has_own_head = True
        return True

    def _nearest(self, name: str, owner: Piece, piece: Piece) -> str:
        """What `piece` has instead of a tensor, by its name: the same under another one."""
        owner_shapes = self.view(owner.model).shapes
        others = [other for other in self.view(piece.model).shapes if other not in owner_shapes]
        # A prefix too many (_orig_mod. of torch.compile, model. of a wrapper), else a like name.
        nearest_names = [other for other in others if other.endswith(f".{name}")][:1]
        nearest_names = nearest_names or get_close_matches(name, others, n=1, cutoff=0.8)
        return f", which has {nearest_names[0]} instead" if nearest_names else ""

    def task(self, out: str, name: str, place: Place, t: float) -> TensorTask:
        """The task of one tensor; `name` is its name in the leading model."""
        sources = [self._source(piece, name) for piece in self.tuned]
        base_source = self._source(self.base, name) if self.base is not None else None
        lead_source = base_source or sources[0]
        shape = self.view(lead_source.model).shapes[lead_source.tensor]
        for other_source in sources:
            other_shape = self.view(other_source.model).shapes[other_source.tensor]
            if other_shape != shape and is_vocabulary(name) and other_shape[1:] == shape[1:]:
                raise MergeError(
                    f"{out}: {lead_source.model} has {shape[0]} rows but {other_source.model} has "
                    f"{other_shape[0]}; their vocabularies differ. Say which one the merge has: "
                    "tokenizer_source: union (or base, or a model), or merge run "
                    "--truncate-embeddings where the rows beyond the shorter one have no tokens."
                )
            if other_shape != shape:
                sources_shown = (lead_source, other_source)
                files = (self.view(source.model).file(source.tensor) for source in sources_shown)
                raise MergeError(
                    f"{out}: {lead_source.model} is {list(shape)} but {other_source.model} is "
                    f"{list(other_shape)} (in {' and '.join(files)}); models must share an "
                    "architecture."
                )
        owners = [(p.model, self._scopes(p), self._own_name(p, name)) for p in self.tuned]
        if self.is_base_alone:
            # A weight that is required need not be given for a task vector of zeros.
            required = {key: 1.0 for key, item in self.method.parameters.items() if item.required}
            owners = [(p.model, [required, *self._scopes(p)], name) for p in self.tuned]
        values = resolve_all(self.method, owners, self._scopes(None), out, t)
        is_copied = is_buffer(name, shape)
        return TensorTask(
            out, shape, tuple(sources), base_source, values, place, is_copied=is_copied
        )

    # Layers are matched by their place in the slice: layer 4 of one model may meet layer 0 of
    # another.
    def _own_name(self, piece: Piece, name: str) -> str:
        stack_place = self.layout.find(name)
        if stack_place is None or piece.start == self.leader.start:
            return name
        return self.layout.renumber(name, stack_place[1] - self.leader.start + piece.start)

    def _source(self, piece: Piece, name: str) -> Source:
        view, own = self.view(piece.model), self._own_name(piece, name)
        if own not in view.shapes:  # _is_merged has made sure of it
            shapes_elsewhere = (self.view(other.model).shapes.get(name) for other in self.everyone)
            own = view.tied_name(own, next(s for s in shapes_elsewhere if s is not None)) or own
        return Source(piece.model, own)

    def _scopes(self, piece: Piece | None) -> Scopes:
        return [piece.parameters, *self.settings] if piece is not None else self.settings


def _base_piece(item: Slice, base: str) -> Piece:
    for piece in item.pieces:
        if piece.model == base:
            return piece
    layer_ranges = {(piece.start, piece.stop) for piece in item.pieces}
    if len(layer_ranges) > 1:
        raise ConfigError(
            f"base_model: {base} is not among the sources of a slice whose sources take different "
            f"layers ({sorted(layer_ranges)}), so its own are not known; add it to the sources."
        )
    return Piece(base, *layer_ranges.pop())
