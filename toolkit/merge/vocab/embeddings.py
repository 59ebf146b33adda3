"""Tensors with a row a token, and a model as it looks with those rows in another order."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from toolkit.checkpoint.model_values import config_parts, untie
from toolkit.checkpoint.read import Checkpoint
from toolkit.checkpoint.tensor_names import is_vocabulary
from toolkit.errors import MergeError
from toolkit.load_yaml import JsonObject, JsonView
from toolkit.merge.layer_stacks import Layout, is_before_layers
from toolkit.merge.output import promote
from toolkit.merge.vocab.remapped import RemappedCheckpoint, RemappedTensor, RowMap
from toolkit.merge.vocab.special_ids import SPECIAL_IDS, drop_ids_beyond


class Embeddings:
    """The input embedding of a model, and its head where it has one of its own.

        name: model name in the configuration.
        checkpoint: tensors of the model.
        checkpoint: its tensors.

    Attributes:
        names: of the tensors, the input embedding first.
        biases: of heads that have a bias with an entry per token.
        num_rows: of each.

    Raises:
        MergeError: there is none, or embedding and head differ in rows.
    """

    def __init__(self, name: str, checkpoint: Checkpoint) -> None:
        layout = Layout(checkpoint.names)
        found = [n for n in checkpoint.names if is_vocabulary(n) and layout.find(n) is None]
        self.checkpoint = checkpoint
        self.names = sorted(found, key=lambda n: (not is_before_layers(n), n))
        if not self.names:
            raise MergeError(
                f"{name}: no tensor of it is known to be the embedding of its tokens, so "
                "vocabularies cannot be united; leave out tokenizer_source."
            )
        self.num_rows = self.shape(self.names[0])[0]
        for tensor_name in self.names[1:]:
            if self.shape(tensor_name)[0] != self.num_rows:
                raise MergeError(
                    f"{name}: {self.names[0]} has {self.num_rows} rows and {tensor_name} "
                    f"{self.shape(tensor_name)[0]}; resize the model's embeddings to one size."
                )

        self.biases = [
            bias
            for bias in (f"{tensor_name.removesuffix('weight')}bias" for tensor_name in self.names)
            if bias in checkpoint and self.shape(bias) == (self.num_rows,)
        ]

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self.checkpoint.info(tensor).shape

    @property
    def head(self) -> str | None:
        """The head's tensor, where the model has one beside the embedding."""
        return next((name for name in self.names[1:] if not is_before_layers(name)), None)

    def lacks(self, seen: Checkpoint) -> bool:
        """Whether the model as it is seen has a head that it has not."""
        return any(tensor_name not in self.checkpoint for tensor_name in seen.names)


def remapped_model(
    number: int, donors: Sequence[Embeddings], num_models: int, rows: RowMap
) -> RemappedCheckpoint | None:
    """A model as it looks with its rows in the merged vocabulary's order.

    Args:
        number: of the model among the donors.
        donors: every model that rows are taken from; those that are merged come first.
        num_models: how many are merged.
        rows: where its rows come from.

    Returns:
        None where nothing changes. A head that shares the embedding gets rows of its own where
        other models have heads of their own.
    """
    own = donors[number]
    if rows.is_whole(number, own.num_rows):
        return None
    tensors = {
        tensor_name: _remapped(own, tensor_name, [donor.names[0] for donor in donors], donors, rows)
        for tensor_name in own.names
        if tensor_name != own.head
    }
    # One model with a head of its own makes heads of them all: what was shared is written twice.
    head_names = [donor.head for donor in donors[:num_models] if donor.head is not None]
    if head_names:
        names = [donor.head or donor.names[0] for donor in donors]
        tensors[own.head or head_names[0]] = _remapped(own, names[number], names, donors, rows)
    for bias_name in own.biases:
        # A donor without this bias is passed over when types are widened, and refused when asked
        # for rows.
        tensors[bias_name] = _remapped(own, bias_name, [bias_name for _ in donors], donors, rows)
    return RemappedCheckpoint(own.checkpoint, tensors)


def _remapped(
    own: Embeddings, name: str, names: Sequence[str], donors: Sequence[Embeddings], rows: RowMap
) -> RemappedTensor:
    donor_numbers = {int(number) for number in np.unique(rows.donor) if number >= 0}
    donor_numbers |= {int(number) for number in np.nonzero((rows.averages >= 0).any(axis=0))[0]}
    dtype = own.checkpoint.info(name).dtype
    for donor_number in sorted(donor_numbers):
        if names[donor_number] in donors[donor_number].checkpoint:
            dtype = promote(dtype, donors[donor_number].checkpoint.info(names[donor_number]).dtype)
    tensors_by_donor = [
        (donor.checkpoint, tensor_name) if tensor_name in donor.checkpoint else None
        for donor, tensor_name in zip(donors, names, strict=True)
    ]
    return RemappedTensor(rows, tensors_by_donor, dtype, (len(rows.row), *own.shape(name)[1:]))


def remapped_config(
    config: JsonView,
    *,
    old_rows: int,
    num_rows: int,
    num_kept: int,
    is_untied: bool,
    owner: JsonView | None,
) -> JsonObject:
    """A model's config.json as it says with its rows in the merged vocabulary's order.

    Args:
        config: as it is.
        old_rows: that it has now.
        num_rows: that it will have.
        num_kept: ids from 0 on that mean the same tokens as before.
        is_untied: whether its head has rows of its own from now on.
        owner: config of the model whose special tokens count; None for its own.
    """
    values: JsonObject = json.loads(json.dumps(config))
    parts = _language_parts(values)
    # Wrapped models repeat vocab_size in several parts; those that say the embedding's rows are
    # meant, else the innermost that says any.
    speaking = [part for part in parts if part.get("vocab_size") == old_rows]
    speaking = speaking or [part for part in parts if "vocab_size" in part][-1:] or parts[:1]
    for part in speaking:
        part["vocab_size"] = num_rows
    if is_untied:
        untie(values)
    owner_parts = _language_parts(dict(owner)) if owner is not None else []
    for id_key in SPECIAL_IDS:
        owner_ids = [part[id_key] for part in owner_parts if id_key in part]
        for part in parts:
            if owner_ids and id_key in part:
                part[id_key] = owner_ids[0]
        if owner_ids and not any(id_key in part for part in parts):
            values[id_key] = owner_ids[0]
    for part in parts:
        drop_ids_beyond(part, num_kept)
    return values


def _language_parts(values: JsonObject) -> list[JsonObject]:
    """A config, and that of its language model where it has several."""
    language_paths = ("", "text_config", "llm_config", "language_config")
    return [part for part, part_path in config_parts(values) if part_path in language_paths]
