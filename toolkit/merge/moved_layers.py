"""The config of a model whose layers were moved: counted anew, and each still what it was."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.checkpoint.model_values import config_parts
from toolkit.checkpoint.models import Models
from toolkit.errors import MergeError, warn
from toolkit.load_yaml import JsonObject, JsonView
from toolkit.merge.layer_kinds import (
    LayerKinds,
    derived_config,
    differing_layers,
    fit_config,
    layer_candidates,
    read_layer_kinds,
)
from toolkit.merge.layer_stacks import layer_keys
from toolkit.merge.plan import Origin

_PER_LAYER = re.compile(r"layer|type|block|pattern")
"""Lists in configs with one entry per layer have names like these where transformers, which is
asked first, does not know the model."""

_BEYOND = re.compile(r"(?:nextn|mtp).*layers?$")
"""Keys with the number of layers that stand after the last and predict further tokens."""


def move_layers(
    values: JsonObject, stack: str, origin: Origin, models: Models, depth: int, stored: int
) -> None:
    """Let a config follow its layers.

    Args:
        values: of the leading model's config.json; changed in place.
        stack: prefix of the layers.
        origin: the model and layer that each layer comes from.
        models: where the other models' configs stand.
        depth: layers that the leading model computes with.
        stored: layers that it has in its files; those beyond `depth` are left out of the merge.

    Raises:
        MergeError: no setting of the config says what the layers are in their new order.
    """
    if [layer for _, layer in origin] == list(range(stored)):
        return  # every layer is where it was
    # As it was: `values` changes below, and layers are compared with what they were.
    old_config = json.loads(json.dumps(values))
    for part, path in config_parts(values):
        depth_keys = [
            k for k in layer_keys(part) if part[k] == depth and _speaks_of(f"{path}.{k}", stack)
        ]
        if not depth_keys:
            continue
        moved_lists = _moved_lists(old_config, path, depth_keys, origin, models)
        part.update(dict.fromkeys(depth_keys, len(origin)))
        part.update({name: entries for name, entries in moved_lists.items() if name in part})
        if stored > depth:
            # The config must not promise layers that slices leave out.
            part.update({key: 0 for key in part if _BEYOND.search(key) and part[key]})
        implied_part = _part_at(derived_config(values) or {}, path)
        # After the depth is set: only lists that transformers does not derive by itself are added.
        part.update(
            {n: entries for n, entries in moved_lists.items() if implied_part.get(n) != entries}
        )
        _fit_kinds(values, old_config, part, path, stack, origin, models, depth)
    if stored > depth:
        warn(
            f"{stack}: {stored - depth} layers beyond the {depth} of the config (multi-token "
            "prediction) are left out, as slices take none of them."
        )


def _moved_lists(
    whole: JsonView, path: str, keys: Sequence[str], origin: Origin, models: Models
) -> dict[str, list[Any]]:
    """Lists with an entry per layer, each entry that of the layer's own model."""
    derived_parts = {
        model: _part_at(derived_config(models.config(model)) or models.config(model), path)
        for model in dict.fromkeys(model for model, _ in origin)
    }
    part = _part_at(whole, path)
    leading_part = {**_part_at(derived_config(whole) or {}, path), **part}
    moved_lists: dict[str, list[Any]] = {}
    for list_name, entries in leading_part.items():
        if not isinstance(entries, list) or len(entries) != part[keys[0]]:
            continue
        if _PER_LAYER.search(list_name) or _follows_depth(whole, path, keys, list_name):
            moved_lists[list_name] = [
                _entry(derived_parts[model].get(list_name), layer, entries)
                for model, layer in origin
            ]
    return moved_lists


def _follows_depth(whole: JsonView, path: str, keys: Sequence[str], name: str) -> bool:
    """Whether transformers makes a list longer when there is a layer more."""
    deeper_config = json.loads(json.dumps(whole))
    part = next(part for part, part_path in config_parts(deeper_config) if part_path == path)
    # Left out, so that transformers derives it anew.
    part.pop(name, None)
    part.update({key: part[key] + 1 for key in keys})
    derived_list = _part_at(derived_config(deeper_config) or {}, path).get(name)
    return isinstance(derived_list, list) and len(derived_list) == part[keys[0]]


def _entry(entries: Any, layer: int, fallback: Sequence[Any]) -> Any:
    own_entries = entries if isinstance(entries, list) and layer < len(entries) else fallback
    # The fallback is the leading model's list, which may be shorter than this layer's model is
    # deep.
    return own_entries[min(layer, len(own_entries) - 1)]


def _part_at(config: JsonView, path: str) -> JsonObject:
    part: Any = config
    for key in filter(None, path.split(".")):
        part = part.get(key, {}) if isinstance(part, Mapping) else {}
    return dict(part) if isinstance(part, Mapping) else {}


def _fit_kinds(
    values: JsonObject,
    whole: JsonView,
    part: JsonObject,
    path: str,
    stack: str,
    origin: Origin,
    models: Models,
    depth: int,
) -> None:
    """Change thresholds and lists of layers until every layer is what it was."""
    kinds_by_model: dict[str, LayerKinds] = {}
    for model in dict.fromkeys(model for model, _ in origin):
        config = models.config(model)
        layers = next((_part_at(config, path).get(key) for key in layer_keys(part)), depth)
        found = read_layer_kinds(config, stack, layers if isinstance(layers, int) else depth)
        if found is None or any(n >= len(found.layers) for m, n in origin if m == model):
            return  # transformers does not know it
        kinds_by_model[model] = found
    wanted_kinds = [(kinds_by_model[model], layer) for model, layer in origin]

    def differing() -> list[tuple[int, str]]:
        merge_kinds = read_layer_kinds(values, stack, len(origin))
        every = [(number, "the model, which cannot be built") for number in range(len(origin))]
        return every if merge_kinds is None else differing_layers(wanted_kinds, merge_kinds)

    if not differing():
        return
    old = _part_at(derived_config(whole) or whole, path)
    old_layers = [layer for _, layer in origin]
    candidates = list(layer_candidates(old, old_layers, depth))
    if "mlp_only_layers" in part or "mlp_only_layers" in old:
        # Qwen's mixtures: every so many layers are sparse but for those listed; a list says both.
        listed_layers, step = old.get("mlp_only_layers") or [], old.get("decoder_sparse_step") or 1
        dense = [n for n, own in enumerate(old_layers) if own in listed_layers or (own + 1) % step]
        candidates.insert(0, {"decoder_sparse_step": 1, "mlp_only_layers": dense})
    if fit_config(part, candidates, lambda: len(differing())) == 0:
        return
    number, kind_path = differing()[0]
    model, layer = origin[number]
    # A path with a colon at its end is a module's class (see `_signature`): weights of one class do
    # not load into another, while a differing attribute only changes what is computed.
    if kind_path.endswith(":") or kind_path == "the model, which cannot be built":
        raise MergeError(
            f"{stack}: layer {number} of the merge, {layer} of {model}, would be of another kind "
            f"there (at {kind_path.rstrip(':') or 'its class'}), and no setting of config.json "
            "says otherwise; keep layers of its kind together, or in the places of such."
        )
    warn(
        f"{stack}: layer {number} of the merge, {layer} of {model}, is there told otherwise by "
        f"config.json in {kind_path.lstrip('.')}; compare the merge with its models."
    )


def _speaks_of(key: str, stack: str) -> bool:
    """Whether a config's number of layers is that of a stack, by the words in both.

    >>> _speaks_of("text_config.num_hidden_layers", "model.language_model.layers")
    True
    >>> _speaks_of("vision_config.depth", "model.language_model.layers")
    False
    >>> _speaks_of("num_decoder_layers", "encoder.block"), _speaks_of("num_layers", "encoder.block")
    (False, True)
    """
    is_vision = any(word in stack for word in ("vision", "visual"))
    if ("vision" in key) != is_vision:
        return False
    if stack.startswith(("decoder", "model.decoder")):
        return "decoder" in key or ("encoder" not in key and "num_layers" not in key)
    if stack.startswith(("encoder", "model.encoder")):
        return "decoder" not in key
    return True
