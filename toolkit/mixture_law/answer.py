"""What a law of mixture says: the largest share, predictions, a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from toolkit.errors import ConfigError
from toolkit.mixture_law.law import Amount, Fit, Law, fit_law
from toolkit.mixture_law.runs import F64, ROLES, MixtureRun, Role
from toolkit.statistics.interval import Interval, Sign

_STEPS = 301
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure, the middle of its draws, with its 95 % interval."""

    value: float
    low: float
    high: float

    def words(self, sign: Sign = "") -> str:
        return Interval(self.value, self.low, self.high).words(sign=sign)

    def __str__(self) -> str:
        return self.words()


@dataclass(frozen=True)
class MixtureAnswer:
    """The largest domain share within a tolerated general loss.

    Attributes:
        tolerance: rise of the general loss against the general model, bits per byte.
        share: domain share at which the law itself reaches it, within what was measured.
        safe_share: up to which, from the smallest that was measured, the one-sided 95 % bound of
            the rise stays within it; None where that does not hold for the smallest.
        is_at_end: whether the safe share is the largest that was measured.
        domain_change, general_change: changes against the general model at the safe share, else at
            `share`.
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
        law: laws that were fitted.
        tolerance: rise against the general model in bits per byte, may be 0 or below it.

    Raises:
        ConfigError: it is no finite number, or by the law itself no measured share meets it.
    """
    if not math.isfinite(tolerance):
        raise ConfigError(f"--tolerance: must be a finite number (got {tolerance}).")
    low, high = law.range
    shares = np.linspace(low, high, _STEPS)
    general_rises = law.general.at(shares, _amounts(law, shares)) - law.start_general[:, None]
    is_allowed, median_rise = general_rises <= tolerance, np.median(general_rises, axis=0)
    if not (median_rise <= tolerance).any():
        least_place = int(np.argmin(median_rise))
        raise ConfigError(
            f"--tolerance: {tolerance:g} is met by no measured share; the least rise, at share "
            f"{shares[least_place]:.2f}, is {_estimate(general_rises[:, least_place])} bits per "
            "byte. Measure smaller shares, or allow more."
        )
    # From the end, so that a law that falls again counts with its largest share.
    from_end = np.argmax(is_allowed[:, ::-1], axis=1)
    last_allowed = np.where(is_allowed.any(axis=1), _STEPS - 1 - from_end, 0)
    reached_share = float(shares[np.flatnonzero(median_rise <= tolerance)[-1]])
    # One-sided: a rise that is smaller than expected does no harm, so all 5 % lie above.
    upper_bound = np.quantile(general_rises, _LEVEL, axis=0)
    # Up to the first share that breaks it: a bound that comes down again vouches for none between.
    num_safe = int(np.argmax([*(upper_bound > tolerance), True]))
    safe_share = float(shares[num_safe - 1]) if num_safe else None
    place = np.array([safe_share if safe_share is not None else reached_share])
    domain_change, general_change = (
        _estimate((fit.at(place, _amounts(law, place)) - start[:, None])[:, 0])
        for _, fit, start in law.parts()
    )
    return MixtureAnswer(
        tolerance=tolerance,
        share=Estimate(reached_share, *_ends(shares[last_allowed])),
        safe_share=safe_share,
        is_at_end=safe_share == high,
        domain_change=domain_change,
        general_change=general_change,
    )


@dataclass(frozen=True)
class Check:
    """Runs of one share that the law had not seen.

    Attributes:
        share: domain share of the runs.
        role: documents that the loss is on.
        predicted: change against the general model on the same documents, for the mean of as many
            runs at this share: with their noise.
        measured: the same of these runs.
        num_runs: number of the runs.
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
    for number, role in enumerate(ROLES):
        fit, start_loss = law.on_same_documents(role), law.start.losses(role).loss
        normal_draws = np.random.default_rng([law.seed, 7, number]).standard_normal(len(fit.noise))
        drawn_changes = fit.at(np.array([share]), np.array([tokens]))[:, 0] - start_loss
        # The mean of several runs scatters less, by the root of their number.
        predicted = _estimate(drawn_changes + fit.noise / math.sqrt(len(runs)) * normal_draws)
        measured = float(np.mean([run.losses(role).loss for run in runs])) - start_loss
        checks.append(Check(share, role, predicted, measured, len(runs)))
    return checks


def leave_out(law: Law) -> list[Check]:
    """Predict the runs of each inner share from those of the others; empty where they are too few.

    A held-out share is one trial, which an interval of 95 % loses now and then; these are more of
    them, though not independent ones.
    """
    low, high = law.range
    checks: list[Check] = []
    for share in sorted({float(run.share or 0.0) for run in law.runs}):
        if not low < share < high:
            continue
        runs_of_share = [run for run in law.runs if float(run.share or 0.0) == share]
        other_runs = [run for run in law.runs if float(run.share or 0.0) != share]
        try:
            law_of_others = fit_law(
                law.start, other_runs, draws=len(law.domain.chosen), seed=law.seed
            )
            checks += check_runs(law_of_others, runs_of_share)
        except ConfigError:
            # The others are too few for the law's parameters, or no longer reach around the share.
            return []
    return checks


def _amounts(law: Law, shares: F64) -> F64:
    """Tokens at each share: the middle of what was measured, where they are free."""
    return np.full(shares.shape, law.general.grid.middle)


def _estimate(draws: F64) -> Estimate:
    return Estimate(float(np.median(draws)), *_ends(draws))


def _ends(draws: F64) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def run_noise(law: Law) -> dict[Role, Estimate]:
    """Standard deviation of one run's loss around the law, as far as these runs show it."""
    return {role: _estimate(law.on_same_documents(role).noise) for role in ROLES}


def sentences(law: Law, answer: MixtureAnswer) -> list[str]:
    """The answer for people."""
    low, high = law.range
    limit_words = f"a rise of {answer.tolerance:g} bits per byte on general text"
    share = answer.share
    reach_words = f"reaches it at {share.value:.2f} ({share.low:.2f} to {share.high:.2f})"
    if share.value >= high:
        reach_words = f"stays below it up to the largest share that was measured, {high:g}"
    if answer.safe_share is None:
        lines = [
            f"Not even the smallest share that was measured, {low:g}, is sure to stay within "
            f"{limit_words} (95 % bound), though the law itself {reach_words}. Make more runs, or "
            "score more documents."
        ]
    elif answer.is_at_end:
        lines = [
            f"The largest share that was measured, {high:g}, stays within {limit_words} (95 % "
            "bound); larger ones were not measured."
        ]
    else:
        lines = [
            f"Up to a domain share of {answer.safe_share:.2f} the 95 % bound stays within "
            f"{limit_words}; the law itself {reach_words}."
        ]
    lines.append(
        f"There the domain changes by {answer.domain_change} and general text by "
        f"{answer.general_change} bits per byte."
    )
    noise_by_role = run_noise(law)
    lines.append(
        "Runs of the same share differ by a standard deviation of about "
        f"{noise_by_role['domain'].value:.4f} (domain) and {noise_by_role['general'].value:.4f} "
        "(general); more runs, or longer ones, tell more."
    )
    fixed_amounts = {"all tokens": "as many tokens", "domain tokens": "as many domain tokens"}
    fewest_tokens, most_tokens = law.tokens
    size_words = (
        f"{fixed_amounts[law.amount]} as these"
        if law.amount in fixed_amounts
        else f"{fewest_tokens} to {most_tokens} tokens"
    )
    lines.append(
        f"This holds for runs of {size_words} and shares from {low:g} to {high:g}; longer runs "
        "forget more."
    )
    return lines


def table_rows(law: Law, checks: Sequence[Check]) -> list[tuple[str, ...]]:
    """Rows of the table: share, tokens, changes measured and by the law."""
    rows = []
    for run in law.runs:
        share = float(run.share or 0.0)
        cells = [f"{share:g}", f"{run.tokens:,}"]
        for role, fit, start_losses in law.parts():
            change = run.losses(role).loss - law.start.losses(role).loss
            drawn_changes = (
                fit.at(np.array([share]), np.array([float(run.tokens)]))[:, 0] - start_losses
            )
            cells += [f"{change:+.4f}", _estimate(drawn_changes).words("+")]
        rows.append(tuple(cells))
    for share in dict.fromkeys(check.share for check in checks):
        cells = [f"{share:g} held out", ""]
        for check in checks:
            if check.share == share:
                cells += [f"{check.measured:+.4f}", check.predicted.words("+")]
        rows.append(tuple(cells))
    return rows


@dataclass(frozen=True)
class Exponents:
    """The law of least squares, `offset + slope * share^share_exponent * tokens^token_exponent`."""

    offset: float
    slope: float
    share_exponent: float
    token_exponent: float

    @classmethod
    def of(cls, fit: Fit) -> Exponents:
        fields = (fit.offset, fit.slope, fit.share_exponent, fit.token_exponent)
        return cls(*(float(draws[0]) for draws in fields))


@dataclass(frozen=True)
class MixtureResults:
    """What `mixture.json` holds, in its order.

    Attributes:
        same_in_all_runs: which amount was the same in all runs.
        shares, tokens: smallest and largest that were measured.
        domain_law, general_law: laws of least squares.
        tolerance: rise of the general loss that is accepted.
        share, safe_share, domain_change, general_change: see `MixtureAnswer`.
        run_noise: standard deviation of one run, by role.
        held_out: predictions of the shares that were held out.
        left_out: predictions of each inner share from the others.
        sentences: the answer for people.
    """

    same_in_all_runs: Amount
    shares: tuple[float, float]
    tokens: tuple[int, int]
    domain_law: Exponents
    general_law: Exponents
    tolerance: float
    share: Estimate
    safe_share: float | None
    domain_change: Estimate
    general_change: Estimate
    run_noise: dict[Role, Estimate]
    held_out: tuple[Check, ...]
    left_out: tuple[Check, ...]
    sentences: tuple[str, ...]

    @classmethod
    def of(
        cls, law: Law, answer: MixtureAnswer, checks: Sequence[Check], left_out: Sequence[Check]
    ) -> MixtureResults:
        return cls(
            same_in_all_runs=law.amount,
            shares=law.range,
            tokens=law.tokens,
            domain_law=Exponents.of(law.domain),
            general_law=Exponents.of(law.general),
            tolerance=answer.tolerance,
            share=answer.share,
            safe_share=answer.safe_share,
            domain_change=answer.domain_change,
            general_change=answer.general_change,
            run_noise=run_noise(law),
            held_out=tuple(checks),
            left_out=tuple(left_out),
            sentences=tuple(sentences(law, answer)),
        )

    def as_json(self) -> dict[str, object]:
        """The values of `mixture.json`."""
        values = asdict(self)
        for key, checks in (("held_out", self.held_out), ("left_out", self.left_out)):
            for check, row in zip(checks, values[key], strict=True):
                row["is_inside"] = check.is_inside
        return values
