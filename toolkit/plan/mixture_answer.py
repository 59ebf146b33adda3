"""What a law of mixture says: the largest share, predictions, a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from toolkit.errors import ConfigError
from toolkit.plan.mixture_law import Fit, Law
from toolkit.plan.mixture_runs import F64, MixtureRun

_STEPS = 301
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class Answer:
    """The largest domain share within a tolerated general loss.

    Attributes:
        tolerance: rise of the general loss against the general model, bits per byte.
        share: at which the law itself reaches it, within what was measured.
        safe_share: up to which the one-sided 95 % bound of the rise stays within it; None where
            that holds for no measured share.
        is_at_end: whether the safe share is the largest that was measured.
        domain_change, general_change: at the safe share (else at `share`), against the general
            model.
    """

    tolerance: float
    share: Estimate
    safe_share: float | None
    is_at_end: bool
    domain_change: Estimate
    general_change: Estimate


def largest_share(law: Law, tolerance: float) -> Answer:
    """The largest domain share whose general loss stays within the tolerance.

    Args:
        law: fitted.
        tolerance: rise against the general model, bits per byte, may be 0 or below it.

    Raises:
        ConfigError: it is no finite number, or by the law itself no measured share meets it.
    """
    if not math.isfinite(tolerance):
        raise ConfigError(f"--tolerance: must be a finite number (got {tolerance}).")
    low, high = law.range
    shares = np.linspace(low, high, _STEPS)
    rise = law.general.at(shares, _amounts(law, shares)) - law.start_general[:, None]
    allowed = rise <= tolerance
    if not allowed[0].any():
        best = int(np.argmin(rise[0]))
        raise ConfigError(
            f"--tolerance: {tolerance:g} is met by no measured share; the least rise, at share "
            f"{shares[best]:.2f}, is {_interval(rise[:, best])} bits per byte. Measure smaller "
            "shares, or allow more."
        )
    # From the end, so that a law that falls again counts with its largest share.
    last = np.where(allowed.any(axis=1), _STEPS - 1 - np.argmax(allowed[:, ::-1], axis=1), 0)
    found = shares[last]
    bound = np.quantile(rise, _LEVEL, axis=0)
    within = np.flatnonzero(bound <= tolerance)
    safe = float(shares[within[-1]]) if len(within) else None
    place = np.array([safe if safe is not None else float(found[0])])
    tokens = _amounts(law, place)
    return Answer(
        tolerance=tolerance,
        share=_interval(found),
        safe_share=safe,
        is_at_end=safe == high,
        domain_change=_interval((law.domain.at(place, tokens) - law.start_domain[:, None])[:, 0]),
        general_change=_interval(
            (law.general.at(place, tokens) - law.start_general[:, None])[:, 0]
        ),
    )


@dataclass(frozen=True)
class Check:
    """A run that the law had not seen.

    Attributes:
        share: of it.
        role: of the loss.
        predicted: change against the general model on the same documents, for a run at this share:
            with the noise of that run.
        measured: the same of the run.
    """

    share: float
    role: Literal["domain", "general"]
    predicted: Estimate
    measured: float

    @property
    def is_inside(self) -> bool:
        return self.predicted.low <= self.measured <= self.predicted.high


def check_run(law: Law, run: MixtureRun, *, seed: int = 0) -> list[Check]:
    """Predict a held-out run.

    Raises:
        ConfigError: its share or tokens lie outside what was measured.
    """
    share = float(run.share or 0.0)
    law.check(share, run.tokens)
    checks = []
    for number, (role, fit, start, noise) in enumerate(_parts(law)):
        chance = np.random.default_rng([seed, 7, number])
        place, tokens = np.array([share]), np.array([float(run.tokens)])
        drawn = fit.at(place, tokens)[:, 0] - start
        own = noise * chance.standard_normal(len(noise))
        own[0] = 0.0
        now = run.domain if role == "domain" else run.general
        before = law.start.domain if role == "domain" else law.start.general
        checks.append(Check(share, role, _interval(drawn + own), now.loss - before.loss))
    return checks


def _parts(law: Law) -> list[tuple[Literal["domain", "general"], Fit, F64, F64]]:
    return [
        ("domain", law.domain, law.start_domain, law.noise_domain),
        ("general", law.general, law.start_general, law.noise_general),
    ]


def _amounts(law: Law, shares: F64) -> F64:
    """Tokens at each share: the middle of what was measured, where they are free."""
    return np.full(shares.shape, law.general.grid.middle)


def _interval(draws: F64) -> Estimate:
    low, high = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(float(draws[0]), float(low), float(high))


def sentences(law: Law, answer: Answer) -> list[str]:
    """The answer for people."""
    low, high = law.range
    limit = f"a rise of {answer.tolerance:g} bits per byte on general text"
    if answer.safe_share is None:
        lines = [
            f"By the law a domain share of {answer.share.value:.2f} reaches {limit}, but its "
            f"interval ({answer.share.low:.2f} to {answer.share.high:.2f}) is so wide that no "
            "measured share is sure to stay within it. Make more runs, or score more documents."
        ]
    elif answer.is_at_end:
        lines = [
            f"The largest share that was measured, {high:g}, stays within {limit} (95 % bound); "
            "larger ones were not measured."
        ]
    else:
        lines = [
            f"Up to a domain share of {answer.safe_share:.2f} the 95 % bound stays within {limit}; "
            f"the law itself reaches it at {answer.share.value:.2f} ({answer.share.low:.2f} to "
            f"{answer.share.high:.2f})."
        ]
    lines.append(
        f"There the domain changes by {answer.domain_change} and general text by "
        f"{answer.general_change} bits per byte."
    )
    fixed = {"all tokens": "as many tokens", "domain tokens": "as many domain tokens"}
    fewest, most = law.tokens
    size = f"{fixed[law.amount]} as these" if law.amount in fixed else f"{fewest} to {most} tokens"
    lines.append(
        f"This holds for runs of {size} and shares from {low:g} to {high:g}; longer runs forget "
        "more."
    )
    return lines


def table_rows(law: Law, checks: Sequence[Check]) -> list[tuple[str, ...]]:
    """Rows of the table: share, tokens, changes measured and by the law."""
    rows = []
    for run in law.runs:
        share = float(run.share or 0.0)
        cells = [f"{share:g}", f"{run.tokens:,}"]
        for role, fit, start, _ in _parts(law):
            now = run.domain if role == "domain" else run.general
            before = law.start.domain if role == "domain" else law.start.general
            place, tokens = np.array([share]), np.array([float(run.tokens)])
            drawn = _interval(fit.at(place, tokens)[:, 0] - start)
            cells += [f"{now.loss - before.loss:+.4f}", _signed(drawn)]
        rows.append(tuple(cells))
    by_share: dict[float, list[Check]] = {}
    for check in checks:
        by_share.setdefault(check.share, []).append(check)
    for share, pair in by_share.items():
        cells = [f"{share:g} held out", ""]
        for check in pair:
            cells += [f"{check.measured:+.4f}", _signed(check.predicted)]
        rows.append(tuple(cells))
    return rows


def _signed(value: Estimate) -> str:
    return f"{value.value:+.4f} ({value.low:+.4f} to {value.high:+.4f})"


def plain_answer(law: Law, answer: Answer, checks: Sequence[Check]) -> dict[str, Any]:
    """All of it as plain values, for JSON."""

    def exponents(fit: Fit) -> dict[str, Any]:
        return {
            "offset": float(fit.offset[0]),
            "slope": float(fit.slope[0]),
            "share_exponent": float(fit.share_exponent[0]),
            "token_exponent": float(fit.token_exponent[0]),
            "rmse": float(np.sqrt(fit.squares[0] / len(law.runs))),
        }

    return {
        "same_in_all_runs": law.amount,
        "shares": list(law.range),
        "tokens": list(law.tokens),
        "domain_law": exponents(law.domain),
        "general_law": exponents(law.general),
        "tolerance": answer.tolerance,
        "share": vars(answer.share),
        "safe_share": answer.safe_share,
        "domain_change": vars(answer.domain_change),
        "general_change": vars(answer.general_change),
        "held_out": [
            {
                "share": check.share,
                "role": check.role,
                "predicted": vars(check.predicted),
                "measured": check.measured,
                "is_inside": check.is_inside,
            }
            for check in checks
        ],
        "sentences": sentences(law, answer),
    }
