"""The plan as a person reads it in a terminal, and the rows that its page shares with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from toolkit.plan.cost import Bill, FromScratch
from toolkit.plan.results import DeviceMemory, PlannedModel, PlannedSource, PlanResults, WayMemory
from toolkit.plan.verdict import words_of
from toolkit.progress import console, say

TOOLS = {
    "cpt": "continued pre-training",
    "fine-tuning": "fine-tuning, not continued pre-training",
    "retrieval": "retrieval, not continued pre-training",
    "nothing": "nothing: the general model does it",
}
FINISHED = "The recipe names a finished specialist: nothing is trained, a merge is chosen."
_NARROWEST = 79


@dataclass(frozen=True)
class PlanTable:
    """A table before it is drawn: its column titles, and its rows as words."""

    titles: tuple[str, ...]
    rows: list[list[str]]


def show_plan(plan: PlanResults) -> None:
    """Print the answers to the three questions."""
    say(f"\nPlan of {plan.recipe}: {plan.description or plan.model.name}")
    _show_tool(plan)
    _show_cost(plan)
    if plan.is_it_the_right_tool is not None:
        say("\n3. Which settings?")
        _print_table("", setting_table(plan))
        say(f"   Fine-tuning afterwards: {plan.fine_tuning}.")
    for note in plan.notes:
        say(f"   Note: {note}.")
    for assumption in plan.assumptions:
        say(f"   Assumed: {assumption}.")


def _show_tool(plan: PlanResults) -> None:
    right_tool = plan.is_it_the_right_tool
    if right_tool is None:
        say(f"\n1. Is it the right tool? {FINISHED}")
        return
    unsure_words = "" if right_tool.is_sure else " (not sure: see the reasons)"
    say(f"\n1. Is it the right tool? {TOOLS[right_tool.tool]}{unsure_words}")
    for reason in right_tool.reasons:
        say(f"   - {reason}")
    repeated_fraction = right_tool.duplicate_fraction or 0.0
    if repeated_fraction >= 0.0005:
        say(f"   - {repeated_fraction:.1%} of the domain's text repeats other text of it")
    for change in right_tool.what_would_change_it:
        say(f"   What would change it: {change}")
    _print_table("", source_table(plan))


def _show_cost(plan: PlanResults) -> None:
    say(f"\n2. What will it take? {parameter_words(plan.model)}")
    _print_table("", stage_table(plan))
    for memory in plan.memory[: None if plan.devices_named else 1]:
        _print_table(memory_title(memory), memory_table(memory))
    if plan.memory:
        _print_table(bill_title(plan), bill_table(plan))
    if plan.from_scratch is not None:
        say(f"   {scratch_words(plan.from_scratch)}")
    if plan.power:
        say("\n   What the validation sets can see of a merge:")
        for set_power in plan.power:
            say(f"   - {set_power.sentence}")


def source_table(plan: PlanResults) -> PlanTable:
    """Sources with their training tokens."""
    rows = [
        [
            source.name,
            source.role,
            source_tokens(source),
            "" if source.duplicate_fraction is None else f"{source.duplicate_fraction:.1%}",
        ]
        for source in plan.sources
    ]
    return PlanTable(("source", "role", "training tokens", "repeated"), rows)


def stage_table(plan: PlanResults) -> PlanTable:
    """Stages with their work."""
    rows = [
        [
            stage.name,
            words_of(stage.tokens or stage.positions),
            f"{stage.steps:,}" if stage.steps else "",
            f"{stage.flops:.2g}",
            time_words(stage.seconds),
        ]
        for stage in plan.stages
    ]
    return PlanTable(("stage", "tokens", "steps", "FLOPs", "on this machine"), rows)


def memory_table(memory: DeviceMemory) -> PlanTable:
    """Memory of one device: one row per component, one column per way to train."""
    ways = memory.ways
    rows = [
        [part, *(gigabytes(way.parts_bytes[part]) for way in ways)]
        for part in ways[0].parts_bytes
        if any(way.parts_bytes[part] for way in ways)
    ]
    rows.append(["all", *(gigabytes(way.total_bytes) for way in ways)])
    rows.append(["peak at", *(way.peak_at for way in ways)])
    rows.append(["fits", *(fits_words(way) for way in ways)])
    return PlanTable(("at the peak", *(way.name for way in ways)), rows)


def memory_title(memory: DeviceMemory) -> str:
    return f"GB on each of {memory.devices} ({gigabytes(memory.memory_bytes)} GB)"


def bill_table(plan: PlanResults) -> PlanTable:
    """Time and money by kind of devices, for the recipe's own way to train."""
    rows = [
        [
            bill.devices,
            gigabytes(memory.ways[0].total_bytes),
            fits_words(memory.ways[0]),
            time_words(None if bill.hours is None else 3600.0 * bill.hours),
            dollar_words(bill.dollars),
            bill_basis(bill),
        ]
        for bill, memory in zip(plan.bills, plan.memory, strict=False)
    ]
    return PlanTable(("devices", "GB each", "fits", "time", "cost", "standing on"), rows)


def bill_title(plan: PlanResults) -> str:
    way = plan.memory[0].ways[0].name if plan.memory else ""
    return f"{way}, all stages"


def setting_table(plan: PlanResults) -> PlanTable:
    """Settings beside the recipe's own."""
    rows = [
        [
            setting.key,
            _value_words(setting.now),
            _value_words(setting.value) if setting.changes else "as it is",
            setting.why,
        ]
        for setting in plan.settings
    ]
    return PlanTable(("setting", "now", "better", "why"), rows)


def gigabytes(number: float) -> str:
    """Bytes in GB, as many digits as matter."""
    return f"{number / 1e9:.2f}" if number < 1e10 else f"{number / 1e9:,.0f}"


def fits_words(way: WayMemory) -> str:
    if way.fits:
        return "yes"
    return f"on {way.fewest_devices}" if way.fewest_devices else "no"


def source_tokens(source: PlannedSource) -> str:
    """How many tokens a source has, and how it is known."""
    if source.tokens is None:
        return "not known"
    least_words = "at least " if source.at_least else ""
    if source.available is not None and source.available > source.tokens:
        available_words = f"{least_words}{words_of(source.available)} ({source.origin})"
        return f"{words_of(source.tokens)} of {available_words}"
    return f"{least_words}{words_of(source.tokens)} ({source.origin})"


def parameter_words(model: PlannedModel) -> str:
    """The model's size in words."""
    if model.parameters is None:
        return f"{model.name}: its measures are not known; give model.shape"
    size_words = f"{model.name}: {words_of(model.parameters)} parameters"
    if model.active_parameters is not None and model.active_parameters != model.parameters:
        size_words += f", {words_of(model.active_parameters)} active"
    return size_words


def time_words(seconds: float | None) -> str:
    """A duration as people say it, or nothing.

    >>> [time_words(n) for n in (None, 42, 400, 7200, 400_000)]
    ['', '42 s', '6.7 min', '2.0 h', '4.6 days']
    """
    if seconds is None:
        return ""
    for unit_seconds, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= unit_seconds * (2.0 if unit == "days" else 1.0):
            return f"{seconds / unit_seconds:,.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 1.0 else f"{seconds:.0f} s"


def dollar_words(dollars: float | None) -> str:
    """A price, or nothing.

    >>> [dollar_words(n) for n in (None, 0.001, 1234.5)]
    ['', 'under $0.01', '$1,234.50']
    """
    if dollars is None:
        return ""
    return f"${dollars:,.2f}" if dollars >= 0.01 else "under $0.01"


def bill_basis(bill: Bill) -> str:
    """What hours and cost stand on."""
    if bill.is_measured:
        return "measured here"
    return f"{bill.utilization:.0%} of peak, ${bill.price_per_hour:.2f}/h each"


def scratch_words(scratch: FromScratch) -> str:
    """The share of a first training, in words."""
    return (
        f"Beside training it from scratch ({words_of(scratch.tokens)} tokens; {scratch.source}): "
        f"{scratch.share:.2g} of the FLOPs (the article: {scratch.article})."
    )


def _value_words(value: Any) -> str:
    if isinstance(value, Mapping):
        known_items = ((key, item) for key, item in value.items() if item is not None)
        return ", ".join(f"{key}: {_value_words(item)}" for key, item in known_items)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _print_table(title: str, words: PlanTable) -> None:
    if not words.rows:
        return
    table = Table(title=title or None, title_justify="left")
    for number, name in enumerate(words.titles):
        is_prose = number == 0 or name in {"why", "standing on"}
        table.add_column(name, justify="left" if is_prose else "right")
    for row in words.rows:
        table.add_row(*row)
    console.print(table, width=max(console.width, _NARROWEST))
