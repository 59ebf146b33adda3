"""Results of a made-up comparison of ways."""

from __future__ import annotations

from typing import Any

from tests.helpers.outcomes import interval
from toolkit.compare.results import ComparisonResults

SEEDS = (3, 4, 5)
KINDS = {"none": "", "plain": " + plain mean", "search": " + search"}
WAYS: dict[str, dict[str, tuple[float, float, float]]] = {
    "as-it-stands": {"none": (1.0, 0.28, 0.10), "plain": (0.76, 0.06, 0.03)},
    "low-rate": {"none": (0.7, 0.10, 0.08), "search": (0.62, 0.07, 0.05)},
    "stay-near": {"none": (0.98, 0.08, 0.02), "plain": (0.95, 0.04, 0.01)},
}
"""Gain kept, loss of answers and rise of broken instructions, by way and merge."""

LINE = {0.2: (0.3, 0.01), 0.4: (0.68, 0.05), 0.6: (0.9, 0.13), 0.8: (1.02, 0.21), 1.0: (1.0, 0.28)}


def make_comparison(**changes: Any) -> ComparisonResults:
    """Three ways over three seeds; one lies above the line, one below it."""
    return ComparisonResults.model_validate({**_values(), **changes})


def _standing(title: str, change: float, on_answers: bool) -> dict[str, Any]:
    nowhere = {"change": interval(change), "distance": None, "standing": None}
    if not on_answers:
        return nowhere
    above, below = title.startswith("stay-near"), title.startswith("low-rate")
    distance = interval(0.2 if above else -0.2 if below else 0.0, 0.05)
    standing = "above" if above else "below" if below else "on"
    return {**nowhere, "distance": distance, "standing": standing}


def _way(name: str, kind: str, kept: float, answers: float, broken: float) -> dict[str, Any]:
    title = name + KINDS[kind]
    changes = {"filings": -0.15 * kept, "retention": answers, "instructions broken": broken}
    return {
        "way": name,
        "merge": kind,
        "title": title,
        "domain_change": interval(-0.15 * kept),
        "gain_kept": interval(kept, 0.04),
        "sets": {
            set_name: _standing(title, change, set_name == "retention")
            for set_name, change in changes.items()
        },
        "seeds": {
            str(seed): {
                "candidate": "specialist" if kind == "none" else "linear alpha=0.4875",
                "domain_change": -0.15 * kept,
                "gain_kept": kept,
                "set_changes": changes,
            }
            for seed in SEEDS
        },
    }


def _values() -> dict[str, Any]:
    rows = (("filings", "domain"), ("retention", "general"), ("instructions broken", "general"))
    costs = {
        "trained_tokens": 98_659.0,
        "train_seconds": 486.0,
        "written_tokens": None,
        "searched_tokens": 140_000.0,
        "search_seconds": 212.0,
        "healed_tokens": None,
        "heal_seconds": None,
    }
    return {
        "recipe": "finance",
        "description": "Ways made up",
        "command": "toolkit compare finance --seeds 3",
        "reference": "as-it-stands",
        "seeds": SEEDS,
        "confidence": 0.95,
        "domain_unit": "bits per byte",
        "sets": [
            {
                "name": name,
                "role": role,
                "unit": "bits per byte" if name == "filings" else "nats per token",
                "num_items": 43,
                "num_groups": 43,
                "has_line": name == "retention",
                "specialist_change": interval(0.28),
            }
            for name, role in rows
        ],
        "ways": [
            {"name": name, "note": "", "settings": {}, "trains_as": None, "costs": costs}
            for name in WAYS
        ],
        "figures": [
            _way(name, kind, *figures)
            for name, by_kind in WAYS.items()
            for kind, figures in by_kind.items()
        ],
        "line": [
            {
                "alpha": alpha,
                "domain_change": interval(-0.15 * kept),
                "gain_kept": interval(kept, 0.03),
                "set_changes": {
                    "filings": interval(-0.15 * kept),
                    "retention": interval(answers),
                    "instructions broken": interval(0.1 * alpha),
                },
            }
            for alpha, (kept, answers) in LINE.items()
        ],
        "remarks": ["Each interval holds by itself with 95%."],
        "test_scorings": 2,
    }
