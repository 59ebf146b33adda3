"""Averages of checkpoints: the last states of a run, or whole model folders.

The mean of the last checkpoints of a constant learning rate comes near to, and foretells, what
annealing would make of them.

Reference:
    Kaddour 2022, Stop wasting my time! (LAWA, https://arxiv.org/abs/2209.14981); Li et al. 2025,
    Model merging in pre-training of large language models (PMA, https://arxiv.org/abs/2505.12082).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from toolkit.checkpoint.loadable import refuse_unloadable
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.read import TORCH_NAMES, Checkpoint, is_float
from toolkit.checkpoint.sharded_state import StateParameters
from toolkit.checkpoint.side_files import copy_side_files
from toolkit.checkpoint.training_state import state_folder
from toolkit.checkpoint.write import PlannedTensor, ShardWriter, tensor_bytes
from toolkit.errors import CheckpointError, ConfigError
from toolkit.stage import appearing, refuse_taken


def average_weights(count: int, decay: float | None = None) -> list[float]:
    """Weights that sum to one, oldest first.

    Args:
        count: of models.
        decay: how much each counts against the one after it; None for all alike.

    Raises:
        ConfigError: there is nothing to average, or the decay is not in (0, 1].

    >>> average_weights(4)
    [0.25, 0.25, 0.25, 0.25]
    >>> [round(weight, 3) for weight in average_weights(3, 0.5)]
    [0.143, 0.286, 0.571]
    """
    if count < 2:
        raise ConfigError(f"an average needs two models at least (got {count}).")
    if decay is not None and not 0.0 < decay <= 1.0:
        raise ConfigError(f"--decay: must be greater than 0 and at most 1 (got {decay:g}).")
    raw_weights = [(decay or 1.0) ** (count - 1 - model_number) for model_number in range(count)]
    return [weight / sum(raw_weights) for weight in raw_weights]


def parse_weights(text: str, count: int) -> list[float]:
    """Weights as given on the command line, divided by their sum.

    Raises:
        ConfigError: they are not as many numbers as models, or sum to nothing.

    >>> parse_weights("1,3", 2)
    [0.25, 0.75]
    """
    try:
        raw_weights = [float(part) for part in text.split(",")]
    except ValueError:
        raw_weights = []
    if len(raw_weights) != count or not all(
        abs(raw_weight) < float("inf") for raw_weight in raw_weights
    ):
        raise ConfigError(f"--weights: give {count} numbers with commas between (got {text!r}).")
    weight_sum = sum(raw_weights)
    if weight_sum == 0.0 or abs(weight_sum) == float("inf"):
        raise ConfigError(f"--weights: must not sum to zero or infinity (got {text!r}).")
    return [raw_weight / weight_sum for raw_weight in raw_weights]


def average_folders(folders: Sequence[Path], weights: Sequence[float], out: Path) -> int:
    """Average model folders into a new one; types and side files are those of the last.

    Returns:
        Number of tensors that were averaged.

    Raises:
        CheckpointError: the models have other tensors or shapes.
        MergeError: `out` is taken.
    """
    refuse_taken(out)
    models = [open_checkpoint(folder) for folder in folders]
    last_model = models[-1]
    for model in models[:-1]:
        for tensor_name in sorted({*last_model.names} ^ {*model.names}):
            model_with, model_without = (
                (last_model, model) if tensor_name in last_model else (model, last_model)
            )
            raise CheckpointError(
                f"{tensor_name}: {model_with.folder} has it and {model_without.folder} does not; "
                "only models of the same architecture can be averaged."
            )
    with appearing(out) as work:
        return _write_average(models, weights, last_model, work)


def average_states(
    states: Path, steps: Sequence[int], weights: Sequence[float], like: Path, work: Path
) -> int:
    """Average the parameters of kept states into a model folder.

    Args:
        states: folder of the states.
        steps: which of them.
        weights: of each, summing to one.
        like: the run's finished model: what did not learn is taken from it, and the types.
        work: an existing folder to write to.

    Raises:
        CheckpointError: a state is missing or damaged, or holds adapters.
    """
    opened_states = [StateParameters(state_folder(states, step)) for step in steps]
    finished_model = open_checkpoint(like)
    for tensor_name in opened_states[0].names:
        if tensor_name not in finished_model:
            raise CheckpointError(
                f"{opened_states[0].folder}: {tensor_name} is no tensor of the model: the mean of "
                "adapters' factors is not the mean of adapters. Average finished models instead."
            )
    for model_file in work.glob("model*.safetensors*"):  # by an earlier call that was killed
        model_file.unlink()
    return _write_average(opened_states, weights, finished_model, work)


def _write_average(
    models: Sequence[Checkpoint], weights: Sequence[float], like: Checkpoint, work: Path
) -> int:
    num_averaged = 0
    # One cast, into the type that the model is stored in, so that the mean is as large as it.
    planned_tensors = [PlannedTensor(n, like.info(n).dtype, like.info(n).shape) for n in like.names]
    with ShardWriter(work, planned_tensors) as writer:
        for tensor in planned_tensors:
            models_with = [model for model in models if tensor.name in model]
            # What did not learn (frozen parts, buffers) stands in no state.
            if not models_with:
                mean_tensor = like.tensor(tensor.name)
            elif len(models_with) < len(models):
                model_without = next(model for model in models if tensor.name not in model)
                raise CheckpointError(
                    f"{model_without.folder}: has no tensor {tensor.name}, others have."
                )
            else:
                mean_tensor = _mean(tensor, models, weights)
                num_averaged += 1
            writer.write(tensor.name, 0, tensor_bytes(mean_tensor))
            # At once: a mean of ten models would else fill memory with the pages of all of them.
            for model in (*models, like):
                if tensor.name in model:
                    model.give_back(tensor.name)
    shutil.copyfile(like.folder / "config.json", work / "config.json")
    copy_side_files(like.folder, work)
    refuse_unloadable(work, like.folder)
    return num_averaged


def _mean(tensor: PlannedTensor, models: Sequence[Checkpoint], weights: Sequence[float]) -> Tensor:
    """Float32 sums in the order of the models, and one cast."""
    for model in models:
        shape = model.info(tensor.name).shape
        if shape != tensor.shape:
            raise CheckpointError(
                f"{tensor.name}: is {list(shape)} in {model.folder}, elsewhere "
                f"{list(tensor.shape)}; only models of the same architecture can be averaged."
            )
    if not is_float(tensor.dtype):
        first_tensor = models[0].tensor(tensor.name)
        if not all(torch.equal(first_tensor, model.tensor(tensor.name)) for model in models[1:]):
            raise CheckpointError(f"{tensor.name}: holds integers that differ between the models.")
        return first_tensor
    weighted_sum = torch.zeros(tensor.shape, dtype=torch.float32)
    for model, weight in zip(models, weights, strict=True):
        weighted_sum.add_(model.tensor(tensor.name).float(), alpha=weight)
    return weighted_sum.to(getattr(torch, TORCH_NAMES[tensor.dtype]))
