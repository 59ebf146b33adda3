"""The outcome in plain sentences, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODELS = (("general", "general model"), ("specialist", "specialist"), ("merge", "chosen merge"))
ROLES = ("domain", "general")


def verdict(results: Mapping[str, Any]) -> tuple[str, str]:
    """Two sentences: what was gained on the domain, and what it cost elsewhere; by test figures."""
    domain, general = (unit_of(results, role) for role in ROLES)
    limit = f"{results['tolerance']:g}"
    if not results["any_merge"]:
        alone = results["models"]["specialist"]
        return (
            "The general model is kept: no candidate gains on the domain while its general loss "
            f"surely stays within {limit} {general}.",
            f"Training alone changes the domain by {alone['domain_change']['estimate']:+.3f} and "
            f"general sets by {alone['general_change']['estimate']:+.3f}; lower is better.",
        )
    merge, kept = results["models"]["merge"], results["gain_kept"]
    change, name = merge["domain_change"], results["chosen"]
    share = f", {kept['estimate']:.0%} of what training gained" if kept else ""
    first = f"{name} gains {-change['estimate']:.3f} {domain} on the domain{share}."
    if change["high"] >= 0.0:
        first = (
            f"{name} was chosen, but its change on the domain's test sets, "
            f"{signed_interval(change, 3)} {domain}, cannot be told from none."
        )
    return first, f"{_cost(results, merge['general_change'], general, limit)}."


def _cost(results: Mapping[str, Any], change: Mapping[str, float], unit: str, limit: str) -> str:
    estimate, high = f"{change['estimate']:+.3f} {unit}", f"{change['high']:+.3f}"
    recovered = results["loss_recovered"]
    share = f", with {recovered['estimate']:.0%} of training's loss undone" if recovered else ""
    if lost := lost_sets(results, "merge"):
        parts = [
            f"{name} {signed_interval(value, 3)} {set_unit}{_undone(results, name)}"
            for name, value, set_unit in lost
        ]
        return f"It costs {' and '.join(parts)}"
    if change["high"] <= 0.0:
        return f"Nothing is lost on general sets, which change by {estimate}{share}"
    words = f"General sets change by {estimate} ({high} at most){share}"
    if change["high"] <= results["tolerance"]:
        return f"{words}, within the {limit} tolerated"
    if change["estimate"] <= results["tolerance"]:
        return f"{words}, which may be more than the {limit} tolerated"
    return f"{words}: more than the {limit} tolerated, which the tuning sets did not show"


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


_TYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def precision_line(results: Mapping[str, Any]) -> str | None:
    """In which arithmetic the figures were made; None in reports of versions that did not say."""
    used = results.get("precision") or {}
    scoring, training = (_TYPES.get(used.get(key) or "") for key in ("scoring", "training"))
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
    share = results.get("sets_recovered", {}).get(name)
    return f", with {share['estimate']:.0%} of training's loss undone" if share else ""


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
    """How many items a role was tested on, in words."""
    sets = sets_of(results, role)
    if not sets:
        return f"{results['test'][role]:,} documents"
    total = f"{sum(row['items_test'] for row in sets):,} items"
    return f"{total} of {len(sets)} sets" if len(sets) > 1 else f"{sets[0]['name']}, {total}"


def interval(value: Mapping[str, float], decimals: int = 4) -> str:
    low, high = f"{value['low']:.{decimals}f}", f"{value['high']:.{decimals}f}"
    return f"{value['estimate']:.{decimals}f} ({low} to {high})"


def signed_interval(value: Mapping[str, float], decimals: int = 4) -> str:
    low, high = f"{value['low']:+.{decimals}f}", f"{value['high']:+.{decimals}f}"
    return f"{value['estimate']:+.{decimals}f} ({low} to {high})"


def percent(value: Mapping[str, float]) -> str:
    return f"{value['estimate']:.0%} ({value['low']:.0%} to {value['high']:.0%})"
