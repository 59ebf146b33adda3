"""The type of matrix products in training, settled once for all processes of a run."""

from __future__ import annotations

import torch

from toolkit.machine import Precision, choose_training_precision
from toolkit.section import replace_values
from toolkit.train.config import TrainSection
from toolkit.train.processes import from_first, is_first, num_processes, start_processes


def settle_precision(section: TrainSection) -> TrainSection:
    """The section with `bf16` or `fp32` in place of `auto`.

    Processes that train together must multiply in one type, and a measurement may fall out
    differently on each of them: the first process decides.

    Args:
        section: as in the recipe, or settled already.

    Raises:
        ConfigError: the device cannot multiply in the type that was asked for.
    """
    if section.precision != "auto":
        if is_first():
            choose_training_precision(section.precision)  # granted with a line where it is slow
        return section
    # The others only need a type until they are told; a measurement of theirs would be thrown away.
    precision: Precision = choose_training_precision("auto") if is_first() else "fp32"
    if num_processes() > 1:
        start_processes()
    precision = from_first(precision)
    return replace_values(section, precision=precision)


def is_low(section: TrainSection) -> bool:
    """Whether a settled section multiplies in bfloat16."""
    if section.precision == "auto":
        raise ValueError("precision: auto must be settled before it is computed with")
    return section.precision == "bf16"


def products_dtype(section: TrainSection) -> torch.dtype:
    """Type of the products of a settled section."""
    return torch.bfloat16 if is_low(section) else torch.float32


def precision_on(section: TrainSection, device: str) -> TrainSection:
    """The section as it would be settled on a kind of device that need not be here.

    Args:
        section: as in the recipe.
        device: `CPU`, which is this machine's; or the name of a GPU, which is taken to be one with
            bfloat16, as those of the table are.
    """
    if section.precision != "auto":
        return section
    precision = choose_training_precision("auto", "cpu") if device == "CPU" else "bf16"
    return replace_values(section, precision=precision)
