"""Where metrics go beside the log: what accelerate's trackers must be told, and asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from accelerate.utils import imports

from toolkit.errors import ConfigError
from toolkit.train.config import TrainSection

_INSTALLED = {
    "tensorboard": imports.is_tensorboard_available,
    "wandb": imports.is_wandb_available,
    "trackio": imports.is_trackio_available,
}


def check_trackers(names: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: one is not installed; accelerate would leave it out without a word.
    """
    for name in names:
        if not _INSTALLED[name]():
            raise ConfigError(
                f"train.trackers: {name} is not installed; pip install {name}, or leave it out "
                "(metrics.jsonl is written in any case)."
            )


def plain_settings(section: TrainSection, seed: int) -> dict[str, int | float | str | bool]:
    """The settings of a run, one level deep, since TensorBoard takes no other.

    >>> plain_settings(TrainSection(), 7)["schedule.peak_lr"]
    0.0002
    """
    return {"seed": seed, **dict(_flat(section.model_dump(mode="json"), ""))}


def _flat(
    values: Mapping[str, object], prefix: str
) -> Iterator[tuple[str, int | float | str | bool]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (bool, int, float, str)):
            yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", str(value)
