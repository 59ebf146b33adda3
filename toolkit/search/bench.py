"""The bench that candidates are put on: merged in memory, on the processor they are scored on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from toolkit.merge.config import MergeConfig
from toolkit.merge.live import LiveMerge
from toolkit.search.space import GENERAL


def device_of(number: int) -> torch.device:
    """The processor of the worker of this number: one GPU each, in turn, where there are any."""
    count = torch.cuda.device_count()
    return torch.device("cuda", number % count) if count else torch.device("cpu")


class Bench:
    """Holds the models, and a model that merges of them are written into.

    Args:
        models: folders of `general` and `specialist`.
        loaded: a loaded model of their architecture, on the CPU; it is overwritten.
        seed: of random methods.
        device: where candidates are scored. Elsewhere than on the CPU a copy of the model stands
            there, and gets every merge.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        loaded: Any,
        *,
        seed: int,
        device: torch.device | None = None,
        copied: bool | None = None,
    ) -> None:
        self._live = LiveMerge(models, seed=seed)
        self._made = loaded
        device = device or torch.device("cpu")
        self._scored = loaded
        if copied if copied is not None else device.type != "cpu":
            import copy

            self._scored = copy.deepcopy(loaded).to(device)
        self.merge_seconds = 0.0

    @property
    def model(self) -> Any:
        """What is to be scored."""
        return self._scored

    @torch.no_grad()
    def apply(self, config: MergeConfig) -> None:
        """Make a merge.

        Raises:
            MergeError: the merge cannot be made.
        """
        began = time.perf_counter()
        self._live.apply(config, self._made)
        if self._scored is not self._made:
            # Parameters that stand under two names are one tensor in either model.
            pairs = zip(self._scored.parameters(), self._made.parameters(), strict=True)
            for there, here in pairs:
                there.copy_(here)
            for there, here in zip(self._scored.buffers(), self._made.buffers(), strict=True):
                there.copy_(here)
        self.merge_seconds += time.perf_counter() - began

    def distance(self) -> float:
        """Euclidean distance of the last merge from the general model."""
        distance = self._live.distance(self._made, GENERAL)
        return distance if math.isfinite(distance) else 0.0
