"""The outcome in plain sentences, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.machine import DTYPE_NAMES

MODELS = (("general", "general model"), ("specialist", "specialist"), ("merge", "chosen merge"))
ROLES = ("domain", "general")


def verdict(results: Mapping[str, Any]) -> tuple[str, str]:
    """Two sentences: what was gained on the domain, and what it cost elsewhere; by test figures."""
    domain = unit_of(results, "domain")
    if not results["any_merge"]:
        alone = results["models"]["specialist"]
        return (
            "The general model is kept: no candidate is shown to gain on the domain while general "
            "sets surely stay within what they may lose.",
            f"On the test sets training alone changes the domain by "
            f"{signed_interval(alone['domain_change'], 3)} {domain}; "
            f"{_listed(general_changes(results, 'specialist'))}. Lower is better.",
        )
    merge, kept = results["models"]["merge"], results["gain_kept"]
    change, name = merge["domain_change"], results["chosen"]
    share = f", {percent(kept)} of what training gained" if kept else ""
    first = f"{name} gains {-change['estimate']:.3f} {domain} on the domain{share}."
    if change["high"] >= 0.0:
        first = (
            f"{name} was chosen, but its change on the domain's test sets, "
            f"{signed_interval(change, 3)} {domain}, cannot be told from none."
        )
    return first, _cost(results)


@dataclass(frozen=True)
class GeneralChange:
    """How a model changes on one general test set.

    Attributes:
        name: of the set, or `general sets` where figures by set are not known.
        change: against the general model, with its interval.
        unit: of both.
        tolerance: largest loss accepted, in the unit.
    """

    name: str
    change: Mapping[str, float]
    unit: str
    tolerance: float

    @property
    def standing(self) -> int:
        """The worse the test is, the higher: 0 nothing is lost, 1 within the tolerance, 2 perhaps
        beyond it, 3 probably, 4 surely."""
        estimate, low, high = (self.change[key] for key in ("estimate", "low", "high"))
        return (
            4 if low > self.tolerance
            else 3 if estimate > self.tolerance
            else 2 if high > self.tolerance
            else 1 if high > 0.0
            else 0
        )  # fmt: skip

    @property
    def words(self) -> str:
        limit = f"the {self.tolerance:g} tolerated"
        judged = (
            "nothing is lost",
            f"within {limit}",
            f"which may be more than {limit}",
            f"probably more than {limit}, which the validation sets did not show",
            f"surely more than {limit}, which the validation sets did not show",
        )
        shown = f"{self.name} {signed_interval(self.change, 3)} {self.unit}"
        return f"{shown}, {judged[self.standing]}"


def general_changes(results: Mapping[str, Any], model: str) -> list[GeneralChange]:
    """How a model changes on each general test set, each in its own unit."""
    row = results["models"][model]
    changes = row.get("set_changes", {})
    found = [
        GeneralChange(
            entry["name"],
            changes[entry["name"]],
            entry["unit"],
            results["tolerance"] if entry.get("tolerance") is None else entry["tolerance"],
        )
        for entry in results.get("sets", ())
        if entry["role"] == "general" and entry["name"] in changes
    ]
    whole = row["general_change"], unit_of(results, "general"), results["tolerance"]
    return found or [GeneralChange("general sets", *whole)]


def _listed(changes: Sequence[GeneralChange]) -> str:
    return ", ".join(f"{c.name} {signed_interval(c.change, 3)} {c.unit}" for c in changes)


def _cost(results: Mapping[str, Any]) -> str:
    """The test held against the tolerance, set by set, the worst first."""
    changes = sorted(general_changes(results, "merge"), key=lambda change: -change.standing)
    told = "; ".join(f"{c.words}{_undone(results, c.name)}" for c in changes)
    worst = changes[0].standing
    head = (
        "Nothing is lost on general sets",
        "General sets stay within what they may lose",
        "It is not shown on test that general sets stay within what they may lose",
        "On test general sets probably lose more than is tolerated",
        "On test general sets surely lose more than is tolerated",
    )[worst]
    return f"{head}: {told}."


def notes(results: Mapping[str, Any]) -> list[str]:
    """What else should be known: whether the plain sweep was beaten, what the figures cannot show,
    what the search cost."""
    lines = []
    if beaten := results.get("beat_sweep"):
        lines.append(str(beaten["sentence"]))
    lines += map(str, results.get("remarks", ()))
    used, whole = results.get("search_tokens"), results.get("full_tokens")
    if used and whole:
        lines.append(
            f"The search computed {used:,} tokens, {used / whole:.0%} of scoring every candidate "
            "on everything."
        )
    if (line := precision_line(results)) is not None:
        lines.append(line)
    if (times := results.get("test_scorings", 1)) > 1:
        lines.append(
            f"The test sets were scored {times} times; figures that were looked at before a change "
            "are no longer independent of it."
        )
    return lines


def _name_of_type(precision: object) -> str | None:
    return next((name for key, name in DTYPE_NAMES.items() if key == precision), None)


def precision_line(results: Mapping[str, Any]) -> str | None:
    """In which arithmetic the figures were made; None in reports of versions that did not say."""
    used = results.get("precision") or {}
    scoring, training = (_name_of_type(used.get(key)) for key in ("scoring", "training"))
    if scoring is None:
        return None
    trained = f"; the specialist was trained in {training}" if training else ""
    return f"Every model was scored in {scoring} arithmetic{trained}."


def lost_sets(results: Mapping[str, Any], model: str) -> list[tuple[str, Mapping[str, float], str]]:
    """General sets on which a model has surely lost: name, change with interval, and unit."""
    changes = results["models"][model].get("set_changes", {})
    rows = [row for row in results.get("sets", ()) if row["role"] == "general"]
    known = [
        (row["name"], changes[row["name"]], row["unit"]) for row in rows if row["name"] in changes
    ]
    return [entry for entry in known if entry[1]["low"] > 0.0]


def _undone(results: Mapping[str, Any], name: str) -> str:
    by_set = results.get("sets_recovered", {})
    share = by_set.get(name, None if by_set else results.get("loss_recovered"))
    return f" ({percent(share)} of training's loss undone)" if share else ""


def kept_lines(results: Mapping[str, Any]) -> list[str]:
    """How much of the specialist's gain was kept, and how much of its loss recovered."""
    kept, recovered = results["gain_kept"], results["loss_recovered"]
    lines = [
        "The specialist shows no domain gain to keep."
        if kept is None
        else f"Kept {percent(kept)} of the specialist's domain gain."
    ]
    lost = lost_sets(results, "specialist")
    for name, value, unit in lost:
        share = results.get("sets_recovered", {}).get(name)
        undone = f"; recovered {percent(share)} of it" if share else ""
        lines.append(f"The specialist lost {interval(value)} {unit} on {name}{undone}.")
    if recovered is not None and not lost:
        lines.append(f"Recovered {percent(recovered)} of the specialist's general loss.")
    if recovered is None and not lost:
        lines.append(
            "The specialist lost nothing on general sets that is shown: nothing is to be recovered."
        )
    return lines


def sets_of(results: Mapping[str, Any], role: str) -> list[Mapping[str, Any]]:
    """The sets that a role's figure is made of: of general sets those in the first one's unit."""
    rows = [row for row in results.get("sets", ()) if row["role"] == role]
    return [row for row in rows if role == "domain" or row["unit"] == rows[0]["unit"]]


def unit_of(results: Mapping[str, Any], role: str) -> str:
    """The unit of a role's figures: that of its sets, or a plain word where they differ.

    >>> unit_of({}, "domain")
    'bits per byte'
    >>> unit_of({"sets": [{"role": "domain", "unit": "error"}]}, "domain")
    'error'
    """
    units = {row["unit"] for row in sets_of(results, role)}
    return "bits per byte" if not units else units.pop() if len(units) == 1 else "mean loss"


def counts_of(results: Mapping[str, Any], role: str) -> str:
    """How many items a role was tested on, by set, and of how many groups, in words."""
    sets = sets_of(results, role)
    if not sets:
        return f"{results['test'][role]:,} documents"
    return "; ".join(f"{row['name']}, {count_of(row)}" for row in sets)


def count_of(row: Mapping[str, Any]) -> str:
    """Test items of a set, with their groups where these are fewer.

    >>> count_of({"items_test": 43, "groups_test": 2}), count_of({"items_test": 1200})
    ('43 items in 2 groups', '1,200 items')
    """
    items = f"{row['items_test']:,} items"
    groups = row.get("groups_test") or row["items_test"]
    if row.get("one_group"):
        return f"{items} of one group"
    return items if groups == row["items_test"] else f"{items} in {groups:,} groups"


def interval(value: Mapping[str, float], decimals: int = 4) -> str:
    low, high = f"{value['low']:.{decimals}f}", f"{value['high']:.{decimals}f}"
    return f"{value['estimate']:.{decimals}f} ({low} to {high})"


def signed_interval(value: Mapping[str, float], decimals: int = 4) -> str:
    low, high = f"{value['low']:+.{decimals}f}", f"{value['high']:+.{decimals}f}"
    return f"{value['estimate']:+.{decimals}f} ({low} to {high})"


def percent(value: Mapping[str, float]) -> str:
    return f"{value['estimate']:.0%} ({value['low']:.0%} to {value['high']:.0%})"
