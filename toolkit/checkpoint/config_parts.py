"""Configs of transformers as plain values: the configs within them, and what ties a head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def tie_setting(config: Mapping[str, Any]) -> object:
    """What a config says of its head: whether it is the embedding; None where it says nothing."""
    text = config.get("text_config")
    nested = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
    return config.get("tie_word_embeddings", nested)


def untie(values: dict[str, Any]) -> None:
    """Let a config say that the head has rows of its own."""
    for part, _ in config_parts(values):
        if "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = False
    values["tie_word_embeddings"] = False


def config_parts(values: dict[str, Any], path: str = "") -> Iterator[tuple[dict[str, Any], str]]:
    """A config and the configs within it, each with the key it stands under."""
    yield values, path
    for key, value in list(values.items()):
        if key.endswith("_config") and isinstance(value, dict):
            yield from config_parts(value, f"{path}.{key}".lstrip("."))
