"""Averages of checkpoints: the last states of a run, or whole model folders.

The mean of the last checkpoints of a constant learning rate comes near to, and foretells, what
annealing would make of them.

Reference:
    Kaddour 2022, Stop wasting my time! (LAWA, https://arxiv.org/abs/2209.14981); Li et al. 2025,
    Model merging in pre-training of large language models (PMA, https://arxiv.org/abs/2505.12082).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from toolkit.checkpoint.folder import save_model, stored_dtype
from toolkit.checkpoint.load import load_causal_model
from toolkit.checkpoint.loadable import read_plain_config, refuse_unloadable
from toolkit.checkpoint.model_values import read_model_values
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.read import TORCH_NAMES, Checkpoint, is_float
from toolkit.checkpoint.sharded_state import StateParameters
from toolkit.checkpoint.side_files import copy_side_files
from toolkit.checkpoint.training_state import state_folder
from toolkit.checkpoint.write import PlannedTensor, ShardWriter, tensor_bytes
from toolkit.errors import CheckpointError, ConfigError, warn
from toolkit.load_yaml import JsonView
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
        CheckpointError: the models have other tensors, shapes or heads, or one is damaged.
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
    _compare_configs(folders)
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
    for model_file in work.glob("model*.safetensors*"):  # by an earlier call that was killed
        model_file.unlink()
    if all(tensor_name in finished_model for tensor_name in opened_states[0].names):
        return _write_average(opened_states, weights, finished_model, work)
    return _average_in_memory(opened_states, weights, like, work)


@torch.no_grad()
def _average_in_memory(
    states: Sequence[Checkpoint], weights: Sequence[float], like: Path, work: Path
) -> int:
    """Average states of a model whose files store it otherwise than memory holds it (the experts of
    a mixture, the text side of a wrapper): they are loaded into it, and it is saved."""
    model = load_causal_model(like, torch.float32)
    parameters = dict(model.named_parameters())
    for tensor_name in states[0].names:
        if tensor_name not in parameters:
            raise CheckpointError(
                f"{states[0].folder}: {tensor_name} is no tensor of the model: the mean of "
                "adapters' factors is not the mean of adapters. Average finished models instead."
            )
        parameter = parameters[tensor_name]
        mean_tensor = _mean(
            PlannedTensor(tensor_name, "F32", tuple(parameter.shape)), states, weights
        )
        parameter.copy_(mean_tensor)
        for state in states:
            state.give_back(tensor_name)
    save_model(model, work, dtype=stored_dtype(like), like=like)
    refuse_unloadable(work, like)
    return len(states[0].names)


_CUTS = {
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "partial_rotary_factor",
}
"""Keys that say how a tensor of the same shape is cut: the mean of two cuts is none."""

_SAYS_NOTHING = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}


def _compare_configs(folders: Sequence[Path]) -> None:
    """Refuse models whose tensors are cut otherwise, and warn of whatever else is not alike, such
    as the speed at which positions turn: what is written says what the last model's config says.

    Raises:
        CheckpointError: names the first such key.
    """
    *others, last = [(folder, _config_values(folder)) for folder in folders]
    last_folder, last_values = last
    for folder, values in others:
        differing_keys = [
            key
            for key in sorted({*values, *last_values})
            if values.get(key) != last_values.get(key) and key not in _SAYS_NOTHING
        ]
        if not differing_keys:
            continue
        cutting_keys = [key for key in differing_keys if key.rpartition(".")[2] in _CUTS]
        key = (cutting_keys or differing_keys)[0]
        difference = (
            f"{folder / 'config.json'}: {key} is {values.get(key)!r:.60}, in {last_folder} "
            f"{last_values.get(key)!r:.60}"
        )
        if cutting_keys:
            raise CheckpointError(
                f"{difference}; only models of the same architecture can be averaged."
            )
        rest = f", and {len(differing_keys) - 1} more values differ" if differing_keys[1:] else ""
        warn(f"{difference}{rest}; the average gets the latter, which its tensors may not suit.")


def _config_values(folder: Path) -> dict[str, object]:
    """The values of a config with their defaults, where transformers knows them, by whole keys."""
    values = read_model_values(folder)
    config = read_plain_config(values)
    return dict(_flat_values(values if config is None else config.to_dict()))


def _flat_values(values: JsonView, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat_values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
    mean_tensor = weighted_sum.to(getattr(torch, TORCH_NAMES[tensor.dtype]))
    if not bool(mean_tensor.float().isfinite().all()):
        for model in models:
            if not bool(model.tensor(tensor.name).float().isfinite().all()):
                raise CheckpointError(
                    f"{tensor.name}: holds NaN or infinity in {model.damaged_file(tensor.name)}; "
                    "the model is damaged: leave it out, or copy it again."
                )
        raise CheckpointError(
            f"{tensor.name}: the mean is larger than {tensor.dtype} can hold; give other weights."
        )
    return mean_tensor
