"""A law of mixture as a picture: one SVG, domain and general loss over the domain's share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from toolkit.mixture_law.answer import Check, MixtureAnswer
from toolkit.mixture_law.law import Law
from toolkit.mixture_law.runs import F64, ROLES, Role

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 16, 44, 52
_COLORS: dict[Role, str] = {"domain": "#2166ac", "general": "#b2182b"}


@dataclass(frozen=True)
class _Frame:
    """Where shares and changes stand on the picture."""

    low_share: float
    high_share: float
    low_change: float
    high_change: float

    def x(self, share: float) -> float:
        way = (share - self.low_share) / (self.high_share - self.low_share)
        return _LEFT + way * (_WIDTH - _LEFT - _RIGHT)

    def y(self, change: float) -> float:
        way = (self.high_change - change) / (self.high_change - self.low_change)
        return _TOP + way * (_HEIGHT - _TOP - _BOTTOM)

    def points(self, shares: F64, changes: F64) -> str:
        pairs = zip(shares, changes, strict=True)
        return " ".join(f"{self.x(share):.1f},{self.y(change):.1f}" for share, change in pairs)

    def across(self, change: float, look: str) -> str:
        y = f"{self.y(change):.1f}"
        return f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" {look}/>'


@dataclass(frozen=True)
class _Dot:
    role: Role
    share: float
    change: float
    is_fitted: bool


def mixture_svg(law: Law, answer: MixtureAnswer | None, checks: Sequence[Check], title: str) -> str:
    """Measured changes as dots (held-out runs as rings), laws as lines with 95 % bands."""
    low, high = law.range
    shares = np.linspace(low, high, 61)
    tokens = np.full(shares.shape, law.general.grid.middle)
    curves_by_role: dict[Role, F64] = {}
    dots: list[_Dot] = []
    for role, fit, start_losses in law.parts():
        drawn_changes = fit.at(shares, tokens) - start_losses[:, None]
        curves_by_role[role] = np.quantile(drawn_changes, [0.5, 0.025, 0.975], axis=0)
        for run in law.runs:
            change = run.losses(role).loss - law.start.losses(role).loss
            dots.append(_Dot(role, float(run.share or 0.0), change, is_fitted=True))
    dots += [_Dot(check.role, check.share, check.measured, is_fitted=False) for check in checks]
    changes = [0.0, *(float(end) for c in curves_by_role.values() for end in (c.min(), c.max()))]
    changes += [dot.change for dot in dots]
    changes += [answer.tolerance] if answer is not None else []
    # Curves that are flat need some height to be drawn in.
    change_margin = 0.06 * (max(changes) - min(changes) or 1.0)
    frame = _Frame(low, high, min(changes) - change_margin, max(changes) + change_margin)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
        *_ticks(frame, change_margin),
        *(
            line
            for role, curve in curves_by_role.items()
            for line in _curve(frame, role, shares, curve)
        ),
        *(_circle(frame, dot) for dot in dots),
        *(_limits(frame, answer) if answer is not None else ()),
        *_caption(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _ticks(frame: _Frame, margin: float) -> Iterator[str]:
    for change in np.linspace(frame.low_change + margin, frame.high_change - margin, 5):
        label_y = f"{frame.y(change) + 4:.1f}"
        tick_label = f'<text x="{_LEFT - 6}" y="{label_y}" text-anchor="end">{change:+.3f}</text>'
        yield frame.across(change, 'stroke="#ddd"') + tick_label
    for share in np.linspace(frame.low_share, frame.high_share, 5):
        place_attributes = f'x="{frame.x(share):.1f}" y="{_HEIGHT - _BOTTOM + 18}"'
        yield f'<text {place_attributes} text-anchor="middle">{share:.2f}</text>'


def _curve(frame: _Frame, role: Role, shares: F64, curve: F64) -> Iterator[str]:
    middle_points, low_points, high_points = (frame.points(shares, changes) for changes in curve)
    # Along the lower edge, and back along the upper one.
    band_points = f"{low_points} {' '.join(reversed(high_points.split()))}"
    color = _COLORS[role]
    yield f'<polygon points="{band_points}" fill="{color}" opacity="0.15"/>'
    yield f'<polyline points="{middle_points}" fill="none" stroke="{color}" stroke-width="2"/>'


def _circle(frame: _Frame, dot: _Dot) -> str:
    color = _COLORS[dot.role]
    center_attributes = f'cx="{frame.x(dot.share):.1f}" cy="{frame.y(dot.change):.1f}"'
    fill_color = color if dot.is_fitted else "white"
    return (
        f'<circle {center_attributes} r="4" fill="{fill_color}" stroke="{color}" stroke-width="2"/>'
    )


def _limits(frame: _Frame, answer: MixtureAnswer) -> Iterator[str]:
    """The tolerated change, and the largest share that keeps within it."""
    yield frame.across(answer.tolerance, f'stroke="{_COLORS["general"]}" stroke-dasharray="5 4"')
    if answer.safe_share is not None:
        x = f"{frame.x(answer.safe_share):.1f}"
        end_attributes = f'x1="{x}" x2="{x}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"'
        yield f'<line {end_attributes} stroke="#333" stroke-dasharray="2 3"/>'


def _caption() -> Iterator[str]:
    axis_words = (
        "share of domain text in training; change of bits per byte against the general model:"
    )
    yield f'<text x="{_LEFT}" y="{_HEIGHT - 14}">{axis_words}</text>'
    for number, role in enumerate(ROLES):
        place_attributes = f'x="{_WIDTH - 130 + 62 * number}" y="{_HEIGHT - 14}"'
        yield f'<text {place_attributes} fill="{_COLORS[role]}">{role}</text>'
