"""Ids of special tokens in a config, which a model must have rows for."""

from __future__ import annotations

from toolkit.load_yaml import JsonObject

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
"""Ids in a config that mean the owner's tokens once the vocabulary is the owner's."""


def drop_ids_beyond(values: JsonObject, num_kept: int) -> bool:
    """Take ids out of a config that no longer mean the token they meant: they would have no row,
    or that of another token. Says whether there were any.

    >>> values = {"eos_token_id": [2, 9], "pad_token_id": 9}
    >>> drop_ids_beyond(values, 9), values
    (True, {'eos_token_id': [2], 'pad_token_id': None})
    """
    was_any = False
    for id_key in SPECIAL_IDS:
        listed = values.get(id_key)
        ids = listed if isinstance(listed, list) else [listed]
        within = [number for number in ids if not isinstance(number, int) or number < num_kept]
        if len(within) < len(ids):
            was_any = True
            values[id_key] = within if isinstance(listed, list) and within else None
    return was_any
