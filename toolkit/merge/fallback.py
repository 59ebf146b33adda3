"""Methods that only mergekit knows, such as those of its plugins: its own engine runs the merge."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

from toolkit.checkpoint.model_values import read_model_values
from toolkit.checkpoint.models import Models, Shapes, Source
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.references import parse_reference
from toolkit.errors import MergeError, did_you_mean
from toolkit.load_yaml import JsonObject
from toolkit.merge.config import MergeConfig
from toolkit.merge.loadable import refuse_unloadable_merge
from toolkit.merge.plan import MergePlan
from toolkit.merge.registry import Method, Place, all_methods
from toolkit.merge.task import TensorTask
from toolkit.stage import write_atomically


def needs_mergekit(name: str) -> bool:
    """Whether a method is unknown here and known to mergekit.

    mergekit takes seconds to load, so a name that is nearly one of ours is not asked for there.
    """
    ours = all_methods()
    if name in ours or did_you_mean(name, ours) or not importlib.util.find_spec("mergekit"):
        return False
    return _their_method(name) is not None


def merge_by_mergekit(
    config: MergeConfig, models: Models, work: Path, *, seed: int, shard_bytes: int
) -> MergePlan:
    """Let mergekit merge into a folder.

    Args:
        config: what to do; mergekit checks its parameters.
        models: where they stand.
        work: the folder to write into.
        seed: of random methods, for whose masks the order of visiting counts here.
        shard_bytes: most bytes in one file.

    Returns:
        The plan, with a task for every tensor that was written.

    Raises:
        MergeError: mergekit refuses; its reason is given.
    """
    plain_config = config.model_dump(mode="json", exclude_none=True)
    _run_theirs(plain_config, config, models, work, seed=seed, shard_bytes=shard_bytes)
    with write_atomically(work / "merge.yaml") as file:
        yaml.safe_dump(plain_config, file, sort_keys=False, allow_unicode=True)
    written_checkpoint = open_checkpoint(work)
    shapes = {name: written_checkpoint.info(name).shape for name in written_checkpoint.names}
    model_values = read_model_values(work, MergeError)
    refuse_unloadable_merge(model_values, shapes, models, config.model_names())
    return _describe_written(config, shapes)


def _run_theirs(
    plain_config: JsonObject,
    config: MergeConfig,
    models: Models,
    work: Path,
    *,
    seed: int,
    shard_bytes: int,
) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    merge_options = MergeOptions(
        quiet=True, random_seed=seed, out_shard_size=shard_bytes, write_model_card=False
    )
    try:
        theirs = MergeConfiguration.model_validate(replace_names(plain_config, config, models))
        run_merge(theirs, str(work), merge_options)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise MergeError(
            f"{config.merge_method}: mergekit refuses this merge ({error})."
        ) from error


def _describe_written(config: MergeConfig, shapes: Shapes) -> MergePlan:
    """A plan with a task for every tensor that mergekit wrote; what it did to each is its own."""
    model_names = config.model_names()
    tasks = tuple(
        TensorTask(
            name,
            shape,
            tuple(Source(model, name) for model in model_names),
            None,
            {},
            Place(name, None, 0),
        )
        for name, shape in shapes.items()
    )
    return MergePlan(_method(config.merge_method), tasks, {})


def replace_names(node: Any, config: MergeConfig, models: Models) -> Any:
    """The configuration with every model by its folder: names may be ours alone."""
    folders_by_name: dict[str, str] = {}
    for name in config.model_names():
        reference = parse_reference(name)
        adapter = reference.adapter
        model_name = name if adapter is None else name[: name.rindex(f"+{adapter.path}")]
        folders_by_name[name] = str(models.checkpoint(model_name).folder) + name[len(model_name) :]

    def fill(value: Any, key: str, above: str) -> Any:
        if isinstance(value, dict):
            return {name: fill(item, name, key) for name, item in value.items()}
        if isinstance(value, list):
            return [fill(item, key, above) for item in value]
        # Of a whole vocabulary, `base` and `union` are words, whatever a model is called.
        is_vocabulary = key == "tokenizer_source" or (above, key) == ("tokenizer", "source")
        if is_vocabulary and value in ("base", "union"):
            return value
        is_model = key in {"model", "base_model", "tokenizer_source", "source"}
        return folders_by_name.get(value, value) if is_model else value

    return fill(node, "", "")


def _their_method(name: str) -> Any:
    from mergekit import merge_methods

    try:
        return merge_methods.get(name)
    # So mergekit says that it does not know a method.
    except RuntimeError:
        return None


def _method(name: str) -> Method:
    def run_there(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{name} is mergekit's")

    return Method(
        name=name,
        function=run_there,
        reference=getattr(_their_method(name).spec, "reference_url", None) or "",
        parameters={},
        needs_base=False,
        accepts_base=True,
        is_random=False,
        needs_place=False,
        needs_thresholds=False,
        elementwise=False,
    )
