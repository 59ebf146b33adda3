"""What a recipe says about the choice of a merge. No torch here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from toolkit.section import Section


class SelectSection(Section):
    """What a merge must keep, and how sure that must be."""

    general_tolerance: Annotated[float, Field(ge=0.0)] = 0.01
    """Largest general loss accepted, in the unit of the set (bits per byte for documents), above
    the general model's. Each general set must stay within it by itself."""

    tolerances: dict[str, Annotated[float, Field(ge=0.0)]] = Field(default_factory=dict)
    """The same for single general sets by name, such as one in another unit; for domain sets too
    where `domain_tolerance` is given."""

    domain_tolerance: Annotated[float, Field(ge=0.0)] | None = None
    """Largest loss accepted on each domain set, so that no domain pays for another; by default only
    their weighted mean counts."""

    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence of the one-sided bound on the general loss that must stay within it, and that the
    domain is gained at all."""


def identity_of_selection(section: SelectSection) -> dict[str, object]:
    """The settings that a choice depends on; what is not given is left out."""
    left_out = {"domain_tolerance"} if section.domain_tolerance is None else None
    return section.model_dump(mode="json", exclude=left_out)
