"""The plan as a page: one file that fetches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from toolkit.plan.table import (
    TOOLS,
    bill_basis,
    dollar_words,
    fewest_words,
    parameter_words,
    scratch_words,
    source_tokens,
    time_words,
)
from toolkit.plan.verdict import words_of
from toolkit.report.html import Cell, PageSection, paragraph, table, write_document

Row = tuple[list[Cell | str], str]


def write_plan_page(path: Path, plan: Mapping[str, Any]) -> None:
    """Write `plan.html`."""
    right = plan["is_it_the_right_tool"]
    title = f"Plan of {plan['recipe']}"
    opening = f"<h1>{escape(title)}</h1>{paragraph(plan['description'])}"
    opening += paragraph(
        f"{TOOLS[right['tool']]}{'' if right['is_sure'] else ' (not sure)'}. "
        f"{parameter_words(plan['model'])}."
    )
    opening += "".join(paragraph(f"Would stop it: {line}") for line in plan["problems"])
    write_document(
        path,
        title,
        opening,
        [
            PageSection("tool", "Is it the right tool?", _tool(plan)),
            PageSection("cost", "What will it take?", _cost(plan)),
            PageSection("settings", "Which settings?", _settings(plan)),
            PageSection("notes", "What it stands on", _notes(plan)),
        ],
    )


def _tool(plan: Mapping[str, Any]) -> str:
    right = plan["is_it_the_right_tool"]
    body = "".join(paragraph(line) for line in right["reasons"])
    body += "".join(
        paragraph(f"What would change it: {line}") for line in right["what_would_change_it"]
    )
    if right["bits_per_byte"] is not None:
        names = {
            "domain": "domain",
            "general": "general text",
            "domain_shuffled": "domain, words shuffled",
            "general_shuffled": "general text, words shuffled",
        }
        figures = right["bits_per_byte"]
        rows: list[Row] = [
            (
                [
                    title,
                    Cell(
                        f"{f['estimate']:.3f}", f["estimate"], f"{f['low']:.3f} to {f['high']:.3f}"
                    ),
                ],
                "",
            )
            for title, f in ((title, figures[key]) for key, title in names.items())
        ]
        body += table("Bits per byte of the general model (95 %)", ["text", "bits per byte"], rows)
    rows = [
        (
            [
                role,
                f"{f['tokens_per_word']:.2f}",
                f"{f['badly_split_fraction']:.1%}",
                "" if f["rare_fraction"] is None else f"{f['rare_fraction']:.0%}",
                ", ".join(f["examples"]),
            ],
            "",
        )
        for role, f in right["words"].items()
    ]
    titles = ["words", "tokens a word", "in 4 pieces or more", "not in the other", "such as"]
    if rows:
        body += table("Words", titles, rows)
    rows = [
        (
            [
                s["name"],
                s["role"],
                source_tokens(s),
                "" if s["duplicate_fraction"] is None else f"{s['duplicate_fraction']:.1%}",
            ],
            "",
        )
        for s in plan["sources"]
    ]
    return body + table("Sources", ["source", "role", "training tokens", "repeated"], rows)


def _cost(plan: Mapping[str, Any]) -> str:
    body = ""
    if plan["stages"]:
        rows: list[Row] = [
            (
                [
                    s["name"],
                    words_of(s["tokens"] or s["positions"]),
                    f"{s['steps']:,}" if s["steps"] else "",
                    f"{s['flops']:.2g}",
                    "" if s["seconds"] is None else time_words(s["seconds"]),
                ],
                "",
            )
            for s in plan["stages"]
        ]
        titles = ["stage", "tokens", "steps", "FLOPs", "on this machine"]
        body += table("Stages", titles, rows)
    for row in plan["memory"]:
        parts = list(row["ways"][0]["parts_bytes"])
        rows = [
            (
                [
                    way["name"],
                    *(f"{way['parts_bytes'][part] / 1e9:.2f}" for part in parts),
                    f"{way['total_bytes'] / 1e9:.2f}",
                    "yes" if way["fits"] else fewest_words(way),
                ],
                "",
            )
            for way in row["ways"]
        ]
        caption = f"GB on each of {row['devices']} ({row['memory_bytes'] / 1e9:.0f} GB)"
        body += table(caption, ["way", *parts, "all", "fits"], rows)
    if plan["bills"]:
        rows = [
            (
                [
                    bill["devices"],
                    "yes" if bill["fits"] else "no",
                    "" if bill["hours"] is None else time_words(3600.0 * bill["hours"]),
                    dollar_words(bill["dollars"]),
                    bill_basis(bill),
                ],
                "",
            )
            for bill in plan["bills"]
        ]
        body += table("All stages", ["devices", "fits", "time", "cost", "standing on"], rows)
    if plan["from_scratch"] is not None:
        body += paragraph(scratch_words(plan["from_scratch"]).strip())
    return body


def _settings(plan: Mapping[str, Any]) -> str:
    rows: list[Row] = [
        (
            [s["key"], str(s["now"]), str(s["value"]) if s["changes"] else "as it is", s["why"]],
            "",
        )
        for s in plan["settings"]
    ]
    return table("Settings", ["setting", "now", "better", "why"], rows) + paragraph(
        f"Fine-tuning afterwards: {plan['fine_tuning']}."
    )


def _notes(plan: Mapping[str, Any]) -> str:
    lines = [*plan["notes"], *(f"Assumed: {line}" for line in plan["assumptions"])]
    return "".join(paragraph(line) for line in lines)
