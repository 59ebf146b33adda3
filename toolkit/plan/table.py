"""The plan as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from toolkit.plan.verdict import words_of
from toolkit.progress import console, say

TOOLS = {
    "cpt": "continued pre-training",
    "fine-tuning": "fine-tuning, not continued pre-training",
    "retrieval": "retrieval, not continued pre-training",
    "nothing": "nothing: the general model does it",
}
_NARROWEST = 79


def show_plan(plan: Mapping[str, Any]) -> None:
    """Print the answers to the three questions."""
    model = plan["model"]
    say(f"\nPlan of {plan['recipe']}: {plan['description'] or model['name']}")
    right = plan["is_it_the_right_tool"]
    sure = "" if right["is_sure"] else " (not sure: see the reasons)"
    say(f"\n1. Is it the right tool? {TOOLS[right['tool']]}{sure}")
    for line in right["reasons"]:
        say(f"   - {line}")
    if (right["duplicate_fraction"] or 0.0) >= 0.0005:
        say(f"   - {right['duplicate_fraction']:.1%} of the domain's text repeats other text of it")
    for line in right["what_would_change_it"]:
        say(f"   What would change it: {line}")
    rows = [
        (
            source["name"],
            source["role"],
            source_tokens(source),
            "" if source["duplicate_fraction"] is None else f"{source['duplicate_fraction']:.1%}",
        )
        for source in plan["sources"]
    ]
    _table("", ("source", "role", "training tokens", "repeated"), rows)
    say(f"\n2. What will it take? {parameter_words(model)}")
    stages = [
        (
            row["name"],
            words_of(row["tokens"] or row["positions"]),
            f"{row['steps']:,}" if row["steps"] else "",
            f"{row['flops']:.2g}",
            time_words(row["seconds"]) if row["seconds"] is not None else "",
        )
        for row in plan["stages"]
    ]
    _table("", ("stage", "tokens", "steps", "FLOPs", "on this machine"), stages)
    for row in plan["memory"][: None if plan["devices_named"] else 1]:
        show_memory(row)
    bills = [
        (
            bill["devices"],
            gigabytes(row["ways"][0]["total_bytes"]),
            "yes" if bill["fits"] else fewest_words(row["ways"][0]),
            "" if bill["hours"] is None else time_words(3600.0 * bill["hours"]),
            dollar_words(bill["dollars"]),
            bill_basis(bill),
        )
        for bill, row in zip(plan["bills"], plan["memory"], strict=False)
    ]
    titles = ("devices", "GB each", "fits", "time", "cost", "standing on")
    _table(f"{ways_words(plan)}, all stages", titles, bills)
    if (scratch := plan["from_scratch"]) is not None:
        say(scratch_words(scratch))
    if plan.get("power"):
        say("\n   What the validation sets can see of a merge:")
        for one in plan["power"]:
            say(f"   - {one['sentence']}")
    say("\n3. Which settings?")
    settings = [
        (s["key"], _value(s["now"]), _value(s["value"]) if s["changes"] else "as it is", s["why"])
        for s in plan["settings"]
    ]
    _table("", ("setting", "now", "better", "why"), settings)
    say(f"   Fine-tuning afterwards: {plan['fine_tuning']}.")
    for line in plan["notes"]:
        say(f"   Note: {line}.")
    for line in plan["assumptions"]:
        say(f"   Assumed: {line}.")


def show_memory(row: Mapping[str, Any]) -> None:
    """Memory of one device: a component a row, a way to train a column."""
    ways = row["ways"]
    rows = [
        (part, *(gigabytes(way["parts_bytes"][part]) for way in ways))
        for part in ways[0]["parts_bytes"]
        if any(way["parts_bytes"][part] for way in ways)
    ]
    rows.append(("all", *(gigabytes(way["total_bytes"]) for way in ways)))
    rows.append(("peak at", *(way["peak_at"] for way in ways)))
    rows.append(("fits", *("yes" if way["fits"] else fewest_words(way) for way in ways)))
    title = f"GB on each of {row['devices']} ({gigabytes(row['memory_bytes'])} GB)"
    _table(title, ("at the peak", *(way["name"] for way in ways)), rows)


def gigabytes(number: float) -> str:
    """Bytes in GB, as many digits as matter."""
    return f"{number / 1e9:.2f}" if number < 1e10 else f"{number / 1e9:,.0f}"


def fewest_words(way: Mapping[str, Any]) -> str:
    return f"on {way['fewest_devices']}" if way["fewest_devices"] else "no"


def source_tokens(source: Mapping[str, Any]) -> str:
    """How many tokens a source has, and how it is known."""
    if source["tokens"] is None:
        return "not known"
    least = "at least " if source["at_least"] else ""
    available = source["available"]
    if available is not None and available > source["tokens"]:
        return f"{words_of(source['tokens'])} of {least}{words_of(available)} ({source['origin']})"
    return f"{least}{words_of(source['tokens'])} ({source['origin']})"


def parameter_words(model: Mapping[str, Any]) -> str:
    """The model's size in words."""
    if model["parameters"] is None:
        return f"{model['name']}: its measures are not known; give model.shape"
    text = f"{model['name']}: {words_of(model['parameters'])} parameters"
    if model["active_parameters"] != model["parameters"]:
        text += f", {words_of(model['active_parameters'])} active"
    return text


def time_words(seconds: float) -> str:
    """A duration as people say it.

    >>> [time_words(n) for n in (42, 400, 7200, 400_000)]
    ['42 s', '6.7 min', '2.0 h', '4.6 days']
    """
    for size, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size * (2.0 if unit == "days" else 1.0):
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 1.0 else f"{seconds:.0f} s"


def ways_words(plan: Mapping[str, Any]) -> str:
    """How the recipe trains."""
    return str(plan["memory"][0]["ways"][0]["name"]) if plan["memory"] else ""


def dollar_words(dollars: float | None) -> str:
    """A price, or nothing.

    >>> [dollar_words(n) for n in (None, 0.001, 1234.5)]
    ['', 'under $0.01', '$1,234.50']
    """
    if dollars is None:
        return ""
    return f"${dollars:,.2f}" if dollars >= 0.01 else "under $0.01"


def bill_basis(bill: Mapping[str, Any]) -> str:
    """What hours and cost stand on."""
    if bill["is_measured"]:
        return "measured here"
    return f"{bill['utilization']:.0%} of peak, ${bill['price_per_hour']:.2f}/h each"


def scratch_words(scratch: Mapping[str, Any]) -> str:
    """The share of a first training, in words."""
    return (
        f"   Beside training it from scratch ({words_of(scratch['tokens'])} tokens; "
        f"{scratch['source']}): {scratch['share']:.2g} of the FLOPs "
        f"(the article: {scratch['article']})."
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_value(v)}" for key, v in value.items() if v is not None)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _table(title: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    table = Table(title=title or None, title_justify="left")
    for number, name in enumerate(titles):
        long = name in {"why", "standing on"}
        table.add_column(name, justify="left" if number == 0 or long else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table, width=max(console.width, _NARROWEST))
