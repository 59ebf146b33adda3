"""What merge methods keep of a specialist's gain, and recover of what it lost, on `test`.

python benchmarks/methods.py [--runs runs] [--recipe finance] [--out methods.jsonl]
python benchmarks/methods.py --table finance.jsonl medical.jsonl law.jsonl [--plot methods.svg]

Of a recipe whose cpt stage exists: for each method a small search of its own on the validation
documents (with the race; scores are kept in a cache beside `--out`), then the best candidate that
stays within what general sets may lose is scored on `test`, once. Where none stays within, the one
that loses least. A line of the output holds one method with the figures of every test document;
methods that stand there are not looked at again, so a call that was interrupted goes on. Nothing
of the run is changed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from html import escape
from pathlib import Path
from typing import Any

from toolkit.json_lines import split_lines
from toolkit.pipeline.merge_inputs import MergeInputs
from toolkit.pipeline.merge_search import Search, prepare_search
from toolkit.pipeline.run import Run
from toolkit.pipeline.stages import merge_stage
from toolkit.progress import say
from toolkit.recipe.load import find_recipe, load_recipe
from toolkit.report.verdict import percent
from toolkit.search.run import Scorer, run_search
from toolkit.search.space import GENERAL, SPECIALIST
from toolkit.search.worker import Outcome
from toolkit.select.candidates import CandidateRow, by_item, candidate_rows
from toolkit.select.test_figures import MERGE, ScoredTestSets, document_figures, final_figures
from toolkit.stage import write_atomically
from toolkit.statistics.interval import Interval

CANDIDATES = {"linear": 0, "slerp": 6, "ties": 8, "dare_ties": 8}
"""Merges that are tried of each method, the two models aside; linear has the sweep besides."""

LINEAR_MORE = 2

COLORS = ("#1b6ca8", "#b8541f", "#2e7d4f", "#7a3e9d")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--recipe", default="finance")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--methods", default=",".join(CANDIDATES))
    parser.add_argument("--table", type=Path, nargs="+", help="files of earlier calls, together")
    parser.add_argument("--plot", type=Path, help="with --table: an SVG")
    given = parser.parse_args()
    if given.table:
        rows = [row for path in given.table for row in read_lines(path)]
    else:
        out = given.out or given.runs / f"methods-{given.recipe}.jsonl"
        rows = measure(given.runs, given.recipe, out, given.methods.split(","))
    print(table(rows))
    if given.plot:
        with write_atomically(given.plot) as file:
            file.write(chart(rows))


def measure(runs: Path, recipe: str, out: Path, methods: Sequence[str]) -> list[dict[str, Any]]:
    """One row a method, those known from before included."""
    path = find_recipe(recipe)
    run = Run.of(path, load_recipe(path), runs)
    general, data, specialist = (run.root / name for name in ("general", "data", "cpt"))
    inputs = MergeInputs(run.name, run.recipe, general, {SPECIALIST: specialist}, data)
    stage = merge_stage(run, inputs)
    rows = read_lines(out) if out.is_file() else []
    out.parent.mkdir(parents=True, exist_ok=True)
    losses: dict[str, Any] = {}
    for method in methods:
        if any(row["method"] == method for row in rows):
            continue
        section = run.recipe.search
        fixed = len(set(section.sweep)) + LINEAR_MORE if method == "linear" else 0
        wanted = section.model_copy(
            update={
                "merges": (method,),
                "num_trials": 2 + fixed + CANDIDATES[method],
                "sweep": section.sweep if method == "linear" else (),
            }
        )
        changed = run.recipe.model_copy(update={"search": wanted})
        search = prepare_search(replace(inputs, name=f"{run.name}-{method}", recipe=changed), stage)
        bench = search.bench(cache=out.with_suffix(".scores"))
        journal = out.with_name(f"{out.stem}-{method}.study")
        say(f"{run.name}, {method}: {len(search.plan.queue())} candidates")
        outcomes = run_search(search.plan, journal, search.inputs.study, search.identity, bench)
        row, within = chosen(search, outcomes)
        say(f"  {row.name}{'' if within else ' (none stays within the tolerance)'}")
        scorer = Scorer(bench, out.with_suffix(".test.json"))
        by_name = {outcome.candidate.name: outcome for outcome in outcomes}
        for name in (GENERAL, SPECIALIST):
            losses.setdefault(name, on_test(search, scorer, by_name[name]))
        losses[MERGE] = on_test(search, scorer, row.outcome)
        rows.append(
            {
                "recipe": run.name,
                "method": method,
                "candidates": len(outcomes),
                "tokens": sum(outcome.tokens for outcome in outcomes),
                **result(search, row, within, {n: losses[n] for n in (GENERAL, SPECIALIST, MERGE)}),
            }
        )
        with write_atomically(out) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


def chosen(search: Search, outcomes: Sequence[Outcome]) -> tuple[CandidateRow, bool]:
    """The merge with the largest domain gain within the tolerance, or the one that loses least."""
    rows = candidate_rows(outcomes, search.plan.objective)
    merges = [row for row in rows if row.name not in (GENERAL, SPECIALIST)]
    merges = [row for row in merges if row.outcome.status != "failed"]
    tolerance = search.plan.objective.tolerance
    within = [r for r in merges if r.is_complete and r.general_loss_bound <= tolerance]
    if within:
        return min(within, key=lambda row: (row.domain, row.distance)), True
    known = [row for row in merges if math.isfinite(row.general_loss_bound)]
    return min(known, key=lambda row: (row.general_loss_bound, row.distance)), False


def on_test(search: Search, scorer: Scorer, outcome: Outcome) -> dict[str, list[float]]:
    """Losses of a candidate by test set, in the order of the items."""
    objective = search.objective(search.test)
    losses = by_item(objective, scorer.score(outcome, objective, part="test"))
    return {item.name: [losses[item.name][name] for name in item.ids] for item in search.test}


def result(
    search: Search, row: CandidateRow, within: bool, losses: Mapping[str, Mapping[str, list[float]]]
) -> dict[str, Any]:
    recipe = search.recipe
    figures = final_figures(ScoredTestSets(search.test, recipe.search.weights, losses))
    changes = {
        SPECIALIST: figures.models.specialist.set_changes,
        MERGE: figures.models.merge.set_changes,
    }
    return {
        "chosen": row.name,
        "parameters": dict(row.outcome.candidate.parameters),
        "within_tolerance": within,
        "sets": [{"name": s.name, "role": s.role, "unit": s.unit} for s in search.test],
        "gain_kept": asdict(figures.gain_kept) if figures.gain_kept else None,
        "recovered": {
            name: asdict(share) if share else None for name, share in figures.sets_recovered.items()
        },
        "changes": {
            item.name: {model: asdict(changes[model][item.name]) for model in changes}
            for item in search.test
        },
        "documents": [row.model_dump() for row in document_figures(losses, search.test)],
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in split_lines(path.read_text(encoding="utf-8"))]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: shares with 95 % intervals."""
    lines = [
        "| recipe | method | chosen on validation | domain gain | kept | general set | "
        "specialist's loss | merge's loss | recovered |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        domain = [item["name"] for item in row["sets"] if item["role"] == "domain"]
        first = [
            row["recipe"],
            row["method"],
            row["chosen"] + ("" if row["within_tolerance"] else " (not within)"),
            ", ".join(Interval(**row["changes"][name][MERGE]).words(sign="+") for name in domain),
            percent(Interval(**row["gain_kept"])) if row["gain_kept"] else "no gain shown",
        ]
        for name, share in row["recovered"].items():
            change = row["changes"][name]
            cells = [
                *first,
                name,
                Interval(**change[SPECIALIST]).words(sign="+"),
                Interval(**change[MERGE]).words(sign="+"),
                percent(Interval(**share)) if share else "no loss to recover",
            ]
            lines.append("| " + " | ".join(cells) + " |")
            first = [""] * len(first)
    return "\n".join(lines)


def chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG: share of the gain kept against share of the loss recovered, with both intervals."""
    points = [
        (row, row["gain_kept"], name, share)
        for row in rows
        if row["gain_kept"]
        for name, share in row["recovered"].items()
        if share
    ]
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    ends = [point[place][end] for point in points for place in (1, 3) for end in ("low", "high")]
    low, high = math.floor(min([0.9, *ends]) * 10), math.ceil(max([1.0, *ends]) * 10)

    def at(share: float) -> float:
        return float(50.0 + 500.0 * (10 * share - low) / (high - low))

    parts = []
    for tick in range(low, high + 1):
        place = at(tick / 10)
        parts.append(f'<path stroke="#ccc" d="M{place:.1f} 50V550M50 {600 - place:.1f}H550"/>')
        parts.append(f'<text fill="#333" x="{place - 10:.1f}" y="566">{tick / 10:.0%}</text>')
        parts.append(f'<text fill="#333" x="14" y="{604 - place:.1f}">{tick / 10:.0%}</text>')
    lines: list[float] = []  # of the names, so that none stands on another
    for row, kept, name, share in points:
        color = COLORS[recipes.index(row["recipe"]) % len(COLORS)]
        x, y = at(kept["estimate"]), 600 - at(share["estimate"])
        across = f"M{at(kept['low']):.1f} {y:.1f}H{at(kept['high']):.1f}"
        upright = f"M{x:.1f} {600 - at(share['low']):.1f}V{600 - at(share['high']):.1f}"
        words = f"{row['recipe']} {row['method']}" + (
            "" if len(row["recovered"]) == 1 else f", {name}"
        )
        parts.append(f'<path stroke="{color}" d="{across}{upright}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')
        line = y - 6
        while any(abs(line - other) < 12 for other in lines):
            line += 3
        lines.append(line)
        where = f'x="{x + 8:.1f}" y="{line:.1f}"'
        parts.append(f'<text {where} fill="{color}">{escape(words)}</text>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 600" font-family="sans-serif" '
        'font-size="11" fill="none"><rect width="680" height="600" fill="#fff"/>'
        f'<g stroke-width="1.5">{"".join(parts)}</g>'
        '<g fill="#333"><text x="50" y="590">share of the domain gain kept (95 % intervals)</text>'
        '<text x="50" y="36">share of the general loss recovered</text></g></svg>\n'
    )


if __name__ == "__main__":
    main()
