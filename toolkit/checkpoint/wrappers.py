"""Which wrapper a text side was taken out of."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

_WRAPPERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""The wrapper that a text model was taken out of; what is not text is on the meta device."""


def wrapper_of(model: Any) -> Any:
    """The wrapper that a model was taken out of, or None."""
    return _WRAPPERS.get(model)
