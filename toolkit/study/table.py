"""Claims and verdicts as lines for a terminal, and as the tables of a Markdown page.

A table stands between two markers that name its run; the text around them is written by hand and
stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolkit.errors import ConfigError

_HEAD = """# What the published systems claim, and what ours shows

Text between markers is written by `toolkit study table`; everything else is written by hand.
"""
_FAR = 1e3
"""Ends of intervals from here on are without bound: too few groups for the confidence wanted."""

_ON = {
    "domain": "domain text",
    "general": "general text",
    "retention": "answers of the general model",
    "infilling": "infilling of code",
}


def claim_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """What a terminal shows of a study."""
    yield f"{figures['recipe']}: {_together(figures)}"
    for claim in figures["claims"]:
        yield f"  {claim['claim']} ({_source(claim, claim['source'])})"
        yield f"    {measured_text(claim)}: {claim['verdict']}"
    for on, found in figures["figures"].items():
        models = ", ".join(f"{name} {value:.4f}" for name, value in found["models"].items())
        yield f"  {_ON.get(on, on)}, {found['unit']}: {models}"
        yield from (f"    {note}" for note in found["notes"])


def measured_text(claim: Mapping[str, Any]) -> str:
    """What was measured of a claim, in words and figures.

    >>> measured_text({
    ...     "measure": {"of": "weak", "against": "none", "test_set": "general", "expect": "lower",
    ...                 "unit": "difference", "than": None, "within": None, "fraction_of": None},
    ...     "together": {"estimate": -0.02, "low": -0.03, "high": -0.01},
    ...     "unit": "bits per byte", "note": ""})
    'general text, weak - none: -0.0200 [-0.0300, -0.0100] bits per byte (expected below 0)'
    """
    measure = claim["measure"]
    if claim["note"]:
        return f"{_ON.get(measure['test_set'], measure['test_set'])}: {claim['note']}"
    of, against = _named(measure["of"]), _named(measure["against"])
    percent = claim["unit"] in {"relative", "fraction"}
    low, middle, high = (
        _number(claim["together"][key], percent, signed=claim["unit"] != "fraction")
        for key in ("low", "estimate", "high")
    )
    what = f"{_ON.get(measure['test_set'], measure['test_set'])}, {of} - {against}"
    unit = f" {claim['unit']}"
    if claim["unit"] == "relative":
        unit = f" of the loss of {against}"
    elif claim["unit"] == "fraction":
        what = f"{_ON.get(measure['test_set'], measure['test_set'])}, {of}"
        unit = f" of the way from {against} to {measure['fraction_of']}"
    return f"{what}: {middle} [{low}, {high}]{unit} ({_expected(measure)})"


def _source(claim: Mapping[str, Any], place: str) -> str:
    return place if claim["mark"] is None else f"{place}, {claim['mark']}"


def _named(side: str | Sequence[str]) -> str:
    return side if isinstance(side, str) else f"({side[1]} - {side[0]})"


def _number(value: float, percent: bool, *, signed: bool) -> str:
    if not abs(value) < _FAR:
        return "unbounded"
    form = "+" if signed else ""
    return f"{100.0 * value:{form}.1f} %" if percent else f"{value:{form}.4f}"


def _expected(measure: Mapping[str, Any]) -> str:
    percent = measure["unit"] != "difference"
    if measure["expect"] == "equal":
        return f"expected within {_limit(measure['within'], percent)}"
    default = 0.5 if measure["unit"] == "fraction" else 0.0
    than = default if measure["than"] is None else measure["than"]
    return (
        f"expected {'below' if measure['expect'] == 'lower' else 'above'} {_limit(than, percent)}"
    )


def _limit(value: float, percent: bool) -> str:
    return f"{100.0 * value:g} %" if percent else f"{value:g}"


def _together(figures: Mapping[str, Any]) -> str:
    count, percent = len(figures["claims"]), 100.0 * figures["confidence"]
    if count == 1:
        return f"1 claim, {percent:g} % interval"
    return f"{count} claims, intervals that hold together with {percent:g} % (Bonferroni)"


def markdown_table(figures: Mapping[str, Any]) -> str:
    """The table of one study, with its date and command."""
    lines = [
        f"{figures['description']}. `{figures['command']}`, {figures['finished'][:10]}: "
        f"{_together(figures)}.",
        "",
        "| published | source | measured here | verdict |",
        "|---|---|---|---|",
    ]
    for claim in figures["claims"]:
        link = f"[{claim['source']}]({claim['address']})" if claim["address"] else claim["source"]
        cells = (claim["claim"], _source(claim, link), measured_text(claim))
        lines.append(f"| {' | '.join(map(_cell, cells))} | **{claim['verdict']}** |")
    sets = figures["figures"]
    columns = [f"{_ON.get(on, on)}, {found['unit']}" for on, found in sets.items()]
    models = dict.fromkeys(name for found in sets.values() for name in found["models"])
    lines += ["", f"| loss on test | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for model in models:
        values = [f"{found['models'][model]:.4f}" for found in sets.values()]
        lines.append(f"| {model} | {' | '.join(values)} |")
    counts = [f"{on}: {f['num_items']} in {f['num_groups']} groups" for on, f in sets.items()]
    lines += ["", f"Test items: {'; '.join(counts)}."]
    lines += [f"{on}: {note}." for on, found in sets.items() for note in found["notes"]]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def replace_tables(page: str, studies: Sequence[Mapping[str, Any]]) -> str:
    """A page with the tables of these studies put between their markers, or added at its end.

    Args:
        page: Markdown; empty for a new one.
        studies: figures with the date, as `study.json` and its manifest have them.

    Raises:
        ConfigError: a marker of the page stands alone or twice.
    """
    text = page or _HEAD
    for figures in studies:
        name = figures["recipe"]
        begin, end = f"<!-- study {name}: begin -->", f"<!-- study {name}: end -->"
        block = f"{begin}\n{markdown_table(figures)}\n{end}"
        counts = text.count(begin), text.count(end)
        if counts == (0, 0):
            text = f"{text.rstrip()}\n\n## {name}\n\n{block}\n"
        elif counts == (1, 1) and text.index(begin) < text.index(end):
            before, rest = text.split(begin)
            text = before + block + rest.split(end)[1]
        else:
            raise ConfigError(
                f"the page: the markers of study {name} must stand once each, begin before end "
                f"(found {counts[0]} and {counts[1]})."
            )
    return text
