"""How much replay, at which learning rate: a table for one recipe, a short training for each cell.

Every run starts from the general model and sees the same domain text; replay comes on top.
Validation sets are scored in the model's stored type, with intervals by bootstrap over documents
and changes paired with the general model. Each run's line is appended when it ends, so a sweep that
was killed continues with what is missing; `--show` prints what there is.

    python benchmarks/replay.py --recipe finance --tokens 30000 --out sweeps/finance.jsonl
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from toolkit.data.config import SplitRule
from toolkit.evaluate.sets import BITS
from toolkit.pipeline.models import ensure_data, ensure_general
from toolkit.pipeline.run import Run
from toolkit.recipe.load import find_recipe, load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.stage import hash_json
from toolkit.statistics.bootstrap import bootstrap_figures, intervals

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tag", nargs="?", help="any word, to know the process by")
    parser.add_argument("--recipe", default="finance")
    parser.add_argument("--tokens", type=int, default=30_000, help="domain tokens to train on")
    parser.add_argument("--rates", default="5e-5,2e-4,8e-4")
    parser.add_argument("--replays", default="0,0.05,0.15,0.30")
    parser.add_argument("--model", type=Path, help="general model, where it stands already")
    parser.add_argument("--runs", type=Path, default=Path("sweeps/runs"), help="data folders")
    parser.add_argument("--out", type=Path, required=True, help="lines of JSON; page beside it")
    parser.add_argument("--show", action="store_true", help="print what there is, run nothing")
    arguments = parser.parse_args()
    rates = [float(text) for text in arguments.rates.split(",")]
    replays = [float(text) for text in arguments.replays.split(",")]
    path = find_recipe(arguments.recipe)
    original = load_recipe(path)
    if not arguments.show:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        root = Run.of(path, original, arguments.runs)
        # Rates inside: were it cut short, each share would have its whole line.
        cells = [(None, None), *((replay, rate) for replay in replays for rate in rates)]
        for replay, rate in cells:
            recipe = changed(original, arguments.tokens, replay, rate)
            settings = hash_json([replay, rate, recipe.model_dump(mode="json")])
            if any(row["settings"] == settings for row in load_rows(arguments.out)):
                continue
            began = time.monotonic()
            general = arguments.model or ensure_general(root)
            row = run_cell(recipe, root, general, replay, rate)
            row |= {"settings": settings, "seconds": round(time.monotonic() - began)}
            append(arguments.out, {"tokens": arguments.tokens, **row})
            print(
                f"replay {replay} rate {rate}: domain {row['domain'][0]:.4f} general "
                f"{row['general'][0]:.4f} in {row['seconds']} s",
                flush=True,
            )
            gc.collect()
    rows = [row for row in load_rows(arguments.out) if row["tokens"] == arguments.tokens]
    rows.sort(key=lambda row: (row["replay"] is not None, row["replay"], row["rate"]))
    print(table(rows))
    page = arguments.out.with_suffix(".svg")
    page.write_text(picture(rows, f"{arguments.recipe}, {arguments.tokens:,} domain tokens"))
    print(f"picture: {page}")


def load_rows(path: Path) -> list[Row]:
    """Whole lines of an earlier sweep; a line cut short by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def append(path: Path, row: Row) -> None:
    with path.open("ab+") as file:
        file.seek(max(0, file.tell() - 1))
        cut_short = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * cut_short + json.dumps(row).encode() + b"\n")


def changed(recipe: Recipe, tokens: int, replay: float | None, rate: float | None) -> Recipe:
    """The recipe of one cell; without a share, that of the general model's own line."""
    domain = [name for name, source in recipe.data.sources.items() if source.role == "domain"]
    sources = dict(recipe.data.sources)
    for name in domain:
        split = dict(sources[name].split)
        limit = tokens // len(domain)
        split["train"] = split.get("train", SplitRule()).model_copy(update={"max_tokens": limit})
        sources[name] = sources[name].model_copy(update={"split": split})
    share = recipe.data.replay_fraction if replay is None else replay
    data = recipe.data.model_copy(update={"sources": sources, "replay_fraction": share})
    watch = recipe.train.forgetting_monitor.model_copy(update={"evaluations": 0})
    schedule = recipe.train.schedule
    if rate is not None:
        schedule = schedule.model_copy(update={"peak_lr": rate})
    train = recipe.train.model_copy(
        update={"forgetting_monitor": watch, "schedule": schedule, "save_steps": 10**9}
    )
    return recipe.model_copy(update={"data": data, "train": train})


def run_cell(
    recipe: Recipe, root: Run, general: Path, replay: float | None, rate: float | None
) -> Row:
    """Data, training and scores of one cell; nothing but data is left on disk."""
    import tempfile

    import torch
    from transformers import AutoTokenizer

    from toolkit.checkpoint.folder import stored_dtype
    from toolkit.checkpoint.load import load_causal_model
    from toolkit.data.blocks import Blocks
    from toolkit.evaluate.likelihood import load_items, score_documents
    from toolkit.stage import read_manifest
    from toolkit.train.loop import train
    from toolkit.train.trainable import finished_model, prepare_model

    name = f"{root.name}-replay-{recipe.data.replay_fraction:g}"
    data = ensure_data(
        Run(name, recipe.model_copy(update={"model": local(recipe, general)}), root.root / name)
    )
    results = read_manifest(data)["results"]
    model = load_causal_model(general, torch.float32)
    figures: Row = {}
    if rate is not None:
        model = prepare_model(model, recipe.train)
        with tempfile.TemporaryDirectory() as work:
            blocks = Blocks.open(data, recipe.train.epochs)
            done = train(model, blocks, recipe.train, seed=recipe.seed, work=Path(work))
        figures = {key: getattr(done, key) for key in ("num_steps", "first_loss", "last_loss")}
        figures |= {key: results["train"][key] for key in ("domain_tokens", "general_tokens")}
    model = finished_model(model).to(stored_dtype(general))
    tokenizer = AutoTokenizer.from_pretrained(general)
    items = load_items(data / "validation.jsonl", tokenizer, results["separator_token_id"])
    nats = score_documents(model, items, recipe.evaluate)
    row: Row = {"replay": replay, "rate": rate, **figures, "ids": items.ids, "nats": nats}
    row |= {"roles": items.roles, "bytes": items.num_bytes}
    row |= {role: interval(row, role) for role in ("domain", "general")}
    return row


def local(recipe: Recipe, folder: Path) -> Any:
    """The converted model by its path, so that it is not converted for each share."""
    return recipe.model.model_copy(update={"artifact": None, "hub": None, "path": folder})


def interval(row: Row, role: str, against: Row | None = None) -> list[float]:
    """Bits per byte, or their change against another row on the same documents: estimate and the
    limits of its 95 % interval."""
    chosen = [n for n, name in enumerate(row["roles"]) if name == role]
    nats = np.array([row["nats"][n] for n in chosen])
    if against is not None:
        if against["ids"] != row["ids"]:
            sys.exit("rows were scored on different documents; begin a new --out")
        nats -= [against["nats"][n] for n in chosen]
    sizes, ids = ([row[key][n] for n in chosen] for key in ("bytes", "ids"))
    figures = bootstrap_figures(nats, sizes, ids, resamples=10_000, seed=1, scale=BITS)
    (found,) = intervals(figures)
    return [round(value, 5) for value in (found.estimate, found.low, found.high)]


def table(rows: list[Row]) -> str:
    """Markdown; changes are against the general model, paired by document."""
    lines = [
        "| replay | peak rate | domain bits/byte | change (95 %) | general bits/byte "
        "| change (95 %) |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    start = next((row for row in rows if row["rate"] is None), None)
    for row in rows:
        name = (
            "general model |" if row["rate"] is None else f"{row['replay']:.0%} | {row['rate']:g}"
        )
        cells = [name]
        for role in ("domain", "general"):
            cells.append(f"{row[role][0]:.4f}")
            if row is start or start is None:
                cells.append("")
            else:
                change, low, high = interval(row, role, start)
                cells.append(f"{change:+.4f} ({low:+.4f} to {high:+.4f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


_COLORS = ("#b2182b", "#ef8a62", "#4393c3", "#2166ac", "#333333", "#1b7837")


def picture(rows: list[Row], title: str) -> str:
    """An SVG: change on general text across, change on the domain upwards, one line a share of
    replay, its rates in turn. Down and left is better."""
    start = next((row for row in rows if row["rate"] is None), None)
    cells = [row for row in rows if row["rate"] is not None]
    if start is None or not cells:
        return "<svg xmlns='http://www.w3.org/2000/svg'/>"
    points = {
        id(row): {role: interval(row, role, start) for role in ("domain", "general")}
        for row in cells
    }
    width, height, left, bottom = 640, 420, 70, 60

    def scale(role: str, low: float, high: float) -> tuple[Any, list[float]]:
        ends = [value for point in points.values() for value in point[role]] + [0.0]
        step = nice_step((max(ends) - min(ends)) / 5)
        first = int(min(ends) // step)
        last = int(-(-max(ends) // step))
        ticks = [n * step for n in range(first, last + 1)]
        span = ticks[-1] - ticks[0]
        return (lambda v: low + (v - ticks[0]) / span * (high - low)), ticks

    x, x_ticks = scale("general", left, width - 20)
    y, y_ticks = scale("domain", height - bottom, 40)
    out = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' "
        "font-family='sans-serif' font-size='12'>",
        f"<rect width='{width}' height='{height}' fill='white'/>",
        f"<text x='{left}' y='20' font-size='14'>{title}</text>",
        f"<text x='{width / 2}' y='{height - 8}' text-anchor='middle'>change of general text, "
        "bits per byte</text>",
        f"<text transform='translate(14 {height / 2}) rotate(-90)' text-anchor='middle'>change of "
        "domain, bits per byte</text>",
    ]
    for tick in x_ticks:
        color = "#999" if abs(tick) < 1e-12 else "#eee"
        out.append(
            f"<path d='M{x(tick):.1f} 40V{height - bottom}' stroke='{color}'/>"
            f"<text x='{x(tick):.1f}' y='{height - bottom + 16}' text-anchor='middle'>{tick:.3g}"
            "</text>"
        )
    for tick in y_ticks:
        color = "#999" if abs(tick) < 1e-12 else "#eee"
        out.append(
            f"<path d='M{left} {y(tick):.1f}H{width - 20}' stroke='{color}'/>"
            f"<text x='{left - 6}' y='{y(tick) + 4:.1f}' text-anchor='end'>{tick:.3g}</text>"
        )
    for number, replay in enumerate(sorted({row["replay"] for row in cells})):
        own = [row for row in cells if row["replay"] == replay]
        color = _COLORS[number % len(_COLORS)]
        places = [(x(points[id(r)]["general"][0]), y(points[id(r)]["domain"][0])) for r in own]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        out.append(f"<polyline points='{line}' fill='none' stroke='{color}'/>")
        for row, (a, b) in zip(own, places, strict=True):
            _, low, high = points[id(row)]["general"]
            _, down, up = points[id(row)]["domain"]
            out.append(
                f"<path d='M{x(low):.1f} {b:.1f}H{x(high):.1f}M{a:.1f} {y(down):.1f}V{y(up):.1f}' "
                f"stroke='{color}' stroke-opacity='0.35'/>"
                f"<circle cx='{a:.1f}' cy='{b:.1f}' r='4' fill='{color}'>"
                f"<title>replay {replay:.0%}, rate {row['rate']:g}</title></circle>"
                f"<text x='{a + 6:.1f}' y='{b - 5:.1f}' font-size='9'>{row['rate']:g}</text>"
            )
        out.append(
            f"<text x='{width - 24}' y='{54 + 15 * number}' text-anchor='end' fill='{color}'>"
            f"replay {replay:.0%}</text>"
        )
    return "\n".join([*out, "</svg>", ""])


def nice_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten.

    >>> nice_step(0.013)
    0.02
    """
    power = 1e-9
    while power * 10 <= rough:
        power *= 10
    step = next((s for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9)), 10)
    return round(step * power, 12)


if __name__ == "__main__":
    main()
