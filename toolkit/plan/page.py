"""The plan as a page: one file that fetches nothing. Its rows are those of the terminal."""

from __future__ import annotations

from html import escape
from pathlib import Path

from toolkit.plan.results import PlanResults, RightTool
from toolkit.plan.table import (
    FINISHED,
    TOOLS,
    PlanTable,
    bill_table,
    bill_title,
    memory_table,
    memory_title,
    parameter_words,
    scratch_words,
    setting_table,
    source_table,
    stage_table,
)
from toolkit.report.html import Cell, PageSection, paragraph, table, write_document


def write_plan_page(path: Path, plan: PlanResults) -> None:
    """Write `plan.html`."""
    right_tool = plan.is_it_the_right_tool
    title = f"Plan of {plan.recipe}"
    opening_html = f"<h1>{escape(title)}</h1>{paragraph(plan.description)}"
    tool_words = (
        FINISHED.removesuffix(".")
        if right_tool is None
        else f"{TOOLS[right_tool.tool]}{'' if right_tool.is_sure else ' (not sure)'}"
    )
    opening_html += paragraph(f"{tool_words}. {parameter_words(plan.model)}.")
    opening_html += "".join(paragraph(f"Would stop it: {problem}") for problem in plan.problems)
    settings_html = ""
    if right_tool is not None:
        settings_html = _html_table("Settings", setting_table(plan))
        settings_html += paragraph(f"Fine-tuning afterwards: {plan.fine_tuning}.")
    assumption_lines = [f"Assumed: {assumption}" for assumption in plan.assumptions]
    sections = [
        PageSection(
            "tool",
            "Is it the right tool?",
            "" if right_tool is None else _tool_html(plan, right_tool),
        ),
        PageSection("cost", "What will it take?", _cost_html(plan)),
        PageSection("settings", "Which settings?", settings_html),
        PageSection(
            "notes", "What it stands on", "".join(map(paragraph, [*plan.notes, *assumption_lines]))
        ),
    ]
    write_document(path, title, opening_html, sections)


def _html_table(caption: str, words: PlanTable) -> str:
    return table(caption, words.titles, ((row, "") for row in words.rows)) if words.rows else ""


def _tool_html(plan: PlanResults, right_tool: RightTool) -> str:
    change_lines = [f"What would change it: {line}" for line in right_tool.what_would_change_it]
    body = "".join(map(paragraph, [*right_tool.reasons, *change_lines]))
    body += _loss_table(right_tool)
    word_titles = ("words", "tokens per word", "in 4 pieces or more", "not in the other", "such as")
    word_rows = [
        [
            role,
            f"{figures.tokens_per_word:.2f}",
            f"{figures.badly_split_fraction:.1%}",
            "" if figures.rare_fraction is None else f"{figures.rare_fraction:.0%}",
            ", ".join(figures.examples),
        ]
        for role, figures in right_tool.words.items()
    ]
    return (
        body
        + _html_table("Words", PlanTable(word_titles, word_rows))
        + _html_table("Sources", source_table(plan))
    )


def _loss_table(right_tool: RightTool) -> str:
    surprise = right_tool.bits_per_byte
    if surprise is None:
        return ""
    intervals_by_text = {
        "domain": surprise.domain,
        "general text": surprise.general,
        "domain, words shuffled": surprise.domain_shuffled,
        "general text, words shuffled": surprise.general_shuffled,
    }
    loss_rows: list[tuple[list[Cell | str], str]] = [
        ([text, Cell(f"{i.estimate:.3f}", i.estimate, f"{i.low:.3f} to {i.high:.3f}")], "")
        for text, i in intervals_by_text.items()
    ]
    return table("Bits per byte of the general model (95 %)", ["text", "bits per byte"], loss_rows)


def _cost_html(plan: PlanResults) -> str:
    body = _html_table("Stages", stage_table(plan))
    body += "".join(_html_table(memory_title(m), memory_table(m)) for m in plan.memory)
    body += _html_table(bill_title(plan), bill_table(plan)) if plan.memory else ""
    if plan.from_scratch is not None:
        body += paragraph(scratch_words(plan.from_scratch))
    return body
