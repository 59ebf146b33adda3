"""What a study found: terminal and page take it as it is, and `study.json` is its dump."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from toolkit.statistics.interval import Interval
from toolkit.study.config import MeasureSection
from toolkit.study.verdict import Verdict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class JudgedClaim(_Frozen):
    """A claim as published, with what was measured of it."""

    claim: str
    source: str
    mark: str | None
    measure: MeasureSection
    address: str
    """Where to read the source; empty for our own comparisons."""

    interval: Interval
    """The figure, by itself with the confidence asked for."""

    together: Interval
    """The same, wide enough to hold together with the other claims'."""

    unit: str
    verdict: Verdict
    note: str
    """Why there is no verdict, where there is a reason beside the interval."""


class SetFigures(_Frozen):
    """Losses of all models on one set."""

    unit: str
    num_items: int
    num_groups: int
    models: dict[str, float]
    notes: tuple[str, ...]


class StudyResults(_Frozen):
    """All claims of a recipe, and the losses that they stand on."""

    recipe: str
    description: str
    command: str
    confidence: float
    """Of all claims together."""

    claims: tuple[JudgedClaim, ...]
    figures: dict[str, SetFigures]
    """By what claims call the set."""

    finished: str = Field(default="", exclude=True)
    """Time of its manifest, where it was read from a folder."""
