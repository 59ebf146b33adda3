"""What the names of a model's tensors say: stacks of layers, tied tensors, buffers.

There is no list of architectures. A number in a name is a layer where the numbers under the same
prefix run from 0 without a gap, and first of all where there are as many as the config has layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping

from toolkit.checkpoint.model_values import tie_setting
from toolkit.checkpoint.models import Shapes
from toolkit.checkpoint.tensor_names import is_vocabulary
from toolkit.load_yaml import JsonView

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.)")
_LAYER_KEYS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",
)
"""What configs call the number of their layers."""

# GPT-NeoX calls its head embed_out; wte and wpe are GPT-2's tables, shared.weight is T5's.
_BEFORE_LAYERS = re.compile(r"embed(?!_out)|wte|wpe|shared\.weight$")


class Layout:
    """How the tensors of one model divide into stacks of layers.

    Args:
        names: of all its tensors.
        counts: numbers of layers that its config speaks of.

    Attributes:
        stacks: number of layers by prefix, such as `{"model.layers": 30}`.
        depths: number of layers by prefix that the config speaks of; those beyond (such as for
            multi-token prediction) are stored and no layers of the model.
        main: the stacks that the config speaks of; all where it speaks of none.

    >>> names = [f"model.layers.{i}.experts.{j}.w" for i in range(2) for j in range(4)]
    >>> layout = Layout([*names, "lm_head.weight"])
    >>> layout.stacks, layout.find("model.layers.1.experts.3.w"), layout.find("lm_head.weight")
    ({'model.layers': 2}, ('model.layers', 1), None)
    >>> layout.renumber("model.layers.1.experts.3.w", 7)
    'model.layers.7.experts.3.w'
    """

    def __init__(self, names: Iterable[str], counts: Collection[int] = ()) -> None:
        layers_by_prefix: dict[str, set[int]] = {}
        matches_by_name = {name: list(_NUMBER.finditer(name)) for name in names}
        for tensor_name, matches in matches_by_name.items():
            for match in matches:
                layers_by_prefix.setdefault(tensor_name[: match.start()], set()).add(int(match[1]))
        # From 0 without a gap: a set of n numbers whose largest is n - 1.
        whole = {prefix for prefix, seen in layers_by_prefix.items() if max(seen) == len(seen) - 1}
        expected_prefixes = _expected(whole, layers_by_prefix, counts)
        self._matches: dict[str, re.Match[str]] = {}
        for tensor_name, matches in matches_by_name.items():
            # The stack that the config speaks of, before one that stands farther out: experts
            # within layers are not layers.
            stack_matches = [m for m in matches if tensor_name[: m.start()] in expected_prefixes]
            stack_matches += [m for m in matches[:1] if tensor_name[: m.start()] in whole]
            if stack_matches:
                self._matches[tensor_name] = stack_matches[0]
        self._places = {name: (name[: m.start()], int(m[1])) for name, m in self._matches.items()}
        prefixes = dict.fromkeys(prefix for prefix, _ in self._places.values())
        self.stacks = {prefix: len(layers_by_prefix[prefix]) for prefix in prefixes}
        self.depths = {
            prefix: _depth(depth, counts) if prefix in expected_prefixes else depth
            for prefix, depth in self.stacks.items()
        }
        self.main = [prefix for prefix in prefixes if prefix in expected_prefixes] or list(prefixes)

    def find(self, name: str) -> tuple[str, int] | None:
        """Stack and layer that a tensor belongs to, or None where it belongs to none."""
        return self._places.get(name)

    def renumber(self, name: str, layer: int) -> str:
        """The name of the same tensor in another layer."""
        match = self._matches[name]
        return f"{name[: match.start(1)]}{layer}{name[match.end(1) :]}"


_MOST_BEYOND = 4
"""Layers that a model may store beyond those of its config, for multi-token prediction."""


def _expected(
    whole: Collection[str], found: Mapping[str, Collection[int]], counts: Collection[int]
) -> set[str]:
    """Prefixes of the stacks that a config speaks of.

    Those that stand in no other stack come first (experts may be as many as layers), and of them
    those with as many layers as the config says, else those with a few more.
    """
    outer = [prefix for prefix in whole if not re.search(r"(?:^|\.)\d+\.", prefix)]
    exact_prefixes = {prefix for prefix in outer if len(found[prefix]) in counts}
    near = {prefix for prefix in outer if _depth(len(found[prefix]), counts) < len(found[prefix])}
    return exact_prefixes or near or {prefix for prefix in whole if len(found[prefix]) in counts}


def _depth(stored: int, counts: Collection[int]) -> int:
    """How many of a stack's stored layers its config speaks of.

    >>> _depth(47, {46}), _depth(46, {46, 2}), _depth(27, {46})
    (46, 46, 27)
    """
    depths_below = (count for count in counts if 0 < stored - count <= _MOST_BEYOND)
    return stored if stored in counts else max(depths_below, default=stored)


class ModelView:
    """One model as a plan sees it: names, shapes and config; no tensor is read.

    Args:
        name: in the configuration.
        shapes: of its tensors.
        config: its config.json, as plain values.
        file: of each tensor, for messages; the model's name where it is not known.
    """

    def __init__(
        self,
        name: str,
        shapes: Shapes,
        config: JsonView,
        file: Callable[[str], str] | None = None,
    ) -> None:
        self.name = name
        self.file = file or (lambda _: name)
        self.shapes = shapes
        self.layout = Layout(shapes, layer_counts(config))
        # Unsaid is tied: transformers 4 leaves out what equals its default, and that was true.
        self.is_tied = tie_setting(config) is not False

    def tied_name(self, name: str, shape: tuple[int, ...]) -> str | None:
        """The tensor that stands for a missing head or embedding, or None where none does."""
        if not self.is_tied or not is_vocabulary(name):
            return None
        fitting_names = (n for n in self.shapes if is_vocabulary(n) and self.shapes[n] == shape)
        return next((n for n in fitting_names if self.layout.find(n) is None), None)


def layer_counts(config: JsonView) -> set[int]:
    """Every number of layers that a config and its parts speak of.

    >>> sorted(layer_counts({"n_layer": 12, "vision_config": {"depth": 4}, "hidden_size": 64}))
    [4, 12]
    """
    numbers_of_layers = {config[key] for key in _LAYER_KEYS if isinstance(config.get(key), int)}
    for value in config.values():
        if isinstance(value, Mapping):
            numbers_of_layers |= layer_counts(value)
    return numbers_of_layers


def layer_keys(config: JsonView) -> list[str]:
    """The keys of a config, without its parts, that hold a number of layers."""
    return [key for key in _LAYER_KEYS if isinstance(config.get(key), int)]


def is_before_layers(name: str) -> bool:
    """Whether a tensor outside the layers comes before them, by its name."""
    return bool(_BEFORE_LAYERS.search(name))
