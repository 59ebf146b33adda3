"""What a recipe says about the search. No torch here."""

from __future__ import annotations

from toolkit.config import Section


class SearchSection(Section):
    """Which merges are tried."""

    merges: tuple[str, ...] = ("linear", "slerp", "ties")
    """Files of `merges/`, by name; `general` and `specialist` there stand for the two models."""
