"""The bench that candidates are put on: merged in memory, on the processor they are scored on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import MergeError
from toolkit.evaluate.cache import ScoreCache, candidate_hash
from toolkit.evaluate.sets import EvaluationSet
from toolkit.merge.config import MergeConfig
from toolkit.merge.in_memory import LiveMerge
from toolkit.search.space import GENERAL, ONE_SPECIALIST, Candidate, alone, endpoint


def device_of(number: int) -> torch.device:
    """The processor of the worker of this number: one GPU each, in turn, where there are any."""
    num_gpus = torch.cuda.device_count()
    return torch.device("cuda", number % num_gpus) if num_gpus else torch.device("cpu")


class Bench:
    """Holds the models, and a model that merges of them are written into.

    Args:
        models: folders of `general` and `specialist`.
        loaded: a loaded model of their architecture, on the CPU; it is overwritten.
        seed: of random methods.
        device: where candidates are scored. Elsewhere than on the CPU a copy of the model stands
            there, and gets every merge.
        dtype: of the arithmetic that scores; the loaded model's by default. In another type a copy
            of the model is scored, whose numbers are those of the merge as it would be stored.
        copied: whether it is a copy even on the CPU.
        cache: of scores; none by default.
        parents: content hashes of the models, for the cache.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        loaded: Any,
        *,
        seed: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        copied: bool | None = None,
        cache: ScoreCache | None = None,
        parents: Mapping[str, str] | None = None,
    ) -> None:
        self._cache, self._parents, self._seed = cache, dict(parents or {}), seed
        self._live = LiveMerge(models, seed=seed)
        self._made = loaded
        device = device or torch.device("cpu")
        self._scored = loaded
        dtype = dtype or loaded.dtype
        if copied if copied is not None else device.type != "cpu" or dtype != loaded.dtype:
            import copy

            self._scored = copy.deepcopy(loaded).to(device=device, dtype=dtype)
        self.merge_seconds = 0.0
        self._beside: dict[tuple[str, str, int], float] = {}

    @torch.no_grad()
    def apply(self, config: MergeConfig) -> None:
        """Make a merge.

        Raises:
            MergeError: the merge cannot be made.
        """
        start_time = time.perf_counter()
        # What passes found for other sets beside is of the merge before.
        self._beside.clear()
        self._live.apply(config, self._made)
        if self._scored is not self._made:
            # Parameters that stand under two names are one tensor in either model.
            parameter_pairs = zip(self._scored.parameters(), self._made.parameters(), strict=True)
            for scored_tensor, made_tensor in parameter_pairs:
                scored_tensor.copy_(made_tensor)
            for scored_tensor, made_tensor in zip(
                self._scored.buffers(), self._made.buffers(), strict=True
            ):
                scored_tensor.copy_(made_tensor)
        self.merge_seconds += time.perf_counter() - start_time

    def score(
        self,
        candidate: Candidate,
        items: EvaluationSet,
        rows: Sequence[int],
        together: Sequence[EvaluationSet] = (),
    ) -> list[float]:
        """Losses of items under the last merge, which is this candidate's.

        Args:
            candidate: what was merged.
            items: the set.
            rows: indices of the items.
            together: sets that the same pass may score.

        Raises:
            EvaluationError: a loss is not finite.
        """
        if self._cache is None:
            return self._score(items, rows, together)
        name = self._name_for_cache(candidate)
        return self._cache.score(self._scored, name, items, rows, together=together)

    def _name_for_cache(self, candidate: Candidate) -> str:
        """By all that decides its scores: of a model as it stands neither the other models nor the
        seed, so that the general model is scored once for all specialists."""
        name = candidate.name
        if name in self._parents:
            # The others stand beside it with a weight of 0, or not at all.
            others = [other for other in candidate.config.model_names() if other != GENERAL]
            beside = endpoint(name, (others or ONE_SPECIALIST) if name == GENERAL else (name,))
            if candidate.config in (beside.config, alone(name).config):
                return candidate_hash({name: self._parents[name]}, "itself", 0)
        plain_config = candidate.config.model_dump(mode="json")
        return candidate_hash(self._parents, plain_config, self._seed)

    def _score(
        self, items: EvaluationSet, rows: Sequence[int], together: Sequence[EvaluationSet]
    ) -> list[float]:
        """Without a cache: what a pass finds for other sets beside is kept until the next merge."""
        known_losses = self._beside
        missing = [row for row in rows if (items.name, items.content_hash, row) not in known_losses]
        # One pass scores what hangs on the same texts, so what it finds for other sets is kept.
        if missing and items.score_together is not None:
            found_by_set = items.score_together(self._scored, missing)
        else:
            found_by_set = {items.name: items.score(self._scored, missing) if missing else []}
        for scored_set in (items, *together):
            for row, loss in zip(missing, found_by_set.get(scored_set.name, ()), strict=False):
                known_losses[scored_set.name, scored_set.content_hash, row] = loss
        return [known_losses[items.name, items.content_hash, row] for row in rows]

    def distance(self) -> float:
        """Euclidean distance of the last merge from the general model.

        Raises:
            MergeError: the merge holds what is no finite number.
        """
        distance = self._live.distance(self._made, GENERAL)
        if not math.isfinite(distance):
            raise MergeError(
                f"merge: its distance from the general model is {distance}, so it holds weights "
                "that are no finite numbers; lower the merge's weights, or look for damaged models."
            )
        return distance
