"""A law of mixture: losses as a function of the domain's share, fitted to a few small runs.

Legend: G points of a grid of exponents, K draws, N runs, S shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ConfigError
from toolkit.plan.mixture_runs import F64, MixtureRun

Amount = Literal["all tokens", "domain tokens", "free"]

SHARE_EXPONENTS = np.geomspace(0.1, 8.0, 89)
TOKEN_EXPONENTS = np.linspace(-1.0, 1.0, 41)
_SAME = 0.1
"""Amounts that differ by less than this share of themselves are one amount: blocks are whole."""


@dataclass(frozen=True)
class Grid:
    """The laws that are compared, `loss = E + A * share^s * (tokens / middle)^t`, at given places.

    Attributes:
        exponents: `[G, 2]`, s and t.
        middle: tokens that the law is centred on.
        num_parameters: of one law.
    """

    exponents: F64
    middle: float
    num_parameters: int

    def features(self, shares: F64, tokens: F64) -> F64:
        """What A multiplies, `[G, S]`."""
        with np.errstate(divide="ignore"):
            logs = np.log(shares)
        # share 0: 0^s is 0, and the general model's own mixture has no domain text
        powers = np.where(shares > 0, np.exp(self.exponents[:, :1] * logs), 0.0)
        scale: F64 = np.exp(self.exponents[:, 1:] * np.log(tokens / self.middle))
        return np.asarray(powers * scale)


@dataclass(frozen=True)
class Fit:
    """Laws fitted to several draws of the runs' losses.

    Attributes:
        grid: of exponents.
        chosen: `[K]`, the best of the grid.
        offset, slope: `[K]`, E and A.
        squares: `[K]`, summed squares that are left.
    """

    grid: Grid
    chosen: NDArray[np.int64]
    offset: F64
    slope: F64
    squares: F64

    def at(self, shares: F64, tokens: F64) -> F64:
        """Losses of each draw's law, `[K, S]`."""
        features = self.grid.features(shares, tokens)[self.chosen]
        return np.asarray(self.offset[:, None] + self.slope[:, None] * features)

    @property
    def share_exponent(self) -> F64:
        return np.asarray(self.grid.exponents[self.chosen, 0])

    @property
    def token_exponent(self) -> F64:
        return np.asarray(self.grid.exponents[self.chosen, 1])


def amount_of(runs: Sequence[MixtureRun]) -> Amount:
    """Which amount is the same in all runs; of that the law then says nothing.

    Runs of equally much domain text, with replay on top, have more tokens the smaller the share is,
    so one curve over the share describes them; only what differs in both ways has an exponent.
    """
    tokens = np.array([run.tokens for run in runs], dtype=np.float64)
    domain = tokens * np.array([run.share for run in runs], dtype=np.float64)
    for name, values in (("all tokens", tokens), ("domain tokens", domain)):
        if values.min() > 0 and np.ptp(values) <= _SAME * values.max():
            return "all tokens" if name == "all tokens" else "domain tokens"
    return "free"


def make_grid(runs: Sequence[MixtureRun]) -> Grid:
    """The laws that suit these runs.

    Raises:
        ConfigError: there are too few runs, or shares, for the parameters.
    """
    amount = amount_of(runs)
    times = TOKEN_EXPONENTS if amount == "free" else np.zeros(1)
    pairs = np.array([(s, t) for s in SHARE_EXPONENTS for t in times])
    parameters = 4 if amount == "free" else 3
    shares = sorted({float(run.share or 0.0) for run in runs})
    if len(runs) <= parameters or len(shares) < 3:
        raise ConfigError(
            f"runs: {len(runs)} of {len(shares)} shares are too few for a law of {parameters} "
            f"parameters and its uncertainty; give at least {parameters + 1} runs of 3 shares."
        )
    middle = float(np.exp(np.mean(np.log([run.tokens for run in runs]))))
    return Grid(pairs, middle, parameters)


def fit_losses(grid: Grid, shares: F64, tokens: F64, losses: F64) -> Fit:
    """The law with the least squares for each draw; given the exponents, the rest is a line.

    Args:
        grid: of exponents.
        shares: `[N]`.
        tokens: `[N]`.
        losses: `[K, N]`.

    >>> grid = Grid(np.array([[1.0, 0.0], [2.0, 0.0]]), 100.0, 3)
    >>> shares, tokens = np.array([0.0, 0.5, 1.0]), np.array([100.0, 100.0, 100.0])
    >>> fit = fit_losses(grid, shares, tokens, np.array([[1.0, 1.25, 2.0]]))
    >>> fit.share_exponent.tolist(), fit.offset.tolist(), fit.slope.tolist()
    ([2.0], [1.0], [1.0])
    """
    features = grid.features(shares, tokens)
    centred = features - features.mean(axis=1, keepdims=True)
    spread = np.maximum((centred**2).sum(axis=1), 1e-300)
    around = losses - losses.mean(axis=1, keepdims=True)
    slopes = (around @ centred.T) / spread
    squares = (around**2).sum(axis=1, keepdims=True) - slopes**2 * spread
    chosen = np.argmin(squares, axis=1)
    rows = np.arange(len(losses))
    slope = slopes[rows, chosen]
    offset = losses.mean(axis=1) - slope * features.mean(axis=1)[chosen]
    return Fit(grid, chosen, offset, slope, np.maximum(squares[rows, chosen], 0.0))


@dataclass(frozen=True)
class Law:
    """The laws of both losses, with draws for their uncertainty.

    A draw has documents resampled (the same ones in every run, and in the general model) and then
    noise on each run, of the size that the fit left over: what differs from run to run, and what
    the law cannot say. With few runs more than it has parameters that size is known badly, and the
    intervals are accordingly wide.

    Attributes:
        start: the general model's losses.
        runs: what was fitted.
        amount: what was the same in all runs.
        domain, general: fits of the draws, the first of them the point estimate.
        start_domain, start_general: `[K]`, the general model's losses under the same documents.
        noise_domain, noise_general: `[K]`, standard deviation of a run's noise.
    """

    start: MixtureRun
    runs: tuple[MixtureRun, ...]
    amount: Amount
    domain: Fit
    general: Fit
    start_domain: F64
    start_general: F64
    noise_domain: F64
    noise_general: F64

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest share that was measured."""
        shares = [float(run.share or 0.0) for run in self.runs]
        return min(shares), max(shares)

    @property
    def tokens(self) -> tuple[int, int]:
        """Fewest and most tokens of a run."""
        amounts = [run.tokens for run in self.runs]
        return min(amounts), max(amounts)

    def check(self, share: float, tokens: float | None = None) -> None:
        """Refuse what was not measured around.

        Raises:
            ConfigError: a plain sentence.
        """
        low, high = self.range
        if not low <= share <= high:
            raise ConfigError(
                f"share {share:g} lies outside what was measured, {low:g} to {high:g}; a law says "
                "nothing there. Make a run beyond it."
            )
        fewest, most = self.tokens
        slack = _SAME if self.amount != "free" else 0.0
        if tokens is not None and not fewest * (1 - slack) <= tokens <= most * (1 + slack):
            raise ConfigError(
                f"{tokens:g} tokens lie outside what was measured, {fewest} to {most}; a law says "
                "nothing there. Make runs of that size."
            )


def fit_law(
    start: MixtureRun, runs: Sequence[MixtureRun], *, draws: int = 2000, seed: int = 0
) -> Law:
    """Fit the laws of domain and general loss.

    A power law in the share at a fixed amount, as CMR (Gu et al. 2024) has for the general loss;
    where amounts differ it is multiplied by a power of the tokens. D-CPT's law has seven
    parameters, more than a few small runs can tell apart; between measured shares both bend alike.

    Args:
        start: the general model's own losses.
        runs: small runs, all scored on the same documents.
        draws: for intervals.
        seed: of the draws.

    Raises:
        ConfigError: there are too few runs for the parameters.

    Reference:
        Que et al. 2024, D-CPT Law, https://arxiv.org/abs/2406.01375; Gu et al. 2024, CMR Scaling
        Law, https://arxiv.org/abs/2407.17467.
    """
    grid = make_grid(runs)
    shares = np.array([run.share for run in runs], dtype=np.float64)
    tokens = np.array([run.tokens for run in runs], dtype=np.float64)
    fits: list[tuple[Fit, F64, F64]] = []
    for number, role in enumerate(("domain", "general")):
        chance = np.random.default_rng([seed, number])
        first = start.domain if role == "domain" else start.general
        own = [run.domain if role == "domain" else run.general for run in runs]
        size = len(first.nats)
        counts = chance.multinomial(size, np.full(size, 1.0 / size), size=draws).astype(np.float64)
        counts[0] = 1.0  # the documents as they are: the point estimate
        losses = np.stack([part.resampled(counts) for part in own], axis=1)
        point = fit_losses(grid, shares, tokens, losses)
        freedom = len(runs) - grid.num_parameters
        noise = np.sqrt(point.squares[0] / chance.chisquare(freedom, size=draws))
        again = point.at(shares, tokens) + noise[:, None] * chance.standard_normal(losses.shape)
        again[0], noise[0] = losses[0], np.sqrt(point.squares[0] / freedom)
        fits.append((fit_losses(grid, shares, tokens, again), first.resampled(counts), noise))
    (domain, start_domain, noise_domain), (general, start_general, noise_general) = fits
    return Law(
        start,
        tuple(runs),
        amount_of(runs),
        domain,
        general,
        start_domain,
        start_general,
        noise_domain,
        noise_general,
    )
