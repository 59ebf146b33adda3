"""Adapt a language model to a domain without losing the model.

The names below are the library's; `docs/python.md` shows them at work. Each is imported when it is
first asked for, so that `import toolkit` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "InitRequest": "toolkit.plan.new_recipe:InitRequest",
    "MergeResults": "toolkit.select.results:MergeResults",
    "Run": "toolkit.pipeline.run:Run",
    "ToolkitError": "toolkit.errors:ToolkitError",
    "choose_merge": "toolkit.pipeline.stages:choose_merge",
    "init_recipe": "toolkit.plan.new_recipe:init_recipe",
    "load_merge_config": "toolkit.merge.config:load_merge_config",
    "load_recipe": "toolkit.recipe.load:load_recipe",
    "prepare_data": "toolkit.pipeline.models:ensure_data",
    "read_results": "toolkit.select.results:read_results",
    "run_merge": "toolkit.merge.to_disk:run_merge",
    "score_models": "toolkit.evaluate.compare:run_evaluation",
    "train_specialist": "toolkit.pipeline.models:ensure_specialist",
}
"""Each public name, and the file and name that it stands for; `__init__.pyi` says it to types."""

__all__ = [
    "InitRequest",
    "MergeResults",
    "Run",
    "ToolkitError",
    "__version__",
    "choose_merge",
    "init_recipe",
    "load_merge_config",
    "load_recipe",
    "prepare_data",
    "read_results",
    "run_merge",
    "score_models",
    "train_specialist",
]


def __getattr__(name: str) -> Any:
    # Python asks here for every name that the module lacks, submodules not yet imported among them:
    # `from toolkit import merge` goes on to the folder only after an AttributeError.
    if name not in _PLACES:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    module_name, inner_name = _PLACES[name].split(":")
    return getattr(import_module(module_name), inner_name)


def __dir__() -> list[str]:
    return sorted(__all__)
