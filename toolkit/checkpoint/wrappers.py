"""Which wrapper a text side was taken out of."""

from __future__ import annotations

from typing import Any

_ATTRIBUTE = "_toolkit_wrapper"
"""Where a text model holds the wrapper that it was taken out of. The two may hold each other, so
that a table of wrappers would keep both for good."""


def wrapper_of(model: Any) -> Any:
    """The wrapper that a model was taken out of, or None; its other parts are without memory."""
    # Not getattr: peft's models pass on what they have not to the model within.
    return vars(model).get(_ATTRIBUTE)


def set_wrapper(text: Any, full: Any) -> None:
    """Note the wrapper that a text model was taken out of."""
    # Not setattr: torch would make the wrapper a module within the text model.
    vars(text)[_ATTRIBUTE] = full
