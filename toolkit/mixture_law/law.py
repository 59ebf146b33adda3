"""A law of mixture: losses as a function of the domain's share, fitted to a few small runs.

Legend: G points of a grid of exponents, K draws, N runs, S shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ConfigError
from toolkit.mixture_law.runs import F64, ROLES, MixtureRun, Role

Amount = Literal["all tokens", "domain tokens", "free"]

# Even in the logarithm: that is the prior which `draw_laws` averages over.
SHARE_EXPONENTS = np.geomspace(0.1, 8.0, 89)
TOKEN_EXPONENTS = np.linspace(-1.0, 1.0, 41)
_SAME = 0.1
"""Amounts that differ by less than this share of themselves are one amount: blocks are whole."""

_EXACT = 1e-20
"""Squares below this share of what is to be explained are rounding."""


@dataclass(frozen=True)
class Grid:
    """The laws that are compared, `loss = E + A * share^s * (tokens / middle)^t`, at given places.

    Attributes:
        exponents: s and t, `[G, 2]`.
        middle: tokens that the law is centered on.
        num_parameters: number of parameters of one law.
    """

    exponents: F64
    middle: float
    num_parameters: int

    def features(self, shares: F64, tokens: F64) -> F64:
        """What A multiplies, `[G, S]`."""
        with np.errstate(divide="ignore"):
            log_shares = np.log(shares)
        # share 0: 0^s is 0, and the general model's own mixture has no domain text
        share_powers = np.where(shares > 0, np.exp(self.exponents[:, :1] * log_shares), 0.0)
        token_powers: F64 = np.exp(self.exponents[:, 1:] * np.log(tokens / self.middle))
        return np.asarray(share_powers * token_powers)


@dataclass(frozen=True)
class Fit:
    """Laws that the runs leave possible: the one of least squares, then draws.

    Attributes:
        grid: laws that were compared.
        chosen: place of each law in the grid, `[K]`.
        offset, slope: E and A, `[K]`.
        noise: standard deviation of a run around its law, `[K]`.
    """

    grid: Grid
    chosen: NDArray[np.int64]
    offset: F64
    slope: F64
    noise: F64

    def at(self, shares: F64, tokens: F64) -> F64:
        """Losses of each law, `[K, S]`."""
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
    domain_tokens = tokens * np.array([run.share for run in runs], dtype=np.float64)

    def is_same(amounts: F64) -> bool:
        # A run of share 0 has no domain text, so it shares no amount of it with the others.
        return bool(amounts.min() > 0 and np.ptp(amounts) <= _SAME * amounts.max())

    if is_same(tokens):
        return "all tokens"
    return "domain tokens" if is_same(domain_tokens) else "free"


def make_grid(runs: Sequence[MixtureRun]) -> Grid:
    """The laws that suit these runs.

    Raises:
        ConfigError: there are too few runs, or shares, for the parameters.
    """
    is_free = amount_of(runs) == "free"
    token_exponents = TOKEN_EXPONENTS if is_free else np.zeros(1)
    exponent_pairs = np.array([(s, t) for s in SHARE_EXPONENTS for t in token_exponents])
    num_parameters = 4 if is_free else 3
    num_shares = len({float(run.share or 0.0) for run in runs})
    if len(runs) <= num_parameters or num_shares < 3:
        raise ConfigError(
            f"runs: {len(runs)} of {num_shares} shares are too few for a law of {num_parameters} "
            f"parameters and its uncertainty; give at least {num_parameters + 1} runs of 3 shares."
        )
    # The geometric middle, as the law is a power of the tokens.
    middle_tokens = float(np.exp(np.mean(np.log([run.tokens for run in runs]))))
    return Grid(exponent_pairs, middle_tokens, num_parameters)


def draw_laws(
    grid: Grid, shares: F64, tokens: F64, losses: F64, chance: np.random.Generator
) -> Fit:
    """Laws in proportion to how well they explain the runs: one for each row of losses.

    A few runs cannot tell an exponent: one that is fitted takes a degree of freedom and then counts
    as known. Here it is averaged over, evenly in its logarithm. Given it, E and A are a line, and
    the noise of a run is what the line leaves over, with N - 2 degrees of freedom; all have flat
    priors, A as the change over the measured range, so that no exponent is favored by its scale.
    With an exponent that is known the intervals of such draws are Student's, and exact.

    Args:
        grid: laws that are compared.
        shares: domain share of each run, `[N]`.
        tokens: tokens of each run, `[N]`.
        losses: losses of the runs under each draw's documents, `[K, N]`.
        chance: generator of the draws.

    Returns:
        Of the first row the law of least squares, of the others a draw each.

    Reference:
        Box & Tiao 1973, Bayesian inference in statistical analysis, chapter 2.

    >>> grid = Grid(np.array([[1.0, 0.0], [2.0, 0.0]]), 100.0, 3)
    >>> shares, tokens = np.array([0.0, 0.5, 1.0]), np.array([100.0, 100.0, 100.0])
    >>> losses = np.array([[1.0, 1.25, 2.0]])
    >>> fit = draw_laws(grid, shares, tokens, losses, np.random.default_rng(0))
    >>> fit.share_exponent.tolist(), fit.offset.tolist(), fit.slope.tolist()
    ([2.0], [1.0], [1.0])
    """
    num_draws, num_runs = losses.shape
    freedom = num_runs - 2
    features = grid.features(shares, tokens)
    lines = _fit_lines(features, losses)
    chosen_laws = _choose_laws(lines, freedom, chance)
    draw_rows = np.arange(num_draws)
    left_squares = lines.squares[draw_rows, chosen_laws]
    # The posterior of a variance under a prior flat in its logarithm: squares over a draw of
    # chi-squared with their degrees of freedom.
    noise = np.sqrt(left_squares / chance.chisquare(freedom, size=num_draws))
    # The first law is the fit itself: the usual estimate of its noise, and no error drawn.
    noise[0] = np.sqrt(left_squares[0] / freedom)
    normal_draws = chance.standard_normal((2, num_draws))
    normal_draws[:, 0] = 0.0
    # Of centered features slope and level are independent, each with its own error.
    slope_error = noise * normal_draws[0] / np.sqrt(lines.spread[chosen_laws])
    slope = (lines.slopes[draw_rows, chosen_laws] + slope_error) / lines.width[chosen_laws]
    level_error = noise * normal_draws[1] / np.sqrt(num_runs)
    offset = lines.level + level_error - slope * lines.means[chosen_laws]
    return Fit(grid, chosen_laws, offset, slope, noise)


def _choose_laws(lines: _Lines, freedom: int, chance: np.random.Generator) -> NDArray[np.int64]:
    """The likeliest exponents for the first row of losses, for the others a draw each."""
    # Log posterior of each exponent: E and A are integrated out, and the noise with them.
    log_weights = -0.5 * np.log(lines.spread) - 0.5 * freedom * np.log(lines.unexplained_share)
    # The largest of weights with Gumbel's noise is a draw in proportion to them.
    noisy_weights = log_weights + chance.gumbel(size=log_weights.shape)
    noisy_weights[0] = -lines.squares[0]
    return np.asarray(np.argmax(noisy_weights, axis=1))


class _Lines(NamedTuple):
    """Lines of least squares through the losses of each draw, over the features of each exponent.

    Attributes:
        width: range of the features, `[G]`; slopes are of features over it.
        means: mean of the features, `[G]`.
        spread: sum of squares of the centered features, `[G]`.
        level: mean loss, `[K]`.
        slopes: `[K, G]`.
        squares: what the line leaves over, `[K, G]`.
        unexplained_share: the same, over the squares before a line is drawn, `[K, G]`.
    """

    width: F64
    means: F64
    spread: F64
    level: F64
    slopes: F64
    squares: F64
    unexplained_share: F64


def _fit_lines(features: F64, losses: F64) -> _Lines:
    # A large exponent takes features to almost nothing: over their range they are all of one size.
    feature_widths = np.maximum(np.ptp(features, axis=1), 1e-150)
    feature_means = features.mean(axis=1)
    centered_features = (features - feature_means[:, None]) / feature_widths[:, None]
    spread = np.maximum((centered_features**2).sum(axis=1), 1e-300)
    level = losses.mean(axis=1)
    centered_losses = losses - level[:, None]
    slopes = (centered_losses @ centered_features.T) / spread
    # The floors keep quotients and logarithms finite where all losses, or all features, are alike.
    all_squares = np.maximum((centered_losses**2).sum(axis=1, keepdims=True), 1e-300)
    squares = np.maximum(all_squares - slopes**2 * spread, _EXACT * all_squares)
    return _Lines(
        feature_widths, feature_means, spread, level, slopes, squares, squares / all_squares
    )


@dataclass(frozen=True)
class Law:
    """The laws of both losses, with draws for their uncertainty.

    A draw has documents resampled (the same ones in every run, and in the general model), and of
    the laws that the runs then leave possible one. With few runs the noise of a run is known
    badly, and the intervals are accordingly wide.

    Attributes:
        start: the general model's losses.
        runs: runs that were fitted.
        amount: which amount was the same in all runs.
        domain, general: laws of either loss.
        start_domain, start_general: the general model's losses under the same documents, `[K]`.
        seed: seed of the draws.
    """

    start: MixtureRun
    runs: tuple[MixtureRun, ...]
    amount: Amount
    domain: Fit
    general: Fit
    start_domain: F64
    start_general: F64
    seed: int

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
        fewest_tokens, most_tokens = self.tokens
        relative_slack = _SAME if self.amount != "free" else 0.0
        lowest, highest = fewest_tokens * (1 - relative_slack), most_tokens * (1 + relative_slack)
        if tokens is not None and not lowest <= tokens <= highest:
            raise ConfigError(
                f"{tokens:g} tokens lie outside what was measured, {fewest_tokens} to "
                f"{most_tokens}; a law says nothing there. Make runs of that size."
            )

    def parts(self) -> list[tuple[Role, Fit, F64]]:
        """Either loss: its role, its laws, and the general model's losses."""
        return [
            ("domain", self.domain, self.start_domain),
            ("general", self.general, self.start_general),
        ]

    def on_same_documents(self, role: Role) -> Fit:
        """Laws of the loss on just these documents, which other runs are scored on as well."""
        document_counts = np.ones((len(self.domain.chosen), len(self.start.losses(role).nats)))
        return _fit_role(self.domain.grid, self.runs, role, document_counts, self.seed)


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
        draws: number of draws, for intervals.
        seed: seed of the draws.

    Raises:
        ConfigError: there are too few runs for the parameters.

    Reference:
        Que et al. 2024, D-CPT Law, https://arxiv.org/abs/2406.01375; Gu et al. 2024, CMR Scaling
        Law, https://arxiv.org/abs/2407.17467.
    """
    grid = make_grid(runs)
    fits: list[tuple[Fit, F64]] = []
    for number, role in enumerate(ROLES):
        # A generator for each role: draws of one must not move with the number of the other's
        # documents.
        chance = np.random.default_rng([seed, number])
        start_losses = start.losses(role)
        num_documents = len(start_losses.nats)
        evenly = np.full(num_documents, 1.0 / num_documents)
        document_counts = chance.multinomial(num_documents, evenly, size=draws).astype(np.float64)
        document_counts[0] = 1.0  # the documents as they are
        fit = _fit_role(grid, runs, role, document_counts, seed)
        fits.append((fit, start_losses.resampled(document_counts)))
    (domain, start_domain), (general, start_general) = fits
    return Law(
        start=start,
        runs=tuple(runs),
        amount=amount_of(runs),
        domain=domain,
        general=general,
        start_domain=start_domain,
        start_general=start_general,
        seed=seed,
    )


def _fit_role(grid: Grid, runs: Sequence[MixtureRun], role: Role, counts: F64, seed: int) -> Fit:
    """Laws of one loss, a draw for each row of how often documents count, `[K, documents]`."""
    shares = np.array([run.share for run in runs], dtype=np.float64)
    tokens = np.array([run.tokens for run in runs], dtype=np.float64)
    losses = np.stack([run.losses(role).resampled(counts) for run in runs], axis=1)
    chance = np.random.default_rng([seed, 3, int(role == "general")])
    return draw_laws(grid, shares, tokens, losses, chance)
