"""A law of mixture as a picture: one SVG, domain and general loss over the domain's share."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from toolkit.mixture_law.answer import Check, MixtureAnswer
from toolkit.mixture_law.law import Fit, Law
from toolkit.mixture_law.runs import F64

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 16, 44, 52
_COLORS = {"domain": "#2166ac", "general": "#b2182b"}


def mixture_svg(law: Law, answer: MixtureAnswer | None, checks: Sequence[Check], title: str) -> str:
    """Measured changes as dots (held-out runs as rings), laws as lines with 95 % bands."""
    low, high = law.range
    shares = np.linspace(low, high, 61)
    tokens = np.full(shares.shape, law.general.grid.middle)
    curves: list[tuple[str, F64]] = []
    dots: list[tuple[str, float, float, bool]] = []
    parts: tuple[tuple[str, Fit, F64], ...] = (
        ("domain", law.domain, law.start_domain),
        ("general", law.general, law.start_general),
    )
    for role, fit, start in parts:
        drawn = fit.at(shares, tokens) - start[:, None]
        curves.append((role, np.quantile(drawn, [0.5, 0.025, 0.975], axis=0)))
        for run in law.runs:
            now = run.domain if role == "domain" else run.general
            before = law.start.domain if role == "domain" else law.start.general
            dots.append((role, float(run.share or 0.0), now.loss - before.loss, True))
    dots += [(check.role, check.share, check.measured, False) for check in checks]
    heights = [0.0, *(float(v) for _, c in curves for v in (c.min(), c.max()))]
    heights += [height for _, _, height, _ in dots]
    if answer is not None:
        heights.append(answer.tolerance)
    bottom, top = min(heights), max(heights)
    room = 0.06 * (top - bottom or 1.0)
    bottom, top = bottom - room, top + room

    def x(share: float) -> float:
        return _LEFT + (share - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(change: float) -> float:
        return _TOP + (top - change) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    def line(values: F64) -> str:
        return " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(shares, values, strict=True))

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for tick in np.linspace(bottom + room, top - room, 5):
        out.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
            f'stroke="#ddd"/><text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">'
            f"{tick:+.3f}</text>"
        )
    for tick in np.linspace(low, high, 5):
        out.append(
            f'<text x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
            f"{tick:.2f}</text>"
        )
    for role, curve in curves:
        band = f"{line(curve[1])} {' '.join(reversed(line(curve[2]).split()))}"
        out.append(f'<polygon points="{band}" fill="{_COLORS[role]}" opacity="0.15"/>')
        out.append(
            f'<polyline points="{line(curve[0])}" fill="none" stroke="{_COLORS[role]}" '
            'stroke-width="2"/>'
        )
    for role, share, change, is_fitted in dots:
        fill = _COLORS[role] if is_fitted else "white"
        out.append(
            f'<circle cx="{x(share):.1f}" cy="{y(change):.1f}" r="4" fill="{fill}" '
            f'stroke="{_COLORS[role]}" stroke-width="2"/>'
        )
    if answer is not None:
        height = y(answer.tolerance)
        out.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}" '
            f'stroke="{_COLORS["general"]}" stroke-dasharray="5 4"/>'
        )
        if answer.safe_share is not None:
            place = x(answer.safe_share)
            out.append(
                f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" '
                'stroke="#333" stroke-dasharray="2 3"/>'
            )
    words = "share of domain text in training; change of bits per byte against the general model:"
    out.append(f'<text x="{_LEFT}" y="{_HEIGHT - 14}">{words}</text>')
    for number, role in enumerate(_COLORS):
        out.append(
            f'<text x="{_WIDTH - 130 + 62 * number}" y="{_HEIGHT - 14}" fill="{_COLORS[role]}">'
            f"{role}</text>"
        )
    return "\n".join([*out, "</svg>"]) + "\n"
