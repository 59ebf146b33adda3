"""A plan as plain values: what `plan.json` holds, and the table and the page are made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from toolkit.plan.cost import Origin, Work, bill, share_of_scratch
from toolkit.plan.devices import CPU, PRICES_DATED, Fleet
from toolkit.plan.evidence import Looked
from toolkit.plan.fit import Way
from toolkit.plan.settings import Setting
from toolkit.plan.surprise import Surprise
from toolkit.plan.verdict import Evidence, PlanVerdict

FORMAT = 1
"""Of `plan.json`; rises when a key changes its meaning."""


def verdict_values(
    verdict: PlanVerdict, evidence: Evidence, surprise: Surprise | None, looked: Looked
) -> dict[str, Any]:
    """The first question: is it the right tool."""
    return {
        "tool": verdict.tool,
        "is_sure": verdict.is_sure,
        "shift": verdict.shift,
        "needed_tokens": {"least": verdict.needed[0], "comfortable": verdict.needed[1]},
        "reasons": list(verdict.reasons),
        "what_would_change_it": list(verdict.changes),
        "evidence": asdict(evidence),
        "bits_per_byte": None if surprise is None else asdict(surprise),
        "words": {role: asdict(figures) for role, figures in looked.words.items()},
        "duplicate_fraction": looked.duplicate_fraction,
    }


def source_values(looked: Looked) -> list[dict[str, Any]]:
    """Sources with their amounts."""
    return [
        {
            **asdict(amount),
            "documents_read": looked.samples[name].read_documents,
            "bytes_read": looked.samples[name].read_bytes,
            "read_whole": looked.samples[name].whole,
            "duplicate_fraction": looked.samples[name].duplicate_fraction,
            "not_seen_because": looked.samples[name].why,
        }
        for name, amount in looked.amounts.items()
    ]


def stage_values(work: Sequence[Work]) -> list[dict[str, Any]]:
    """Stages with tokens, FLOPs and, where this machine was timed, seconds."""
    return [asdict(one) for one in work]


def memory_values(fleet: Fleet, ways: Sequence[Way]) -> dict[str, Any]:
    """Memory on one kind of devices, way by way."""
    return {
        "devices": fleet.text,
        "memory_bytes": fleet.device.memory_bytes,
        "ways": [
            {
                "name": way.name,
                "fits": way.fits,
                "fewest_devices": way.fewest,
                "total_bytes": way.memory.total,
                "peak_at": {"loss": "the loss", "backward": "backward's end"}[way.memory.moment],
                "parts_bytes": way.memory.parts(),
            }
            for way in ways
        ],
    }


def bill_values(work: Sequence[Work], fleet: Fleet, fits: bool) -> dict[str, Any]:
    """Hours and money on some devices."""
    device = fleet.device
    cost = bill(work, fleet)
    hours = cost.hours
    if device.name == CPU and work and all(w.seconds is not None for w in work):
        hours = sum(w.seconds or 0.0 for w in work) / 3600.0  # timed, so nothing to assume
    is_known = math.isfinite(hours)
    return {
        "devices": fleet.text,
        "fits": fits,
        "hours": hours if is_known else None,
        "dollars": cost.dollars if is_known and device.price else None,
        "price_per_hour": device.price,
        "utilization": device.utilization,
        "is_measured": device.is_measured,
    }


def scratch_values(
    origin: Origin | None, work: Sequence[Work], shape: Any, declared: float | None
) -> dict[str, Any] | None:
    """What all of it costs beside the first training, where its tokens are known."""
    tokens = declared if declared is not None else origin.tokens if origin is not None else None
    if tokens is None or shape is None or not work:
        return None
    source = "given" if declared is not None or origin is None else origin.source
    return {
        "tokens": tokens,
        "source": source if declared is not None else f"{source}, from memory: check",
        "share": share_of_scratch(work, shape, tokens),
        "article": "5 to 20 %",
    }


def setting_values(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Settings with the recipe's own values."""
    return [{**asdict(setting), "changes": setting.changes} for setting in settings]


ASSUMPTIONS = (
    f"prices: {PRICES_DATED}",
    "utilization of GPUs: assumed, not measured (--utilization)",
    "FLOPs: 6 for each parameter and token, attention over half of the sequence",
)
