"""Figures on the test sets: general model, specialist and the chosen merge, scored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.evaluate.sets import EvaluationSet
from toolkit.evaluate.statistics import Interval, percentile_interval, resample_counts
from toolkit.search.objective import named_seed
from toolkit.search.space import GENERAL, SPECIALIST

Floats = NDArray[np.float64]
MERGE = "merge"
ROLES = ("domain", "general")
_AT_ONCE = 500  # resamples whose counts are held in memory


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
        self._shares = {role: self._role_shares(role, weights) for role in ROLES}
        self._num_resamples = num_resamples
        self._seed = seed

    def _role_shares(self, role: str, weights: Mapping[str, float]) -> dict[str, float]:
        names = [name for name, item in self.sets.items() if item.role == role]
        raw = {name: weights.get(name, 1.0) if role == "domain" else 1.0 for name in names}
        return {name: weight / sum(raw.values()) for name, weight in raw.items()}

    def estimates(self, losses: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """The figure of each set and role."""
        found = {name: item.figure(losses[name]) for name, item in self.sets.items()}
        return {**self._by_role(found), **{f"set:{name}": found[name] for name in found}}

    def draws(
        self, models: Mapping[str, Mapping[str, Sequence[float]]]
    ) -> dict[str, dict[str, Any]]:
        """Those figures in every resample, by model."""
        drawn: dict[str, dict[str, Floats]] = {model: {} for model in models}
        for name, item in self.sets.items():
            names = {group: n for n, group in enumerate(dict.fromkeys(item.groups))}
            groups = np.array([names[group] for group in item.groups])
            sizes = np.bincount(groups, weights=np.asarray(item.sizes, dtype=np.float64))
            tops = np.stack(
                [
                    np.bincount(groups, weights=np.asarray(losses[name], dtype=np.float64))
                    for losses in models.values()
                ],
                axis=1,
            )
            parts = []
            for start in range(0, self._num_resamples, _AT_ONCE):
                count = min(_AT_ONCE, self._num_resamples - start)
                seed = named_seed(self._seed, "bootstrap", name, str(start))
                counts = resample_counts(len(names), count, seed)
                parts.append(item.scale * (counts @ tops) / (counts @ sizes)[:, None])
            whole = np.concatenate(parts)
            for column, model in enumerate(models):
                drawn[model][name] = whole[:, column]
        return {
            model: {**self._by_role(found), **{f"set:{name}": found[name] for name in found}}
            for model, found in drawn.items()
        }

    def _by_role(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return {
            role: sum(share * found[name] for name, share in shares.items())
            for role, shares in self._shares.items()
        }


def final_figures(
    losses: Mapping[str, Mapping[str, Sequence[float]]], resampler: Resampler
) -> dict[str, Any]:
    """Figures on the test sets.

    Args:
        losses: by model (`general`, `specialist`, `merge`) and set, in the order of its items.
        resampler: of the test sets.

    Returns:
        For each model and role an interval, and its difference from the general model, and an
        interval for each set; `gain_kept`: share of the specialist's domain gain that the merge
        has; `loss_recovered`: share of the specialist's general loss that the merge does not have,
        or None where the specialist lost nothing.
    """
    points = {model: resampler.estimates(own) for model, own in losses.items()}
    draws = resampler.draws(losses)
    change = {m: {k: points[m][k] - points[GENERAL][k] for k in points[m]} for m in losses}
    moved = {m: {k: draws[m][k] - draws[GENERAL][k] for k in draws[m]} for m in losses}
    models: dict[str, Any] = {}
    for model in losses:
        row: dict[str, Any] = {}
        for role in ROLES:
            row[role] = asdict(percentile_interval(points[model][role], draws[model][role]))
            interval = percentile_interval(change[model][role], moved[model][role])
            row[f"{role}_change"] = asdict(interval)
        for key, part in (("sets", (points, draws)), ("set_changes", (change, moved))):
            row[key] = {
                name: asdict(
                    percentile_interval(
                        part[0][model][f"set:{name}"], part[1][model][f"set:{name}"]
                    )
                )
                for name in resampler.sets
            }
        models[model] = row
    return {
        "models": models,
        "gain_kept": _share(change, moved, "domain", sign=-1.0, complement=False),
        "loss_recovered": _share(change, moved, "general", sign=1.0, complement=True),
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
    estimate = sign * change[MERGE][role] / whole
    whole_draws = sign * moved[SPECIALIST][role]
    usable = whole_draws > 0.0
    draws = sign * moved[MERGE][role][usable] / whole_draws[usable]
    interval = percentile_interval(estimate, draws)
    if complement:
        interval = Interval(1.0 - interval.estimate, 1.0 - interval.high, 1.0 - interval.low)
    return asdict(interval)
