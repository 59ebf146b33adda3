"""What a merge stage found: every figure of its report, typed. `report.json` is the dump.

Figures of the validation sets are those that the choice was made by; figures of the test sets were
scored once, after it. Changes are against the general model, on the same items. Lower is better.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from toolkit import __version__
from toolkit.errors import ToolkitError
from toolkit.evaluate.config import EvaluationRole
from toolkit.load_yaml import read_object
from toolkit.search.space import GENERAL
from toolkit.search.unknowns import Value
from toolkit.section import check_section
from toolkit.stage import MANIFEST, hash_file, read_manifest
from toolkit.statistics.interval import Interval

REPORT = "report.json"

ModelName = Literal["general", "specialist", "merge"]
"""The three models that the test sets are scored with."""

FigureRole = Literal["domain", "general"]
"""Roles that have a figure over their sets; sets that are only watched have none."""


class ResultPart(BaseModel):
    """A part of the results. Values never change; keys of another version are faults."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants"
    )


class SetResult(ResultPart):
    """One evaluation set: what it is, how large, and what may be lost on it."""

    name: str

    role: EvaluationRole

    unit: str
    """Unit of its figures, such as `bits per byte`."""

    items_validation: int

    items_test: int
    """Number of test items; 0 where the set has none."""

    groups_validation: int

    groups_test: int
    """Number of groups that the test items come from: intervals are over groups."""

    one_group: bool
    """Whether all test items come from one group, so that items were drawn in its place."""

    speaks_for: str
    """What the test figures can speak for, where that is less than one would think."""

    tolerance: float | None
    """Largest loss accepted, in the unit; None of sets on which nothing is tested."""


class CandidateResult(ResultPart):
    """A merge that was tried, with its figures on the documents of the search."""

    name: str

    method: str

    parameters: dict[str, Value]

    values: dict[str, float | None]
    """Figure by set; of a dropped candidate an estimate, None where nothing is known."""

    domain: float | None
    """Weighted mean over the domain sets; None of a failed candidate."""

    general: float | None
    """Mean over the general sets that are in the unit of the first."""

    general_loss_bound: float | None
    """One-sided upper bound; at most the tolerance where every general set is within its own."""

    loss_bounds: dict[str, float | None]
    """One-sided upper bound of the loss by general set, in its unit."""

    distance: float
    """Distance from the general model, as a fraction of the specialist's own."""

    qualified: bool
    """Whether it is within every tolerance."""

    status: Literal["complete", "dropped", "failed"]

    tokens: int
    """Tokens that it was scored on."""

    seconds: float
    """Seconds of merging and scoring."""

    merge_seconds: float

    order: int
    """Place in the order of trying."""

    error: str = ""
    """Why it failed; left out of the dump where it did not."""

    @model_serializer(mode="wrap")
    def _without_empty_error(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        values: dict[str, object] = dump(self)
        if not self.error:
            del values["error"]
        return values


class SweepPoint(ResultPart):
    """A plain mean of the two models, on the validation sets. Bands are of the difference from the
    general model."""

    alpha: float
    """Weight of the specialist."""

    domain: Interval

    general: Interval

    sets: dict[str, Interval]
    """General sets in units of their own."""


class SetTestResult(ResultPart):
    """A general set's answer at one step of the sweep, on all validation documents."""

    name: str
    loss: float
    bound: float
    """One-sided upper bound of the loss."""

    tolerance: float
    unit: str
    is_within: bool


class LadderResult(ResultPart):
    """A plain mean as it was tested on all validation documents."""

    alpha: float
    name: str
    is_within: bool
    domain_change: float | None
    """Change of the domain figure; None where it was not looked at for its gain."""

    tests: tuple[SetTestResult, ...]


class SweepVerdict(ResultPart):
    """Whether another method beat the plain sweep, at the same general loss."""

    difference: float | None
    """Domain figure minus that of the plain mean of the same general loss."""

    low: float | None
    high: float | None
    sentence: str


class RoleCounts(ResultPart):
    """Number of items by role."""

    domain: int
    general: int

    def of(self, role: FigureRole) -> int:
        return self.domain if role == "domain" else self.general


class ModelFigures(ResultPart):
    """A model's figures on the test sets, and their changes against the general model."""

    domain: Interval
    domain_change: Interval
    general: Interval
    general_change: Interval
    sets: dict[str, Interval]
    set_changes: dict[str, Interval]

    def figure(self, role: FigureRole) -> Interval:
        return self.domain if role == "domain" else self.general

    def change(self, role: FigureRole) -> Interval:
        return self.domain_change if role == "domain" else self.general_change


class FiguresByModel(ResultPart):
    """Figures of the three models on the test sets."""

    general: ModelFigures
    specialist: ModelFigures
    merge: ModelFigures

    def of(self, model: ModelName) -> ModelFigures:
        return {"general": self.general, "specialist": self.specialist, "merge": self.merge}[model]


class SpecialistResult(ResultPart):
    """One of several specialists on the test sets."""

    name: str

    sets: tuple[str, ...]
    """Domain sets of its own."""

    figures: ModelFigures
    """Its figures on all sets: what it costs the others stands in `set_changes`."""

    own_change: Interval
    """Its change on its own sets."""

    merge_change: Interval
    """The merge's change on them."""

    gain_kept: Interval | None
    """Fraction of its gain on its own sets that the merge has; None where none is shown."""


class SeveralResults(ResultPart):
    """What there is to say of several specialists; `models.specialist` is then their uniform mean
    with the general model."""

    specialists: tuple[SpecialistResult, ...]

    mean: str
    """Name of the plain mean that the merge is shown beside."""

    fraction: float
    """Fraction of the specialists in it."""

    weights: dict[str, float]
    """Weight of each domain set in the domain figure, which is a mean of absolute figures."""

    domain_tolerance: float | None
    """Largest loss accepted on each domain set; None where only their mean counts."""


class DocumentFigures(ResultPart):
    """A test item's figure under each model."""

    id: str
    set: str
    role: EvaluationRole
    general: float
    specialist: float
    merge: float
    specialists: dict[str, float] = Field(default_factory=dict)
    """Of each of several specialists; left out of the dump where there is one."""

    @model_serializer(mode="wrap")
    def _without_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        values: dict[str, object] = dump(self)
        if not self.specialists:
            del values["specialists"]
        return values


class PowerResult(ResultPart):
    """What a validation set can see, as a first merge scatters on it; see `SetPower`."""

    name: str
    role: EvaluationRole
    unit: str
    num_items: int
    num_groups: int
    smallest_change: float | None
    """Smallest change that is shown with a chance of 80 %; None where nothing is."""

    tolerance: float | None
    needed: int | None
    sentence: str


_ROUNDED_TO_NOTHING = 0.001
"""Of a change: less cannot be seen in any figure."""


class AchievedRow(ResultPart):
    """How much of a tuned model's change is in the merge, as a fraction of that change; None where
    it cannot be said."""

    where: str
    """`all`, a layer, or what is outside the layers."""

    model: str
    asked: float | None
    """By the configuration, for methods that ask for a fraction."""

    computed: float | None
    """Of the merge in float32, before it is stored."""

    stored: float | None
    """Of the merge as it is stored."""

    @property
    def is_lost(self) -> bool:
        """Whether clearly less, or more, is stored than was meant."""
        meant = self.asked if self.asked is not None else self.computed
        if meant is None or self.stored is None:
            return False
        # What is meant to be nothing is stored as rounding leaves it.
        return abs(self.stored - meant) > max(0.05 * abs(meant), _ROUNDED_TO_NOTHING)


class PrecisionUsed(ResultPart):
    """In which arithmetic the figures were made."""

    scoring: str
    training: str | None
    """Arithmetic of the specialist's training; None where its stage does not say."""


class MergeResults(ResultPart):
    """Every figure of a merge stage."""

    recipe: str
    description: str

    chosen: str
    """Name of the chosen candidate; `general` where the general model is kept."""

    reason: str
    """Why this candidate, in sentences."""

    any_merge: bool
    """Whether a merge was chosen; False where the general model is kept."""

    tolerance: float
    """Loss accepted on general sets that have no tolerance of their own."""

    confidence: float
    """Confidence of the bounds that decide."""

    sets: tuple[SetResult, ...]
    candidates: tuple[CandidateResult, ...]

    front: tuple[str, ...]
    """Candidates that no other one beats on both roles, best domain first."""

    knee: str | None
    """Point of the front where more of one role begins to cost most of the other."""

    sweep: tuple[SweepPoint, ...]
    ladder: tuple[LadderResult, ...]
    beat_sweep: SweepVerdict

    remarks: tuple[str, ...]
    """What the figures cannot show, in sentences."""

    search_tokens: int
    """Tokens that the search computed."""

    full_tokens: int
    """Tokens that scoring every candidate on everything would have computed."""

    validation: RoleCounts
    test: RoleCounts
    models: FiguresByModel

    gain_kept: Interval | None
    """Fraction of the specialist's domain gain that the merge has; None where none is shown."""

    loss_recovered: Interval | None
    """Fraction of the specialist's general loss that the merge does not have; None where no loss
    is shown."""

    sets_recovered: dict[str, Interval | None]
    """The same by general set."""

    documents: tuple[DocumentFigures, ...]

    test_scorings: int
    """How often the test documents were scored, this time included."""

    power: tuple[PowerResult, ...]
    precision: PrecisionUsed

    achieved: tuple[AchievedRow, ...] = ()
    """What the merge asks of the specialist's change, and what is stored of it."""

    several: SeveralResults | None = None
    """Figures of several specialists; left out of the dump where there is one."""

    @model_serializer(mode="wrap")
    def _without_several(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        values: dict[str, object] = dump(self)
        if self.several is None:
            del values["several"]
        return values

    def as_json(self) -> dict[str, object]:
        """The values of `report.json`."""
        return self.model_dump(mode="json")

    def sets_of(self, role: FigureRole) -> tuple[SetResult, ...]:
        """The sets that a role's figure is made of: of general sets those in the first one's
        unit."""
        role_rows = [row for row in self.sets if row.role == role]
        return tuple(row for row in role_rows if role == "domain" or row.unit == role_rows[0].unit)

    @property
    def general_tolerance(self) -> float | None:
        """What the general figure may lose: the tolerance of its sets, None where they have several
        and no one limit holds for their mean."""
        tolerances = {
            self.tolerance if row.tolerance is None else row.tolerance
            for row in self.sets_of("general")
        }
        return tolerances.pop() if len(tolerances) == 1 else None

    def unit_of(self, role: FigureRole) -> str:
        """The unit of a role's figures: that of its sets, or a plain word where they differ."""
        role_units = {row.unit for row in self.sets_of(role)}
        return role_units.pop() if len(role_units) == 1 else "mean loss"

    @property
    def best_plain_mean(self) -> str:
        """Name of the plain mean that the ladder chose, by the validation sets: the chosen merge
        where it is one, else the one with the largest gain of those that passed, else the general
        model."""
        rungs = {step.name for step in self.ladder}
        if self.chosen in rungs or not self.any_merge:
            return self.chosen
        gains = {
            step.name: step.domain_change
            for step in self.ladder
            if step.is_within and step.domain_change is not None and step.domain_change < 0.0
        }
        return min(gains, key=lambda name: gains[name], default=GENERAL)

    def lost_sets(self, model: ModelName) -> list[tuple[SetResult, Interval]]:
        """General sets on which a model has surely lost, with the change."""
        changes = self.models.of(model).set_changes
        return [
            (row, changes[row.name])
            for row in self.sets
            if row.role == "general" and row.name in changes and changes[row.name].low > 0.0
        ]


def read_results(folder: Path) -> MergeResults:
    """Every figure of a merge stage, read back from its `report.json`.

    Args:
        folder: folder of a complete merge stage, such as `runs/finance/merge`, or of a bundle.

    Raises:
        ToolkitError: there is no report, it was changed since, or another version wrote it.
    """
    path = folder / REPORT
    if not path.is_file():
        raise ToolkitError(
            f"{folder}: holds no {REPORT}; give the folder of a complete merge stage, such as "
            "runs/finance/merge."
        )
    values = read_object(path, ToolkitError, "run the merge stage again")
    if (folder / MANIFEST).is_file():
        # Model cards quote these figures: a report edited by hand must not pass for the
        # stage's.
        written_output = read_manifest(folder).get("outputs", {}).get(REPORT, {})
        if hash_file(path) != written_output.get("sha256"):
            raise ToolkitError(
                f"{path}: is not as its stage wrote it; move the folder away and run the merge "
                "stage again."
            )
    results, faults = check_section(MergeResults, values)
    if results is None:
        others_words = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ToolkitError(
            f"{path}: is no report of this version, {__version__}: {faults[0]}{others_words}. Run "
            "the merge stage again, or read the report with the version that wrote it."
        )
    return results
