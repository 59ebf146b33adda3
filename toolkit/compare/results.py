"""What a comparison of ways found: terminal and page take it as it is; `compare.json` is its
dump."""

from __future__ import annotations

from typing import Literal

from toolkit.compare.config import MergeKind
from toolkit.evaluate.config import EvaluationRole
from toolkit.select.results import ResultPart
from toolkit.statistics.interval import Interval

Standing = Literal["above", "on", "below"]
"""Where a way stands to the line of plain merges: surely above, surely below, or not told apart."""


class ComparedSet(ResultPart):
    """One test set that all ways are scored on."""

    name: str
    role: EvaluationRole
    unit: str
    num_items: int
    num_groups: int

    has_line: bool
    """Whether the reference specialist surely loses on it, so that plain merges trade on it."""

    specialist_change: Interval
    """Change of the reference specialist."""


class SetStanding(ResultPart):
    """What a way costs on one test set, and where that puts it."""

    change: Interval
    """Change of the loss against the general model."""

    distance: Interval | None
    """Gain kept minus that of the plain mean of the reference with the same loss, as a fraction of
    the reference specialist's gain; None of a set without a line."""

    standing: Standing | None


class SeedOfWay(ResultPart):
    """What one seed gave."""

    candidate: str
    """The merge that the validation sets chose; `specialist` where none is merged, `healed` where
    it is drawn back by distillation."""

    domain_change: float
    gain_kept: float | None
    set_changes: dict[str, float]


class WayFigures(ResultPart):
    """A way with one kind of merge, over all seeds."""

    way: str
    merge: MergeKind
    title: str
    domain_change: Interval

    gain_kept: Interval | None
    """Fraction of the reference specialist's gain; None where that shows none."""

    sets: dict[str, SetStanding]
    seeds: dict[str, SeedOfWay]
    """By seed."""


class WayCosts(ResultPart):
    """What a way takes, a mean over its seeds, as its stages noted it; None where they did not."""

    trained_tokens: float | None
    train_seconds: float | None
    written_tokens: float | None
    """Tokens that the general model wrote before training."""

    searched_tokens: float | None
    search_seconds: float | None
    healed_tokens: float | None
    """Tokens that healing learned from."""

    heal_seconds: float | None


class WayResult(ResultPart):
    """A way as it was made."""

    name: str
    note: str
    settings: dict[str, object]
    """What it changes in the recipe."""

    trains_as: str | None
    """The way whose specialist it shares."""

    costs: WayCosts


class LinePoint(ResultPart):
    """A plain mean of the reference way, over all seeds."""

    alpha: float
    domain_change: Interval
    gain_kept: Interval | None
    set_changes: dict[str, Interval]


class ComparisonResults(ResultPart):
    """All ways, and the line that they are held against."""

    recipe: str
    description: str
    command: str
    reference: str
    seeds: tuple[int, ...]
    confidence: float
    domain_unit: str
    sets: tuple[ComparedSet, ...]
    ways: tuple[WayResult, ...]
    figures: tuple[WayFigures, ...]
    line: tuple[LinePoint, ...]
    remarks: tuple[str, ...]

    test_scorings: int
    """How often the test documents were scored in the reference way's run, this time included."""

    def lines(self) -> tuple[ComparedSet, ...]:
        """General sets on which there is a line to be held against."""
        return tuple(one for one in self.sets if one.has_line)

    def general_sets(self) -> tuple[ComparedSet, ...]:
        return tuple(one for one in self.sets if one.role == "general")
