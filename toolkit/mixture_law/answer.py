"""What a law of mixture says: the largest share, predictions, a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.errors import ConfigError
from toolkit.mixture_law.law import Fit, Law, fit_law
from toolkit.mixture_law.runs import F64, MixtureRun, Role

_STEPS = 301
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure, the middle of its draws, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class MixtureAnswer:
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


def largest_share(law: Law, tolerance: float) -> MixtureAnswer:
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
    allowed, middle = rise <= tolerance, np.median(rise, axis=0)
    if not (middle <= tolerance).any():
        best = int(np.argmin(middle))
        raise ConfigError(
            f"--tolerance: {tolerance:g} is met by no measured share; the least rise, at share "
            f"{shares[best]:.2f}, is {_interval(rise[:, best])} bits per byte. Measure smaller "
            "shares, or allow more."
        )
    # From the end, so that a law that falls again counts with its largest share.
    last = np.where(allowed.any(axis=1), _STEPS - 1 - np.argmax(allowed[:, ::-1], axis=1), 0)
    found = shares[last]
    reached = float(shares[np.flatnonzero(middle <= tolerance)[-1]])
    bound = np.quantile(rise, _LEVEL, axis=0)
    within = np.flatnonzero(bound <= tolerance)
    safe = float(shares[within[-1]]) if len(within) else None
    place = np.array([safe if safe is not None else reached])
    tokens = _amounts(law, place)
    return MixtureAnswer(
        tolerance=tolerance,
        share=Estimate(reached, *_ends(found)),
        safe_share=safe,
        is_at_end=safe == high,
        domain_change=_interval((law.domain.at(place, tokens) - law.start_domain[:, None])[:, 0]),
        general_change=_interval(
            (law.general.at(place, tokens) - law.start_general[:, None])[:, 0]
        ),
    )


@dataclass(frozen=True)
class Check:
    """Runs of one share that the law had not seen.

    Attributes:
        share: of them.
        role: of the loss.
        predicted: change against the general model on the same documents, for the mean of as many
            runs at this share: with their noise.
        measured: the same of these runs.
        num_runs: of them.
    """

    share: float
    role: Role
    predicted: Estimate
    measured: float
    num_runs: int = 1

    @property
    def is_inside(self) -> bool:
        return self.predicted.low <= self.measured <= self.predicted.high


def check_runs(law: Law, runs: Sequence[MixtureRun]) -> list[Check]:
    """Predict held-out runs of one share.

    They are scored on the documents of the fitted runs, so which documents these are is no part of
    the prediction's uncertainty.

    Raises:
        ConfigError: their share or tokens lie outside what was measured.
    """
    share = float(runs[0].share or 0.0)
    tokens = float(np.mean([run.tokens for run in runs]))
    law.check(share, tokens)
    checks = []
    for number, (role, _, _) in enumerate(_parts(law)):
        fit, start = law.on_same_documents(role), law.start.losses(role).loss
        own = np.random.default_rng([law.seed, 7, number]).standard_normal(len(fit.noise))
        drawn = fit.at(np.array([share]), np.array([tokens]))[:, 0] - start
        predicted = _interval(drawn + fit.noise / math.sqrt(len(runs)) * own)
        measured = float(np.mean([run.losses(role).loss for run in runs])) - start
        checks.append(Check(share, role, predicted, measured, len(runs)))
    return checks


def leave_out(law: Law) -> list[Check]:
    """Predict the runs of each inner share from those of the others; empty where they are too few.

    A held-out share is one trial, which an interval of 95 % loses now and then; these are more of
    them, though not independent ones.
    """
    low, high = law.range
    found: list[Check] = []
    for share in sorted({float(run.share or 0.0) for run in law.runs}):
        own = [run for run in law.runs if float(run.share or 0.0) == share]
        if low < share < high:
            others = [run for run in law.runs if float(run.share or 0.0) != share]
            try:
                rest = fit_law(law.start, others, draws=len(law.domain.chosen), seed=law.seed)
                found += check_runs(rest, own)
            except ConfigError:
                return []
    return found


def _parts(law: Law) -> list[tuple[Role, Fit, F64]]:
    return [
        ("domain", law.domain, law.start_domain),
        ("general", law.general, law.start_general),
    ]


def _amounts(law: Law, shares: F64) -> F64:
    """Tokens at each share: the middle of what was measured, where they are free."""
    return np.full(shares.shape, law.general.grid.middle)


def _interval(draws: F64) -> Estimate:
    return Estimate(float(np.median(draws)), *_ends(draws))


def _ends(draws: F64) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def run_noise(law: Law) -> dict[Role, Estimate]:
    """Standard deviation of one run's loss around the law, as far as these runs show it."""
    return {role: _interval(law.on_same_documents(role).noise) for role, _, _ in _parts(law)}


def sentences(law: Law, answer: MixtureAnswer) -> list[str]:
    """The answer for people."""
    low, high = law.range
    limit = f"a rise of {answer.tolerance:g} bits per byte on general text"
    share = answer.share
    reaches = f"reaches it at {share.value:.2f} ({share.low:.2f} to {share.high:.2f})"
    if share.value >= high:
        reaches = f"stays below it up to the largest share that was measured, {high:g}"
    if answer.safe_share is None:
        lines = [
            f"No measured share is sure to stay within {limit} (95 % bound), though the law itself "
            f"{reaches}. Make more runs, or score more documents."
        ]
    elif answer.is_at_end:
        lines = [
            f"The largest share that was measured, {high:g}, stays within {limit} (95 % bound); "
            "larger ones were not measured."
        ]
    else:
        lines = [
            f"Up to a domain share of {answer.safe_share:.2f} the 95 % bound stays within {limit}; "
            f"the law itself {reaches}."
        ]
    lines.append(
        f"There the domain changes by {answer.domain_change} and general text by "
        f"{answer.general_change} bits per byte."
    )
    noise = run_noise(law)
    lines.append(
        "Runs of the same share differ by a standard deviation of about "
        f"{noise['domain'].value:.4f} (domain) and {noise['general'].value:.4f} (general); more "
        "runs, or longer ones, tell more."
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
        for role, fit, start in _parts(law):
            change = run.losses(role).loss - law.start.losses(role).loss
            place, tokens = np.array([share]), np.array([float(run.tokens)])
            drawn = _interval(fit.at(place, tokens)[:, 0] - start)
            cells += [f"{change:+.4f}", _signed(drawn)]
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


def plain_answer(
    law: Law, answer: MixtureAnswer, checks: Sequence[Check], left_out: Sequence[Check]
) -> dict[str, Any]:
    """All of it as plain values, for JSON."""
    noise = run_noise(law)

    def exponents(fit: Fit) -> dict[str, Any]:
        return {
            "offset": float(fit.offset[0]),
            "slope": float(fit.slope[0]),
            "share_exponent": float(fit.share_exponent[0]),
            "token_exponent": float(fit.token_exponent[0]),
        }

    def outcomes(found: Sequence[Check]) -> list[dict[str, Any]]:
        return [
            {**vars(one), "predicted": vars(one.predicted), "is_inside": one.is_inside}
            for one in found
        ]

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
        "run_noise": {role: vars(noise[role]) for role in noise},
        "held_out": outcomes(checks),
        "left_out": outcomes(left_out),
        "sentences": sentences(law, answer),
    }
