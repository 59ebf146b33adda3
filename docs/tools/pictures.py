"""The guide's charts, drawn from docs/figures/ and from the toolkit's own functions.

    python docs/tools/pictures.py            # writes docs/pictures/*.svg
    python docs/tools/pictures.py --check    # exits 1 where they are not what would be drawn

They are put into the pages as they are, so they take the page's colors, light or dark. Marks
differ in form as well as in color.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from toolkit.train.config import ScheduleSection  # noqa: E402
from toolkit.train.schedule import learning_rate  # noqa: E402

DOCS = ROOT / "docs"
TEXT = "var(--md-default-fg-color)"
FAINT = "var(--md-default-fg-color--lightest)"
SOFT = "var(--md-default-fg-color--light)"
COLORS = ("#4f8fd9", "#e08a3c", "#3fa57a", "#c95fa0", "#9a7fd1")
"""Each at least 3 to 1 against white and against the dark page."""

FORMS: tuple[Callable[[float, float], str], ...] = (
    lambda x, y: f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    lambda x, y: f"M{x - 4.5:.1f} {y - 4.5:.1f}h9v9h-9z",
    lambda x, y: f"M{x:.1f} {y - 5.5:.1f}l5.5 10h-11z",
    lambda x, y: f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6-6z",
)


def main() -> int:
    replay = json.loads((DOCS / "figures" / "replay.json").read_text(encoding="utf-8"))
    files = {
        "pictures/schedules.svg": schedules(),
        "pictures/methods.svg": methods(),
        "pictures/outcome.svg": outcome(),
    }
    for name, figures in replay.items():
        files[f"pictures/replay-{name}.svg"] = replay_picture(name, figures)
        files[f"figures/replay-{name}.md"] = replay_table(figures)
    stale = [
        name
        for name, text in files.items()
        if not (DOCS / name).is_file() or (DOCS / name).read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/{name}: is not up to date; run `make docs`")
        return int(bool(stale))
    for name in stale:
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(files[name], encoding="utf-8")
        print(f"wrote docs/{name}")
    return 0


def svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}" '
        f'font-family="inherit" font-size="13" fill="{TEXT}">'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def text(x: float, y: float, words: str, anchor: str = "start", **more: str) -> str:
    extra = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{words}</text>'


def line(path: str, color: str, width: float = 1.0, **more: str) -> str:
    extra = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width:g}"{extra}/>'


def schedules() -> str:
    """The learning rate over a run for each kind, with the fractions that show its form."""
    kinds = [
        ("cosine", ScheduleSection(peak_lr=1.0, warmup_fraction=0.05)),
        ("wsd", ScheduleSection(kind="wsd", peak_lr=1.0, warmup_fraction=0.05)),
        ("infinite", ScheduleSection(kind="infinite", peak_lr=1.0, warmup_fraction=0.05)),
        ("minimum", ScheduleSection(kind="minimum", peak_lr=0.3, final_lr_fraction=0.01)),
        ("constant", ScheduleSection(kind="constant", peak_lr=1.0, warmup_fraction=0.05)),
    ]
    parts, wide, high = [], 132, 90
    for number, (name, schedule) in enumerate(kinds):
        left, top = 8 + number * (wide + 14), 34
        points = [
            (left + step / 99 * wide, top + high - learning_rate(step, 100, schedule) * (high - 6))
            for step in range(100)
        ]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts += [
            text(left, 20, name, font_weight="bold"),
            line(f"M{left} {top}V{top + high}H{left + wide}", SOFT),
            line(path, COLORS[0], 2.5),
        ]
    parts.append(text(8, 146, "learning rate over the steps of a run", fill=SOFT))
    return svg(734, 152, "Five learning-rate schedules", parts)


def methods() -> str:
    """A task vector of twelve entries, and what three methods make of it."""
    import torch

    from toolkit.merge.methods.dare import dare_linear
    from toolkit.merge.methods.linear import task_arithmetic
    from toolkit.merge.methods.ties import ties

    delta = torch.tensor([0.9, -0.15, 0.3, -0.7, 0.1, 0.05, 0.55, -0.25, -1.0, 0.2, -0.1, 0.4])
    base = torch.zeros_like(delta)
    drawn = torch.Generator().manual_seed(2)
    panels = [
        ("what training changed", delta),
        ("linear: all of it, less", task_arithmetic([delta], base, weight=[0.4])),
        ("ties: the largest", ties([delta], base, weight=[1.0], density=[0.34], normalize=False)),
        (
            "dare: some, scaled up",
            dare_linear([delta], base, weight=[1.0], density=[0.5], generator=drawn),
        ),
    ]
    parts, wide, middle = [], 160, 96
    for number, (name, values) in enumerate(panels):
        left = 8 + number * (wide + 22)
        parts.append(text(left, 18, name, font_weight="bold"))
        for index, value in enumerate(values.tolist()):
            high = abs(value) * 34
            top = middle - high if value > 0 else middle
            parts.append(
                f'<rect x="{left + index * 13.4:.1f}" y="{top:.1f}" width="10" '
                f'height="{high:.1f}" fill="{COLORS[int(value < 0)]}"/>'
            )
        parts.append(line(f"M{left} {middle}h{wide}", SOFT))
    return svg(734, 172, "A task vector, and what linear, TIES and DARE make of it", parts)


def outcome() -> str:
    """The three models of the finance run: filings across, retention upwards, with intervals."""
    figures = json.loads((DOCS / "figures" / "finance.json").read_text(encoding="utf-8"))
    left, right, top, bottom = 78, 600, 20, 250
    x = scale(0.76, 1.02, left, right)
    y = scale(0.5, 1.1, bottom, top)
    parts = grid(x, y, [0.8, 0.85, 0.9, 0.95, 1.0], [0.5, 0.7, 0.9, 1.1], left, right, top, bottom)
    parts += [
        text((left + right) / 2, 290, "filings, bits per byte (left is better)", "middle"),
        text(0, 0, "retention, nats per token (down is better)", "middle",
             transform=f"translate(18 {(top + bottom) / 2:.0f}) rotate(-90)"),
    ]  # fmt: skip
    places = {
        name: (x(row["filings"][0]), y(row["retention"][0]))
        for name, row in figures.items()
        if name != "source"
    }
    general, specialist, merge = (
        places[n] for n in ("general model", "specialist", "chosen merge")
    )
    for start, end in ((general, specialist), (specialist, merge)):
        parts.append(
            line(f"M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}", SOFT, 1.5,
                 stroke_dasharray="2 4")
        )  # fmt: skip
    for number, name in enumerate(("general model", "specialist", "chosen merge")):
        row, (px, py) = figures[name], places[name]
        low, high = (x(v) for v in row["filings"][1:])
        down, up = (y(v) for v in row["retention"][1:])
        parts += [
            line(f"M{low:.1f} {py:.1f}H{high:.1f}M{px:.1f} {down:.1f}V{up:.1f}", COLORS[number],
                 stroke_opacity="0.6"),
            f'<path d="{FORMS[number](px, py)}" fill="{COLORS[number]}"/>',
            text(px + 9, py - 9, name, font_weight="bold"),
        ]  # fmt: skip
    return svg(620, 300, "General model, specialist and chosen merge of the finance run", parts)


def replay_picture(name: str, figures: dict[str, Any]) -> str:
    """Change on general text across, on the domain upwards; a line for each share of replay."""
    cells = figures["cells"]
    left, right, top, bottom = 78, 600, 40, 330
    xs = [v for cell in cells for v in cell["general_change"]] + [0.0]
    ys = [v for cell in cells for v in cell["domain_change"]] + [0.0]
    x_ticks, y_ticks = ticks(xs), ticks(ys)
    x = scale(x_ticks[0], x_ticks[-1], left, right)
    y = scale(y_ticks[0], y_ticks[-1], bottom, top)
    parts = grid(x, y, x_ticks, y_ticks, left, right, top, bottom)
    parts += [
        text((left + right) / 2, bottom + 40, "change on news, bits per byte (left is better)",
             "middle"),
        text(0, 0, "change on the domain (down is better)", "middle",
             transform=f"translate(18 {(top + bottom) / 2:.0f}) rotate(-90)"),
    ]  # fmt: skip
    for number, share in enumerate(sorted({cell["replay"] for cell in cells})):
        own = [cell for cell in cells if cell["replay"] == share]
        color, form = COLORS[number], FORMS[number]
        points = [(x(c["general_change"][0]), y(c["domain_change"][0])) for c in own]
        parts.append(line("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points), color, 1.5))
        for cell, (a, b) in zip(own, points, strict=True):
            low, high = (x(v) for v in cell["general_change"][1:])
            down, up = (y(v) for v in cell["domain_change"][1:])
            words = f"replay {share:.0%}, peak rate {cell['rate']:g}"
            parts += [
                line(f"M{low:.1f} {b:.1f}H{high:.1f}M{a:.1f} {down:.1f}V{up:.1f}", color,
                     stroke_opacity="0.4"),
                f'<path d="{form(a, b)}" fill="{color}"><title>{words}</title></path>',
            ]  # fmt: skip
            if number == 0:
                parts.append(text(a + 8, b + 18, f"{cell['rate']:g}", font_size="12"))
        key = left + 4 + number * 125
        parts += [
            f'<path d="{form(key, 18)}" fill="{color}"/>',
            text(key + 11, 22, f"replay {share:.0%}"),
        ]
    label = f"Replay by learning rate on {name}: change on the domain against change on news"
    return svg(620, bottom + 50, label, parts)


def replay_table(figures: dict[str, Any]) -> str:
    start = figures["general_model"]
    rows = [
        "| replay | peak rate | domain | change (95 %) | news | change (95 %) |",
        "|---:|---:|---:|---:|---:|---:|",
        f"| general model | | {start['domain'][0]:.4f} | | {start['general'][0]:.4f} | |",
    ]
    for cell in figures["cells"]:
        shown = []
        for role in ("domain", "general"):
            change, low, high = cell[f"{role}_change"]
            shown.append(f"{cell[role][0]:.4f} | {change:+.4f} ({low:+.4f} to {high:+.4f})")
        rows.append(f"| {cell['replay']:.0%} | {cell['rate']:g} | {' | '.join(shown)} |")
    return "\n".join(rows).replace("-0.", "−0.") + "\n"


def scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    return lambda value: first + (value - low) / (high - low) * (last - first)


def ticks(values: Sequence[float]) -> list[float]:
    """Round numbers from below the smallest value to above the largest."""
    span = max(values) - min(values)
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if span / s <= 6)
    first = int(min(values) // step)
    last = int(-(-max(values) // step))
    return [round(n * step, 6) for n in range(first, last + 1)]


def grid(
    x: Callable[[float], float],
    y: Callable[[float], float],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    left: float,
    right: float,
    top: float,
    bottom: float,
) -> list[str]:
    parts = []
    for tick in x_ticks:
        parts.append(line(f"M{x(tick):.1f} {top}V{bottom}", SOFT if tick == 0 else FAINT))
        parts.append(text(x(tick), bottom + 18, f"{tick:g}", "middle", fill=SOFT))
    for tick in y_ticks:
        parts.append(line(f"M{left} {y(tick):.1f}H{right}", SOFT if tick == 0 else FAINT))
        parts.append(text(left - 8, y(tick) + 4, f"{tick:g}", "end", fill=SOFT))
    return parts


if __name__ == "__main__":
    sys.exit(main())
