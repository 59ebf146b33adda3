"""What a file loses against the merge it is a form of: the recipe's own test sets and behavior,
item by item, of what is in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from toolkit.checkpoint.load import load_causal_model
from toolkit.errors import EvaluationError
from toolkit.evaluate.cache import ScoreCache
from toolkit.evaluate.config import EvaluateSection
from toolkit.evaluate.load import load_sets, settle_scoring
from toolkit.evaluate.sets import EvaluationSet
from toolkit.library_errors import computing
from toolkit.machine import cache_folder, dtype_of
from toolkit.progress import progress
from toolkit.publish.material import Material
from toolkit.select.test_figures import ScoredTestSets
from toolkit.stage import content_hash
from toolkit.statistics.interval import Interval

Losses = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class FileLoss:
    """What a file loses on one test set.

    Attributes:
        name: of the set.
        unit: of the figures.
        merge: figure of the merge; lower is better.
        change: of the file from that, on the same items.
        limit: largest loss that is accepted; None of a set that is only watched, such as a
            divergence, whose share of next to nothing would mean nothing.
    """

    name: str
    unit: str
    merge: float
    change: Interval
    limit: float | None

    @property
    def fault(self) -> str | None:
        """What does not hold, where the loss is surely beyond the limit."""
        # The lower end of the interval: a loss that may be chance refuses nothing.
        if self.limit is None or self.change.low <= self.limit:
            return None
        return (
            f"{self.name}: loses {self.change.words(4, '+')} {self.unit}, and "
            f"{self.limit:.4f} is accepted (publish.gguf_tolerance)"
        )

    def as_record(self) -> dict[str, object]:
        change = self.change
        return {
            "unit": self.unit,
            "merge": self.merge,
            "change": {"estimate": change.estimate, "low": change.low, "high": change.high},
        }


class FileScorer:
    """Scores files against the merge, whose own scores are computed once, when a file first needs
    them: of one that holds the merge's own numbers nothing is asked.

    Args:
        material: whose merge it is.
        tolerance: largest loss, as a share of the merge's figure, or of answers where those are
            right or wrong.
    """

    def __init__(self, material: Material, tolerance: float) -> None:
        self._material = material
        self._tolerance = tolerance
        self._cache = ScoreCache(cache_folder() / "scores.jsonl")

    @cached_property
    def _section(self) -> EvaluateSection:
        # As the merge stage scored, so that its answers and scores are taken from the cache.
        return settle_scoring(self._material.recipe.evaluate, self._material.general)

    @cached_property
    def _sets(self) -> list[EvaluationSet]:
        return load_sets(self._section, self._material.data, self._material.general, "test")

    @cached_property
    def _merge(self) -> Losses:
        return self._losses(self._material.merged, "the merge")

    def losses_of(self, folder: Path, title: str) -> list[FileLoss]:
        """What the model in a folder loses, by set.

        Args:
            folder: of what the file holds.
            title: of the file, shown meanwhile.

        Raises:
            EvaluationError: a loss is not finite.
        """
        losses = {"merge": self._merge, "file": self._losses(folder, title)}
        return compare_losses(self._sets, losses, self._tolerance)

    def _losses(self, folder: Path, title: str) -> Losses:
        model: Any = load_causal_model(folder, dtype_of(self._section.precision))
        # The cache knows models by what they hold; the folder of an unpacked file soon vanishes.
        name = content_hash(folder)
        losses: dict[str, list[float]] = {}
        with progress(f"test sets of {title}", len(self._sets)) as advance:
            for items in self._sets:
                with computing(folder, EvaluationError, "cannot be scored"):
                    losses[items.name] = self._cache.score(model, name, items, together=self._sets)
                advance(1, items.name)
        return losses


def compare_losses(
    sets: Sequence[EvaluationSet], losses: Mapping[str, Losses], tolerance: float
) -> list[FileLoss]:
    """What changed from the first model to the second, by set.

    Args:
        sets: the test sets.
        losses: by model and set, in the order of items.
        tolerance: as of `FileScorer`.
    """
    figures = ScoredTestSets(sets, {}, losses)
    found = []
    for items in sets:
        # Models stand in the order of `losses`: 0 is the merge, 1 the file.
        level = figures.levels([items.name]).change(0).estimate
        limit = tolerance if items.is_bounded else tolerance * abs(level)
        found.append(
            FileLoss(
                name=items.name,
                unit=items.unit,
                merge=level,
                change=figures.changes([items.name]).change(1).interval(),
                limit=None if items.role == "watch" else limit,
            )
        )
    return found
