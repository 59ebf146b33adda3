"""The tables that `toolkit compare` ends with."""

from __future__ import annotations

from pathlib import Path

from toolkit.compare.results import ComparisonResults, SetStanding, WayCosts, WayFigures
from toolkit.progress import say, say_columns
from toolkit.statistics.interval import Interval, decimals, figure_text

NOT_KNOWN = "–"


def show_comparison(results: ComparisonResults, folder: Path) -> None:
    """Print every way beside the line of plain merges, what each takes, and what is to be known."""
    say(summary(results))
    say(
        "Gain kept: % of the reference specialist's. Each general set: change of its loss, and "
        "in brackets how many points of gain the way lies above the line of plain merges there."
    )
    general = results.general_sets()
    titles = ["", "gain kept", *(f"{one.name}, {one.unit}" for one in general)]
    rows = [titles]
    for point in results.line:
        changes = [_change(point.set_changes[one.name]) for one in general]
        name = f"line, α {point.alpha:g}" if point.alpha < 1.0 else "line, specialist"
        rows.append([name, kept_words(point.gain_kept), *changes])
    for way in results.figures:
        cells = [standing_words(way.sets[one.name]) for one in general]
        rows.append([way.title, kept_words(way.gain_kept), *cells])
    say_columns(rows)
    # Without a line every way would be given the same sentence.
    for way in results.figures if results.lines() else ():
        say(f"{way.title}: {sentence_of(results, way)}")
    say("What a way takes, a mean over seeds, as its stages noted it:")
    say_columns([["", *COST_TITLES], *([w.name, *cost_cells(w.costs)] for w in results.ways)])
    for remark in results.remarks:
        say(remark)
    say(f"The page and compare.json are in {folder}.")


COST_TITLES = (
    "tokens trained",
    "training, s",
    "tokens written",
    "tokens searched",
    "search, s",
    "tokens healed",
    "healing, s",
)


def cost_cells(costs: WayCosts) -> list[str]:
    """What a way took, in the order of `COST_TITLES`."""
    values = (
        costs.trained_tokens,
        costs.train_seconds,
        costs.written_tokens,
        costs.searched_tokens,
        costs.search_seconds,
        costs.healed_tokens,
        costs.heal_seconds,
    )
    return [NOT_KNOWN if value is None else f"{value:,.0f}" for value in values]


def summary(results: ComparisonResults) -> str:
    """What was compared, in one sentence."""
    seeds = f"{len(results.seeds)} seed{'s' if len(results.seeds) > 1 else ''}"
    sets = ", ".join(
        f"{one.name} ({one.num_items} items"
        + (f" in {one.num_groups} groups)" if one.num_groups < one.num_items else ")")
        for one in results.sets
        # Watched sets stand on the page: they count for nothing in what is said here.
        if one.role != "watch"
    )
    return (
        f"{len(results.ways)} ways of {results.recipe} over {seeds}, on {sets}; "
        f"{results.confidence:.0%} intervals over "
        f"{'items and seeds' if len(results.seeds) > 1 else 'items alone'}."
    )


def sentence_of(results: ComparisonResults, way: WayFigures) -> str:
    """Where a way stands to the line, set by set."""
    parts = []
    for one in results.lines():
        standing = way.sets[one.name]
        if standing.distance is not None:
            parts.append(
                f"{standing.standing} the line on {one.name} ({points(standing.distance)})"
            )
    return "; ".join(parts) + "." if parts else "there is no line to be held against."


def kept_words(kept: Interval | None) -> str:
    """Gain kept, in percent.

    >>> kept_words(Interval(0.757, 0.721, 0.802))
    '76 (72 to 80)'
    """
    if kept is None:
        return NOT_KNOWN
    return f"{_percent(kept.estimate)} ({_percent(kept.low)} to {_percent(kept.high)})"


def points(distance: Interval) -> str:
    """A distance from the line, in points of gain.

    >>> points(Interval(0.12, -0.01, 0.25))
    '+12, -1 to +25 points'
    """
    low, high = (figure_text(100.0 * end, "+.0f") for end in (distance.low, distance.high))
    return f"{figure_text(100.0 * distance.estimate, '+.0f')}, {low} to {high} points"


def standing_words(standing: SetStanding) -> str:
    """A change of the loss, and the distance from the line where there is one.

    >>> standing_words(SetStanding(change=Interval(0.05, 0.0, 0.1), distance=None, standing=None))
    '+0.050'
    """
    change = decimals(standing.change.estimate, 3, "+")
    if standing.distance is None:
        return change
    return f"{change} [{points(standing.distance).removesuffix(' points')}: {standing.standing}]"


def _percent(fraction: float) -> str:
    return figure_text(100.0 * fraction, ".0f")


def _change(change: Interval) -> str:
    return decimals(change.estimate, 3, "+")
