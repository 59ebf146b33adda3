"""The forgetting watch: when to look, and what to do about what is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toolkit.train.config import ForgettingMonitorSection

Watch = Callable[[Any], dict[str, float]]
"""Given the model, bits per byte by role: `domain` and `general`."""


def watch_steps(num_steps: int, evaluations: int) -> set[int]:
    """After how many steps to look: spread evenly, at the start and at the end.

    >>> sorted(watch_steps(10, 1))
    [0, 5, 10]
    """
    if evaluations == 0:
        return set()
    return {round(num_steps * part / (evaluations + 1)) for part in range(evaluations + 2)}


@dataclass(frozen=True)
class WatchVerdict:
    """What one look says.

    Attributes:
        figures: `domain_bits_per_byte` and `general_bits_per_byte`.
        rise: of general bits per byte against the start.
        beyond: whether that is more than the tolerance.
        text: for the terminal.
    """

    figures: dict[str, float]
    rise: float
    beyond: bool
    text: str


def judge(
    now: dict[str, float], start: dict[str, float], section: ForgettingMonitorSection
) -> WatchVerdict:
    """Compare a look with the first one."""
    rise = now["general"] - start["general"]
    beyond = rise > section.tolerance
    text = (
        f"bits per byte: domain {now['domain']:.4f} ({now['domain'] - start['domain']:+.4f}), "
        f"general {now['general']:.4f} ({rise:+.4f})"
    )
    if beyond:
        text += f", more than the tolerance of {section.tolerance:g}"
    return WatchVerdict({f"{role}_bits_per_byte": v for role, v in now.items()}, rise, beyond, text)


def is_better(verdict: WatchVerdict | None, best: dict[str, Any] | None) -> bool:
    """Whether a look is the best so far: lowest on the domain, of those within the tolerance."""
    if verdict is None or verdict.beyond:
        return False
    figure = "domain_bits_per_byte"
    return best is None or verdict.figures[figure] < float(best[figure])
