"""Whether a merge will load, known before it is begun and without importing transformers in vain.

Asking transformers (see `checkpoint.loadable`) takes seconds of imports, more than a small merge. A
merge that has the names, the shapes and the config of one of its models loads exactly as that model
does, so there is nothing to ask: provided that the model itself holds what its config speaks of,
which numbers of layers and rows tell at once. All else is asked: slices, vocabularies that changed,
adapters that changed shapes, tensors beside the layers, models with more or fewer layers than they
say (such as a multi-token-prediction layer).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from toolkit.checkpoint.adapted import AdaptedCheckpoint
from toolkit.checkpoint.model_values import read_model_values
from toolkit.checkpoint.models import Shapes
from toolkit.checkpoint.tensor_names import is_head, is_vocabulary
from toolkit.errors import MergeError, warn
from toolkit.load_yaml import JsonObject, JsonView
from toolkit.merge.layer_stacks import Layout, layer_counts

if TYPE_CHECKING:
    from toolkit.checkpoint.models import Models
    from toolkit.checkpoint.read import Checkpoint

_NOT_STRUCTURE = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache")
"""Keys of a config that change no tensor's name or shape."""


def refuse_unloadable_merge(
    values: JsonView, shapes: Shapes, models: Models, names: Sequence[str]
) -> None:
    """Refuse a merge that transformers would load with random, unread or misshapen tensors.

    What one of the models lacks or has too much in the same way is said and not refused: a merge is
    as whole as what it is made of.

    Args:
        values: of the config.json that will be written.
        shapes: of the tensors that will be written.
        models: as they stand on disk.
        names: of those models in the configuration.

    Raises:
        MergeError: names the first tensor.
    """
    own_structure = _structure(values)
    model_origins = [(name, *_origin(models, name)) for name in names]
    for _, checkpoint, config in model_origins:
        # The cheap answer first: importing transformers takes seconds, more than a small merge.
        is_equal = shapes == _shapes(checkpoint) and own_structure == _structure(config)
        if is_equal and is_whole(checkpoint, config):
            return
    from toolkit.checkpoint import loadable

    if not (faults := loadable.loading_faults(values, shapes)):
        return
    for name, checkpoint, config in model_origins:
        known_faults = loadable.loading_faults(config, _shapes(checkpoint)) or {}
        faults, shared_faults = loadable.split_faults(faults, known_faults)
        if shared_faults:
            warn(loadable.shared_message(name, shared_faults))
    if faults:
        raise MergeError(loadable.unloadable_message(names[0], faults))


def is_whole(checkpoint: Checkpoint, config: JsonView) -> bool:
    """Whether a model has the layers, rows and head that its config speaks of, by counting them."""
    shapes = _shapes(checkpoint)
    text_part = config.get("text_config")
    text_values = {**config, **text_part} if isinstance(text_part, Mapping) else config
    numbers_of_layers = layer_counts(config)
    layout = Layout(shapes, numbers_of_layers)
    if numbers_of_layers and not set(layout.stacks.values()) & numbers_of_layers:
        return False
    rows = {shapes[name][0] for name in shapes if is_vocabulary(name) and not layout.find(name)}
    if rows and "vocab_size" in text_values and text_values["vocab_size"] not in rows:
        return False
    is_untied = text_values.get("tie_word_embeddings", config.get("tie_word_embeddings")) is False
    is_causal = any("CausalLM" in str(name) for name in config.get("architectures") or ())
    has_head = any(is_head(name) for name in shapes)
    return not checkpoint.unheld and (has_head or not (is_untied and is_causal))


def _origin(models: Models, name: str) -> tuple[Checkpoint, JsonView]:
    """A model without its adapter, and its config."""
    checkpoint = models.checkpoint(name)
    if isinstance(checkpoint, AdaptedCheckpoint):
        checkpoint = checkpoint.model
        return checkpoint, read_model_values(checkpoint.folder, MergeError)
    return checkpoint, models.config(name)


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: checkpoint.info(name).shape for name in checkpoint.names}


def _structure(values: JsonView) -> JsonObject:
    """What of a config names and shapes may depend on."""
    plain_values = json.loads(json.dumps(values))
    for part in _parts(plain_values):
        for key in (*_NOT_STRUCTURE, "quantization_config"):
            part.pop(key, None)
    return dict(plain_values)


def _parts(values: JsonObject) -> Iterator[JsonObject]:
    yield values
    for value in values.values():
        if isinstance(value, dict):
            yield from _parts(value)
