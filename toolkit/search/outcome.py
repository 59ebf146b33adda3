"""What the scores say: tuning figures of every candidate, test figures of the three that matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from toolkit.evaluate.likelihood import ItemSet
from toolkit.evaluate.statistics import (
    Interval,
    bits_per_byte,
    bootstrap_ratios,
    percentile_interval,
    resample_counts,
    upper_bound,
)
from toolkit.search.run import Score
from toolkit.search.space import GENERAL, SPECIALIST

ROLES = ("domain", "general")


@dataclass(frozen=True)
class TuningRow:
    """A candidate's figures on the tuning sets, in bits per byte.

    Attributes:
        name: of the candidate.
        domain: on domain documents.
        general: on general documents.
        general_loss_bound: one-sided upper bound of `general` minus the general model's.
        distance: from the general model, as a share of the specialist's own distance.
    """

    name: str
    domain: float
    general: float
    general_loss_bound: float
    distance: float


class Resampler:
    """Paired bootstrap over one item set: every model is resampled with the same documents."""

    def __init__(self, items: ItemSet, num_resamples: int, seed: int) -> None:
        self._index = {role: items.only(role) for role in ROLES}
        self._bytes = {r: np.array(items.num_bytes)[i] for r, i in self._index.items()}
        self._counts = {
            role: resample_counts(len(index), num_resamples, seed)
            for role, index in self._index.items()
        }

    def estimate(self, nats: Sequence[float], role: str) -> float:
        return bits_per_byte(np.array(nats)[self._index[role]], self._bytes[role])

    def draws(self, nats: Sequence[float], role: str) -> Any:
        """Bits per byte of every resample."""
        return bootstrap_ratios(
            np.array(nats)[self._index[role]], self._bytes[role], self._counts[role]
        )


def tuning_rows(
    scores: Sequence[Score], resampler: Resampler, confidence: float
) -> list[TuningRow]:
    """Figures of every candidate, each compared with the general model on the same documents."""
    by_name = {score.candidate.name: score for score in scores}
    start = resampler.draws(by_name[GENERAL].nats, "general")
    whole_way = by_name[SPECIALIST].distance or 1.0
    return [
        TuningRow(
            name=score.candidate.name,
            domain=resampler.estimate(score.nats, "domain"),
            general=resampler.estimate(score.nats, "general"),
            general_loss_bound=upper_bound(
                resampler.draws(score.nats, "general") - start, confidence
            ),
            distance=score.distance / whole_way,
        )
        for score in scores
    ]


def final_figures(nats: Mapping[str, Sequence[float]], resampler: Resampler) -> dict[str, Any]:
    """Figures on the test sets, scored once.

    Args:
        nats: losses of the documents under `general`, `specialist` and `merge`.
        resampler: of the test documents.

    Returns:
        For each model and role an interval, and its difference from the general model;
        `gain_kept`: share of the specialist's domain gain that the merge has;
        `loss_recovered`: share of the specialist's general loss that the merge does not have, or
        None where the specialist lost nothing.
    """
    draws = {m: {r: resampler.draws(n, r) for r in ROLES} for m, n in nats.items()}
    points = {m: {r: resampler.estimate(n, r) for r in ROLES} for m, n in nats.items()}
    figures: dict[str, Any] = {"models": {}}
    for model in nats:
        row: dict[str, Any] = {}
        for role in ROLES:
            row[role] = asdict(percentile_interval(points[model][role], draws[model][role]))
            row[f"{role}_change"] = asdict(
                percentile_interval(
                    points[model][role] - points[GENERAL][role],
                    draws[model][role] - draws[GENERAL][role],
                )
            )
        figures["models"][model] = row
    change = {m: {r: points[m][r] - points[GENERAL][r] for r in ROLES} for m in nats}
    moved = {m: {r: draws[m][r] - draws[GENERAL][r] for r in ROLES} for m in nats}
    figures["gain_kept"] = _share(change, moved, "domain", sign=-1.0, complement=False)
    figures["loss_recovered"] = _share(change, moved, "general", sign=1.0, complement=True)
    return figures


def _share(
    change: Mapping[str, Mapping[str, float]],
    moved: Mapping[str, Mapping[str, Any]],
    role: str,
    *,
    sign: float,
    complement: bool,
) -> dict[str, float] | None:
    """The merge's change as a share of the specialist's, where the specialist's has this sign."""
    whole = sign * change[SPECIALIST][role]
    if whole <= 0.0:
        return None
    estimate = sign * change["merge"][role] / whole
    whole_draws = sign * moved[SPECIALIST][role]
    usable = whole_draws > 0.0
    draws = sign * moved["merge"][role][usable] / whole_draws[usable]
    interval = percentile_interval(estimate, draws)
    if complement:
        interval = Interval(1.0 - interval.estimate, 1.0 - interval.high, 1.0 - interval.low)
    return asdict(interval)
