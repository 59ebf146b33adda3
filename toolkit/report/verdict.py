"""The outcome in plain sentences, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.machine import DTYPE_NAMES
from toolkit.select.results import (
    AchievedRow,
    FigureRole,
    MergeResults,
    ModelFigures,
    ModelName,
    SetResult,
    SeveralResults,
)
from toolkit.statistics.interval import Interval

MODELS: tuple[tuple[ModelName, str], ...] = (
    ("general", "general model"),
    ("specialist", "specialist"),
    ("merge", "chosen merge"),
)
ROLES: tuple[FigureRole, ...] = ("domain", "general")


@dataclass(frozen=True)
class ModelColumn:
    """A model as tables show it.

    Attributes:
        title: what a reader calls it.
        figures: its figures on the test sets.
        kind: which of the models it is; `specialist` too of each of several.
    """

    title: str
    figures: ModelFigures
    kind: ModelName


def model_columns(results: MergeResults) -> list[ModelColumn]:
    """The models that the test sets were scored with, in the order of tables: of several
    specialists each, and their plain mean before the merge."""
    several = results.several
    columns = [ModelColumn(title, results.models.of(model), model) for model, title in MODELS]
    if several is None:
        return columns
    general, mean, merge = columns
    each = [ModelColumn(one.name, one.figures, "specialist") for one in several.specialists]
    return [general, *each, ModelColumn(mean_title(several), mean.figures, "specialist"), merge]


def mean_title(several: SeveralResults) -> str:
    """What the plain mean of several specialists is called in tables."""
    return f"uniform mean, α={several.fraction:g}"


def verdict(results: MergeResults) -> tuple[str, str]:
    """Two sentences: what was gained on the domain, and what it cost elsewhere; by test figures."""
    unit = results.unit_of("domain")
    if not results.any_merge:
        specialist_figures = results.models.specialist
        what = "training alone" if results.several is None else mean_title(results.several)
        return (
            "The general model is kept: no candidate is shown to gain on the domain while general "
            "sets surely stay within what they may lose.",
            f"On the test sets {what} changes the domain by "
            f"{specialist_figures.domain_change.words(3, '+')} {unit}; "
            f"{_listed(general_changes(results, 'specialist'))}. Lower is better.",
        )
    change, name, kept = results.models.merge.domain_change, results.chosen, results.gain_kept
    share_words = f", {percent(kept)} of what training gained" if kept else ""
    gain_sentence = f"{name} gains {-change.estimate:.3f} {unit} on the domain{share_words}."
    # Chosen by validation items, and not borne out by test: that is said in place of the gain.
    if change.high >= 0.0:
        gain_sentence = (
            f"{name} was chosen, but its change on the domain's test sets, "
            f"{change.words(3, '+')} {unit}, cannot be told from none."
        )
    return gain_sentence, _cost(results)


@dataclass(frozen=True)
class GeneralChange:
    """How a model changes on one general test set.

    Attributes:
        name: name of the set.
        change: change against the general model, with its interval.
        unit: unit of the change.
        tolerance: largest loss accepted, in the unit.
    """

    name: str
    change: Interval
    unit: str
    tolerance: float

    @property
    def standing(self) -> int:
        """The worse the test is, the higher: 0 nothing is lost, 1 within the tolerance, 2 perhaps
        beyond it, 3 probably, 4 surely."""
        return (
            4 if self.change.low > self.tolerance
            else 3 if self.change.estimate > self.tolerance
            else 2 if self.change.high > self.tolerance
            else 1 if self.change.high > 0.0
            else 0
        )  # fmt: skip

    @property
    def words(self) -> str:
        limit_words = f"the {self.tolerance:g} tolerated"
        judged_words = (
            "nothing is lost",
            f"within {limit_words}",
            f"which may be more than {limit_words}",
            f"probably more than {limit_words}, which the validation sets did not show",
            f"surely more than {limit_words}, which the validation sets did not show",
        )
        change_words = f"{self.name} {self.change.words(3, '+')} {self.unit}"
        return f"{change_words}, {judged_words[self.standing]}"


def general_changes(results: MergeResults, model: ModelName) -> list[GeneralChange]:
    """How a model changes on each general test set, and on each domain set that is held by itself,
    each in its own unit."""
    changes = results.models.of(model).set_changes
    return [
        GeneralChange(
            row.name,
            changes[row.name],
            row.unit,
            results.tolerance if row.tolerance is None else row.tolerance,
        )
        for row in results.sets
        if (row.role == "general" or row.tolerance is not None) and row.name in changes
    ]


def _listed(changes: Sequence[GeneralChange]) -> str:
    return ", ".join(f"{c.name} {c.change.words(3, '+')} {c.unit}" for c in changes)


def _cost(results: MergeResults) -> str:
    """The test held against the tolerance, set by set, the worst first."""
    # The heading is that of the worst set, since each must hold by itself.
    changes = sorted(general_changes(results, "merge"), key=lambda change: -change.standing)
    told_changes = "; ".join(f"{c.words}{_undone(results, c.name)}" for c in changes)
    worst_standing = changes[0].standing
    is_held = any(row.role == "domain" and row.tolerance is not None for row in results.sets)
    held_sets = "general and domain sets" if is_held else "general sets"
    heading_words = (
        f"Nothing is lost on {held_sets}",
        f"{held_sets.capitalize()} stay within what they may lose",
        f"It is not shown on test that {held_sets} stay within what they may lose",
        f"On test {held_sets} probably lose more than is tolerated",
        f"On test {held_sets} surely lose more than is tolerated",
    )[worst_standing]
    return f"{heading_words}: {told_changes}."


def _undone(results: MergeResults, name: str) -> str:
    recovered_share = results.sets_recovered.get(name)
    return f" ({percent(recovered_share)} of training's loss undone)" if recovered_share else ""


def notes(results: MergeResults) -> list[str]:
    """What else should be known: whether the plain sweep was beaten, what the figures cannot show,
    what the search cost."""
    note_lines = [results.beat_sweep.sentence, *results.remarks]
    if results.search_tokens and results.full_tokens:
        note_lines.append(
            f"The search computed {results.search_tokens:,} tokens, "
            f"{results.search_tokens / results.full_tokens:.0%} of scoring every candidate on "
            "everything."
        )
    if (line := precision_line(results)) is not None:
        note_lines.append(line)
    note_lines += achieved_lines(results.achieved)
    if results.test_scorings > 1:
        note_lines.append(
            f"The test sets were scored {results.test_scorings} times; figures that were looked at "
            "before a change are no longer independent of it."
        )
    return note_lines


def achieved_lines(rows: Sequence[AchievedRow]) -> list[str]:
    """Of whose change clearly less, or more, is stored than the merge was meant to have."""
    lines = []
    for row in rows:
        if row.where == "all" and row.is_lost and row.stored is not None:
            meant = (
                f"asks for {row.asked:.4g}"
                if row.asked is not None
                else f"has {row.computed or 0.0:.4g} in float32"
            )
            lines.append(
                f"Of the change of {row.model} the merge {meant}, and {row.stored:.4g} is stored: "
                "the change is only a few steps of the stored type large, and rounding to the "
                "nearest loses or adds a part. `search.rounding: stochastic` stores what is asked."
            )
    return lines


def _name_of_type(precision: str | None) -> str | None:
    return next((name for key, name in DTYPE_NAMES.items() if key == precision), None)


def precision_line(results: MergeResults) -> str | None:
    """In which arithmetic the figures were made; None of a type that has no name."""
    scoring, training = map(_name_of_type, (results.precision.scoring, results.precision.training))
    if scoring is None:
        return None
    trained_words = f"; the specialist was trained in {training}" if training else ""
    return f"Every model was scored in {scoring} arithmetic{trained_words}."


def kept_lines(results: MergeResults) -> list[str]:
    """How much of the specialist's gain was kept, and how much of its loss recovered."""
    kept, recovered = results.gain_kept, results.loss_recovered
    if results.several is not None:
        return several_lines(results, results.several)
    lines = [
        "The specialist shows no domain gain to keep."
        if kept is None
        else f"Kept {percent(kept)} of the specialist's domain gain."
    ]
    # Set by set where a loss is shown on any: the mean over sets may hide it, and holds only those
    # of one unit.
    lost_sets = results.lost_sets("specialist")
    for row, change in lost_sets:
        recovered_share = results.sets_recovered.get(row.name)
        undone = f"; recovered {percent(recovered_share)} of it" if recovered_share else ""
        lines.append(f"The specialist lost {change.words()} {row.unit} on {row.name}{undone}.")
    if recovered is not None and not lost_sets:
        lines.append(f"Recovered {percent(recovered)} of the specialist's general loss.")
    if recovered is None and not lost_sets:
        lines.append(
            "The specialist lost nothing on general sets that is shown: nothing is to be recovered."
        )
    return lines


def several_lines(results: MergeResults, several: SeveralResults) -> list[str]:
    """What the merge has of each of several specialists, and what was weighed."""
    lines = []
    for one in several.specialists:
        kept = (
            f"{one.name} shows no gain on its own sets to keep"
            if one.gain_kept is None
            else f"kept {percent(one.gain_kept)} of {one.name}'s gain on its own sets"
        )
        lines.append(
            f"{', '.join(one.sets)}: {kept} (the merge {one.merge_change.words(sign='+')})."
        )
    weights = ", ".join(f"{name} {weight:.3g}" for name, weight in several.weights.items())
    lines.append(f"The domain figure is the mean of absolute figures, weighted: {weights}.")
    lines += [
        f"The merge lost {change.words()} {row.unit} on {row.name}, a domain set."
        for row, change in lost_domain_sets(results)
    ]
    if several.domain_tolerance is None:
        lines.append(
            "No domain set was held by itself: one may pay for the others (select.domain_tolerance "
            "would hold each)."
        )
    return lines


def lost_domain_sets(results: MergeResults) -> list[tuple[SetResult, Interval]]:
    """Domain sets on which the merge has surely lost, with the change."""
    changes = results.models.merge.set_changes
    return [
        (row, changes[row.name])
        for row in results.sets_of("domain")
        if row.name in changes and changes[row.name].low > 0.0
    ]


def counts_of(results: MergeResults, role: FigureRole) -> str:
    """How many items a role was tested on, by set, and of how many groups, in words."""
    return "; ".join(f"{row.name}, {count_of(row)}" for row in results.sets_of(role))


def count_of(row: SetResult) -> str:
    """Test items of a set, with their groups where these are fewer."""
    items = f"{row.items_test:,} items"
    if row.one_group:
        return f"{items} of one group"
    return items if row.groups_test == row.items_test else f"{items} in {row.groups_test:,} groups"


def percent(value: Interval) -> str:
    return f"{value.estimate:.0%} ({value.low:.0%} to {value.high:.0%})"
