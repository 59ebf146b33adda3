"""Figures on the test sets: general model, specialist and the chosen merge, scored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.evaluate.bootstrap import Figures, bootstrap_figures, intervals
from toolkit.evaluate.sets import EvaluationSet
from toolkit.evaluate.statistics import Interval, percentile_interval
from toolkit.search.objective import named_seed, same_unit
from toolkit.search.space import SPECIALIST

Floats = NDArray[np.float64]
MERGE = "merge"
ROLES = ("domain", "general")


class Resampler:
    """Paired bootstrap over several sets: every model is resampled with the same groups.

    Args:
        sets: the test sets.
        weights: of domain sets, 1 where not given.
        num_resamples: drawn.
        seed: of the recipe; each set derives its own.
    """

    def __init__(
        self,
        sets: Sequence[EvaluationSet],
        weights: Mapping[str, float],
        num_resamples: int,
        seed: int,
    ) -> None:
        self.sets = {item.name: item for item in sets}
        self.shares = {role: self._role_shares(role, weights) for role in ROLES}
        self._num_resamples = num_resamples
        self._seed = seed

    def _role_shares(self, role: str, weights: Mapping[str, float]) -> dict[str, float]:
        sets = [item for item in self.sets.values() if item.role == role]
        names = [item.name for item in sets] if role == "domain" else same_unit(sets)
        raw = {name: weights.get(name, 1.0) if role == "domain" else 1.0 for name in names}
        return {name: weight / sum(raw.values()) for name, weight in raw.items()}

    def figures(self, losses: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Figures]:
        """Of each set the figures of all models, and then their differences from the first."""
        found = {}
        for name, item in self.sets.items():
            own = np.array([losses[model][name] for model in losses], dtype=np.float64)
            found[name] = bootstrap_figures(
                np.concatenate([own, own - own[0]]),
                item.sizes,
                list(item.groups),
                resamples=self._num_resamples,
                seed=named_seed(self._seed, "bootstrap", name),
                scale=item.scale,
            )
        return found

    def role_figures(self, found: Mapping[str, Figures], role: str) -> tuple[Floats, Floats]:
        """The weighted mean of a role's sets: estimates `[2K]` and draws `[R, 2K]`."""
        shares = self.shares[role]
        return (
            np.sum([share * found[name].estimate for name, share in shares.items()], axis=0),
            np.sum([share * found[name].draws for name, share in shares.items()], axis=0),
        )

    def role_intervals(self, found: Mapping[str, Figures], role: str) -> list[Interval]:
        """Studentised where the role is one set, by percentiles where several are weighed."""
        names = list(self.shares[role])
        if len(names) == 1:
            return intervals(found[names[0]])
        estimate, draws = self.role_figures(found, role)
        return [
            percentile_interval(float(value), draws[:, column])
            for column, value in enumerate(estimate)
        ]


def final_figures(
    losses: Mapping[str, Mapping[str, Sequence[float]]], resampler: Resampler
) -> dict[str, Any]:
    """Figures on the test sets.

    Args:
        losses: by model (`general` first, `specialist`, `merge`) and set, in the order of items.
        resampler: of the test sets.

    Returns:
        For each model and role an interval, and its difference from the general model, and an
        interval for each set; `gain_kept`: share of the specialist's domain gain that the merge
        has, or None where its interval does not show one; `loss_recovered`: share of the
        specialist's general loss that the merge does not have, or None where no loss is shown (a
        share of what may be nothing has no meaning); `sets_recovered`: the same of each general
        set.
    """
    found = resampler.figures(losses)
    by_role = {role: resampler.role_intervals(found, role) for role in ROLES}
    by_set = {name: intervals(figures) for name, figures in found.items()}
    count = len(losses)
    models: dict[str, Any] = {}
    for number, model in enumerate(losses):
        row: dict[str, Any] = {}
        for role in ROLES:
            row[role] = asdict(by_role[role][number])
            row[f"{role}_change"] = asdict(by_role[role][count + number])
        row["sets"] = {name: asdict(own[number]) for name, own in by_set.items()}
        row["set_changes"] = {name: asdict(own[count + number]) for name, own in by_set.items()}
        models[model] = row
    place = {model: count + number for number, model in enumerate(losses)}
    shares = {
        role: _share(
            *resampler.role_figures(found, role), by_role[role][place[SPECIALIST]], place, sign
        )
        for role, sign in (("domain", -1.0), ("general", 1.0))
    }
    return {
        "models": models,
        "gain_kept": shares["domain"],
        "loss_recovered": _complement(shares["general"]),
        "sets_recovered": {
            name: _complement(
                _share(own.estimate, own.draws, by_set[name][place[SPECIALIST]], place, 1.0)
            )
            for name, own in found.items()
            if resampler.sets[name].role == "general"
        },
    }


def document_rows(
    losses: Mapping[str, Mapping[str, Sequence[float]]], sets: Sequence[EvaluationSet]
) -> list[dict[str, Any]]:
    """The figure of every item under every model."""
    rows = []
    for item in sets:
        for index, name in enumerate(item.ids):
            figures = {
                model: item.scale * float(own[item.name][index]) / float(item.sizes[index])
                for model, own in losses.items()
            }
            rows.append({"id": name, "set": item.name, "role": item.role, **figures})
    return rows


def _share(
    estimate: Floats, draws: Floats, whole: Interval, place: Mapping[str, int], sign: float
) -> dict[str, float] | None:
    """The merge's change as a share of the specialist's, by percentiles of the resampled ratio;
    None where the specialist's change (`whole`) is not shown to have this sign."""
    if min(sign * whole.low, sign * whole.high) <= 0.0:
        return None
    parts = sign * draws[:, [place[MERGE], place[SPECIALIST]]]
    usable = parts[parts[:, 1] > 0.0]
    share = sign * float(estimate[place[MERGE]]) / (sign * whole.estimate)
    return asdict(percentile_interval(share, usable[:, 0] / usable[:, 1]))


def _complement(share: dict[str, float] | None) -> dict[str, float] | None:
    if share is None:
        return None
    return asdict(Interval(1.0 - share["estimate"], 1.0 - share["high"], 1.0 - share["low"]))
