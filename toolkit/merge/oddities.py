"""What a configuration says that is probably not meant, and that changes nothing or little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.merge.parameters import ignored_parameters, parameter_places
from toolkit.merge.registry import get_method

if TYPE_CHECKING:
    from toolkit.merge.config import MergeConfig


def oddities(config: MergeConfig) -> Iterator[str]:
    """A line for each, at its key: parameters of other methods, models that are listed twice.

    Raises:
        ConfigError: the method is not known.
    """
    method = get_method(config.merge_method)
    yield from ignored_parameters(parameter_places(config.model_dump(exclude_none=True)), method)
    groups = [("models", config.models)]
    groups += [
        (f"modules.{key}.models", item.models) for key, item in (config.modules or {}).items()
    ]
    for where, models in groups:
        counts = Counter(item.model for item in models or ())
        for name, count in counts.items():
            if count > 1:
                yield (
                    f"{where}: {name} is listed {count} times, and counts as often; mergekit takes "
                    "one of them. Add up their weights, and list it once."
                )
