"""Claims and verdicts as lines for a terminal, and as the tables of a Markdown page.

A table stands between two markers that name its run; the text around them is written by hand and
stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from toolkit.errors import ConfigError
from toolkit.statistics.interval import Sign, decimals
from toolkit.study.config import MeasureSection
from toolkit.study.results import JudgedClaim, StudyResults

_HEAD = """# What the published systems claim, and what ours shows

Text between markers is written by `toolkit study table`; everything else is written by hand.
"""
_FAR = 1e3
"""Ends of intervals from here on are without bound: too few groups for the confidence wanted."""

_SETS = {
    "domain": "domain text",
    "general": "general text",
    "retention": "answers of the general model",
    "infilling": "infilling of code",
}


def claim_lines(results: StudyResults) -> Iterator[str]:
    """What a terminal shows of a study."""
    yield f"{results.recipe}: {_together_words(results)}"
    for claim in results.claims:
        yield f"  {claim.claim} ({_marked(claim, claim.source)})"
        yield f"    {measured_text(claim)}: {claim.verdict}"
    for set_name, figures in results.figures.items():
        losses = ", ".join(f"{model} {loss:.4f}" for model, loss in figures.models.items())
        yield f"  {_set_words(set_name)}, {figures.unit}: {losses}"
        yield from (f"    {note}" for note in figures.notes)


def measured_text(claim: JudgedClaim) -> str:
    """What was measured of a claim, in words and figures."""
    measure = claim.measure
    set_words = _set_words(measure.test_set)
    if claim.note:
        return f"{set_words}: {claim.note}"
    of, against = _side_words(measure.of), _side_words(measure.against)
    is_percent = claim.unit in {"relative", "fraction"}
    low, estimate, high = (
        _number_words(value, is_percent, signed=claim.unit != "fraction")
        for value in (claim.together.low, claim.together.estimate, claim.together.high)
    )
    compared_words, unit_words = f"{set_words}, {of} - {against}", claim.unit
    if claim.unit == "relative":
        unit_words = f"of the loss of {against}"
    elif claim.unit == "fraction":
        compared_words, unit_words = (
            f"{set_words}, {of}",
            f"of the way from {against} to {measure.fraction_of}",
        )
    return f"{compared_words}: {estimate} [{low}, {high}] {unit_words} ({_expected_words(measure)})"


def _set_words(name: str) -> str:
    return _SETS.get(name, name)


def _marked(claim: JudgedClaim, place: str) -> str:
    return place if claim.mark is None else f"{place}, {claim.mark}"


def _side_words(side: str | tuple[str, str]) -> str:
    return side if isinstance(side, str) else f"({side[1]} - {side[0]})"


def _number_words(value: float, is_percent: bool, *, signed: bool) -> str:
    # Written so that NaN, which compares as neither, is unbounded too.
    if not abs(value) < _FAR:
        return "unbounded"
    sign: Sign = "+" if signed else ""
    return f"{decimals(100.0 * value, 1, sign)} %" if is_percent else decimals(value, sign=sign)


def _expected_words(measure: MeasureSection) -> str:
    limit = measure.threshold() if measure.within is None else measure.within
    limit_words = f"{limit:g}" if measure.unit == "difference" else f"{100.0 * limit:g} %"
    side_words = {"lower": "below", "higher": "above", "equal": "within"}
    return f"expected {side_words[measure.expect]} {limit_words}"


def _together_words(results: StudyResults) -> str:
    num_claims, percent = len(results.claims), 100.0 * results.confidence
    if num_claims == 1:
        return f"1 claim, {percent:g} % interval"
    return f"{num_claims} claims, intervals that hold together with {percent:g} % (Bonferroni)"


def markdown_table(results: StudyResults) -> str:
    """The table of one study, with its date and command."""
    lines = [
        f"{results.description}. `{results.command}`, {results.finished[:10]}: "
        f"{_together_words(results)}.",
        "",
        "| published | source | measured here | verdict |",
        "|---|---|---|---|",
    ]
    for claim in results.claims:
        source_link = f"[{claim.source}]({claim.address})" if claim.address else claim.source
        cells = (claim.claim, _marked(claim, source_link), measured_text(claim))
        lines.append(f"| {' | '.join(map(_cell, cells))} | **{claim.verdict}** |")
    sets = results.figures
    columns = [f"{_set_words(name)}, {figures.unit}" for name, figures in sets.items()]
    model_names = dict.fromkeys(name for figures in sets.values() for name in figures.models)
    lines += ["", f"| loss on test | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for model in model_names:
        loss_cells = [f"{figures.models[model]:.4f}" for figures in sets.values()]
        lines.append(f"| {model} | {' | '.join(loss_cells)} |")
    item_counts = [f"{name}: {f.num_items} in {f.num_groups} groups" for name, f in sets.items()]
    lines += ["", f"Test items: {'; '.join(item_counts)}."]
    lines += [f"{name}: {note}." for name, figures in sets.items() for note in figures.notes]
    return "\n".join(lines)


def _cell(text: str) -> str:
    # A line break or a bar would end the cell.
    return " ".join(text.split()).replace("|", "\\|")


def replace_tables(page: str, studies: Sequence[StudyResults]) -> str:
    """A page with the tables of these studies put between their markers, or added at its end.

    Args:
        page: Markdown; empty for a new one.
        studies: results with the date of their manifest.

    Raises:
        ConfigError: a marker of the page stands alone or twice.
    """
    text = page or _HEAD
    for results in studies:
        name = results.recipe
        begin_mark, end_mark = f"<!-- study {name}: begin -->", f"<!-- study {name}: end -->"
        table_block = f"{begin_mark}\n{markdown_table(results)}\n{end_mark}"
        mark_counts = text.count(begin_mark), text.count(end_mark)
        # A page without the markers gets the table at its end; a person may move it from there.
        if mark_counts == (0, 0):
            text = f"{text.rstrip()}\n\n## {name}\n\n{table_block}\n"
        elif mark_counts == (1, 1) and text.index(begin_mark) < text.index(end_mark):
            # Whatever stood between the markers is replaced; all around it stays as it is.
            before, rest = text.split(begin_mark)
            text = before + table_block + rest.split(end_mark)[1]
        else:
            raise ConfigError(
                f"the page: the markers of study {name} must stand once each, begin before end "
                f"(found {mark_counts[0]} and {mark_counts[1]})."
            )
    return text
